"""sqrtm_trace and sqrtm against SciPy and constructed roots, near singularity, their derivatives, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from fastgan.errors import FastganError
from fastgan.kernels import matrix_root
from fastgan.kernels.matrix_root import (
    METHODS,
    Factor,
    by_polar_factor,
    covariance,
    factor,
    polar_schedule,
    product_norm,
    sqrtm_trace,
)
from fastgan.kernels.square_root import sqrtm

Array = np.ndarray[Any, Any]


def centred(n: int, d: int, seed: int) -> Array:
    """Rows with covariance A.T @ A, features on scales over three orders."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, d)) * np.exp(rng.uniform(-3, 3, d))
    return (a - a.mean(0)) / np.sqrt(n - 1)


def cov(a: Array) -> Array:
    return a.T @ a


def rotation(d: int, seed: int) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 64, 512])
def test_trace_against_scipy_and_singular_values(method: Any, d: int) -> None:
    a, b = centred(2 * d + 3, d, 0), centred(3 * d + 3, d, 1)
    want = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    got = sqrtm_trace(cov(a), cov(b), method)
    assert isinstance(got, float)
    assert got == pytest.approx(want, rel=1e-12)
    if d <= 64:
        assert got == pytest.approx(scipy.linalg.sqrtm(cov(a) @ cov(b)).trace().real, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_trace_of_commuting_matrices(method: Any) -> None:
    q = rotation(64, 2)
    x, y = np.geomspace(1, 1e-4, 64), np.geomspace(1e-2, 3, 64)
    assert sqrtm_trace((q * x) @ q.T, (q * y) @ q.T, method) == pytest.approx(np.sqrt(x * y).sum(), rel=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n1", "n2"), [(20, 20), (20, 200), (2, 200), (64, 65)])
def test_trace_of_singular_covariances(method: Any, n1: int, n2: int) -> None:
    a, b = centred(n1, 64, 3), centred(n2, 64, 4)
    want = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert sqrtm_trace(cov(a), cov(b), method) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_trace_with_dead_features_and_zero(method: Any) -> None:
    a, b = centred(200, 16, 5), centred(200, 16, 6)
    a[:, 3] = 0
    want = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert sqrtm_trace(cov(a), cov(b), method) == pytest.approx(want, rel=1e-11)
    assert sqrtm_trace(np.zeros((16, 16)), cov(b), method) == 0


@pytest.mark.parametrize("method", ["auto", "cholesky_svd"])
def test_trace_of_features_on_far_apart_scales(method: Any) -> None:
    scale = np.array([1.0, 1e-9, 1e-18])
    want = (scale * scale[::-1]).sum()  # each term comes from eigenvalues below the rounding of the largest
    assert sqrtm_trace(np.diag(scale**2), np.diag(scale[::-1] ** 2), method) == pytest.approx(want, rel=1e-12)


def test_congruence_is_the_product_over_panels_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_root, "PANEL", 16)
    for d in (1, 16, 17, 50):
        lower = torch.from_numpy(np.stack([np.linalg.cholesky(cov(centred(3 * d, d, seed))) for seed in (0, 1)]))
        second = torch.from_numpy(cov(centred(3 * d, d, 2)))
        want = (lower.mT @ second @ lower).tril()
        made = matrix_root.congruence(lower, second).tril()
        assert (made - want).norm() < 1e-14 * want.norm()


def test_the_gram_matrix_over_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_root, "PANEL", 16)
    for shape in ((1, 3), (16, 16), (2, 37, 50)):
        a = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
        assert (matrix_root.lower_gram(a).tril() - (a @ a.mT).tril()).norm() < 1e-14 * (a @ a.mT).norm()


def test_the_second_covariance_is_factored_only_where_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    inner = matrix_root.factor
    monkeypatch.setattr(matrix_root, "factor", lambda s, name="": (names.append(name), inner(s, name))[1])
    regular, singular = cov(centred(200, 32, 0)), cov(centred(20, 32, 1))
    sqrtm_trace(regular, cov(centred(300, 32, 2)))
    assert names == ["cov1"]
    sqrtm_trace(regular, singular)
    assert names == ["cov1", "cov1", "cov2"]
    # One direction is as good as dead in the first and negative in the second: its eigenvalue is below all rounding.
    with pytest.raises(FastganError, match=r"cov2: .*semi-definite"):
        sqrtm_trace(np.diag([1.0] * 31 + [1e-13]), np.diag([1.0] * 31 + [0.0]) + 0.1 * corner(32))


def corner(d: int) -> Array:
    """The first and the last feature correlated."""
    out = np.zeros((d, d))
    out[-1, 0] = out[0, -1] = 1.0
    return out


def test_a_product_far_below_its_factors_is_not_taken_for_precise() -> None:
    """Hardly overlapping covariances: the rounding of the product is that of the factors, not of its eigenvalues."""
    q = rotation(48, 11)
    first, second = np.geomspace(1, 1e-12, 48), np.geomspace(1e-12, 1, 48)
    x, y = (q * first) @ q.T, (q * second) @ q.T
    lower = torch.linalg.cholesky(torch.from_numpy(x))
    norm, certain = matrix_root.by_congruence(lower, torch.from_numpy(y))
    assert not bool(certain)
    assert float(norm.error) > abs(float(norm.value) - np.sqrt(first * second).sum())


@pytest.mark.parametrize(("one", "other"), [(1e-300, 1e-300), (1e300, 1e-300), (1e200, 1e200), (1e-120, 1.0)])
def test_trace_of_extreme_covariances(one: float, other: float) -> None:
    x, y = cov(centred(50, 16, 0)), cov(centred(50, 16, 1))
    want = sqrtm_trace(x, y) * np.sqrt(one) * np.sqrt(other)
    for method in METHODS:
        assert sqrtm_trace(x * one, y * other, method) == pytest.approx(want, rel=1e-11)  # type: ignore[arg-type]


def test_estimates_bound_the_error_and_auto_falls_back() -> None:
    scale = np.geomspace(1, 1e-10, 48)
    want = scale.sum()
    first = torch.from_numpy((rotation(48, 7) * scale) @ rotation(48, 8).T)
    second = torch.eye(48, dtype=torch.float64)
    left, right = (Factor(m, torch.tensor(48)) for m in (first, second))
    for method in METHODS:
        norm = product_norm(left, right, method)  # type: ignore[arg-type]
        assert abs(float(norm.value) - want) <= 4 * float(norm.error) + 1e-15
    assert float(product_norm(left, right, "cholesky_eigh").error) > 1e-8 * want
    assert float(product_norm(left, right).value) == pytest.approx(want, rel=1e-13)


def test_polar_estimate_sees_what_has_not_converged() -> None:
    values = torch.tensor([1.0] + [3e-10] * 99, dtype=torch.float64)
    norm = by_polar_factor(torch.diag(values))
    error = float(values.sum() - norm.value)
    assert error > 1e-9
    assert error <= float(norm.error) < 1e-6


def test_polar_schedule_brings_its_interval_to_one() -> None:
    x = torch.logspace(-9, 0, 5000, dtype=torch.float64)
    for a, b, c in polar_schedule():
        x = a * x + b * x**3 + c * x**5
    assert len(polar_schedule()) == 17
    assert (x - 1).abs().max() < 1e-14


def test_batches_broadcast_as_one_by_one() -> None:
    real = cov(centred(300, 24, 9))
    fakes = np.stack([cov(centred(n, 24, n)) for n in (5, 20, 40, 100, 300)])
    for method in METHODS:
        together = sqrtm_trace(real, fakes, method)  # type: ignore[arg-type]
        assert isinstance(together, np.ndarray)
        np.testing.assert_allclose(together, [sqrtm_trace(real, f, method) for f in fakes], rtol=1e-12)  # type: ignore[arg-type]
    tensors = sqrtm_trace(torch.from_numpy(real), torch.from_numpy(fakes))
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors.numpy(), sqrtm_trace(real, fakes), rtol=1e-14)


def test_factor_of_a_singular_covariance_has_its_rank() -> None:
    s = torch.from_numpy(cov(centred(20, 64, 3)))
    f = factor(covariance("s", s))
    assert int(f.rank) == 19
    assert f.matrix.shape == (64, 19)
    assert (f.matrix @ f.matrix.mT - s).norm() < 1e-14 * s.norm()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((2, 2), np.nan), "NaN"),
        (np.array([[1.0, 0.5], [0.1, 1.0]]), "symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "semi-definite"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), "semi-definite"),
        (np.diag([1.0, -1.0]), "diagonal"),
        (np.eye(3), "same size"),
        (np.ones((2, 3)), "square"),
        (np.eye(2) * 1j, "real"),
    ],
)
def test_trace_refuses(bad: Array, message: str) -> None:
    for pair in ((bad, np.eye(2)), (np.eye(2), bad)):
        with pytest.raises(FastganError, match=message) as error:
            sqrtm_trace(*pair)
        assert "\n" not in str(error.value)


def test_trace_refuses_an_unknown_method_and_batches_that_do_not_fit() -> None:
    with pytest.raises(FastganError, match="cholesky_svd"):
        sqrtm_trace(np.eye(2), np.eye(2), "cholesky_sv")  # type: ignore[arg-type]
    with pytest.raises(FastganError, match="broadcast"):
        sqrtm_trace(np.stack([np.eye(2)] * 2), np.stack([np.eye(2)] * 3))


@pytest.mark.parametrize("d", [1, 2, 64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_sqrtm_against_scipy(d: int, symmetric: bool) -> None:
    m = np.random.default_rng(10).standard_normal((3, d, d)) / np.sqrt(d) + 2.5 * np.eye(d)
    m = np.stack([x @ x.T for x in m]) if symmetric else m
    m = (m + m.transpose(0, 2, 1)) / 2 if symmetric else m
    got = sqrtm(torch.from_numpy(m)).numpy()
    np.testing.assert_array_equal(sqrtm(m), got)
    for x, y in zip(got, m, strict=True):
        np.testing.assert_allclose(x, scipy.linalg.sqrtm(y), rtol=1e-10, atol=1e-12)


def test_sqrtm_of_known_roots() -> None:
    jordan = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(sqrtm(jordan @ jordan), jordan, rtol=1e-12, atol=1e-12)  # no basis of eigenvectors
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(sqrtm(turn @ turn), turn, rtol=1e-12, atol=1e-12)  # complex eigenvalues
    singular = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(sqrtm(singular), torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)))
    assert sqrtm(torch.eye(3)).dtype == torch.float32


def test_sqrtm_differentiates_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    m = 0.4 * torch.randn(2, 4, 4, generator=generator, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
    for a in (m, (m @ m.mT + (m @ m.mT).mT) / 2):
        a = a.clone().requires_grad_()
        assert torch.autograd.gradcheck(sqrtm, a)
        assert torch.autograd.gradgradcheck(sqrtm, a)


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(2, 3),
        torch.eye(2) * float("nan"),
        torch.diag(torch.tensor([1.0, -1.0])),
        torch.tensor([[-1.0, 1.0], [0.0, -2.0]]),
        torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        torch.eye(2, dtype=torch.int64),
    ],
)
def test_sqrtm_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(FastganError, match="sqrtm") as error:
        sqrtm(bad)
    assert "\n" not in str(error.value)
