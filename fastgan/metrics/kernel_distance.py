"""Kernel distance (KID: Bińkowski et al. 2018): the squared maximum mean discrepancy with a cubic kernel.

    k(x, y) = (gamma x·y + coef0)^degree
    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

over subsets; the value is the mean over the subsets. A constant taken from all k changes nothing but the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.checks import at_least_one, both, few, seed_of, source_name
from fastgan.metrics.result import Result

ROWS, COLUMNS = 1024, 2048  # kernel values at a time: 8 MB


@dataclass(frozen=True)
class KidProtocol:
    """The defaults are those of torch-fidelity, with its random numbers: RandomState(seed).choice, fake, then real."""

    features: str
    dimensions: int
    subsets: int
    subset_size: int
    seed: int
    degree: int
    gamma: float
    coef0: float
    replacement: bool = False
    estimator: str = "unbiased within, all pairs across"
    ddof: int = 0


def kid(
    real: Any,
    fake: Any,
    features: Any = None,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    seed: int = 2020,
    batch_size: int = 64,
) -> Result:
    """real, fake: what `features_of` takes. gamma: 1/d where None. values: std, over the subsets with ddof = 0.

    With fewer samples than subset_size on either side the subsets shrink to that number, with a warning.
    """
    at_least_one(subsets=subsets, subset_size=subset_size, degree=degree)
    x, y = both(real, fake, features, batch_size=batch_size)
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise FastganError(f"subset_size: expected 2 or more, got {subset_size}")
    warnings = []
    if size < subset_size:
        warnings.append(f"subsets of {size:,} instead of {subset_size:,} samples: there are no more")
    warnings += few(len(x), len(y), 10_000, "subsets share many samples, so that `std` is too small")
    protocol = KidProtocol(
        source_name(features),
        x.shape[1],
        subsets,
        size,
        seed,
        degree,
        1 / x.shape[1] if gamma is None else gamma,
        coef0,
    )
    scores = discrepancies(x, y, protocol)
    value, std = float(scores.mean()), float(scores.std(correction=0))
    return Result("kid", value, protocol, {"std": std}, len(x), len(y), tuple(warnings))


def discrepancies(x: Tensor, y: Tensor, protocol: KidProtocol) -> Tensor:
    """MMD² of each subset, [subsets] fp64."""
    if x.dtype != torch.float64:
        dtype = torch.float32 if full_fp32() else torch.float64
        x, y = x.to(dtype), y.to(dtype)
    rng = np.random.RandomState(seed_of(protocol.seed))
    draws = []
    for _ in range(protocol.subsets):
        of_fake = rng.choice(len(y), protocol.subset_size, replace=False)
        draws.append((rng.choice(len(x), protocol.subset_size, replace=False), of_fake))
    first, second = (torch.from_numpy(np.stack(side)).to(x.device) for side in zip(*draws, strict=True))
    apart = protocol.subsets * 3 * protocol.subset_size**2
    together = (len(x) ** 2 + len(y) ** 2) / 1.8 + len(x) * len(y)
    if together < 1.1 * apart:
        return all_pairs(x, y, first, second, protocol)
    return torch.stack([one_subset(x[i], y[j], protocol) for i, j in zip(first, second, strict=True)])


def full_fp32() -> bool:
    """Whether fp32 products are that, and not TF32 or bf16, which are too coarse for a difference of means."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by device
        return False


def kernel(x: Tensor, y: Tensor, protocol: KidProtocol, shift: float, out: Tensor | None = None) -> Tensor:
    """[n, m] k(x_i, y_j) - shift, in `out` where that is given."""
    base = torch.addmm(x.new_tensor(protocol.coef0), x, y.mT, alpha=protocol.gamma, out=out)
    return base.pow_(protocol.degree).sub_(shift)


def centre(x: Tensor, y: Tensor, protocol: KidProtocol) -> float:
    """A value in the middle of the kernel's."""
    return float(kernel(x[:64], y[:64], protocol, 0.0).double().mean())


def one_subset(x: Tensor, y: Tensor, protocol: KidProtocol) -> Tensor:
    """x, y: [m, d]"""
    size, shift = len(x), centre(x, y, protocol)
    within = x.new_zeros((), dtype=torch.float64)
    for side in (x, y):
        for rows, after in halves(size):
            square = kernel(side[rows], side[rows], protocol, shift)
            within += square.sum(dtype=torch.float64) - square.diagonal().sum(dtype=torch.float64)
            if after.start < size:
                within += 2 * kernel(side[rows], side[after], protocol, shift).sum(dtype=torch.float64)
    across = kernel(x, y, protocol, shift).sum(dtype=torch.float64)
    return within / (size * (size - 1)) - 2 * across / size**2


def halves(size: int) -> Iterator[tuple[slice, slice]]:
    """Two spans of rows, each with the rows after it: three quarters of a symmetric square."""
    middle = (size + 1) // 2
    yield slice(0, middle), slice(middle, size)
    yield slice(middle, size), slice(size, size)


def all_pairs(x: Tensor, y: Tensor, first: Tensor, second: Tensor, protocol: KidProtocol) -> Tensor:
    """Every kernel value once: sums over subsets are products with their 0/1 members, [n, subsets]."""
    size, shift = protocol.subset_size, centre(x, y, protocol)
    in_x, in_y = members(first, x), members(second, y)
    within = sums(x, x, in_x, in_x, protocol, shift) + sums(y, y, in_y, in_y, protocol, shift)
    across = sums(x, y, in_x, in_y, protocol, shift)
    return within / (size * (size - 1)) - 2 * across / size**2


def members(chosen: Tensor, x: Tensor) -> Tensor:
    """chosen: [subsets, size] -> [n, subsets] of 0 and 1, in the type of x."""
    return x.new_zeros(len(chosen), len(x)).scatter_(1, chosen, 1.0).mT.contiguous()


def sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor, protocol: KidProtocol, shift: float) -> Tensor:
    """[subsets] fp64: sum of kernel values over the pairs of each subset; within one set without the diagonal.

    Tile by tile, in memory that is used again: what is done with the values of one finds them in a cache.
    """
    total = x.new_zeros(in_x.shape[1], dtype=torch.float64)
    same = x is y
    tile = x.new_empty(ROWS * COLUMNS)
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        for first in range(start if same else 0, len(y), COLUMNS):
            columns = slice(first, min(first + COLUMNS, len(y)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            values = kernel(x[rows], y[columns], protocol, shift, tile[: shape[0] * shape[1]].view(shape))
            if same and first == start:  # pairs within the rows come twice, those with later samples once
                values.fill_diagonal_(0)
                values[:, : shape[0]] *= 0.5
            total += ((values @ in_y[columns]).double() * in_x[rows]).sum(0)
    return total * 2 if same else total
