"""Residual networks of spectral-norm GANs (Miyato et al. 2018, arXiv:1802.05957, appendix B).

Generator: a linear layer to 4x4, blocks that each double the size, BN, ReLU, 3x3 convolution, tanh. A block:

    x -> BN -> ReLU -> nearest upsampling -> conv3x3 -> BN -> ReLU -> conv3x3 -> + (upsampled 1x1 conv of x)

Critic: blocks that halve the size (average pooling behind the second convolution), then blocks that keep it,
ReLU, sum over pixels, linear; no BN, and spectral norm on every weight. Its first block works on pixels and
starts with a convolution instead of a ReLU. At 32 pixels two blocks halve the size and two keep it (the
CIFAR-10 network); above that, blocks halve it down to 4x4 and one keeps it (the ImageNet network).

Channels are `width` at the image's size and double at each halving, up to `max_width`. The defaults are those
of the CIFAR-10 networks, 256 and 128 throughout; the ImageNet networks have width 64 and max_width 1024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu

from fastgan.contract import ImageShape
from fastgan.models.sizes import at_least_one, check_attention, levels, per_image
from fastgan.models.spectral import spectral_norm
from fastgan.nn import ConditionalBatchNormAct2d, Conv2d, SelfAttention2d, fuse

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class ResNet:
    """Options of the residual networks.

    generator_width, critic_width: channels at the image's size
    generator_max_width, critic_max_width: most channels at the smaller sizes
    attention: resolution at which both networks have self-attention (Zhang et al. 2019; 0: nowhere)
    """

    generator_width: int = 256
    generator_max_width: int = 256
    critic_width: int = 128
    critic_max_width: int = 128
    attention: int = 0

    def __post_init__(self) -> None:
        at_least_one(
            "ResNet",
            generator_width=self.generator_width,
            generator_max_width=self.generator_max_width,
            critic_width=self.critic_width,
            critic_max_width=self.critic_max_width,
        )

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        """z [N, latent] -> [N, C, S, S] in (-1, 1). FastganError for sizes but 32, 64, 128, 256."""
        return fuse(Generator(latent, self._widths(image), image.channels, attention=self.attention))

    def labelled_generator(self, image: ImageShape, latent: int) -> nn.Module:
        """(z [N, latent], labels [N]) -> [N, C, S, S]: conditional batch normalisation. FastganError as generator."""
        widths, classes = self._widths(image), image.classes
        return fuse(Generator(latent, widths, image.channels, classes=classes, attention=self.attention))

    def _widths(self, image: ImageShape) -> list[int]:
        """The generator's channels at 4x4, 8x8, ..., S."""
        sizes = levels("ResNet", image, 32, 256)
        check_attention("ResNet", self.attention, sizes[1:-1])
        widths = [min(self.generator_width * image.size // s, self.generator_max_width) for s in sizes[1:]]
        return [widths[0], *widths]

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        """x [N, C, S, S] -> logits [N] or [N, outputs]. FastganError for sizes but 32, 64, 128, 256."""
        sizes = levels("ResNet", image, 32, 256)
        halvings, keeps = (2, 2) if image.size == 32 else (len(sizes) - 1, 1)
        widths = [min(self.critic_width << i, self.critic_max_width) for i in range(halvings)]
        check_attention("ResNet", self.attention, [image.size >> (i + 1) for i in range(halvings)])
        after = (image.size // self.attention).bit_length() - 1 if self.attention else 0
        return Critic(image.channels, widths, keeps, outputs, attend_after=after)


class Generator(nn.Module):
    """z [N, latent] -> images [N, channels, S, S] in (-1, 1), S = 2^(len(widths) + 1).

    widths:  channels at 4x4, 8x8, ..., S
    classes: with them it is (z, labels [N]) -> images, the norms conditional
    """

    def __init__(self, latent: int, widths: list[int], channels: int, *, classes: int = 0, attention: int = 0) -> None:
        super().__init__()
        self.start = _xavier(nn.Linear(latent, 16 * widths[0]))
        self.blocks = nn.ModuleList(UpBlock(*pair, classes) for pair in pairwise(widths))
        self.attended = attention.bit_length() - 3 if attention else 0  # after so many blocks
        self.attention = SelfAttention2d(widths[self.attended]) if attention else None
        self.norm = _norm(widths[-1], classes)
        self.to_image = _xavier(Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        start: Tensor = self.start(z)
        x = start.view(z.shape[0], 4, 4, -1).permute(0, 3, 1, 2)  # channels-last strides, no copy
        for number, block in enumerate(self.blocks, start=1):
            x = block(x) if labels is None else block(x, labels)
            if self.attention is not None and number == self.attended:
                x = self.attention(x)
        return torch.tanh(self.to_image(_norm_relu(self.norm, x, labels)))


class Critic(nn.Module):
    """x [N, channels, S, S] -> logits [N] or [N, outputs].

    widths: channels after each block that halves the size; keeps: number of blocks behind them that do not
    """

    def __init__(self, channels: int, widths: list[int], keeps: int, outputs: int = 1, attend_after: int = 0) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        halving = [DownBlock(before, width) for before, width in pairwise(widths)]
        keeping = [DownBlock(last, last, pool=False) for _ in range(keeps)]
        blocks: list[nn.Module] = [DownBlock(channels, first, pixels=True), *halving, *keeping]
        if attend_after:
            blocks.insert(attend_after, SelfAttention2d(widths[attend_after - 1], twice=True))
        self.blocks = nn.Sequential(*blocks)
        self.to_logit = _xavier(nn.Linear(last, outputs))
        for layer in [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
            spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        features = relu(self.blocks(x)).sum(dim=(2, 3))
        return per_image(self.to_logit(features))


class UpBlock(nn.Module):
    """[N, before, H, W] -> [N, width, 2H, 2W]; with `classes` it takes labels [N], too."""

    def __init__(self, before: int, width: int, classes: int = 0) -> None:
        super().__init__()
        self.norm1 = _norm(before, classes)
        self.conv1 = _xavier(Conv2d(before, width, 3, padding=1), gain=math.sqrt(2))
        self.norm2 = _norm(width, classes)
        self.conv2 = _xavier(Conv2d(width, width, 3, padding=1), gain=math.sqrt(2))
        self.skip = _xavier(nn.Conv2d(before, width, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y: Tensor = self.conv1(_double(_norm_relu(self.norm1, x, labels)))
        y = self.conv2(_norm_relu(self.norm2, y, labels))
        skip = _double(self.skip(x))  # behind the upsampling it would be the same at four times the work
        return y + skip


class DownBlock(nn.Module):
    """[N, before, H, W] -> [N, width, H/2, W/2], or [N, width, H, W] without `pool`.

    pixels: the input is an image: no ReLU before the first convolution
    """

    def __init__(self, before: int, width: int, *, pool: bool = True, pixels: bool = False) -> None:
        super().__init__()
        self.pool, self.pixels = pool, pixels
        self.conv1 = _xavier(Conv2d(before, width, 3, padding=1), gain=math.sqrt(2))
        self.conv2 = _xavier(Conv2d(width, width, 3, padding=1), gain=math.sqrt(2))
        self.skip = _xavier(nn.Conv2d(before, width, 1)) if pool or before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(x if self.pixels else relu(x))  # not in place: the skip reads x too
        y = self.conv2(relu(y, inplace=True))
        if self.pool:  # of x before its 1x1 convolution: behind it the same at four times the work
            x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        skip: Tensor = self.skip(x)
        return y + skip


def _norm(width: int, classes: int) -> nn.Module:
    return ConditionalBatchNormAct2d(width, classes) if classes else nn.BatchNorm2d(width)


def _norm_relu(norm: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """relu(norm(x)); a conditional norm has the ReLU in it."""
    y: Tensor = relu(norm(x), inplace=True) if labels is None else norm(x, labels)
    return y


def _double(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], nearest."""
    return interpolate(x, scale_factor=2.0, mode="nearest")


def _xavier(layer: _Layer, gain: float = 1.0) -> _Layer:
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
