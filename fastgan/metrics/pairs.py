"""How different generated images are from each other: a perceptual distance or MS-SSIM over pairs of them.

MS-SSIM over random pairs: Odena et al. 2017 (lower is more diverse). LPIPS over the pairs of several images from one
source: Zhu et al. 2017, Choi et al. 2020 (higher is more diverse).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, seed_of, source_name
from fastgan.metrics.path import checked
from fastgan.metrics.pictures import pictures, range_of
from fastgan.metrics.result import Result
from fastgan.metrics.similarity import WEIGHTS, SsimProtocol, ssim_of_pairs


@dataclass(frozen=True)
class DiversityProtocol:
    """pairs: "all" within each group, or the number of random pairs of different images of one group."""

    distance: str
    pairs: str | int
    groups: int
    seed: int
    ssim: SsimProtocol | None


def diversity(
    fake: Any,
    distance: str | Callable[[Tensor, Tensor], Tensor] = "ms_ssim",
    *,
    group: int | None = None,
    pairs: int | str = "all",
    data_range: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Result:
    """Mean over pairs of images of one group.

    fake: images [N, C, H, W]; each `group` of them that follow each other are alternatives for one source (10 for the
    usual LPIPS diversity of image translation); all are one group where None.
    distance: "ms_ssim", "ssim", or a callable such as LPIPS, which gets two batches as they are given -> [n].
    pairs: "all" (of n images n (n - 1) / 2), or how many to draw. values: std over pairs, least, most.
    """
    images = pictures("fake", fake)
    size = len(images) if group is None else group
    at_least_one(group=size, batch_size=batch_size)
    if size < 2 or len(images) % size:
        raise FastganError(
            f"diversity: expected groups of 2 or more images, {len(images)} being a multiple, got {size}"
        )
    first, second = (torch.from_numpy(i).to(images.device) for i in chosen(len(images), size, pairs, seed))
    protocol = None
    if isinstance(distance, str):
        if distance not in ("ms_ssim", "ssim"):
            raise FastganError(f"distance {distance!r} is unknown; expected 'ms_ssim', 'ssim' or a callable")
        span = range_of(data_range, images)
        protocol = (
            SsimProtocol(span, scales=WEIGHTS, negative="set to 0") if distance == "ms_ssim" else SsimProtocol(span)
        )
    scores = []
    for start in range(0, len(first), batch_size):
        a, b = (images[i[start : start + batch_size]] for i in (first, second))
        with torch.no_grad():
            scores.append(ssim_of_pairs(a, b, protocol) if protocol else checked(distance(a, b), len(a)))  # type: ignore[operator]
    found = torch.cat(scores)
    values = {"std": float(found.std(correction=0)), "least": float(found.amin()), "most": float(found.amax())}
    name = distance if isinstance(distance, str) else source_name(distance)
    recorded = DiversityProtocol(name, pairs, len(images) // size, seed, protocol)
    warnings = [] if len(found) >= 100 else [f"{len(found)} pairs, fewer than 100: the mean is uncertain"]
    return Result("diversity", float(found.mean()), recorded, values, 0, len(images), tuple(warnings))


def chosen(count: int, size: int, pairs: int | str, seed: int) -> tuple[Any, Any]:
    """Indices [p] of the first and the second image of each pair."""
    groups = count // size
    if pairs == "all":
        inner = np.array(list(itertools.combinations(range(size), 2)))
        every = (inner + size * np.arange(groups)[:, None, None]).reshape(-1, 2)
        return every[:, 0], every[:, 1]
    if isinstance(pairs, str):
        raise FastganError(f"pairs: expected 'all' or how many to draw, got {pairs!r}")
    at_least_one(pairs=pairs)
    rng = np.random.Generator(np.random.PCG64(seed_of(seed)))
    first = rng.integers(size, size=pairs)
    second = (first + rng.integers(1, size, size=pairs)) % size
    offset = size * rng.integers(groups, size=pairs)
    return first + offset, second + offset
