"""Inception score: closed forms, splits and shuffling."""

from __future__ import annotations

import numpy as np
import pytest
from parity_inputs import logits

from fastgan.metrics import inception_score


def test_closed_forms() -> None:
    assert inception_score(np.zeros((50, 7))).value == pytest.approx(1, rel=1e-14)
    sure = 1e4 * np.eye(5)[np.arange(100) % 5]
    assert inception_score(sure, splits=1).value == pytest.approx(5, rel=1e-14)
    assert inception_score(sure, splits=4, shuffle=False).value == pytest.approx(5, rel=1e-14)


def test_splits_shuffle_and_ddof() -> None:
    x = logits(1, 103, 6)
    p = np.exp(x.astype("float64"))
    p /= p.sum(1, keepdims=True)

    def score(part: np.ndarray) -> float:
        return float(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))

    want = [score(p[i * 103 // 4 : (i + 1) * 103 // 4]) for i in range(4)]
    got = inception_score(x, splits=4, shuffle=False, ddof=1)
    assert (got.value, got.values["std"]) == pytest.approx((np.mean(want), np.std(want, ddof=1)), rel=1e-12)
    order = np.random.RandomState(7).permutation(103)
    want = [score(p[order][i * 103 // 10 : (i + 1) * 103 // 10]) for i in range(10)]
    got = inception_score(x, seed=7)
    assert (got.value, got.values["std"]) == pytest.approx((np.mean(want), np.std(want)), rel=1e-12)
    assert (got.n_real, got.n_fake) == (0, 103)
    assert "103 samples" in got.warnings[0]
