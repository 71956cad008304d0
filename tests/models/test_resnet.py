"""The residual networks of spectral-norm GANs against the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu

from fastgan.contract import ImageShape
from fastgan.models import ResNet
from fastgan.models.resnet import DownBlock, UpBlock


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_32_pixels():
    networks, image = ResNet(), ImageShape(3, 32)
    # linear 128 * 4096 + 4096 = 528,384; three blocks of two norms (512 each), two 3x3 (590,080 each) and one
    # 1x1 convolution (65,792); norm 512; image 256 * 3 * 9 + 3 = 6,915
    assert count(networks.generator(image, 128)) == 528_384 + 3 * 1_246_976 + 512 + 6_915
    # blocks: 3,584 + 147,584 + 512; 2 * 147,584 + 16,512; twice 2 * 147,584; linear 129
    assert count(networks.critic(image)) == 151_680 + 311_680 + 2 * 295_168 + 129


@pytest.mark.parametrize(
    ("size", "halvings", "widths"),
    [(32, 2, [64, 128, 128, 128]), (128, 5, [64, 128, 256, 512, 1024, 1024])],
)
def test_critic_blocks_and_widths(size: int, halvings: int, widths: list[int]):
    """128 pixels: the published 64, 128, ..., 1024 and one block more that keeps the size."""
    with torch.device("meta"):
        critic = ResNet(critic_width=64, critic_max_width=1024).critic(ImageShape(3, size))
    assert [block.conv2.out_channels for block in critic.blocks] == widths
    assert [block.pool for block in critic.blocks] == [True] * halvings + [False] * (len(widths) - halvings)
    assert [block.pixels for block in critic.blocks] == [True] + [False] * (len(widths) - 1)


def test_generator_widths():
    """128 pixels: from 1024 at 4x4 over 1024, 512, ..., 64 as published."""
    with torch.device("meta"):
        generator = ResNet(generator_width=64, generator_max_width=1024).generator(ImageShape(3, 128), 128)
    assert generator.start.out_features == 16 * 1024
    assert [block.conv2.out_channels for block in generator.blocks] == [1024, 512, 256, 128, 64]


def test_generator_starts_channels_last():
    generator = ResNet(4, 8, 4, 8).generator(ImageShape(3, 32), 5)
    seen: list[Tensor] = []
    generator.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z = torch.randn(3, 5)
    generator(z)
    assert seen[0].shape == (3, 8, 4, 4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(seen[0].permute(0, 2, 3, 1).flatten(1), generator.start(z))


def test_up_block_is_the_published_one():
    torch.manual_seed(0)
    block, x = UpBlock(6, 4), torch.randn(3, 6, 5, 5)
    nearest = {"scale_factor": 2.0, "mode": "nearest"}
    y = block.conv1(interpolate(relu(block.norm1(x)), **nearest))
    y = block.conv2(relu(block.norm2(y)))
    torch.testing.assert_close(block(x), y + block.skip(interpolate(x, **nearest)))


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_down_block_is_the_published_one(pixels: bool, pool: bool):
    torch.manual_seed(0)
    block, x = DownBlock(6, 4, pool=pool, pixels=pixels), torch.randn(3, 6, 8, 8)
    before = x.clone()
    y = block.conv2(relu(block.conv1(x if pixels else relu(x))))
    wanted = y + block.skip(x)
    torch.testing.assert_close(block(x), avg_pool2d(wanted, 2) if pool else wanted)
    assert torch.equal(x, before)  # in-place activations stay inside the block


def test_block_that_changes_nothing_has_a_plain_skip():
    assert isinstance(DownBlock(4, 4, pool=False).skip, nn.Identity)
    assert isinstance(DownBlock(4, 4).skip, nn.Conv2d)


def test_critic_sums_over_pixels():
    critic = ResNet(4, 4, 4, 4).critic(ImageShape(3, 32)).eval()
    x = torch.randn(2, 3, 32, 32)
    features = relu(critic.blocks(x))
    assert features.shape == (2, 4, 8, 8)
    torch.testing.assert_close(critic(x), critic.to_logit(features.sum((2, 3))).flatten())


def test_spectral_norm_of_every_weight():
    torch.manual_seed(0)
    critic = ResNet(8, 8, 8, 16).critic(ImageShape(3, 32))
    x = torch.randn(4, 3, 32, 32)
    for _ in range(200):
        critic(x)
    critic.eval()
    before = critic(x)
    layers = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 11  # four blocks of two convolutions, two skips, one linear layer
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=5e-3)
        layer.parametrizations.weight.original.data *= 10
    torch.testing.assert_close(critic(x), before)


def test_initialisation():
    """Xavier: std sqrt(2 gain^2 / (fan_in + fan_out)), gain sqrt(2) in residual branches; biases 0."""
    torch.manual_seed(0)
    block = UpBlock(64, 64)
    assert block.conv1.weight.std().item() == pytest.approx(math.sqrt(4 / (2 * 576)), rel=0.02)
    assert block.skip.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert not block.conv1.bias.any()
