"""Metrics by their public implementations, and as much memory as each takes, in a process of its own.

    python -m benchmarks.metric_rivals METRIC CANDIDATE SAMPLES DEVICE

prints the bytes by which the peak of memory rises. Where a package is not installed its few library calls are made
here in the same way: of torch-fidelity and clean-fid (KID in NumPy), torchmetrics (KID in PyTorch), prdc
(scikit-learn's distances) and the authors' PRD (scikit-learn's mini-batch k-means).
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks import memory
from fastgan import bench, metrics
from fastgan.metrics.prd_curve import curves, f_pair

Array = np.ndarray[Any, Any]
D = 2048


@cache
def features(seed: int, n: int, d: int = D) -> Array:
    """[n, d] fp32, positive, with a decaying spectrum. Condition of the covariance of 5,000 at 2048: about 1e6."""
    directions = np.random.default_rng(77).standard_normal((64, d)) * np.linspace(0.1, 0.01, 64)[:, None]
    rng = np.random.default_rng([seed, n, d])
    weights = rng.standard_normal((n, 64), dtype="float32") + np.float32(0.1 * seed)
    noise = rng.standard_normal((n, d), dtype="float32") * np.linspace(0.3, 0.01, d, dtype="float32")
    return 0.35 * np.exp(weights @ directions.astype("float32") + noise)


def kid_by_numpy(real: Array, fake: Array, subsets: int = 100, size: int = 1000) -> float:
    """As torch-fidelity 0.4.0; NumPy computes x @ x.T by half of the multiplications."""

    def kernel(x: Array, y: Array) -> Array:
        return (np.matmul(x, y.T) * (1.0 / x.shape[1]) + 1.0) ** 3

    rng, scores = np.random.RandomState(2020), []
    for _ in range(subsets):
        x, y = fake[rng.choice(len(fake), size, replace=False)], real[rng.choice(len(real), size, replace=False)]
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        scores.append(within / (size * (size - 1)) - 2 * xy.sum() / size**2)
    return float(np.mean(scores))


def kid_by_clean_fid(real: Array, fake: Array, subsets: int = 100, size: int = 1000) -> float:
    """As clean-fid 0.1.35, in NumPy too."""

    def kernel(x: Array, y: Array) -> Array:
        return (x @ y.T / x.shape[1] + 1) ** 3

    total, rng = 0.0, np.random.RandomState(2020)
    for _ in range(subsets):
        x, y = (z[rng.choice(len(z), size, replace=False)] for z in (fake, real))
        within = kernel(x, x) + kernel(y, y)
        total += (within.sum() - np.diag(within).sum()) / (size - 1) - 2 * kernel(x, y).sum() / size
    return float(total / subsets / size)


def kid_by_torch(real: torch.Tensor, fake: torch.Tensor, subsets: int = 100, size: int = 1000) -> float:
    """As torchmetrics 1.9.0, whose subsets are other ones."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T * (1.0 / x.shape[1]) + 1.0) ** 3

    scores = []
    for _ in range(subsets):
        x, y = (z[torch.randperm(len(z))[:size]] for z in (real, fake))
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()
        scores.append(within / (size * (size - 1)) - 2 * xy.sum() / size**2)
    return float(torch.stack(scores).mean())


def prdc_by_scikit_learn(real: Array, fake: Array, k: int = 5) -> dict[str, float]:
    """The package prdc 0.2, or what it calls."""
    try:
        from prdc import compute_prdc
    except ImportError:
        from sklearn.metrics import pairwise_distances

        def distances(x: Array, y: Array) -> Array:
            return pairwise_distances(x, y, metric="euclidean", n_jobs=8)

        def radii(x: Array) -> Array:
            square = distances(x, x)
            nearest = np.argpartition(square, k + 1, axis=-1)[..., : k + 1]
            return np.take_along_axis(square, nearest, axis=-1).max(axis=-1)

        of_real, of_fake, across = radii(real), radii(fake), distances(real, fake)
        inside = across < of_real[:, None]
        return {
            "precision": float(inside.any(0).mean()),
            "recall": float((across < of_fake).any(1).mean()),
            "density": float(inside.sum(0).mean() / k),
            "coverage": float((across.min(1) < of_real).mean()),
        }
    with contextlib.redirect_stdout(io.StringIO()):
        return {name: float(value) for name, value in compute_prdc(real, fake, k).items()}


def prd_by_scikit_learn(real: Array, fake: Array, runs: int) -> tuple[float, float]:
    """As its authors' code: clusters of both sets together, mean of the curves over the runs."""
    from sklearn.cluster import MiniBatchKMeans

    p, q = [], []
    for run in range(runs):
        labels = MiniBatchKMeans(n_clusters=20, n_init=10, random_state=run).fit(np.vstack((fake, real))).labels_
        q.append(np.bincount(labels[: len(fake)], minlength=20) / len(fake))
        p.append(np.bincount(labels[len(fake) :], minlength=20) / len(real))
    return f_pair(*(curve.mean(0) for curve in curves(np.array(p), np.array(q))))


def prdc_by_fastgan(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """By the rule of the package prdc for all four."""
    rule = metrics.Rule(5, inclusive=False)
    first, second = metrics.prdc(x, y, precision=rule, density=rule)
    return {**first.values, **second.values}


OURS, OURS_ONCE = "fastgan", "fastgan, one run"
PRDC, PRD = "prdc's (scikit-learn)", "scikit-learn's mini-batch k-means, one run"
CANDIDATES: dict[str, dict[str, Callable[[Array, Array, str], object]]] = {
    "prdc": {
        OURS: lambda real, fake, device: prdc_by_fastgan(*on(device, real, fake)),
        PRDC: lambda real, fake, device: prdc_by_scikit_learn(real, fake),
    },
    "prd": {
        OURS_ONCE: lambda real, fake, device: metrics.prd(*on(device, real, fake), runs=1),
        PRD: lambda real, fake, device: prd_by_scikit_learn(real, fake, 1),
    },
}


def on(device: str, *arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(z).to(device) for z in arrays]


def peaks(metric: str, n: int, device: str) -> dict[str, int]:
    """Bytes by which memory rises for each candidate, above the features."""
    return {
        name: memory.in_new_process("benchmarks.metric_rivals", [metric, name, str(n)], device, 1)
        for name in CANDIDATES[metric]
    }


def main(metric: str, candidate: str, n: str, device: str) -> None:
    run = CANDIDATES[metric][candidate]
    run(features(1, 200), features(2, 200), device)  # what libraries take once
    real, fake = features(1, int(n)), features(2, int(n))
    before = memory.restart_peak(device)  # features took more when they were made
    run(real, fake, device)
    print(bench.peak_memory(device) - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
