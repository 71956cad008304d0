"""FID and its extrapolation from features, statistics and files; what every result says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_inputs import features

from fastgan.metrics import FeatureStatistics, fid, fid_infinity, frechet_distance


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype("float64")
    return x.mean(0), np.cov(x, rowvar=False)


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    x, y = features(1, 300, 16), features(2, 250, 16)
    want = frechet_distance(*moments(x), *moments(y))
    statistics = FeatureStatistics().update(x)
    statistics.save(tmp_path / "real.npz")
    sources = (x, torch.from_numpy(x), list(np.array_split(x, 5)), iter([x]), statistics, tmp_path / "real.npz")
    for source in (*sources, str(tmp_path / "real.npz")):
        got = fid(source, y)
        assert got.value == pytest.approx(want, rel=1e-11)
        assert (got.n_real, got.n_fake) == (300, 250)


def test_the_result_says_what_it_is() -> None:
    got = fid(features(1, 300, 16), features(2, 12, 16))
    assert float(got) == got.value
    assert got.name == "fid"
    assert [w.split(":")[0] for w in got.warnings] == [
        "12 fake samples, fewer than 17",
        "300 real samples, fewer than 10,000",
        "12 fake samples, fewer than 10,000",
    ]
    shown = json.loads(json.dumps(got.as_dict()))
    assert shown["value"] == got.value
    assert shown["protocol"] == {"features": "given", "dimensions": 16, "ddof": 1, "accumulation": "float64"}
    assert shown["warnings"] == list(got.warnings)
    assert not fid(features(1, 10_000, 4), features(2, 10_000, 4)).warnings


def test_extrapolation_is_a_line_through_subsets() -> None:
    x, y = features(1, 400, 8), features(2, 900, 8)
    got = fid_infinity(x, y, points=6, smallest=200, seed=3)
    rng = np.random.Generator(np.random.PCG64(3))
    sizes = np.linspace(200, 900, 6).astype(int)
    scores = [frechet_distance(*moments(x), *moments(y[rng.permutation(900)[:n]])) for n in sizes]
    design = np.stack((np.ones(6), 1 / sizes), 1)
    (intercept, slope), *_ = np.linalg.lstsq(design, np.array(scores), rcond=None)
    assert got.value == pytest.approx(intercept, rel=1e-9)
    assert got.values["slope"] == pytest.approx(slope, rel=1e-8)
    assert got.values["scores"] == pytest.approx(tuple(scores), rel=1e-9)
    assert got.values["sizes"] == tuple(sizes)


def test_extrapolation_takes_the_bias_of_few_samples_away() -> None:
    """The same distribution on both sides, the real side known well: FID is all bias, and its limit is near 0."""
    real, fake = features(1, 20_000, 12), features(1, 1000, 12)
    score = fid(real, fake).value
    limit = fid_infinity(real, fake).value
    assert score > 0
    assert abs(limit) < score / 3


def test_small_sets_start_at_a_tenth() -> None:
    got = fid_infinity(features(1, 400, 8), features(2, 500, 8))
    assert got.protocol.smallest == 50
    assert got.protocol.points == 15


def test_distances_to_one_set_factor_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.metrics import statistics as module

    calls = []
    factor = module.factor
    monkeypatch.setattr(module, "factor", lambda *a: (calls.append(a[1]), factor(*a))[1])
    x, y = (FeatureStatistics().update(features(s, 50, 8)) for s in (1, 2))
    first = x.frechet_distance(y)
    assert x.frechet_distance(y) == first
    assert calls == ["the first covariance"]  # and the other one not at all
    x.update(features(3, 50, 8))  # the factor that was kept is of another covariance
    grown = FeatureStatistics().update(features(1, 50, 8)).update(features(3, 50, 8))
    assert x.frechet_distance(y) == pytest.approx(grown.frechet_distance(y), rel=1e-12)
    assert x.frechet_distance(y) != pytest.approx(first, rel=1e-3)
