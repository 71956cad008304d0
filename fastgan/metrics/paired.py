"""Generated images against the one right answer for each: peak signal-to-noise ratio, SSIM and MS-SSIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics.pictures import matching, range_of
from fastgan.metrics.result import Result
from fastgan.metrics.similarity import WEIGHTS, SsimProtocol, ssim_of_pairs

BATCH = 16  # images at a time


@dataclass(frozen=True)
class PsnrProtocol:
    """reduction: "image", the mean of each image's PSNR; or "pooled", the PSNR of the mean squared error of all."""

    data_range: float
    reduction: str


def psnr(fake: Any, real: Any, *, data_range: float | None = None, reduction: str = "image") -> Result:
    """10 log10(data_range² / mean squared error) in dB; infinite for equal images. fake, real: [N, C, H, W]."""
    x, y = matching(fake, real)
    span = range_of(data_range, x, y)
    if reduction not in ("image", "pooled"):
        raise FastganError(f"reduction {reduction!r} is unknown; expected 'image' or 'pooled'")
    errors = torch.cat([(a.double() - b.double()).square().mean((1, 2, 3)) for a, b in batches(x, y)])
    of_each = 10 * (span**2 / errors).log10()
    value = of_each.mean() if reduction == "image" else 10 * (span**2 / errors.mean()).log10()
    values = {"mse": float(errors.mean()), "worst": float(of_each.amin())}
    return Result("psnr", float(value), PsnrProtocol(span, reduction), values, len(y), len(x))


def ssim(fake: Any, real: Any, *, data_range: float | None = None, window: int = 11, sigma: float = 1.5) -> Result:
    """Mean SSIM of pairs of images [N, C, H, W], both sides at least `window` pixels. values: std, worst."""
    x, y = matching(fake, real)
    return similarity("ssim", x, y, SsimProtocol(range_of(data_range, x, y), odd(window), sigma))


def ms_ssim(fake: Any, real: Any, *, data_range: float | None = None, window: int = 11, sigma: float = 1.5) -> Result:
    """Mean MS-SSIM of pairs of images [N, C, H, W], both sides more than 160 pixels with a window of 11."""
    x, y = matching(fake, real)
    span = range_of(data_range, x, y)
    return similarity("ms_ssim", x, y, SsimProtocol(span, odd(window), sigma, scales=WEIGHTS, negative="set to 0"))


def odd(window: int) -> int:
    if window < 1 or window % 2 == 0:
        raise FastganError(f"window: expected an odd number of pixels, got {window}")
    return window


def similarity(name: str, x: Tensor, y: Tensor, protocol: SsimProtocol) -> Result:
    scores = torch.cat([ssim_of_pairs(a, b, protocol) for a, b in batches(x, y)])
    values = {"std": float(scores.std(correction=0)), "worst": float(scores.amin())}
    return Result(name, float(scores.mean()), protocol, values, len(y), len(x))


def batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    split: Callable[..., Any] = torch.split
    return list(zip(split(x, BATCH), split(y, BATCH), strict=True))
