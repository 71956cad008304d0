"""Multi-scale DCGAN: the networks of MSG-GAN (Karnewar & Wang 2020, arXiv:1903.06048) in the layers of DCGAN.

The generator makes an image at every resolution, 4x4, 8x8, ..., S x S, each by a 1x1 convolution and tanh of that
resolution's features (section 3); the critic sees all of them at once: at each resolution the image is put beside the
features that come from the larger one ("simple" concatenation, equation 8). So gradients reach every resolution of the
generator directly. Reals come as their average-pooled halvings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fastgan.models.sizes import per_image


def halvings(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """x [N, C, S, S] and its halvings by averages of 2x2 pixels, `count` images in all, the largest first."""
    images = [x]
    while len(images) < count:
        images.append(avg_pool2d(images[-1], 2))
    return tuple(images)


class MultiScaleGenerator(nn.Module):
    """z [N, latent] -> images [N, channels, S, S] in (-1, 1); `scales` has those of all resolutions.

    blocks: from one resolution to the next, from z at 1x1 on;  widths: their channels;  to_image: from S/2 to S
    """

    def __init__(self, blocks: list[nn.Module], widths: list[int], channels: int, to_image: nn.Module) -> None:
        super().__init__()
        self.blocks, self.to_image = nn.ModuleList(blocks), to_image
        self.to_small = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)

    def forward(self, z: Tensor) -> Tensor:
        x = z[:, :, None, None]
        for block in self.blocks:
            x = block(x)
        images: Tensor = self.to_image(x)
        return images

    def scales(self, z: Tensor) -> tuple[Tensor, ...]:
        """Images of S, S/2, ..., 4 pixels."""
        x, small = z[:, :, None, None], list[Tensor]()
        for block, to_small in zip(self.blocks, self.to_small, strict=True):
            x = block(x)
            small.append(torch.tanh(to_small(x)))
        return (self.to_image(x), *reversed(small))


class MultiScaleCritic(nn.Module):
    """(images of S, S/2, ..., 4 pixels) -> logits [N] or [N, outputs]; of one image alone, with its halvings.

    blocks: each to half the size, to `widths` channels, from those of the one before and the image beside them
    """

    def __init__(self, blocks: list[nn.Module], to_logit: nn.Module) -> None:
        super().__init__()
        self.blocks, self.to_logit = nn.ModuleList(blocks), to_logit

    def forward(self, x: Tensor, *smaller: Tensor) -> Tensor:
        images = (x, *smaller) if smaller else halvings(x, len(self.blocks) + 1)
        for block, image in zip(self.blocks, images[1:], strict=True):
            x = torch.cat([block(x), image], 1)
        return per_image(self.to_logit(x))
