"""More pictures out of few: for contests on seven photographs, where networks would otherwise learn these by heart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastgan.contract import Batch

SMALLEST = 36  # of 64 pixels, what a patch is enlarged from


def varied(batch: Batch) -> Batch:
    """Each image at random: a part of it enlarged to the whole, quarter turns, colours exchanged, negative.

    The same for the same batch, whoever asks.
    """
    random = torch.Generator().manual_seed(int(batch.index[0]))
    images = torch.stack([_varied(image, random) for image in batch.images])
    return replace(batch, images=images.contiguous(memory_format=torch.channels_last))


def _varied(image: Tensor, random: torch.Generator) -> Tensor:
    """image: [3, S, S] in [-1, 1]"""

    def below(count: int) -> int:
        return int(torch.randint(count, (1,), generator=random))

    size = image.shape[-1]
    side = SMALLEST + below(size - SMALLEST + 1)
    top, left = below(size - side + 1), below(size - side + 1)
    part = image[None, :, top : top + side, left : left + side]
    whole = interpolate(part, size=(size, size), mode="bicubic", align_corners=False)[0].clamp(-1, 1)
    turned = whole.rot90(below(4), (1, 2))[torch.randperm(3, generator=random)]
    return -turned if below(2) else turned
