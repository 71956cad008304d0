"""The DCGAN networks against the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.contract import ImageShape
from fastgan.models import DCGAN


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_pytorch_example():
    """nz = 100, ngf = ndf = 64, nc = 3, 64x64."""
    image = ImageShape(3, 64)
    assert count(DCGAN().generator(image, 100)) == 3_576_704
    assert count(DCGAN().critic(image)) == 2_765_568


def test_same_function_as_the_published_layers():
    torch.manual_seed(0)
    networks = DCGAN(generator_width=4, critic_width=4)
    generator, critic = networks.generator(ImageShape(3, 32), 10), networks.critic(ImageShape(3, 32))
    published_generator = nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    published_critic = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(4, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False), nn.Flatten(0),
    )  # fmt: skip
    for ours, published in ((generator, published_generator), (critic, published_critic)):
        weights = zip(published.state_dict(), ours.state_dict().values(), strict=True)
        published.load_state_dict(dict(weights))
    z, x = torch.randn(5, 10), torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(generator(z), published_generator(z[:, :, None, None]))
    torch.testing.assert_close(critic(x), published_critic(x))


@pytest.mark.parametrize(
    ("options", "size", "widths"),
    [
        ({}, 64, [512, 256, 128, 64]),
        ({"generator_width": 16, "critic_width": 16}, 16, [32, 16]),
        ({}, 512, [1024, 1024, 1024, 512, 256, 128, 64]),
        ({"max_width": 100}, 64, [100, 100, 100, 64]),
    ],
)
def test_widths(options: dict[str, int], size: int, widths: list[int]):
    with torch.device("meta"):
        generator = DCGAN(**options).generator(ImageShape(3, size), 100)
        critic = DCGAN(**options).critic(ImageShape(3, size))
    assert [block.conv.out_channels for block in generator.blocks] == widths
    assert [block.conv.out_channels for block in critic.blocks] == widths[::-1]


def test_initialisation():
    torch.manual_seed(0)
    image = ImageShape(3, 64)
    for norm in ("batch", "none"):
        networks = DCGAN(generator_norm=norm, critic_norm=norm)
        for module in (networks.generator(image, 100), networks.critic(image)):
            for layer in module.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.weight.numel() > 10_000:
                    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
                    assert layer.weight.mean().item() == pytest.approx(0, abs=5e-4)
                if isinstance(layer, nn.BatchNorm2d):
                    assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
                    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
                if getattr(layer, "bias", None) is not None:
                    assert not layer.bias.any()


def test_norms():
    image = ImageShape(3, 32)

    def has(module: nn.Module, kind: type[nn.Module]) -> bool:
        return any(isinstance(m, kind) for m in module.modules())

    batch, none, spectral = (DCGAN(8, 8, critic_norm=norm).critic(image) for norm in ("batch", "none", "spectral"))
    assert has(batch, nn.BatchNorm2d)
    assert not has(none, nn.BatchNorm2d)
    assert not has(spectral, nn.BatchNorm2d)
    assert batch.blocks[0].conv.bias is None
    assert "norm" not in dict(batch.blocks[0].named_children())  # the first layer has none, as published
    assert none.blocks[0].conv.bias is not None
    bare = DCGAN(8, 8, generator_norm="none").generator(image, 10)
    assert not has(bare, nn.BatchNorm2d)
    assert bare.blocks[0].conv.bias is not None


def test_spectral_norm_takes_the_weights_scale_away():
    torch.manual_seed(0)
    critic = DCGAN(8, 8, critic_norm="spectral").critic(ImageShape(3, 32))
    x = torch.randn(4, 3, 32, 32)
    for _ in range(200):
        critic(x)
    critic.eval()
    before = critic(x)
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=5e-3)
        layer.parametrizations.weight.original.data *= 10
    torch.testing.assert_close(critic(x), before)


def test_generator_ends_in_tanh():
    generator = DCGAN(4, 4).generator(ImageShape(1, 16), 8)
    nn.init.constant_(generator.to_image.conv.weight, 100.0)
    assert generator(torch.randn(4, 8)).abs().max() == 1
