"""Metrics against their public implementations, on seeded features shaped like a network's (2048 per sample).

Where a package is not installed its few library calls are made here in the same way: of torch-fidelity (KID in NumPy),
torchmetrics (KID in PyTorch, trace by eigenvalues), prdc (scikit-learn's distances), the authors' PRD (scikit-learn's
mini-batch k-means) and pytorch-fid (SciPy's matrix root). All of them get all threads.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from fastgan import metrics
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [2000, 10_000])
def test_kid(n, ratio, device):
    real, fake = features(1, n), features(2, n)
    subsets = 10 if n < 10_000 else 100
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))
    assert metrics.kid(x, y, subsets=5).value == pytest.approx(kid_by_numpy(real, fake, 5), abs=1e-5)
    ratio(
        "metrics",
        f"KID, {n} + {n} samples, {subsets} subsets of 1000",
        {
            "fastgan": lambda: metrics.kid(x, y, subsets=subsets),
            "torch-fidelity's (NumPy)": lambda: kid_by_numpy(real, fake, subsets),
            "torchmetrics' (PyTorch)": lambda: kid_by_torch(x, y, subsets),
        },
        ours="fastgan",
        rounds=5,
    )


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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [2000, 10_000])
def test_prdc(n, ratio, device):
    real, fake = features(1, n), features(2, n)
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))

    def ours() -> dict[str, Any]:
        rule = metrics.Rule(5, inclusive=False)
        first, second = metrics.prdc(x, y, precision=rule, density=rule)
        return {**first.values, **second.values}

    want = prdc_by_scikit_learn(real[:2000], fake[:2000])
    few = metrics.prdc(x[:2000], y[:2000], precision=metrics.Rule(5, inclusive=False))
    assert {**few[0].values, **few[1].values}.items() >= {
        k: pytest.approx(v, abs=2e-3) for k, v in want.items()
    }.items()
    ratio(
        "metrics",
        f"precision, recall, density, coverage, {n} + {n} samples",
        {"fastgan": ours, "prdc's (scikit-learn)": lambda: prdc_by_scikit_learn(real, fake)},
        ours="fastgan",
        rounds=5,
    )


def prd_by_scikit_learn(real: Array, fake: Array, runs: int) -> tuple[float, float]:
    """As its authors' code: clusters of both sets together, mean of the curves over the runs."""
    from sklearn.cluster import MiniBatchKMeans

    p, q = [], []
    for run in range(runs):
        labels = MiniBatchKMeans(n_clusters=20, n_init=10, random_state=run).fit(np.vstack((fake, real))).labels_
        q.append(np.bincount(labels[: len(fake)], minlength=20) / len(fake))
        p.append(np.bincount(labels[len(fake) :], minlength=20) / len(real))
    return f_pair(*(curve.mean(0) for curve in curves(np.array(p), np.array(q))))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [2000, 10_000])
def test_prd(n, ratio, device):
    """One run of clustering each; fastgan's ten, which the protocol asks for, beside it."""
    real, fake = features(1, n), features(2, n)
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))
    few = metrics.prd(x[:2000], y[:2000]).values
    want = prd_by_scikit_learn(real[:2000], fake[:2000], 3)
    assert (few["f8"], few["f8_inverse"]) == pytest.approx(want, abs=0.05)
    ratio(
        "metrics",
        f"PRD, {n} + {n} samples",
        {
            "fastgan, one run": lambda: metrics.prd(x, y, runs=1),
            "fastgan, ten runs": lambda: metrics.prd(x, y, runs=10),
            "scikit-learn's mini-batch k-means, one run": lambda: prd_by_scikit_learn(real, fake, 1),
        },
        ours="fastgan, one run",
        rounds=5,
    )


def exact_trace(x: Array, y: Array) -> float:
    """Nuclear norm of the product of the QR factors of the centred features, in fp64."""
    factors = [np.linalg.qr(z.astype("float64") - z.astype("float64").mean(0), mode="r") for z in (x, y)]
    scale = np.sqrt((len(x) - 1) * (len(y) - 1))
    return float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum() / scale)


def by_scipy(first: Array, second: Array) -> float:
    """As pytorch-fid and five others."""
    return float(np.trace(scipy.linalg.sqrtm(first @ second)).real)


def by_eigenvalues(first: torch.Tensor, second: torch.Tensor) -> float:
    """As torchmetrics."""
    return float(torch.linalg.eigvals(first @ second).sqrt().real.sum())


def covariances(n: int, device: str) -> tuple[list[Array], list[torch.Tensor], Callable[[], float]]:
    sets = [features(seed, n).astype("float64") for seed in (1, 2)]
    arrays = [np.cov(z, rowvar=False) for z in sets]
    return arrays, [torch.from_numpy(z).to(device) for z in arrays], lambda: exact_trace(*sets)


@pytest.mark.timeout(1800)
def test_trace_of_the_root(ratio, device):
    """n = 5000 at d = 2048: regular covariances."""
    arrays, tensors, exact = covariances(5000, device)
    assert metrics.sqrtm_trace(*tensors) == pytest.approx(exact(), rel=1e-10)
    ratio(
        "metrics",
        "trace of the root of a product, d = 2048",
        {
            "fastgan sqrtm_trace": lambda: metrics.sqrtm_trace(*tensors),
            "scipy.linalg.sqrtm": lambda: by_scipy(*arrays),
            "torch.linalg.eigvals": lambda: by_eigenvalues(*tensors),
        },
        ours="fastgan sqrtm_trace",
        rounds=5,
    )


@pytest.mark.timeout(1800)
def test_few_samples(ratio, device):
    """n = 1000 at d = 2048: from statistics that keep their features, new each time; SciPy gets its covariances."""
    n = 1000
    arrays, _, exact = covariances(n, device)
    x, y = (torch.from_numpy(features(seed, n)).double().to(device) for seed in (1, 2))

    def ours() -> float:
        first, second = (metrics.FeatureStatistics().update(z) for z in (x, y))
        return first.frechet_distance(second)

    shift = float(np.square(features(1, n).mean(0, "float64") - features(2, n).mean(0, "float64")).sum())
    want = shift + sum(np.trace(z) for z in arrays) - 2 * exact()
    assert ours() == pytest.approx(want, rel=1e-10)
    off = abs(shift + sum(np.trace(z) for z in arrays) - 2 * by_scipy(*arrays) - want)
    ratio(
        "metrics",
        "Fréchet distance of 1000 + 1000 samples, d = 2048",
        {"fastgan, features kept": ours, "scipy.linalg.sqrtm": lambda: by_scipy(*arrays)},
        ours="fastgan, features kept",
        rounds=5,
        notes={"SciPy's distance": f"off by {off:.1e}, ours by {abs(ours() - want):.1e}, of {want:.2f}"},
    )
