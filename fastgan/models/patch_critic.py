"""PatchGAN critic (Isola et al. 2017, arXiv:1611.07004, section 3.2.2): a map of logits, one per patch of the image.

With width w and n layers: 4x4 convolutions of stride 2 to w, 2w, 4w, ... channels, one of stride 1, and one of stride 1
to the logits; leaky ReLU of slope 0.2, no norm after the first and the last. Each logit sees 16, 34, 70, 142 pixels for
n = 1, 2, 3, 4; n = 3 is the published one. A conditional critic gets the source image beside the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.errors import FastganError
from fastgan.models.image_layers import NORMS, block, check_norm, concatenated, initialise
from fastgan.models.sizes import at_least_one
from fastgan.models.spectral import spectral_norm
from fastgan.nn import Conv2d, fuse


@dataclass(frozen=True)
class PatchCritic:
    """Options of the PatchGAN critic.

    width:     channels after the first convolution
    max_width: most channels anywhere
    layers:    strided convolutions
    norm:      "batch", "instance", "spectral" (Miyato et al. 2018) or "none"
    """

    width: int = 64
    max_width: int = 512
    layers: int = 3
    norm: str = "batch"

    def __post_init__(self) -> None:
        at_least_one("PatchCritic", width=self.width, max_width=self.max_width, layers=self.layers)
        check_norm("PatchCritic", self.norm, (*NORMS, "spectral"))

    def critic(self, image: ImageShape, channels: int = 0) -> nn.Module:
        """x [N, C, S, S] (and source [N, channels, S, S]) -> logits [N, 1, h, w]. FastganError for images too small."""
        smallest = 3 << self.layers
        if image.size < smallest:
            raise FastganError(
                f"PatchCritic with layers={self.layers} needs images of {smallest} pixels or more, got {image.size}; "
                "set fewer layers or a larger data.size"
            )
        return fuse(Network(image.channels + channels, self))


class Network(nn.Module):
    """x [N, C, S, S], source [N, C', S, S] or None -> logits [N, 1, h, w]. blocks: the convolutions but the last."""

    def __init__(self, channels: int, options: PatchCritic) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        norm = "none" if options.norm == "spectral" else options.norm
        for level in range(options.layers + 1):
            width = min(options.width << level, options.max_width)
            stride = 2 if level < options.layers else 1
            plain = level == 0 or norm == "none"
            conv = Conv2d(channels, width, 4, stride=stride, padding=1, bias=plain)
            blocks.append(block(conv, "none" if plain else norm, nn.LeakyReLU(0.2)))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.to_logits = nn.Conv2d(channels, 1, 4, padding=1)
        initialise(self)
        if options.norm == "spectral":
            for layer in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
                spectral_norm(layer)

    def maps(self, x: Tensor, source: Tensor | None = None) -> list[Tensor]:
        """The activations of each block: what images can be compared by."""
        x = concatenated(x, source)
        found = []
        for layer in self.blocks:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        logits: Tensor = self.to_logits(self.maps(x, source)[-1])
        return logits


def matched_features(critic: nn.Module, fake: Tensor, real: Tensor, source: Tensor | None = None) -> Tensor:
    """Mean over the critic's blocks of the mean absolute difference of its activations, 0-dim.

    "Feature matching" (Wang et al. 2018, arXiv:1711.11585, eq. 3). The reals' activations are constants.
    """
    of_fake = critic.maps(fake, source)  # type: ignore[operator]
    with torch.no_grad():
        of_real = critic.maps(real, source)  # type: ignore[operator]
    total: Tensor = torch.stack([(a - b).abs().mean() for a, b in zip(of_fake, of_real, strict=True)]).mean()
    return total
