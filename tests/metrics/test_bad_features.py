"""What metrics of features refuse: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgan import metrics
from fastgan.errors import FastganError

PAIRED: dict[str, Callable[..., Any]] = {
    name: getattr(metrics, name)
    for name in ("fid", "fid_infinity", "kid", "prd", "precision_recall", "density_coverage", "prdc")
}
GOOD = np.random.default_rng(0).standard_normal((30, 4))
WITH_NAN = np.where(np.arange(30)[:, None] == 3, np.nan, GOOD)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (GOOD, GOOD[:1], "fake: expected at least 2 samples, got 1"),
        (GOOD[:0], GOOD, "real: expected at least 2 samples, got 0"),
        ([], GOOD, "real: expected at least 2 samples, got 0"),
        (GOOD, WITH_NAN, "NaN or infinity"),
        (np.full((5, 4), np.inf), GOOD, "NaN or infinity"),
        (GOOD, GOOD[:, :3], "real has 4 features per sample and fake 3"),
        (GOOD, [GOOD, GOOD[:, :3]], "fake: .*features per sample"),
        (GOOD, GOOD[0], r"fake: .*expected real \[n, d\]"),
        (GOOD, GOOD * 1j, "complex"),
        (GOOD[:, :0], GOOD, r"\[30, 0\]"),
        (3.0, GOOD, "real: .*float"),
        (GOOD, ["a"], "str"),
        (GOOD.astype(object), GOOD, "real: .*numbers, got object"),
    ],
)
def test_paired(name: str, real: Any, fake: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        PAIRED[name](real, fake)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.kid(GOOD, GOOD, subsets=0), "subsets"),
        (lambda: metrics.kid(GOOD, GOOD, subset_size=1), "subset_size"),
        (lambda: metrics.kid(GOOD, GOOD, degree=0), "degree"),
        (lambda: metrics.kid(GOOD, GOOD, seed=-1), "seed"),
        (lambda: metrics.prd(GOOD, GOOD, clusters=0), "clusters"),
        (lambda: metrics.prd(GOOD, GOOD, clusters=61), "at most the 60"),
        (lambda: metrics.prd(GOOD, GOOD, angles=2), "angles"),
        (lambda: metrics.prd(GOOD, GOOD, beta=0), "beta"),
        (lambda: metrics.precision_recall(GOOD, GOOD, k=0), "k: expected"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:5], k=5), "fewer than the 5"),
        (lambda: metrics.fid_infinity(GOOD, GOOD, points=1), "2 or more points"),
        (lambda: metrics.fid_infinity(GOOD, GOOD[:2]), "3 or more samples"),
        (lambda: metrics.inception_score(GOOD[:5]), "at most the 5"),
        (lambda: metrics.inception_score(GOOD, splits=1, ddof=1), "more than 1"),
        (lambda: metrics.inception_score(WITH_NAN), "1 of 30 samples"),
    ],
)
def test_options(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(set(PAIRED) - {"fid", "fid_infinity"}))
def test_statistics_where_samples_are_needed(name: str) -> None:
    for source in (metrics.FeatureStatistics().update(GOOD), "stats.npz"):
        with pytest.raises(FastganError, match=r"real: needs the samples"):
            PAIRED[name](source, GOOD)


def unusual() -> dict[str, Any]:
    """Arrays of the same numbers as GOOD that torch.as_tensor refuses, or warns of."""
    locked = GOOD.copy()
    locked.setflags(write=False)
    return {
        "backwards": GOOD[::-1].copy()[::-1],
        "big-endian": GOOD.astype(">f8"),
        "read-only": locked,
        "by columns": np.asfortranarray(GOOD),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", unusual())
def test_any_array_of_numbers(kind: str) -> None:
    given, other = unusual()[kind], GOOD**2
    assert metrics.fid(given, other).value == pytest.approx(metrics.fid(GOOD, other).value, rel=1e-12)
    assert metrics.kid(given, [other]).value == pytest.approx(metrics.kid(GOOD, other).value, rel=1e-12)
    assert metrics.precision_recall([given], other).values == metrics.precision_recall(GOOD, other).values
    square = given[:4]
    cov = GOOD[:4].T @ GOOD[:4]
    assert metrics.sqrtm_trace(square.T @ square, np.eye(4)) == pytest.approx(np.sqrt(np.linalg.eigvalsh(cov)).sum())
    assert metrics.critic_calibration(given[:, 0], other[:, 0]).value == (
        metrics.critic_calibration(GOOD[:, 0], other[:, 0]).value
    )
    images = given.astype(given.dtype).reshape(1, 1, 10, 12) / 10
    assert metrics.psnr(images, images + 0.1).value == pytest.approx(20 * np.log10(2 / 0.1))
