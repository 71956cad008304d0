"""The PRD curve: closed forms for given shares, and clusters as good as scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parity_inputs import features
from sklearn.cluster import MiniBatchKMeans

from fastgan.metrics import prd
from fastgan.metrics.clusters import ClusterOptions, cluster, seeded
from fastgan.metrics.prd_curve import curves, f_pair

Array = np.ndarray[Any, Any]


def inertia(x: Array, labels: Array) -> float:
    return sum(((x[labels == k] - x[labels == k].mean(0)) ** 2).sum() for k in np.unique(labels))


def curve(real: list[float], fake: list[float]) -> tuple[Array, Array]:
    return curves(np.array(real), np.array(fake))


def test_equal_distributions_reach_both_ones() -> None:
    precision, recall = curve([0.5, 0.2, 0.3], [0.5, 0.2, 0.3])
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, 1001))
    np.testing.assert_allclose(precision, np.minimum(slopes, 1), atol=1e-12)
    np.testing.assert_allclose(recall, np.minimum(1 / slopes, 1), atol=1e-12)
    assert f_pair(precision, recall) == pytest.approx((1.0, 1.0))


def test_disjoint_distributions_reach_neither() -> None:
    precision, recall = curve([1, 0], [0, 1])
    assert precision.max() == recall.max() == 0
    assert f_pair(precision, recall) == (0, 0)


def test_half_of_the_modes() -> None:
    """All that is made is real, and it is half of what there is: precision 1 at recall 1/2 (paper, section 3)."""
    precision, recall = curve([0.5, 0.5], [1, 0])
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, 1001))
    np.testing.assert_allclose(precision, np.minimum(slopes / 2, 1), atol=1e-12)
    np.testing.assert_allclose(recall, np.minimum(1 / slopes, 0.5), atol=1e-9)
    high, low = f_pair(precision, recall)
    assert high == pytest.approx(65 * 0.5 / (64 + 0.5), rel=1e-3)  # F_8 at (1, 1/2): near the recall
    assert low == pytest.approx((1 + 1 / 64) * 0.5 / (1 / 64 + 0.5), rel=1e-3)  # F_1/8: near the precision
    turned = f_pair(*curve([1, 0], [0.5, 0.5]))
    assert turned == pytest.approx((low, high), rel=1e-3)


def test_clusters_are_as_good_as_those_of_scikit_learn() -> None:
    x = np.concatenate((features(1, 900, 24), features(2, 900, 24)))
    ours = [inertia(x, run.numpy()) for run in cluster(torch.from_numpy(x), 20, 4, ClusterOptions())]
    theirs = [
        inertia(x, MiniBatchKMeans(n_clusters=20, n_init=10, random_state=run).fit(x).labels_) for run in range(4)
    ]
    assert np.mean(ours) < np.mean(theirs) + 2 * np.std(theirs)
    assert max(ours) < 1.03 * min(theirs)


def test_full_iterations_improve_the_clusters() -> None:
    x = np.concatenate((features(1, 500, 24), features(2, 500, 24)))
    before, after = (cluster(torch.from_numpy(x), 20, 6, ClusterOptions(full=n)) for n in (0, 4))
    for run in range(6):
        assert inertia(x, after[run].numpy()) < 0.999 * inertia(x, before[run].numpy())


def test_clusters_that_are_apart_are_found() -> None:
    which = np.arange(400) % 8
    x = torch.from_numpy(features(1, 400, 6) + 50 * np.eye(8, 6)[which] - 50 * (which == 7)[:, None])
    for run in cluster(x, 8, 5, ClusterOptions()):
        assert len(set(zip(run.tolist(), which.tolist(), strict=True))) == 8


def test_seeds_are_apart() -> None:
    """k-means++ draws the next seed in proportion to its squared distance: never a point that is one already."""
    points = torch.arange(20.0).repeat(30)[:, None]
    options = ClusterOptions(seedings=1)
    chosen = seeded(points, 20, 3, options, torch.Generator().manual_seed(0))
    for run in chosen:
        assert sorted(run.flatten().tolist()) == list(range(20))


def test_curve_of_features() -> None:
    """As scikit-learn's clusters and the definition give it: with 10 runs F varies by 0.02 with the seed."""
    n = 500
    real, fake = features(1, n, 24), features(4, n, 24)
    got = prd(real, fake, runs=30)
    p, q = [], []
    for run in range(30):
        found = MiniBatchKMeans(n_clusters=20, n_init=3, random_state=run).fit(np.concatenate((real, fake))).labels_
        p.append(np.bincount(found[:n], minlength=20) / n)
        q.append(np.bincount(found[n:], minlength=20) / n)
    want = f_pair(*(v.mean(0) for v in curves(np.array(p), np.array(q))))
    assert (got.values["f8"], got.values["f8_inverse"]) == pytest.approx(want, abs=0.03)
    assert len(got.values["precision"]) == len(got.values["recall"]) == 1001  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_curve() -> None:
    real, fake = features(1, 100, 24), features(4, 90, 24)
    got = prd(real, fake, runs=3)
    assert prd(real, fake, runs=3) == got
    assert prd(real, fake, runs=3, seed=1).values != got.values
    assert (got.n_real, got.n_fake) == (90, 90)
    assert got.protocol.clustering == ClusterOptions()


def test_precision_and_recall_are_not_exchanged() -> None:
    modes = 9 * np.eye(10, 12)
    real = np.repeat(modes, 60, 0) + 0.1 * features(1, 600, 12)
    fake = np.repeat(modes[:5], 120, 0) + 0.1 * features(2, 600, 12)
    got = prd(real, fake, clusters=10)
    assert got.values["f8"] == pytest.approx(0.5, abs=0.01)
    assert got.values["f8_inverse"] > 0.98  # type: ignore[operator]
    assert got.value == got.values["f8"]


def test_unequal_sides() -> None:
    real, fake = features(1, 300, 8), features(2, 200, 8)
    got = prd(real, fake, balanced=False, beta=2)
    assert (got.n_real, got.n_fake) == (300, 200)
    assert set(got.values) == {"f_beta", "f_beta_inverse", "precision", "recall"}
