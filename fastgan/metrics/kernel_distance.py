"""Kernel distance (KID: Bińkowski et al. 2018): the squared maximum mean discrepancy with a cubic kernel.

The value is its mean over random subsets of both sets; fastgan/kernels/polynomial_mmd.py has the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.polynomial_mmd import Kernel, polynomial_mmd
from fastgan.metrics.checks import at_least_one, both, few, seed_of, source_name
from fastgan.metrics.result import Result


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
    return polynomial_mmd(x, y, first, second, Kernel(protocol.degree, protocol.gamma, protocol.coef0))


def full_fp32() -> bool:
    """Whether fp32 products are that, and not TF32 or bf16, which are too coarse for a difference of means."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by device
        return False
