"""R3GAN (Huang et al. 2024, arXiv:2501.05441, section 3, Config E): residual networks without normalisation.

Generator and critic mirror each other. Each resolution has residual blocks and, between resolutions, a
transition: bilinear resampling and, where the width changes, a 1x1 convolution. A block widens, mixes space
and narrows again:

    x -> conv1x1 -> leaky ReLU -> grouped conv3x3 -> leaky ReLU -> conv1x1 (no bias) -> + x

with leaky ReLU of slope 0.2. The generator starts from learned 4x4 feature maps, one per channel, each scaled
by a linear function of z, and ends in a 1x1 convolution; the critic starts with a 1x1 convolution and ends in
a depthwise 4x4 convolution and a linear layer. Only the first two convolutions of a block have biases.

Initialisation (fixup, Zhang et al. 2019, arXiv:1901.09321): the last convolution of a block is zero, so that
every block starts as the identity; its other two are scaled by L^(-1/4), L being the network's number of
blocks.

Published settings (table 9), all with latent 64, Adam beta1 = 0, relativistic pairs with R1 and R2, x-flips
and augmentation; arrows are cosine schedules over the burn-in (the 32x32 networks were class-conditional):

                       32x32 (CIFAR-10)   64x64 (FFHQ)       256x256 (FFHQ)
    widths from 4x4    768 x 4            768 x 4, 384       768 x 4, 384, 192, 96
    gamma of R1, R2    0.05 -> 0.005      2 -> 0.2           150 -> 15
    learning rate      2e-4 -> 5e-5       2e-4 -> 5e-5       2e-4 -> 5e-5
    Adam beta2         0.9 -> 0.99        0.9 -> 0.99        0.9 -> 0.99
    EMA half-life      0 -> 5 Mimg        0 -> 0.5 Mimg      0 -> 0.5 Mimg
    burn-in, duration  20, 250 Mimg       20, 100 Mimg       20, 200 Mimg
    batch              512                256                256
    augmentation       0 -> 0.55          0 -> 0.3           0 -> 0.3
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, pad

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.sizes import at_least_one, levels, per_image

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""A layer of this gain followed by leaky ReLU keeps the second moment of its input (He et al. 2015)."""


@dataclass(frozen=True)
class R3GAN:
    """Options of the R3GAN networks; generator and critic have the same.

    widths:     channels at 4x4, 8x8, ...; an image of S pixels uses the first log2(S) - 1 of them
    blocks:     residual blocks at 4x4, 8x8, ...; as many entries as widths
    expansion:  the grouped convolution is `expansion` times as wide as the block's input
    group_size: channels per group of the grouped convolution
    """

    widths: tuple[int, ...] = (768, 768, 768, 768, 384, 192, 96)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 2)
    expansion: int = 2
    group_size: int = 16

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks):
            raise FastganError(
                "R3GAN: widths and blocks must have one entry each per resolution, "
                f"got {len(self.widths)} and {len(self.blocks)}"
            )
        at_least_one("R3GAN", expansion=self.expansion, group_size=self.group_size)
        for width, blocks in zip(self.widths, self.blocks, strict=True):
            at_least_one("R3GAN", widths=width, blocks=blocks)
            if width * self.expansion % self.group_size:
                raise FastganError(
                    f"R3GAN: width {width} times expansion {self.expansion} must be a multiple of group_size "
                    f"{self.group_size}"
                )

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        """z [N, latent] -> [N, C, S, S]. FastganError for sizes without an entry in `widths`."""
        return Generator(latent, self._stages(image), image.channels)

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N] or [N, outputs]. FastganError for sizes without an entry in `widths`."""
        return Critic(image.channels, self._stages(image)[::-1], outputs)

    def _stages(self, image: ImageShape) -> list[Stage]:
        """One per resolution, from 4x4 up."""
        count = len(levels("R3GAN", image, 8, 1024))
        if count > len(self.widths):
            raise FastganError(
                f"R3GAN: {image.size} pixels need {count} entries in widths and blocks, one per resolution "
                f"from 4x4 up, got {len(self.widths)}"
            )
        return [
            Stage(width, blocks, width * self.expansion, width * self.expansion // self.group_size)
            for width, blocks in zip(self.widths[:count], self.blocks[:count], strict=True)
        ]


@dataclass(frozen=True)
class Stage:
    """One resolution: channels of the stream, number of residual blocks, their inner channels and groups."""

    width: int
    blocks: int
    inner: int
    groups: int


class Generator(nn.Module):
    """z [N, latent] -> images [N, channels, S, S]; stages from 4x4 up."""

    def __init__(self, latent: int, stages: list[Stage], channels: int) -> None:
        super().__init__()
        depth = sum(stage.blocks for stage in stages)
        self.basis = Basis(latent, stages[0].width)
        layers: list[nn.Module] = [*_blocks(stages[0], depth)]
        for before, stage in pairwise(stages):
            layers += [UpTransition(before.width, stage.width), *_blocks(stage, depth)]
        self.layers = nn.Sequential(*layers)
        self.to_image = _conv(stages[-1].width, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.to_image(self.layers(self.basis(z)))
        return images


class Critic(nn.Module):
    """x [N, channels, S, S] -> logits [N] or [N, outputs]; stages from S x S down."""

    def __init__(self, channels: int, stages: list[Stage], outputs: int = 1) -> None:
        super().__init__()
        depth = sum(stage.blocks for stage in stages)
        self.from_image = _conv(channels, stages[0].width, 1)
        layers: list[nn.Module] = [*_blocks(stages[0], depth)]
        for before, stage in pairwise(stages):
            layers += [DownTransition(before.width, stage.width), *_blocks(stage, depth)]
        self.layers = nn.Sequential(*layers)
        last = stages[-1].width
        self.basis = _conv(last, last, 4, groups=last)
        self.to_logit = nn.Linear(last, outputs, bias=False)
        nn.init.normal_(self.to_logit.weight, 0.0, 1 / math.sqrt(last))

    def forward(self, x: Tensor) -> Tensor:
        features = self.basis(self.layers(self.from_image(x)))
        return per_image(self.to_logit(features.flatten(1)))


class Basis(nn.Module):
    """z [N, latent] -> [N, width, 4, 4]: learned 4x4 maps, each times a linear function of z."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(4, 4, width))
        self.scale = nn.Linear(latent, width, bias=False)
        nn.init.normal_(self.scale.weight, 0.0, 1 / math.sqrt(latent))

    def forward(self, z: Tensor) -> Tensor:
        scaled: Tensor = self.scale(z)[:, None, None, :] * self.maps
        return scaled.permute(0, 3, 1, 2)  # channels-last strides, no copy


class ResidualBlock(nn.Module):
    """[N, width, H, W] -> the same; starts as the identity. depth: number of blocks of the whole network."""

    def __init__(self, stage: Stage, depth: int) -> None:
        super().__init__()
        gain = GAIN * depth**-0.25
        self.widen = _conv(stage.width, stage.inner, 1, bias=True, gain=gain)
        self.mix = _conv(stage.inner, stage.inner, 3, padding=1, groups=stage.groups, bias=True, gain=gain)
        self.narrow = _conv(stage.inner, stage.width, 1, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = leaky_relu(self.widen(x), SLOPE, inplace=True)
        y = leaky_relu(self.mix(y), SLOPE, inplace=True)
        branch: Tensor = self.narrow(y)
        return x + branch


class UpTransition(nn.Module):
    """[N, before, H, W] -> [N, width, 2H, 2W]: 1x1 convolution, then bilinear.

    The two commute; in this order the convolution has a quarter of the pixels.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = _conv(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=False)


class DownTransition(nn.Module):
    """[N, before, H, W] -> [N, width, H/2, W/2]: bilinear, then 1x1 convolution.

    The resampling is a quarter of the transpose of UpTransition's: the filter (1, 3, 3, 1)/8 in each
    direction, the edge repeated. So constants stay constant, and a critic sees its gradients upsampled
    bilinearly.
    """

    kernel: Tensor

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps).repeat(before, 1, 1, 1), persistent=False)
        self.conv = _conv(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        halved = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), self.kernel, stride=2, groups=x.shape[1])
        y: Tensor = self.conv(halved)
        return y


def _blocks(stage: Stage, depth: int) -> list[ResidualBlock]:
    return [ResidualBlock(stage, depth) for _ in range(stage.blocks)]


def _conv(before: int, width: int, size: int, *, padding: int = 0, groups: int = 1, bias: bool = False,
          gain: float = 1.0) -> nn.Conv2d:  # fmt: skip
    """A convolution with weights N(0, gain^2 / fan_in) and bias 0."""
    conv = nn.Conv2d(before, width, size, padding=padding, groups=groups, bias=bias)
    nn.init.normal_(conv.weight, 0.0, gain / math.sqrt(before // groups * size**2))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
