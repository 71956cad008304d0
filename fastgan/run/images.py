"""Pictures for people: grids as PNG, animations as WebP.

Images are float [N, C, H, W] in [-1, 1], as networks make them, or uint8 [N, H, W, C], as files hold them.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.run.files import write_atomic


def to_uint8(images: Tensor) -> Tensor:
    """images: [N, C, H, W] float in [-1, 1] -> [N, H, W, C] uint8 on the CPU.

    Rounded, not truncated: the inverse of x / 127.5 - 1. What is outside is clipped; not a number is black.
    """
    levels = images.detach().float().nan_to_num(nan=-1.0).mul(127.5).add(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


BETWEEN = 64  # gray level between the pictures of a grid


def grid(images: Tensor, columns: int | None = None, *, cell: int = 64, gap: int = 2) -> Image.Image:
    """All images on one sheet, row by row.

    images:  uint8 [N, H, W, C] or float [N, C, H, W] in [-1, 1]; N >= 1, C = 1 or 3
    columns: None for a sheet as near to a square as can be
    cell:    smaller images are enlarged by the whole number that first reaches so many pixels; 0: never
    gap:     pixels of dark gray between neighbours

    Raises FastganError for no images, and for channels that are neither gray nor RGB.
    """
    pixels = _enlarged(_as_uint8(images), cell)
    count, height, width, channels = pixels.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    sheet = torch.full(size, BETWEEN, dtype=torch.uint8)
    for number, picture in enumerate(pixels):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return _to_pil(sheet)


def save_png(image: Image.Image, path: Path) -> Path:
    """Writes a PNG in one step: who reads `path` finds the old picture or the new. Raises FastganError."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return write_atomic(path, buffer.getvalue())


def save_animation(frames: Tensor, path: Path, fps: float, *, cell: int = 256) -> Path:
    """Writes an endless animated WebP.

    frames: uint8 [N, H, W, C] or float [N, C, H, W] in [-1, 1]
    fps:    frames a second; cell: as in `grid`
    Raises FastganError for another kind of file, and where it cannot be written.
    """
    if path.suffix.lower() != ".webp":
        raise FastganError(f"an animation is a WebP: expected a name that ends in .webp, got {path.name!r}")
    if not 0 < fps <= 1000:
        raise FastganError(f"frames a second must be more than 0 and at most 1000, not {fps}")
    first, *others = [_to_pil(frame).convert("RGB") for frame in _enlarged(_as_uint8(frames), cell)]
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=90)
    return write_atomic(path, buffer.getvalue())


def _as_uint8(images: Tensor) -> Tensor:
    """[N, H, W, C] uint8 on the CPU, checked."""
    whole = images.dim() == 4 and len(images) > 0
    pixels = to_uint8(images) if whole and images.is_floating_point() else images.cpu()
    if not whole or pixels.dtype != torch.uint8 or pixels.shape[3] not in (1, 3):
        raise FastganError(
            f"expected one or more images of 1 or 3 channels, uint8 [N, H, W, C] or float [N, C, H, W]; "
            f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    return pixels


def _enlarged(pixels: Tensor, cell: int) -> Tensor:
    """[N, H, W, C] with every pixel repeated, so that the shorter side has at least `cell`."""
    factor = max(1, math.ceil(cell / min(pixels.shape[1:3])))
    return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2) if factor > 1 else pixels


def _to_pil(pixels: Tensor) -> Image.Image:
    """[H, W, C] uint8 as a gray or RGB image."""
    return Image.fromarray((pixels[..., 0] if pixels.shape[2] == 1 else pixels).contiguous().numpy())
