"""Eigenvalues of symmetric matrices by way of a band: known spectra, LAPACK, every size around the band, extremes."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels import symmetric_eigenvalues as op
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.symmetric_eigenvalues import CASES, native, reference, symmetric_eigenvalues

F64 = torch.float64
EPS = torch.finfo(F64).eps
pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason="no native part")


def symmetric(*shape: int, seed: int = 0) -> Tensor:
    m = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return m + m.mT


def error(made: Tensor, exact: Tensor) -> float:
    """Largest, in roundings of the largest eigenvalue."""
    return float((made - exact).abs().max() / exact.abs().max() / EPS)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31, 32, 33, 34, 35, 63, 64, 65, 66, 67, 95, 96, 97, 98, 129, 161, 257])
def test_against_lapack(n: int) -> None:
    m = symmetric(n, n)
    assert error(native(m), reference(m)) < 8 + 4 * math.sqrt(n)


@pytest.mark.parametrize("case", [case for case, shape in CASES.items() if shape[-1] <= 1000])
def test_cases_by_any_number_of_threads(case: str) -> None:
    m = symmetric(*CASES[case])
    garbage = m.tril() + torch.full_like(m, float("nan")).triu(1)  # what is above the diagonal is not read
    before, threads = garbage.clone(), torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            made = native(garbage)
            assert error(made, reference(m)) < 8 + 4 * math.sqrt(m.shape[-1])
            assert torch.equal(made, native(garbage))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(garbage.nan_to_num(), before.nan_to_num())


def test_known_spectra() -> None:
    n = 300
    q = torch.linalg.qr(symmetric(n, n, seed=1)).Q
    for values in (
        torch.linspace(-1, 1, n, dtype=F64),
        torch.logspace(-14, 0, n, dtype=F64),
        torch.ones(n, dtype=F64),
        torch.cat((torch.zeros(n - 3, dtype=F64), torch.tensor([1.0, 1.0, 2.0], dtype=F64))),
        -torch.logspace(-3, 3, n, dtype=F64).flip(0),
    ):
        m = (q * values) @ q.mT
        assert error(native((m + m.mT) / 2), values) < 60


def test_matrices_that_are_sparse() -> None:
    n = 270
    k = torch.arange(1, n + 1, dtype=F64)
    laplace = 2 * torch.eye(n, dtype=F64) - torch.diag(torch.ones(n - 1, dtype=F64), -1)
    laplace += laplace.tril(-1).mT
    assert error(native(laplace), 2 - 2 * torch.cos(torch.pi * k / (n + 1))) < 60
    diagonal = torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=F64)
    assert torch.equal(native(torch.diag(diagonal)), diagonal.sort().values)
    assert torch.equal(native(torch.zeros(n, n, dtype=F64)), torch.zeros(n, dtype=F64))
    blocks = torch.block_diag(symmetric(100, 100), torch.zeros(70, 70, dtype=F64), symmetric(100, 100, seed=5))
    assert error(native(blocks), reference(blocks)) < 60
    arrow = torch.eye(n, dtype=F64)
    arrow[-1] = 1.0
    assert error(native(arrow), reference(arrow)) < 60


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_extreme_sizes(scale: float) -> None:
    m = symmetric(70, 70)
    made = native(m * (scale / m.abs().max()))
    assert error(made / scale * m.abs().max(), reference(m)) < 40


def test_what_is_not_finite_is_the_librarys_business() -> None:
    for bad in (math.nan, math.inf):
        m = symmetric(40, 40)
        m[3, 2] = bad
        for call in (native, reference):
            with contextlib.suppress(torch.linalg.LinAlgError):
                assert not bool(call(m).isfinite().all())


def test_large_matrices_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(op, "native", lambda a: (sizes.append(a.shape[-1]), reference(a))[1])
    for n in (op.LEAST - 1, op.LEAST):
        symmetric_eigenvalues(symmetric(n, n))
    assert sizes == [op.LEAST]
    with pytest.raises(FastganError, match="float64"):
        symmetric_eigenvalues(torch.zeros(3, 3))
    with pytest.raises(FastganError, match=r"got torch.float64 \[3, 2\]"):
        symmetric_eigenvalues(torch.zeros(3, 2, dtype=F64))


def test_a_failure_is_the_librarys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_solve", lambda matrix, values: True)
    m = symmetric(40, 40)
    for scale in (1.0, 1e200):
        assert torch.equal(native(m * scale), reference(m * scale))


@pytest.mark.long
def test_features_of_the_inception() -> None:
    m = symmetric(*CASES["2048 features"])
    assert error(native(m), reference(m)) < 200
