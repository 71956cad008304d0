"""Resizing images for a feature network, exactly as the published protocols do it: scores move with the filter.

All take uint8 [N, C, H, W] and give fp32 [N, C, side, side] on the scale 0 to 255, not rounded.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def tensorflow_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear(align_corners=False)`: output i samples the input at i * in / out, no half pixel.

    Nothing is averaged when an image shrinks. The coordinates are products in fp32, as in TensorFlow's kernel: which of
    two pixels a coordinate falls on, and with which weight, hangs on their rounding.
    """
    if tuple(images.shape[2:]) == (side, side):
        return images.float()
    left, right, weight_x = _neighbours(images.shape[3], side, images.device)
    upper, lower, weight_y = _neighbours(images.shape[2], side, images.device)
    pixels = images.float()
    start = pixels.index_select(3, left)
    rows = pixels.index_select(3, right).sub_(start).mul_(weight_x).add_(start)
    start = rows.index_select(2, upper)
    return rows.index_select(2, lower).sub_(start).mul_(weight_y[:, None]).add_(start)


def _neighbours(size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `side` outputs: the pixel before its coordinate, the one after it, and the weight of the second."""
    position = torch.arange(side, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    before = position.long().clamp_(max=size - 1)
    after = (before + 1).clamp_(max=size - 1)
    return before.to(device), after.to(device), (position - before.float()).to(device)


def pytorch_bilinear(images: Tensor, side: int) -> Tensor:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: half-pixel centres, no antialiasing."""
    return F.interpolate(images.float(), (side, side), mode="bilinear", align_corners=False)


def pillow_bicubic(images: Tensor, side: int) -> Tensor:
    """Pillow's bicubic filter with antialiasing on each channel in floating point, clipped to 0...255, not rounded.

    The "clean" resizing of Parmar, Zhang and Zhu 2022 (arXiv:2104.11222). Done by Pillow on the CPU; on a GPU by
    PyTorch in fp64, which agrees with Pillow to 1e-4 of 255 (fp32 only to 1e-2).
    """
    if tuple(images.shape[2:]) == (side, side):
        return images.float()
    if images.device.type != "cpu":
        return antialiased_bicubic(images, side)
    count, channels, height, width = images.shape
    planes = images.float().reshape(-1, height, width).numpy()
    out = np.empty((len(planes), side, side), np.float32)

    def resize(index: int) -> None:
        out[index] = np.asarray(Image.fromarray(planes[index]).resize((side, side), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(min(torch.get_num_threads(), os.cpu_count() or 1)) as pool:  # Pillow lets go of the GIL
        for _ in pool.map(resize, range(len(planes))):
            pass
    return torch.from_numpy(out.reshape(count, channels, side, side)).clamp_(0, 255)


def antialiased_bicubic(images: Tensor, side: int) -> Tensor:
    """Pillow's bicubic filter by PyTorch, in fp64."""
    large = F.interpolate(images.double(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return large.clamp_(0, 255).float()
