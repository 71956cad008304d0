"""Fully connected networks for small pictures: many steps a second on a CPU, where convolutions are slow.

Generator: z -> fully connected layers with batch normalisation and ReLU -> [w, S/4, S/4] -> transposed convolution to
S/2 -> 3x3 convolution to the image's channels -> bilinear doubling -> tanh. The doubling at the end keeps pictures as
smooth as their half size allows, which a critic without convolutions would not ask for.
Critic: the pixels, then fully connected layers with leaky ReLU of slope 0.2, no normalisation, one logit.

The generative networks of Goodfellow et al. 2014 (arXiv:1406.2661), section 5, were of this kind. Layers keep
PyTorch's initialisation, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.sizes import at_least_one, levels, per_image
from fastgan.nn import ConditionalBatchNormAct1d, ConditionalBatchNormAct2d, ConditionalSequential, fuse


@dataclass(frozen=True)
class Dense:
    """Options of the fully connected networks.

    generator_layers: units of the generator's hidden layers
    generator_width:  channels at S/4; half as many at S/2
    critic_stem:      channels of a strided convolution before the critic's hidden layers (0: none)
    critic_layers:    units of the critic's hidden layers
    """

    generator_layers: tuple[int, ...] = (256, 256)
    generator_width: int = 16
    critic_stem: int = 16
    critic_layers: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        at_least_one("Dense", generator_width=self.generator_width)
        if self.critic_stem < 0:
            raise FastganError(f"Dense: critic_stem must be 0 or more, got {self.critic_stem}")
        for name in ("generator_layers", "critic_layers"):
            layers = getattr(self, name)
            if not layers:
                raise FastganError(f"Dense: {name} needs at least one entry, such as {name}=[256]")
            at_least_one("Dense", **{f"{name}[{i}]": units for i, units in enumerate(layers)})

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        """z [N, latent] -> [N, C, S, S] in (-1, 1). FastganError for sizes that are not 16, 32 or 64."""
        levels("Dense", image, 16, 64)
        return fuse(Generator(latent, self.generator_layers, self.generator_width, image))

    def labelled_generator(self, image: ImageShape, latent: int) -> nn.Module:
        """(z [N, latent], labels [N]) -> [N, C, S, S]: conditional batch normalisation. FastganError as generator."""
        levels("Dense", image, 16, 64)
        return fuse(Generator(latent, self.generator_layers, self.generator_width, image, classes=image.classes))

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N] or [N, outputs]. FastganError for sizes that are not 16, 32 or 64."""
        levels("Dense", image, 16, 64)
        return Critic(image, self.critic_stem, self.critic_layers, outputs)


class Generator(nn.Module):
    """z [N, latent] -> images [N, C, S, S] in (-1, 1); with `classes` (z, labels [N]), the norms conditional."""

    def __init__(
        self, latent: int, layers: tuple[int, ...], width: int, image: ImageShape, *, classes: int = 0
    ) -> None:
        super().__init__()
        quarter, half_width = image.size // 4, max(width // 2, 1)
        row = ConditionalSequential if classes else nn.Sequential
        trunk: list[nn.Module] = []
        for before, units in pairwise((latent, *layers)):
            trunk += [nn.Linear(before, units, bias=False), *_norm_act(units, classes, vectors=True)]
        self.trunk = row(*trunk, nn.Linear(layers[-1], width * quarter**2, bias=False))
        self.to_picture = row(
            nn.Unflatten(1, (width, quarter, quarter)),
            *_norm_act(width, classes),
            nn.ConvTranspose2d(width, half_width, 4, stride=2, padding=1, bias=False),
            *_norm_act(half_width, classes),
            nn.Conv2d(half_width, image.channels, 3, padding=1),
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        given = () if labels is None else (labels,)
        half = self.to_picture(self.trunk(z, *given), *given)
        return torch.tanh(interpolate(half, scale_factor=2.0, mode="bilinear", align_corners=False))


def _norm_act(width: int, classes: int, *, vectors: bool = False) -> list[nn.Module]:
    """Batch normalisation, conditional where there are classes, and ReLU."""
    if classes:
        return [(ConditionalBatchNormAct1d if vectors else ConditionalBatchNormAct2d)(width, classes)]
    return [nn.BatchNorm1d(width) if vectors else nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


class Critic(nn.Module):
    """x [N, C, S, S] -> logits [N] or [N, outputs]."""

    def __init__(self, image: ImageShape, stem: int, layers: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        inputs = image.channels * image.size**2
        if stem:
            hidden += [nn.PixelUnshuffle(2), nn.Conv2d(4 * image.channels, stem, 4, stride=2, padding=1)]
            hidden += [nn.LeakyReLU(0.2, inplace=True)]
            inputs = stem * (image.size // 4) ** 2
        hidden += [nn.Flatten()]
        for before, units in pairwise((inputs, *layers)):
            hidden += [nn.Linear(before, units), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*hidden, nn.Linear(layers[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return per_image(self.layers(x))
