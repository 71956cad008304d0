"""Which images a rank's batches hold, found in blocks: shuffling many samples at once costs little for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fastgan.data.image_set import Indices
from fastgan.data.sampler import flips, image_order, second_seed

BLOCK = 4096  # samples; a shuffle of so many costs as much as one of a few dozen, and its arrays stay in the cache


@dataclass(frozen=True)
class Picks:
    """Of one batch: numbers of the images [N], and whether each is mirrored [N]; the same of the second set, if any."""

    images: Indices
    flipped: NDArray[np.bool_] | None
    source: Indices | None
    source_flipped: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Order:
    """A pure function of (seed, sample numbers), for the samples of one rank.

    batch: samples of a batch of this rank;  stride: samples that all ranks together take per batch
    source: images of the second set, 0 without one;  aligned: it is shown in the order of the first, mirrored alike;
    else in an order of its own, and mirrored by coins of its own
    block, source_block: ImageSet.block of the two
    """

    seed: int
    count: int
    batch: int
    stride: int
    mirror: bool
    source: int = 0
    aligned: bool = False
    block: int = 0
    source_block: int = 0

    def picks(self, first: int) -> Iterator[Picks]:
        """Of the batches from sample number `first` of this rank on, without end."""
        number = max(1, BLOCK // self.batch)
        offsets = (self.stride * np.arange(number)[:, None] + np.arange(self.batch)).reshape(-1)
        for start in count(first, self.stride * number):
            samples = start + offsets
            images = image_order(self.seed, self.count, samples, self.block)
            flipped = flips(self.seed, samples) if self.mirror else None
            source, source_flipped = None, None
            if self.source and self.aligned:
                source, source_flipped = images, flipped
            elif self.source:
                second = second_seed(self.seed)
                source = image_order(second, self.source, samples, self.source_block)
                source_flipped = flips(second, samples) if self.mirror else None
            for at in range(0, len(samples), self.batch):
                here = slice(at, at + self.batch)
                yield Picks(
                    images[here],
                    None if flipped is None else flipped[here],
                    None if source is None else source[here],
                    None if source_flipped is None else source_flipped[here],
                )
