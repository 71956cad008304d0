"""KID against its formula in fp64, on the subsets that it says it draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity_inputs import features

from fastgan.kernels import polynomial_mmd
from fastgan.metrics import kid

Array = np.ndarray[Any, Any]


def formula(x: Array, y: Array, degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> float:
    x, y = x.astype("float64"), y.astype("float64")
    g = 1 / x.shape[1] if gamma is None else gamma
    xx, yy, xy = ((g * a @ b.T + coef0) ** degree for a, b in ((x, x), (y, y), (x, y)))
    off = ~np.eye(len(x), dtype=bool)
    return float(xx[off].mean() + yy[off].mean() - 2 * xy.mean())


def subsets(n: int, m: int, count: int, size: int, seed: int = 2020) -> list[tuple[Array, Array]]:
    rng = np.random.RandomState(seed)
    out = []
    for _ in range(count):
        fake = rng.choice(m, size, replace=False)
        out.append((rng.choice(n, size, replace=False), fake))
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-8), ("float64", 1e-15)])
@pytest.mark.parametrize(
    "options", [{}, {"degree": 2, "gamma": 0.1}, {"coef0": 0.0}, {"degree": 1}, {"degree": 4, "seed": 5}]
)
@pytest.mark.parametrize("way", ["all pairs", "subsets", "as chosen"])
def test_formula(
    dtype: str, tolerance: float, options: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of the library to compute it, and what is chosen here; small tiles, so that there are several."""
    if way != "as chosen":
        monkeypatch.setattr(polynomial_mmd, "_is_fixed_point_here", lambda *_: False)
    monkeypatch.setattr(polynomial_mmd, "ROWS", 128)
    monkeypatch.setattr(polynomial_mmd, "COLUMNS", 200)
    n, m, size, count = (700, 600, 99, 60) if way == "all pairs" else (700, 600, 99, 9)
    called = []
    for name in ("all_pairs", "one_subset"):
        function = getattr(polynomial_mmd, name)
        monkeypatch.setattr(polynomial_mmd, name, lambda *a, f=function, n=name: (called.append(n), f(*a))[1])
    x, y = features(1, n, 32, dtype), features(2, m, 32, dtype)
    got = kid(x, y, subsets=count, subset_size=size, **options)
    if way != "as chosen":
        assert set(called) == {"all_pairs" if way == "all pairs" else "one_subset"}
    kernel = {name: value for name, value in options.items() if name != "seed"}
    want = [formula(x[i], y[j], **kernel) for i, j in subsets(n, m, count, size, options.get("seed", 2020))]
    size_of_kernel = (kernel.get("gamma", 1 / 32) * float(np.square(x).sum(1).mean()) + 1) ** kernel.get("degree", 3)
    assert got.value == pytest.approx(np.mean(want), abs=tolerance * size_of_kernel)
    assert got.values["std"] == pytest.approx(np.std(want), abs=tolerance * size_of_kernel)


def test_arrays_tensors_and_batches_are_alike() -> None:
    x, y = features(1, 150, 16), features(2, 140, 16)
    want = kid(x, y, subsets=3, subset_size=50).value
    assert kid(torch.from_numpy(x), torch.from_numpy(y), subsets=3, subset_size=50).value == want
    assert kid(iter(np.array_split(x, 4)), [y[:7], y[7:]], subsets=3, subset_size=50).value == want


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_where_fp32_is_not_full_products_are_in_fp64(precision: str) -> None:
    x, y = features(1, 150, 16), features(2, 140, 16)
    torch.set_float32_matmul_precision(precision)
    try:
        got = kid(x, y, subsets=3, subset_size=50).value
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got == kid(x.astype("float64"), y.astype("float64"), subsets=3, subset_size=50).value
    assert got != kid(x, y, subsets=3, subset_size=50).value


def test_unbiased() -> None:
    """Of two sets with the same distribution: 0 within its uncertainty, both signs."""
    x, y = features(1, 400, 16), features(8, 400, 16)
    pool = np.concatenate((x, y))
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(40):
        order = rng.permutation(800)
        scores.append(kid(pool[order[:400]], pool[order[400:]], subsets=1, subset_size=400).value)
    assert min(scores) < 0 < max(scores)
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(40)


def test_fewer_samples_than_a_subset() -> None:
    x, y = features(1, 150, 16), features(2, 140, 16)
    got = kid(x, y)
    assert got.protocol.subset_size == 140
    assert "140" in got.warnings[0]
    assert [w.split(":")[0] for w in kid(x, y, subset_size=140).warnings] == [
        "150 real samples, fewer than 10,000",
        "140 fake samples, fewer than 10,000",
    ]
