"""The metrics against what public implementations give on the same inputs: goldens made by tools/parity.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import parity_inputs as inputs
import pytest
import torch

from fastgan import metrics
from fastgan.metrics.path import lerp, slerp

GOLDENS = json.loads((Path(__file__).parent.parent / "goldens" / "metrics.json").read_text())


def golden(subject: str, name: str) -> Any:
    return GOLDENS[subject]["outputs"][name]


@pytest.mark.parametrize(("n", "relative", "absolute"), [(3000, 1e-9, 0.0), (50, 0.0, 2e-3)])
@pytest.mark.parametrize("peer", ["pytorch-fid", "torch-fidelity", "torchmetrics"])
def test_fid(n: int, relative: float, absolute: float, peer: str) -> None:
    """With singular covariances (n = 50 < d) the peers are off by the root of the rounding; we are not."""
    real, fake = (inputs.features(seed, n, 64) for seed in (1, 2))
    got = metrics.fid(real, fake)
    assert got.value == pytest.approx(golden("fid", f"{peer} {n}"), rel=relative, abs=absolute)


@pytest.mark.parametrize("n", [100, 12])
def test_fid_by_fifty_digits(n: int) -> None:
    real, fake = (inputs.features(seed, n, 24, "float64") for seed in (1, 2))
    assert metrics.fid(real, fake).value == pytest.approx(golden("exact_fid", f"mpmath {n}"), rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 1e-12)])
def test_kid_on_the_same_subsets(dtype: str, tolerance: float) -> None:
    real, fake = inputs.features(1, 1500, 64), inputs.features(2, 1200, 64)
    got = metrics.kid(real.astype(dtype), fake.astype(dtype), subsets=20, subset_size=300)
    mean, std = golden("kid", "torch-fidelity float64")
    assert got.value == pytest.approx(mean, abs=tolerance)
    assert got.values["std"] == pytest.approx(std, abs=tolerance)


@pytest.mark.parametrize("peer", ["clean-fid", "torchmetrics"])
def test_kid_of_all_samples(peer: str) -> None:
    real, fake = (inputs.features(seed, n, 64)[:300].astype("float64") for seed, n in ((1, 1500), (2, 1200)))
    got = metrics.kid(real, fake, subsets=1, subset_size=300)
    assert got.value == pytest.approx(golden("kid", f"{peer} all"), rel=1e-9)


def test_inception_score() -> None:
    x = inputs.logits(3, 1003, 40)
    got = metrics.inception_score(x)
    assert [got.value, got.values["std"]] == pytest.approx(golden("inception_score", "torch-fidelity"), rel=1e-12)
    whole = metrics.inception_score(x, splits=1, shuffle=False).value
    assert whole == pytest.approx(golden("inception_score", "torch-fidelity whole")[0], rel=1e-12)
    assert whole == pytest.approx(golden("inception_score", "torchmetrics whole"), rel=1e-6)  # it works in fp32


@pytest.mark.parametrize("k", [3, 5])
def test_prdc(k: int) -> None:
    real, fake = inputs.features(1, 700, 64), inputs.features(2, 600, 64)
    want = golden("neighbours", f"prdc float64 {k}")
    got = metrics.precision_recall(real, fake, k=k, inclusive=False).values | dict(
        metrics.density_coverage(real, fake, k=k).values
    )
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_improved_precision_and_recall(k: int) -> None:
    real, fake = inputs.features(1, 700, 64), inputs.features(2, 600, 64)
    got = metrics.precision_recall(real, fake, k=k).values
    want = golden("neighbours", f"torch-fidelity float64 {k}")
    assert [got["precision"], got["recall"]] == pytest.approx(want, abs=1e-6)  # they are means in fp32


def test_similarity() -> None:
    """Their Gaussian window is in fp32."""
    clean = inputs.images(4, 3, 177, 193)
    fake = inputs.disturbed(5, clean)
    for name, function in (("ssim", metrics.ssim), ("ms-ssim", metrics.ms_ssim)):
        want = golden("similarity", f"pytorch-msssim {name}")
        got = [function(fake[i : i + 1], clean[i : i + 1]).value for i in range(3)]
        assert got == pytest.approx(want, abs=5e-6)
        assert function(fake, clean).value == pytest.approx(np.mean(want), abs=5e-6)
        assert function(fake / 255, clean / 255, data_range=1).value == pytest.approx(np.mean(want), abs=5e-6)


def test_psnr() -> None:
    clean = inputs.images(4, 3, 177, 193)
    fake = inputs.disturbed(5, clean)
    assert metrics.psnr(fake, clean).value == pytest.approx(golden("similarity", "torchmetrics psnr"), rel=1e-6)
    pooled = metrics.psnr(fake, clean, reduction="pooled").value
    assert pooled == pytest.approx(golden("similarity", "torchmetrics psnr pooled"), rel=1e-6)


def test_pixel_accuracy() -> None:
    fake, real = inputs.label_maps(6, 4, 50, 6)
    got = metrics.pixel_accuracy(fake, real, classes=6)
    assert got.value == pytest.approx(golden("pixels", "torchmetrics accuracy"), rel=1e-6)
    for ours, theirs in (("accuracy_of_class", "accuracy of class"), ("iou_of_class", "iou of class")):
        values = got.values[ours]
        assert isinstance(values, tuple)
        assert values[:5] == pytest.approx(golden("pixels", f"torchmetrics {theirs}"), rel=1e-6)
        assert np.isnan(values[5])
    ignoring = metrics.pixel_accuracy(fake, real, classes=6, ignore=0).value
    assert ignoring == pytest.approx(golden("pixels", "torchmetrics accuracy ignoring 0"), rel=1e-12)


def test_critic_calibration() -> None:
    got = metrics.critic_calibration(inputs.scores(8, 4000, 1.0), inputs.scores(9, 4000, -0.5))
    assert got.value == pytest.approx(golden("critic", "torchmetrics calibration error"), rel=1e-6)
    assert got.values["auc"] == pytest.approx(golden("critic", "torchmetrics auc"), rel=1e-6)


@pytest.mark.parametrize("way", ["lerp", "slerp"])
def test_interpolation_of_latents(way: str) -> None:
    a, b = (torch.from_numpy(inputs.generator(seed).standard_normal((5, 8))) for seed in (10, 11))
    got = (lerp if way == "lerp" else slerp)(a, b, torch.full((5,), 0.3, dtype=torch.float64))
    np.testing.assert_allclose(got.numpy(), golden("paths", f"torchmetrics {way}"), rtol=1e-9, atol=1e-12)
