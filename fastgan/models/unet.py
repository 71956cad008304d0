"""U-Net from images to images (Ronneberger et al. 2015, arXiv:1505.04597) as in pix2pix (Isola et al. 2017, 6.1.1).

With width w: strided convolutions to half the size each, w, 2w, 4w, 8w, 8w, ... channels, as many as `depth` says or
down to one pixel; then transposed convolutions back up, each of which gets the encoder's map of its size, too:

    x -> conv -> conv+norm -> ... -> conv (no norm)                 leaky ReLU of slope 0.2
    ... -> [convT+norm+ReLU, skip] -> ... -> convT -> tanh

All kernels are 4x4 with stride 2 and padding 1; neither the first nor the innermost convolution is normalised. Dropout
in the first three decoder blocks is the published network's only noise: its masks come from numbers that the caller
draws, so that they can be drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.image_layers import block, check_norm, divisible, dropped, initialise
from fastgan.models.sizes import at_least_one
from fastgan.nn import Conv2d, fuse

DROPPED = 3  # decoder blocks with dropout, from the innermost on


@dataclass(frozen=True)
class UNet:
    """Options of the U-Net.

    width:     channels at half the image's size
    max_width: most channels anywhere
    depth:     how often the size is halved (0: down to one pixel, at most 8 times)
    norm:      "batch", "instance" or "none"
    dropout:   share of the values that the first three decoder blocks drop in training (0: none)
    from_zero: the last convolution starts at zero, for systems that add the output to something
    """

    width: int = 64
    max_width: int = 512
    depth: int = 0
    norm: str = "batch"
    dropout: float = 0.5
    from_zero: bool = False

    def __post_init__(self) -> None:
        at_least_one("UNet", width=self.width, max_width=self.max_width)
        check_norm("UNet", self.norm)
        if not 0 <= self.depth <= 10:
            raise FastganError(f"UNet: depth must be from 0 to 10, got {self.depth}")
        if not 0 <= self.dropout < 1:
            raise FastganError(f"UNet: dropout must be from 0 to below 1, got {self.dropout}")

    def translator(self, image: ImageShape, channels: int) -> nn.Module:
        """x [N, channels, S, S] (and noise [N, noise_numbers]) -> [N, C, S, S] in (-1, 1).

        FastganError for a size that cannot be halved `depth` times.
        """
        return fuse(Network(channels, image.channels, self._widths(image), self))

    def noise_numbers(self, image: ImageShape) -> int:
        """How many uniform numbers per image the network's dropout takes."""
        if not self.dropout:
            return 0
        widths = self._widths(image)
        innermost = image.size >> len(widths)
        return sum(w * (innermost << i) ** 2 for i, w in enumerate(widths[-2::-1][:DROPPED], start=1))

    def _widths(self, image: ImageShape) -> list[int]:
        """Channels at S/2, S/4, ..."""
        depth = self.depth or max(1, min(8, (image.size & -image.size).bit_length() - 1))
        divisible("UNet", image.size, 2**depth)
        return [min(self.width << i, self.max_width) for i in range(depth)]


class Network(nn.Module):
    """x [N, channels, S, S], S a multiple of 2^len(widths) -> [N, out, S, S] in (-1, 1).

    down: one block per halving, from the image inward;  up: one per doubling, from the innermost outward, but the last;
    to_image: the last
    """

    def __init__(self, channels: int, out: int, widths: list[int], options: UNet) -> None:
        super().__init__()
        self.dropout = options.dropout
        bias = options.norm == "none"  # a normalisation takes it away again
        down: list[nn.Module] = []
        for level, (before, width) in enumerate(zip([channels, *widths], widths, strict=False)):
            plain = level == 0 or level == len(widths) - 1
            conv = Conv2d(before, width, 4, stride=2, padding=1, bias=bias or plain)
            down.append(block(conv, "none" if plain else options.norm, nn.LeakyReLU(0.2)))
        self.down = nn.ModuleList(down)
        up: list[nn.Module] = []
        inner = widths[-1]
        for width in widths[-2::-1]:
            doubling = nn.ConvTranspose2d(inner, width, 4, stride=2, padding=1, bias=bias)
            up.append(block(doubling, options.norm, nn.ReLU()))
            inner = 2 * width
        self.up = nn.ModuleList(up)
        last = nn.ConvTranspose2d(inner, out, 4, stride=2, padding=1)
        self.to_image = block(last, "none", nn.Tanh())
        initialise(self)
        if options.from_zero:
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        skips.pop()
        used = 0
        for level, layer in enumerate(self.up):
            x = layer(x)
            if noise is not None and level < DROPPED:
                count = x.shape[1] * x.shape[2] * x.shape[3]
                x = dropped(x, noise[:, used : used + count], self.dropout)
                used += count
            x = torch.cat([x, skips[-1 - level]], 1)
        images: Tensor = self.to_image(x)
        return images
