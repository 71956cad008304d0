"""R3GAN against the paper's parameter counts, its initialisation, and its resampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, leaky_relu

from fastgan.contract import ImageShape
from fastgan.models import R3GAN
from fastgan.models.r3gan import Basis, DownTransition, ResidualBlock, Stage, UpTransition

F64 = torch.float64


@pytest.mark.parametrize(
    ("size", "generator", "critic"),
    [(32, "20.73", "20.68"), (64, "22.43", "22.38"), (256, "23.06", "23.01")],
)
def test_parameter_counts_of_table_9(size: int, generator: str, critic: str):
    """Millions, of the unconditional networks of arXiv:2501.05441, latent 64."""
    image = ImageShape(3, size)
    with torch.device("meta"):
        networks = R3GAN().generator(image, 64), R3GAN().critic(image)
    millions = [f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}" for module in networks]
    assert millions == [generator, critic]


def test_groups_of_table_9():
    with torch.device("meta"):
        generator = R3GAN().generator(ImageShape(3, 256), 64)
    groups = [layer.mix.groups for layer in generator.layers if isinstance(layer, ResidualBlock)]
    assert groups == [96] * 8 + [48] * 2 + [24] * 2 + [12] * 2


def test_residual_block_formula():
    torch.manual_seed(0)
    block = ResidualBlock(Stage(width=4, blocks=1, inner=8, groups=2), depth=3).to(F64)
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 4, 5, 5, dtype=F64)
    y = leaky_relu(conv2d(x, block.widen.weight, block.widen.bias), 0.2)
    y = leaky_relu(conv2d(y, block.mix.weight, block.mix.bias, padding=1, groups=2), 0.2)
    torch.testing.assert_close(block(x), x + conv2d(y, block.narrow.weight))
    assert block.narrow.bias is None


def test_fixup():
    """Blocks start as the identity, and behind their two scaled convolutions the second moment is 1/L of x's."""
    torch.manual_seed(0)
    depth = 16
    block = ResidualBlock(Stage(width=64, blocks=1, inner=128, groups=8), depth)
    x = torch.randn(8, 64, 16, 16)
    assert torch.equal(block(x), x)
    assert not block.widen.bias.any()
    y = leaky_relu(block.widen(x), 0.2)
    y = leaky_relu(block.mix(y)[..., 1:-1, 1:-1], 0.2)  # without the rim, where zero padding takes some away
    assert y.square().mean().item() == pytest.approx(1 / depth, rel=0.15)


@pytest.mark.parametrize("size", [16, 128])
def test_scale_is_kept_through_the_depth(size: int):
    torch.manual_seed(0)
    networks = R3GAN(widths=(128, 128, 96, 64, 64, 64), blocks=(2,) * 6)
    generator, critic = networks.generator(ImageShape(3, size), 64), networks.critic(ImageShape(3, size))
    with torch.no_grad():
        first = generator.basis(torch.randn(16, 64))
        images = generator.to_image(generator.layers(first))
        white = critic.from_image(torch.randn(16, 3, size, size))
    assert first.square().mean().item() == pytest.approx(1, rel=0.25)
    assert 0.3 < images.std() < 1.5  # bilinear upsampling of a 4x4 map smooths, and takes no more than that
    assert white.square().mean().item() == pytest.approx(1, rel=0.5)


def test_basis_scales_its_maps_and_is_channels_last():
    basis, z = Basis(latent=5, width=6), torch.randn(3, 5)
    wanted = torch.einsum("nl,cl,hwc->nchw", z, basis.scale.weight, basis.maps)
    torch.testing.assert_close(basis(z), wanted)
    assert basis(z).is_contiguous(memory_format=torch.channels_last)


def test_depth_counts_every_block_of_the_network():
    torch.manual_seed(0)
    networks = R3GAN(widths=(128, 128, 128), blocks=(3, 1, 4))
    for module in (networks.generator(ImageShape(3, 16), 8), networks.critic(ImageShape(3, 16))):
        for block in [layer for layer in module.layers if isinstance(layer, ResidualBlock)]:
            wanted = math.sqrt(2 / 1.04 / 128) * 8**-0.25  # leaky ReLU's gain over the root of fan-in 128
            assert block.widen.weight.std().item() == pytest.approx(wanted, rel=0.015)


def up(channels: int) -> UpTransition:
    return UpTransition(channels, channels).to(F64)


def down(channels: int) -> DownTransition:
    return DownTransition(channels, channels).to(F64)


def test_resampling_keeps_constants():
    x = torch.full((1, 2, 8, 8), 0.7, dtype=F64)
    torch.testing.assert_close(up(2)(x), torch.full((1, 2, 16, 16), 0.7, dtype=F64))
    torch.testing.assert_close(down(2)(x), torch.full((1, 2, 4, 4), 0.7, dtype=F64))


def test_downsampling_is_a_quarter_of_upsamplings_transpose():
    small, large = torch.randn(2, 3, 4, 4, dtype=F64), torch.randn(2, 3, 8, 8, dtype=F64)
    torch.testing.assert_close((up(3)(small) * large).sum(), 4 * (small * down(3)(large)).sum())


def test_bilinear_weights():
    """An impulse becomes (1, 3, 3, 1)/4 upwards; a row of four weighs (1, 3, 3, 1)/8 downwards."""
    impulse = torch.zeros(1, 1, 8, 8, dtype=F64)
    impulse[..., 3, 3] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=F64)
    torch.testing.assert_close(up(1)(impulse)[0, 0, 5:9, 5:9], torch.outer(taps, taps) / 16)
    assert down(1)(impulse)[0, 0, 1:3, 1:3].flatten().tolist() == [9 / 64, 3 / 64, 3 / 64, 1 / 64]


def test_transitions_commute_with_their_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=F64)
    wider, narrower = UpTransition(4, 6).to(F64), DownTransition(4, 6).to(F64)
    bilinear = interpolate(x, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(wider(x), wider.conv(bilinear))
    torch.testing.assert_close(narrower(x), down(6)(narrower.conv(x)))
    assert isinstance(up(4).conv, nn.Identity)


def test_checkpoints_hold_parameters_only():
    critic = R3GAN((16, 16), (1, 1)).critic(ImageShape(3, 8))
    assert set(critic.state_dict()) == dict(critic.named_parameters()).keys()
    assert "layers.1.kernel" in dict(critic.named_buffers())
