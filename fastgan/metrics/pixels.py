"""Pixel accuracy: of label maps by their confusion matrix (Long et al. 2015), of images within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.arrays import tensor_of
from fastgan.metrics.pictures import matching
from fastgan.metrics.result import Result, Values


@dataclass(frozen=True)
class PixelProtocol:
    """classes: of label maps, or None for images;  ignore: a label of `real` that is left out;
    tolerance: an image's pixel is right where no channel is off by more than this."""

    classes: int | None
    ignore: int | None
    tolerance: float | None


def pixel_accuracy(
    fake: Any, real: Any, *, classes: int | None = None, ignore: int | None = None, tolerance: float | None = None
) -> Result:
    """Share of pixels that are right.

    fake, real: label maps [N, H, W] (or [H, W]) of integers, `classes` of them (the largest of `real` plus 1 where
    None); or images [N, C, H, W] with tolerance, in units of their pixels (for uint8 maps 16 is customary).
    values of label maps: mean_accuracy (over classes), mean_iou, weighted_iou (by frequency), and accuracy and iou of
    each class; NaN for one that `real` does not have (accuracy), or that neither has (iou), left out of the means.
    """
    if tolerance is not None:
        if classes is not None or ignore is not None:
            raise FastganError("tolerance is for images, classes and ignore are for label maps; give one of them")
        x, y = matching(fake, real)
        if not tolerance >= 0:
            raise FastganError(f"tolerance: expected 0 or more, got {tolerance}")
        right = ((x.double() - y.double()).abs() <= tolerance).all(1).double()
        protocol = PixelProtocol(None, None, float(tolerance))
        return Result("pixel_accuracy", float(right.mean()), protocol, {}, len(y), len(x))
    x, y = labels("fake", fake), labels("real", real)
    if x.shape != y.shape:
        raise FastganError(f"fake {list(x.shape)} and real {list(y.shape)} must have the same shape")
    counted = y != ignore if ignore is not None else torch.ones_like(y, dtype=torch.bool)
    if not bool(counted.any()):
        raise FastganError(f"real: every pixel has the label to ignore, {ignore}")
    number = classes if classes is not None else int(y[counted].max()) + 1
    matrix = confusion(x[counted], y[counted], number)
    count = len(y) if y.dim() == 3 else 1
    value = float(matrix.diagonal().sum() / matrix.sum())
    return Result("pixel_accuracy", value, PixelProtocol(number, ignore, None), of_classes(matrix), count, count)


def labels(name: str, value: Any) -> Tensor:
    given = tensor_of(name, value) if isinstance(value, (np.ndarray, Tensor)) else None
    if given is None or given.is_floating_point() or given.is_complex() or given.dim() not in (2, 3) or not len(given):
        what = type(value).__name__ if given is None else f"{given.dtype} {list(given.shape)}"
        raise FastganError(f"{name}: expected label maps [N, H, W] of integers, got {what}; for images give tolerance")
    return given.cpu().long()


def confusion(fake: Tensor, real: Tensor, classes: int) -> Tensor:
    """[classes, classes + 1] fp64: pixels by real and generated label; the last column: labels that are no class."""
    if bool((real < 0).any()) or int(real.max()) >= classes:
        raise FastganError(
            f"real: expected labels from 0 to {classes - 1}, got {int(real.min())} to {int(real.max())}; "
            "give classes, or the label to ignore"
        )
    outside = (fake < 0) | (fake >= classes)
    joint = real * (classes + 1) + torch.where(outside, classes, fake)
    return torch.bincount(joint, minlength=classes * (classes + 1)).view(classes, classes + 1).double()


def of_classes(matrix: Tensor) -> Values:
    right, real, fake = matrix[:, :-1].diagonal(), matrix.sum(1), matrix[:, :-1].sum(0)
    accuracy, iou = right / real, right / (real + fake - right)  # 0/0 is NaN
    return {
        "mean_accuracy": float(accuracy.nanmean()),
        "mean_iou": float(iou.nanmean()),
        "weighted_iou": float((real * iou.nan_to_num()).sum() / real.sum()),
        "accuracy_of_class": tuple(accuracy.tolist()),
        "iou_of_class": tuple(iou.tolist()),
    }
