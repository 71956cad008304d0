"""Residual network from images to images (Johnson et al. 2016, arXiv:1603.08155) as in CycleGAN (Zhu et al. 2017, 7.2).

    7x7 conv to w -> 2 strided 3x3 convs to 2w, 4w -> blocks -> 2 transposed 3x3 convs to 2w, w -> 7x7 conv -> tanh

each but the last with norm and ReLU; a block is conv3x3+norm+ReLU+conv3x3+norm, added to its input. Borders of the 7x7
convolutions and of the blocks are reflected.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.models.image_layers import block, check_norm, divisible, initialise
from fastgan.models.sizes import at_least_one
from fastgan.nn import fuse


@dataclass(frozen=True)
class ResNetTranslator:
    """Options of the residual translator.

    width:  channels at the image's size
    blocks: residual blocks at a quarter of it: 6 for 128 pixels, 9 for 256 and more, as published
    halvings: how often the size is halved before the blocks
    norm:   "batch", "instance" or "none"
    """

    width: int = 64
    blocks: int = 6
    halvings: int = 2
    norm: str = "instance"

    def __post_init__(self) -> None:
        at_least_one("ResNetTranslator", width=self.width, blocks=self.blocks, halvings=self.halvings)
        check_norm("ResNetTranslator", self.norm)

    def translator(self, image: ImageShape, channels: int) -> nn.Module:
        """x [N, channels, S, S] -> [N, C, S, S] in (-1, 1). FastganError for a size that cannot be halved so often."""
        divisible("ResNetTranslator", image.size, 2 << self.halvings)
        return fuse(Network(channels, image.channels, self))

    def noise_numbers(self, image: ImageShape) -> int:
        """None: the network is deterministic."""
        return 0


class Network(nn.Module):
    """x [N, channels, S, S] -> [N, out, S, S] in (-1, 1)."""

    def __init__(self, channels: int, out: int, options: ResNetTranslator) -> None:
        super().__init__()
        norm, width = options.norm, options.width
        bias = norm == "none"  # a normalisation takes it away again
        down = [block(_wide(channels, width, bias=bias), norm, nn.ReLU())]
        for _ in range(options.halvings):
            down.append(block(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias), norm, nn.ReLU()))
            width *= 2
        self.down = nn.Sequential(*down)
        self.blocks = nn.Sequential(*(Residual(width, norm) for _ in range(options.blocks)))
        up = []
        for _ in range(options.halvings):
            conv = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            up.append(block(conv, norm, nn.ReLU()))
            width //= 2
        self.up = nn.Sequential(*up)
        self.to_image = block(_wide(width, out, bias=True), "none", nn.Tanh())
        initialise(self)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        images: Tensor = self.to_image(self.up(self.blocks(self.down(x))))
        return images


class Residual(nn.Module):
    """x [N, C, H, W] -> the same shape."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"

        def conv() -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=bias)

        self.first = block(conv(), norm, nn.ReLU())
        self.second = block(conv(), norm, None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


def _wide(before: int, width: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(before, width, 7, padding=3, padding_mode="reflect", bias=bias)
