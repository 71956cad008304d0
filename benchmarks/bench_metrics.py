"""Metrics against their public implementations, on seeded features shaped like a network's (2048 per sample).

The public ones are in metric_rivals.py; the trace by eigenvalues is as in torchmetrics, SciPy's root as in pytorch-fid.
All of them get all threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks import metric_rivals as rivals
from benchmarks.metric_rivals import (
    OURS,
    OURS_ONCE,
    features,
    kid_by_clean_fid,
    kid_by_numpy,
    kid_by_torch,
    prd_by_scikit_learn,
    prdc_by_fastgan,
    prdc_by_scikit_learn,
)
from fastgan import metrics
from fastgan.kernels import close_pairs, polynomial_mmd
from fastgan.kernels.symmetric_eigenvalues import CASES, reference, symmetric_eigenvalues

Array = np.ndarray[Any, Any]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["pairs come twice", "Inception"])
def test_kid(case, ratio, device):
    """With 5,000 samples pairs come several times in 100 subsets of 1000; with 10,000 nearly all come once."""
    n, d, subsets, size = polynomial_mmd.CASES[case]
    real, fake = features(1, n, d), features(2, n, d)
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))
    for theirs in (kid_by_numpy, kid_by_clean_fid):
        assert metrics.kid(x, y, subsets=5).value == pytest.approx(theirs(real, fake, 5), abs=1e-5)
    ratio(
        "metrics",
        f"KID, {n} + {n} samples, {subsets} subsets of {size}",
        {
            "fastgan": lambda: metrics.kid(x, y, subsets=subsets),
            "torch-fidelity's (NumPy)": lambda: kid_by_numpy(real, fake, subsets),
            "clean-fid's (NumPy)": lambda: kid_by_clean_fid(real, fake, subsets),
            "torchmetrics' (PyTorch)": lambda: kid_by_torch(x, y, subsets),
        },
        ours="fastgan",
        rounds=5,
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["few", "Inception"])
def test_prdc(case, ratio, device):
    n = close_pairs.CASES[case][0]
    real, fake = features(1, n), features(2, n)
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))

    want = prdc_by_scikit_learn(real[:2000], fake[:2000])
    few = metrics.prdc(x[:2000], y[:2000], precision=metrics.Rule(5, inclusive=False))
    assert {**few[0].values, **few[1].values}.items() >= {
        k: pytest.approx(v, abs=2e-3) for k, v in want.items()
    }.items()
    ratio(
        "metrics",
        f"precision, recall, density, coverage, {n} + {n} samples",
        {OURS: lambda: prdc_by_fastgan(x, y), rivals.PRDC: lambda: prdc_by_scikit_learn(real, fake)},
        ours=OURS,
        rounds=5 if n < 10_000 else 3,
        memory=rivals.peaks("prdc", n, device),
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [2000, 10_000])
def test_prd(n, ratio, device):
    """One run of clustering each; of few samples fastgan's ten, which the protocol asks for, beside it."""
    real, fake = features(1, n), features(2, n)
    x, y = (torch.from_numpy(z).to(device) for z in (real, fake))
    few = metrics.prd(x[:2000], y[:2000]).values
    want = prd_by_scikit_learn(real[:2000], fake[:2000], 3)
    assert (few["f8"], few["f8_inverse"]) == pytest.approx(want, abs=0.05)
    ratio(
        "metrics",
        f"PRD, {n} + {n} samples",
        {
            OURS_ONCE: lambda: metrics.prd(x, y, runs=1),
            **({"fastgan, ten runs": lambda: metrics.prd(x, y, runs=10)} if n < 10_000 else {}),
            rivals.PRD: lambda: prd_by_scikit_learn(real, fake, 1),
        },
        ours=OURS_ONCE,
        rounds=5 if n < 10_000 else 3,
        memory=rivals.peaks("prd", n, device),
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
    x, y = (torch.from_numpy(features(seed, n)).to(device) for seed in (1, 2))  # fp32, as a network gives them

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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["2048 features", "1000 samples"])
def test_symmetric_eigenvalues(case, ratio, device):
    """The part of the trace that is no product of matrices; on a GPU both candidates are the library's."""
    m = torch.randn(CASES[case], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    m = m + m.mT
    exact = reference(m)
    assert (symmetric_eigenvalues(m) - exact).abs().max() < 1e-12 * exact.abs().max()
    ratio(
        "metrics",
        f"eigenvalues of a symmetric matrix, {case}",
        {"fastgan": lambda: symmetric_eigenvalues(m), "torch.linalg.eigvalsh": lambda: reference(m)},
        ours="fastgan",
        rounds=9,
    )
