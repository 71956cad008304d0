"""Metrics of tensors on a GPU are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from parity_inputs import disturbed, features, images

from fastgan import metrics


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_features(tf32: bool) -> None:
    x, y = (torch.from_numpy(features(seed, n, 64)) for seed, n in ((1, 1500), (2, 1200)))
    was = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        there = x.cuda(), y.cuda()
        for function in (metrics.fid, metrics.fid_infinity):
            assert function(*there).value == pytest.approx(function(x, y).value, rel=1e-7)
        for function in (metrics.precision_recall, metrics.density_coverage):
            assert function(*there).values == function(x, y).values
        kid = metrics.kid(*there, subsets=20, subset_size=300).value
        assert kid == pytest.approx(metrics.kid(x, y, subsets=20, subset_size=300).value, abs=1e-7)
        assert metrics.prd(*there).value == pytest.approx(metrics.prd(x, y).value, abs=0.05)
        assert metrics.inception_score(there[0]).value == pytest.approx(metrics.inception_score(x).value, rel=1e-10)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = was


@pytest.mark.gpu
def test_images() -> None:
    clean = images(1, 3, 176, 176)
    x, y = torch.from_numpy(disturbed(2, clean)), torch.from_numpy(clean)
    for function in (metrics.psnr, metrics.ssim, metrics.ms_ssim):
        assert function(x.cuda(), y.cuda()).value == pytest.approx(function(x, y).value, rel=1e-9)
    assert metrics.diversity(x.cuda()).value == pytest.approx(metrics.diversity(x).value, rel=1e-9)
