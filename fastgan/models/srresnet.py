"""Networks of super-resolution: SRResNet and its critic (Ledig et al. 2017, arXiv:1609.04802, figure 4).

    9x9 conv -> PReLU -> blocks -> 3x3 conv + norm -> + first maps
      -> (3x3 conv -> pixel shuffle x2 -> PReLU) once per doubling -> 9x9 conv

A block is conv3x3+norm+PReLU+conv3x3+norm, added to its input. `residual` adds the bicubic enlargement of the input to
the output, so that the network learns what that lacks (Kim et al. 2016, arXiv:1511.04587); it is on by default and off
in the published network. The critic is of 3x3 convolutions, every other one with stride 2, and a mean over places in
front of its two linear layers, so that it takes images of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.image_layers import block, check_norm
from fastgan.models.sizes import at_least_one
from fastgan.nn import Conv2d, fuse


@dataclass(frozen=True)
class SRResNet:
    """Options of the generator.

    width, blocks: channels and residual blocks
    kernel:        side of the first and the last convolution
    norm:          "batch" as published, or "none" (Lim et al. 2017, arXiv:1707.02921: better in mean squared error)
    residual:      add the bicubic enlargement of the input
    """

    width: int = 64
    blocks: int = 16
    kernel: int = 9
    norm: str = "batch"
    residual: bool = True

    def __post_init__(self) -> None:
        at_least_one("SRResNet", width=self.width, blocks=self.blocks, kernel=self.kernel)
        check_norm("SRResNet", self.norm, ("batch", "none"))
        if self.kernel % 2 == 0:
            raise FastganError(f"SRResNet: kernel must be odd, got {self.kernel}")

    def upscaler(self, channels: int, scale: int) -> nn.Module:
        """x [N, C, H, W] -> [N, C, scale H, scale W], scale 2, 4 or 8; not bounded."""
        return fuse(Network(channels, scale, self))

    def margin(self, scale: int) -> int:
        """Pixels of the input around a place that its output depends on: the receptive field's reach."""
        wide = self.kernel // 2
        doublings = scale.bit_length() - 1
        # In input pixels: a 3x3 convolution at k times the size reaches 1/k, the last one wide/scale.
        ups = math.ceil(sum(1 / (1 << i) for i in range(doublings)) + wide / scale)
        return max(wide + 2 * self.blocks + 1 + ups, 3 if self.residual else 0) + 1


class Network(nn.Module):
    """x [N, C, H, W] -> [N, C, scale H, scale W]."""

    def __init__(self, channels: int, scale: int, options: SRResNet) -> None:
        super().__init__()
        self.scale, self.residual = scale, options.residual
        width, kernel = options.width, options.kernel
        self.first = nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.PReLU())
        self.blocks = nn.Sequential(*(Residual(width, options.norm) for _ in range(options.blocks)))
        self.after = block(_conv(width, width, options.norm), options.norm, None)
        self.up = nn.Sequential(
            *(
                nn.Sequential(Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
                for _ in range(scale.bit_length() - 1)
            )
        )
        self.to_image = nn.Conv2d(width, channels, kernel, padding=kernel // 2)
        if options.residual:  # it starts as the bicubic enlargement
            nn.init.zeros_(self.to_image.weight)
            nn.init.zeros_(self.to_image.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        images: Tensor = self.to_image(self.up(first + self.after(self.blocks(first))))
        return images + enlarged(x, self.scale) if self.residual else images


class Residual(nn.Module):
    """x [N, C, H, W] -> the same shape."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.first = block(_conv(width, width, norm), norm, nn.PReLU())
        self.second = block(_conv(width, width, norm), norm, None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


def enlarged(x: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement of x [N, C, H, W]: what every super-resolution has to beat."""
    size = [scale * x.shape[2], scale * x.shape[3]]  # said as sizes, which programs of any size understand
    return interpolate(x, size=size, mode="bicubic", align_corners=False)


def reduced(x: Tensor, scale: int, kernel: str) -> Tensor:
    """x [N, C, H, W] at 1/scale of the size, by an antialiased "bicubic" filter or a "box", as 8-bit levels in [-1, 1].

    Rounded and clipped as in a file: what a network is to enlarge later comes from one.
    """
    with torch.no_grad():
        if kernel == "box":
            small = torch.nn.functional.avg_pool2d(x, scale)
        else:
            small = interpolate(x, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True)
        return small.add(1).mul(127.5).round().clamp(0, 255).div(127.5).sub(1)


def _conv(before: int, width: int, norm: str) -> nn.Conv2d:
    return Conv2d(before, width, 3, padding=1, bias=norm != "batch")


@dataclass(frozen=True)
class SRCritic:
    """Options of the critic.

    width:    channels of the first two convolutions; twice as many at each halving
    halvings: pairs of convolutions
    hidden:   units of the linear layer in front of the logit
    norm:     "batch" as published, or "none"
    """

    width: int = 64
    halvings: int = 4
    hidden: int = 1024
    norm: str = "batch"

    def __post_init__(self) -> None:
        at_least_one("SRCritic", width=self.width, halvings=self.halvings, hidden=self.hidden)
        check_norm("SRCritic", self.norm, ("batch", "none"))

    def critic(self, image: ImageShape, channels: int = 0) -> nn.Module:
        """x [N, C, S, S] -> logits [N]. FastganError for images that are too small."""
        smallest = 2 << self.halvings
        if image.size < smallest:
            raise FastganError(
                f"SRCritic with halvings={self.halvings} needs images of {smallest} pixels or more, got {image.size}; "
                "set fewer halvings or a larger data.size"
            )
        return fuse(CriticNetwork(image.channels + channels, self))


class CriticNetwork(nn.Module):
    """x [N, C, S, S] -> logits [N]. blocks: the convolutions."""

    def __init__(self, channels: int, options: SRCritic) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for level in range(2 * options.halvings):
            width = options.width << (level // 2)
            norm = options.norm if level else "none"
            conv = Conv2d(channels, width, 3, stride=1 + level % 2, padding=1, bias=norm == "none")
            blocks.append(block(conv, norm, nn.LeakyReLU(0.2)))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.to_logit = nn.Sequential(
            nn.Linear(channels, options.hidden), nn.LeakyReLU(0.2), nn.Linear(options.hidden, 1)
        )

    def maps(self, x: Tensor, source: Tensor | None = None) -> list[Tensor]:
        """The activations of each block: what images can be compared by."""
        found = []
        for layer in self.blocks:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.to_logit(self.maps(x)[-1].mean((2, 3)))
        return logits.flatten()
