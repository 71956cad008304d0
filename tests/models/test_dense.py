"""Fully connected networks: shapes, smoothness, sizes that they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models import Dense


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", [0, 8])
def test_shapes(size: int, channels: int, stem: int) -> None:
    networks, image = Dense((32,), 8, stem, (16, 16)), ImageShape(channels, size)
    generator, critic = networks.generator(image, 5), networks.critic(image)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() < 1
    assert critic(images).shape == (3,)


def test_parameters_by_hand() -> None:
    networks, image = Dense((32,), 8, 4, (16,)), ImageShape(1, 16)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    trunk = 5 * 32 + 2 * 32 + 32 * 8 * 16
    picture = 2 * 8 + 8 * 4 * 16 + 2 * 4 + (4 * 9 + 1)
    assert count(networks.generator(image, 5)) == trunk + picture
    stem = 4 * 4 * 16 + 4
    assert count(networks.critic(image)) == stem + (4 * 16 * 16 + 16) + (16 + 1)


def test_pictures_are_as_smooth_as_half_their_size_allows() -> None:
    """Bilinear doubling puts two pixels on each straight piece: a kink is shared by the pixels beside it."""
    generator = Dense((32,), 8, 0, (16,)).generator(ImageShape(1, 16), 5)
    pictures = torch.atanh(generator(torch.randn(2, 5)).double())
    second = pictures.diff(n=2, dim=3)[..., 1:-1]
    assert torch.allclose(second[..., 0::2].abs(), second[..., 1::2].abs(), atol=1e-3), "kinks come in equal pairs"


def test_no_normalisation_in_the_critic() -> None:
    """So that a gradient penalty is per sample: a sample's logit does not depend on the others."""
    critic = Dense().critic(ImageShape(1, 32))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())
    x = torch.randn(4, 1, 32, 32)
    assert torch.allclose(critic(x)[:1], critic(x[:1]), atol=1e-6)


@pytest.mark.parametrize("size", [8, 20, 128])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(FastganError, match=str(size)):
        Dense().generator(ImageShape(1, size), 5)


@pytest.mark.parametrize(
    "options",
    [{"generator_layers": ()}, {"critic_layers": (0,)}, {"generator_width": 0}, {"critic_stem": -1}],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(FastganError, match=next(iter(options))):
        Dense(**options)  # type: ignore[arg-type]
