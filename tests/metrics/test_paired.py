"""Paired measures: PSNR, SSIM, MS-SSIM and pixel accuracy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from parity_inputs import disturbed, images

from fastgan.errors import FastganError
from fastgan.metrics import ms_ssim, pixel_accuracy, psnr, ssim

CLEAN = images(1, 2, 176, 192)
NOISY = disturbed(2, CLEAN)


def test_psnr() -> None:
    x = np.zeros((2, 1, 2, 2))
    y = np.stack((np.full((1, 2, 2), 0.2), np.full((1, 2, 2), 0.02)))
    got = psnr(x, y)  # range 2: 20 dB and 40 dB
    assert got.value == pytest.approx(30, rel=1e-12)
    assert got.values == pytest.approx({"mse": 0.0202, "worst": 20})
    assert psnr(x, y, reduction="pooled").value == pytest.approx(10 * np.log10(4 / 0.0202), rel=1e-12)
    assert psnr(x, y, data_range=1).value == pytest.approx(30 - 20 * np.log10(2), rel=1e-12)
    assert psnr(CLEAN, CLEAN).value == np.inf
    assert psnr(NOISY, CLEAN).protocol.data_range == 255


def test_similarity_of_equal_images_and_of_constants() -> None:
    for function in (ssim, ms_ssim):
        assert function(CLEAN, CLEAN).value == pytest.approx(1, rel=1e-12)
        assert function(NOISY, CLEAN).value < 0.99
        assert function(NOISY, CLEAN).value == pytest.approx(function(CLEAN, NOISY).value, rel=1e-12)
    x, y = np.full((1, 1, 16, 16), 0.25), np.full((1, 1, 16, 16), -0.5)
    c1 = (0.01 * 2) ** 2
    want = (2 * 0.25 * -0.5 + c1) / (0.25**2 + 0.5**2 + c1)
    assert ssim(x, y).value == pytest.approx(want, rel=1e-9)


def test_ssim_of_one_window() -> None:
    """By its definition, of an image that is one window."""
    x, y = CLEAN[0, 0, :11, :11].astype(float), NOISY[0, 0, :11, :11].astype(float)
    gauss = np.exp(-((np.arange(11.0) - 5) ** 2) / 4.5)
    weight = np.outer(gauss, gauss) / gauss.sum() ** 2
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy, xy = ((weight * (a - m) * (b - n)).sum() for a, m, b, n in ((x, mx, x, mx), (y, my, y, my), (x, mx, y, my)))
    c1, c2 = 2.55**2, 7.65**2
    want = (2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    got = ssim(y[None, None], x[None, None], data_range=255)
    assert got.value == pytest.approx(want, rel=1e-10)


def test_batches_and_types_do_not_matter() -> None:
    many, noisy = np.tile(CLEAN[:, :, :20, :20], (20, 1, 1, 1)), np.tile(NOISY[:, :, :20, :20], (20, 1, 1, 1))
    assert ssim(noisy, many).value == pytest.approx(ssim(noisy[:2], many[:2]).value, rel=1e-12)
    assert ssim(torch.from_numpy(noisy), torch.from_numpy(many)) == ssim(noisy, many)
    shifted = ssim(noisy / 255.0, many / 255.0, data_range=1).value
    assert shifted == pytest.approx(ssim(noisy, many).value, rel=1e-10)


def test_pixel_accuracy_of_images() -> None:
    x = np.full((1, 3, 2, 2), 100, "uint8")
    y = x.copy()
    y[0, 0, 0, 0], y[0, 2, 1, 1] = 116, 117
    assert pixel_accuracy(y, x, tolerance=16).value == 0.75
    assert pixel_accuracy(x, y, tolerance=17).value == 1.0  # and no uint8 that wraps around
    assert pixel_accuracy(x, y, tolerance=0).value == 0.5


def test_pixel_accuracy_of_labels() -> None:
    real, fake = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 1, 1, 7]]])
    got = pixel_accuracy(fake, real)
    assert got.value == 0.5
    assert got.values["accuracy_of_class"] == (0.5, 0.5)
    assert got.values["iou_of_class"] == (0.5, 1 / 3)
    assert got.values["weighted_iou"] == pytest.approx((2 * 0.5 + 2 / 3) / 4)
    assert pixel_accuracy(fake, real, ignore=0).value == 0.5
    assert pixel_accuracy(fake, real, ignore=1).values["accuracy_of_class"] == (0.5,)
    assert pixel_accuracy(fake[0], real[0]).value == 0.5


def test_json_has_no_infinity_and_no_nan() -> None:
    shown = psnr(CLEAN, CLEAN).as_dict()
    assert (shown["value"], shown["values"]["worst"], shown["values"]["mse"]) == (None, None, 0.0)
    shown = pixel_accuracy(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), classes=2).as_dict()
    assert shown["values"]["iou_of_class"] == [1.0, None]
    json.dumps(shown, allow_nan=False)


A, B = np.zeros((2, 3, 16, 16)), np.zeros((2, 1, 4, 4), int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(A, A[:1]), "same shape"),
        (lambda: psnr(A[0], A[0]), r"\[N, C, H, W\]"),
        (lambda: psnr(A, A.astype("uint8")), "give both"),
        (lambda: psnr(A, A, reduction="sum"), "'sum'"),
        (lambda: psnr(A + 2, A), "pass data_range"),
        (lambda: psnr(A.astype(int), A.astype(int)), "pass data_range"),
        (lambda: psnr(A, A, data_range=0), "above 0"),
        (lambda: psnr(A * np.nan, A), "NaN"),
        (lambda: psnr([1], A), "list"),
        (lambda: psnr(A[:0], A[:0]), r"\[0, 3, 16, 16\]"),
        (lambda: ssim(A[..., :10], A[..., :10]), "11 pixels"),
        (lambda: ssim(A, A, window=4), "odd"),
        (lambda: ms_ssim(A, A), "161 pixels"),
        (lambda: pixel_accuracy(A, A), "integers"),
        (lambda: pixel_accuracy(A, A, tolerance=1, classes=3), "one of them"),
        (lambda: pixel_accuracy(A, A, tolerance=-1), "tolerance"),
        (lambda: pixel_accuracy(B[:, 0], B[:1, 0]), "same shape"),
        (lambda: pixel_accuracy(B[:, 0], B[:, 0] + 5, classes=3), "0 to 2"),
        (lambda: pixel_accuracy(B[:, 0], B[:, 0], ignore=0), "every pixel"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
