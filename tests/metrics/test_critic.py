"""How the critic scores samples: against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_inputs import scores
from sklearn.metrics import brier_score_loss, roc_auc_score

from fastgan.errors import FastganError
from fastgan.metrics import critic_calibration


def test_against_scikit_learn() -> None:
    real, fake = scores(1, 1500, 1.0).round(1), scores(2, 900, -0.5).round(1)  # rounded: ties
    got = critic_calibration(real, fake).values
    label = np.concatenate((np.ones(1500), np.zeros(900)))
    logits = np.concatenate((real, fake)).astype("float64")
    weight = np.concatenate((np.full(1500, 1 / 1500), np.full(900, 1 / 900)))
    assert got["auc"] == pytest.approx(roc_auc_score(label, logits), rel=1e-12)
    probability = 1 / (1 + np.exp(-logits))
    assert got["brier"] == pytest.approx(brier_score_loss(label, probability, sample_weight=weight), rel=1e-9)
    assert got["accuracy_real"] == (real > 0).mean()
    assert got["accuracy_fake"] == (fake <= 0).mean()
    assert got["accuracy"] == pytest.approx(((real > 0).mean() + (fake <= 0).mean()) / 2)
    assert (got["real_mean"], got["fake_mean"]) == pytest.approx((real.mean(), fake.mean()), rel=1e-5)
    gap = max(abs((real <= t).mean() - (fake <= t).mean()) for t in np.unique(logits))
    assert got["overlap"] == pytest.approx(1 - gap, rel=1e-9)
    assert sum(got["weight"]) == pytest.approx(1)  # type: ignore[arg-type]


def test_a_calibrated_critic() -> None:
    """Real ~ N(m, 1), fake ~ N(-m, 1): log p_real / p_fake is 2 m x."""
    rng = np.random.default_rng(0)
    real, fake = 0.7 + rng.standard_normal(40_000), -0.7 + rng.standard_normal(40_000)
    right = critic_calibration(1.4 * real, 1.4 * fake)
    assert right.value < 0.01
    too_sure = critic_calibration(7 * real, 7 * fake)
    assert too_sure.value > 0.1
    assert too_sure.values["auc"] == pytest.approx(right.values["auc"], rel=1e-12)
    assert right.values["overlap"] == pytest.approx(0.4839, abs=0.01)  # 2 Phi(-0.7)
    assert not right.warnings


def test_closed_forms() -> None:
    got = critic_calibration(np.full(10, 50.0), np.full(20, -50.0))
    assert got.value == pytest.approx(0, abs=1e-12)
    assert (got.values["accuracy"], got.values["auc"], got.values["overlap"]) == (1, 1, 0)
    blind = critic_calibration(np.zeros(10), np.zeros(5))
    assert (blind.value, blind.values["auc"], blind.values["overlap"]) == (0, 0.5, 1)
    wrong = critic_calibration(np.full(10, -800.0), np.full(5, 800.0))
    assert (wrong.value, wrong.values["auc"]) == (1, 0)
    assert "5 samples" in blind.warnings[0]
    half = critic_calibration(np.array([1.0, 1, -1, -1]), np.array([-1.0, -1]), bins=2)
    sure = 1 / (1 + np.exp(-1))
    assert half.values["confidence"] == pytest.approx((1 - sure, sure))
    assert half.values["real_share"] == pytest.approx((1 / 3, 1))
    assert half.values["weight"] == pytest.approx((0.75, 0.25))
    assert half.value == pytest.approx(0.75 * abs(1 / 3 - (1 - sure)) + 0.25 * (1 - sure))


def test_a_critic_scores_the_samples_itself() -> None:
    real, fake = torch.randn(150, 3, 4, 4), torch.randn(130, 3, 4, 4)
    seen = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x[:, :1]  # a map of logits, as a PatchGAN's

    got = critic_calibration(real, iter(fake.split(50)), critic)
    assert max(seen) <= 64
    want = critic_calibration(real[:, 0].mean((1, 2)), fake[:, 0].mean((1, 2)).numpy())
    assert got.value == pytest.approx(want.value, rel=1e-6)
    assert got.values["auc"] == want.values["auc"]
    assert critic_calibration([real[:, 0, 0, :1]], real[:, 0, 0, 0]).values["auc"] == 0.5


def test_bad_input() -> None:
    good = np.zeros(5)
    for real, fake, message in (
        (good[:1], good, "real: expected at least 2"),
        (good, good * np.nan, "fake: expected finite logits"),
        ("logits", good, "str"),
        (3, good, "int"),
        ([torch.tensor(1.0)], good, "single numbers"),
    ):
        with pytest.raises(FastganError, match=message):
            critic_calibration(real, fake)
    with pytest.raises(FastganError, match="bins"):
        critic_calibration(good, good, bins=0)
