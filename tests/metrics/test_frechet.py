"""Fréchet distance and FeatureStatistics: closed forms, SciPy, exact merging, files, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from fastgan.errors import FastganError
from fastgan.metrics import FeatureStatistics, frechet_distance

Array = np.ndarray[Any, Any]


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.exp(rng.uniform(-1, 1, d)) + rng.standard_normal(d) + shift


def of(*batches: Array) -> FeatureStatistics:
    out = FeatureStatistics()
    for batch in batches:
        out.update(batch)
    return out


def moments(x: Array) -> tuple[Array, Array]:
    return x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])


def exact(x: Array, y: Array) -> float:
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root)


def test_closed_form_of_diagonal_covariances() -> None:
    s, t = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    want = 3 * 0.5**2 + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert frechet_distance(np.zeros(3), np.diag(s), np.full(3, 0.5), np.diag(t)) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("d", [1, 2, 64, 512])
def test_against_scipy_and_singular_values(d: int) -> None:
    x, y = features(2 * d + 5, d, 0), features(3 * d + 5, d, 1)
    (m, s), (n, t) = moments(x), moments(y)
    got = frechet_distance(m, s, n, t)
    assert got == pytest.approx(exact(x, y), rel=1e-11)
    assert frechet_distance(*(torch.from_numpy(v) for v in (m, s, n, t))) == pytest.approx(got, rel=1e-13)
    assert of(x).frechet_distance(of(y)) == pytest.approx(got, rel=1e-11)
    assert frechet_distance(m.tolist(), s.tolist(), n.tolist(), t.tolist()) == pytest.approx(got, rel=1e-13)
    if d <= 64:
        old = ((m - n) ** 2).sum() + np.trace(s + t) - 2 * scipy.linalg.sqrtm(s @ t).trace().real
        assert got == pytest.approx(old, rel=1e-8)


@pytest.mark.parametrize(("n1", "n2"), [(2, 2), (20, 30), (20, 300), (300, 20), (64, 64)])
def test_few_samples_are_exact(n1: int, n2: int) -> None:
    x, y = features(n1, 64, 2), features(n2, 64, 3)
    assert of(x).frechet_distance(of(y)) == pytest.approx(exact(x, y), rel=1e-12)
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(exact(x, y), rel=1e-8)


@pytest.mark.parametrize("types", [("float32", "float32"), ("float32", "float64"), ("float16", "float32")])
@pytest.mark.parametrize("n", [20, 300])
def test_short_types_are_kept_as_they_are_and_used_in_fp64(n: int, types: tuple[str, str], tmp_path: Path) -> None:
    d = 600  # more than are centred at once
    parts = [features(n, d, 30, 3.0).astype(kind) for kind in types]
    x, y = np.concatenate(parts).astype("float64"), features(2 * n, d, 31, 3.0)
    got = of(*parts)
    want = exact(x, y)
    assert got.frechet_distance(of(y)) == pytest.approx(want, rel=1e-11)
    np.testing.assert_allclose(got.mean().numpy(), x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(got.cov().numpy(), np.cov(x, rowvar=False), rtol=1e-11, atol=1e-13)
    got.save(tmp_path / "a.npz")
    assert FeatureStatistics.load(tmp_path / "a.npz").frechet_distance(of(y)) == pytest.approx(want, rel=1e-11)
    assert FeatureStatistics().merge(got).update(y).cov().dtype == torch.float64


def test_few_samples_by_eigenvalues_are_exact_or_go_by_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.kernels import matrix_root

    calls: list[int] = []
    inner = matrix_root.by_singular_values
    monkeypatch.setattr(matrix_root, "by_singular_values", lambda p: (calls.append(len(p)), inner(p))[1])
    x, y = features(300, 400, 20), features(310, 400, 21)
    assert of(x).frechet_distance(of(y)) == pytest.approx(exact(x, y), rel=1e-12)
    assert not calls
    y[1:6] = y[0]  # five samples are the same: singular values of zero, at which roots lose half of the digits
    assert of(x).frechet_distance(of(y[:290])) == pytest.approx(exact(x, y[:290]), rel=1e-12)
    assert calls == [1]


@pytest.mark.parametrize("n", [20, 64, 500])
def test_identical_sets_are_at_distance_0(n: int) -> None:
    x = features(n, 64, 4)
    scale = 2 * np.trace(np.cov(x, rowvar=False))
    assert 0 <= of(x).frechet_distance(of(x)) <= 1e-10 * scale
    assert 0 <= frechet_distance(*moments(x), *moments(x)) <= 1e-10 * scale


def test_batched() -> None:
    real, fakes = features(300, 8, 5), [features(n, 8, n) for n in (4, 50, 200)]
    m, s = (np.stack(v) for v in zip(*(moments(f) for f in fakes), strict=True))
    got = frechet_distance(*moments(real), m, s)
    np.testing.assert_allclose(got, [frechet_distance(*moments(real), *moments(f)) for f in fakes], rtol=1e-12)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 11), (90,), (16, 32, 48, 64, 80)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_streaming_equals_numpy(cuts: tuple[int, ...], shift: float) -> None:
    x = features(100, 16, 6, shift)
    got = of(*np.split(x, cuts))
    assert got.count == 100
    np.testing.assert_allclose(got.mean().numpy(), x.mean(0), rtol=1e-14)
    want = np.cov(x - shift, rowvar=False)
    assert np.linalg.norm(got.cov().numpy() - want) < (1e-13 if not shift else 1e-8) * np.linalg.norm(want)


@pytest.mark.parametrize("sizes", [(3, 4, 5), (3, 40, 60), (40, 3, 60), (30, 40, 50)])
def test_merge_does_not_depend_on_order(sizes: tuple[int, ...]) -> None:
    parts = [features(n, 16, n) for n in sizes]
    whole = np.concatenate(parts)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        merged = FeatureStatistics()
        for i in order:
            part = of(parts[i])
            merged.merge(part)
            assert part.count == sizes[i]
        assert merged.count == len(whole)
        np.testing.assert_allclose(merged.mean().numpy(), whole.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(merged.cov().numpy(), np.cov(whole, rowvar=False), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(part.cov().numpy(), np.cov(parts[0], rowvar=False), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n", [10, 100])
def test_files_are_those_of_pytorch_fid(n: int, tmp_path: Path) -> None:
    x, y = features(n, 16, 7), features(50, 16, 8)
    of(x).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_allclose(file["mu"], x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(file["sigma"], np.cov(x, rowvar=False), rtol=1e-11, atol=1e-13)
    again = FeatureStatistics.load(tmp_path / "a.npz")
    assert again.frechet_distance(of(y)) == pytest.approx(exact(x, y), rel=1e-12)
    again.update(y)
    np.testing.assert_allclose(
        again.cov().numpy(), np.cov(np.concatenate((x, y)), rowvar=False), rtol=1e-10, atol=1e-12
    )

    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    theirs = FeatureStatistics.load(tmp_path / "theirs.npz")
    assert theirs.frechet_distance(of(y)) == pytest.approx(exact(x, y), rel=1e-8)
    with pytest.raises(FastganError, match="count"):
        theirs.update(y)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    good = {"mu": np.zeros(2), "sigma": np.eye(2)}
    bad = [
        {"mu": np.zeros(2)},
        good | {"mu": np.zeros(3)},
        good | {"sigma": np.eye(2) * np.nan},
        good | {"count": np.array(1)},
    ]
    bad += [good | {"mu": np.array([None, None])}, good | {"features": np.ones((2, 2))}]
    for contents in bad:
        np.savez(path, **contents)  # type: ignore[arg-type]
        with pytest.raises(FastganError, match=r"bad\.npz") as error:
            FeatureStatistics.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FastganError, match=r"bad\.npz"):
        FeatureStatistics.load(path)
    with pytest.raises(FastganError, match="No such file"):
        FeatureStatistics.load(tmp_path / "none.npz")
    with pytest.raises(FastganError, match="cannot write"):
        of(features(3, 2, 0)).save(tmp_path / "none" / "a.npz")


def test_what_is_refused() -> None:
    x = of(features(5, 3, 0))
    for call, message in (
        (lambda: FeatureStatistics().cov(), "2 samples, got 0"),
        (lambda: of(np.ones((1, 3))).frechet_distance(x), "2 samples, got 1"),
        (lambda: of(features(5, 4, 0)).frechet_distance(x), "expected 4"),
        (lambda: x.merge(of(features(9, 4, 0))), "expected 3"),
        (lambda: x.update(np.ones((2, 4))), "expected 3"),
        (lambda: x.update(np.ones(3)), r"\[n, d\]"),
        (lambda: x.update(np.full((2, 3), np.inf)), "infinity"),
        (lambda: frechet_distance(np.zeros(3), np.eye(2), np.zeros(2), np.eye(2)), "mu1"),
        (lambda: frechet_distance(np.zeros(2), np.eye(2), np.full(2, np.nan), np.eye(2)), "mu2"),
    ):
        with pytest.raises(FastganError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert x.count == 5
