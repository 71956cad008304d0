"""Masks of holes [N, 1, S, S], 1 where the image is unknown, as functions of a draw: boxes and free-form strokes.

    box    one rectangle, each side from `smallest` to `largest` of the image's
    free   `STROKES` strokes of a brush, each of `CORNERS` straight parts (after Yu et al. 2019, arXiv:1806.03589, 4.2)

Everything is computed for all pixels at once: no shape depends on what is drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from fastgan.contract import Draw
from fastgan.errors import FastganError, suggest

KINDS = ("box", "free", "both")
STROKES, CORNERS = 4, 4
BRUSH = (0.06, 0.14)  # width of a brush, of the image's side
STEP = (0.10, 0.30)  # length of a straight part, of the image's side
RADIUS = 0.99  # of Jacobi's steps in a hole some twenty pixels wide; what is wider comes right on coarser levels


def check_kind(name: str) -> None:
    """FastganError unless `name` is one of KINDS."""
    if name not in KINDS:
        raise FastganError(f"mask {name!r} is unknown{suggest(name, KINDS)}")


def draw_masks(kind: str, size: int, smallest: float, largest: float, draw: Draw) -> Tensor:
    """Masks [N, 1, size, size] of zeros and ones, float32. Draws the same numbers for every kind.

    smallest, largest: sides of a box, as shares of the image's
    """
    box_numbers, stroke_numbers, coin = draw.uniform(4), draw.uniform(STROKES, CORNERS + 1, 4), draw.uniform()
    boxes = _boxes(box_numbers, size, smallest, largest)
    if kind == "box":
        return boxes
    strokes = _strokes(stroke_numbers, size)
    return strokes if kind == "free" else torch.where(coin[:, None, None, None] < 0.5, boxes, strokes)


def _boxes(u: Tensor, size: int, smallest: float, largest: float) -> Tensor:
    """u: [N, 4] uniform numbers: height, width, top, left."""
    sides = ((smallest + (largest - smallest) * u[:, :2]) * size).round().clamp(1, size)
    first = (u[:, 2:] * (size - sides + 1)).floor()
    at = torch.arange(size, device=u.device)
    rows, columns = (
        ((at >= first[:, i, None]) & (at < (first[:, i] + sides[:, i])[:, None])).to(u.dtype) for i in (0, 1)
    )
    return (rows[:, :, None] * columns[:, None, :]).unsqueeze(1)


def _strokes(u: Tensor, size: int) -> Tensor:
    """u: [N, STROKES, CORNERS + 1, 4] uniform numbers: of the first corner its place and the stroke's width, of the
    others direction and length."""
    start = u[:, :, 0, :2]
    width = (BRUSH[0] + (BRUSH[1] - BRUSH[0]) * u[:, :, 0, 2]) / 2
    turn = (u[:, :, 1:, 0] - 0.5) * math.pi  # a brush goes on, within a right angle to either side
    angle = 2 * math.pi * u[:, :, 0, 3, None] + turn.cumsum(2)
    length = STEP[0] + (STEP[1] - STEP[0]) * u[:, :, 1:, 1]
    steps = torch.stack([angle.sin(), angle.cos()], -1) * length[..., None]
    corners = torch.cat([start[:, :, None], start[:, :, None] + steps.cumsum(2)], 2).clamp(0, 1)
    # A part so short that it has no direction is a dot: the division below must not be by zero.
    from_, to = corners[:, :, :-1], corners[:, :, 1:]
    at = (torch.arange(size, device=u.device, dtype=u.dtype) + 0.5) / size
    place = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(1, 1, 1, size * size, 2)
    along = (to - from_).unsqueeze(3)
    relative = place - from_.unsqueeze(3)
    t = ((relative * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)).clamp(0, 1)
    distance = (relative - t.unsqueeze(-1) * along).square().sum(-1)  # squared, [N, STROKES, CORNERS, size^2]
    covered = (distance <= width.square()[:, :, None, None]).any(2).any(1)
    return covered.to(u.dtype).view(-1, 1, size, size)


def smooth_fill(images: Tensor, masks: Tensor, relaxations: int = 16) -> Tensor:
    """images [N, C, S, S] with holes filled smoothly from around, by a pyramid of means (Gortler et al. 1996, 5.3).

    Each level takes the mean of what is known; on the way back what is unknown at a level comes from the one above it,
    and goes `relaxations` steps towards the mean of its four neighbours (Laplace's equation).
    """
    levels = [(images * (1 - masks), 1 - masks)]
    while levels[-1][1].shape[-1] % 2 == 0:
        levels.append((avg_pool2d(levels[-1][0], 2), avg_pool2d(levels[-1][1], 2)))
    colours, weight = levels.pop()
    filled = colours / weight.clamp(min=1e-6)
    for known, weight in reversed(levels):
        coarse = interpolate(filled, scale_factor=2.0, mode="bilinear", align_corners=False)
        filled = _relaxed(known, 1 - weight, known + (1 - weight) * coarse, relaxations)
    return filled


def _relaxed(known: Tensor, unknown: Tensor, filled: Tensor, steps: int) -> Tensor:
    """Jacobi's steps from `filled` on, with Chebyshev's weights (Golub and Varga 1961, doi:10.1007/BF01386013).

    A few steps do what takes hundreds without the weights, those for an error that shrinks by RADIUS in a step.
    """
    before, weight = filled, 1.0
    for step in range(steps):
        after = known + unknown * neighbours(filled)
        if step:
            weight = 1 / (1 - RADIUS**2 * weight / (2 if step == 1 else 4))
            after = torch.lerp(before, after, weight)
        before, filled = filled, after
    return filled


def neighbours(images: Tensor) -> Tensor:
    """Mean of each pixel's four neighbours, with the edge repeated, [N, C, H, W]."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
    return (across + padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]) / 4


def centres(masks: Tensor) -> Tensor:
    """Middle of each hole, [N, 2] in pixels (row, column): the mean place of what is unknown."""
    size = masks.shape[-1]
    at = torch.arange(size, device=masks.device, dtype=masks.dtype)
    total = masks.sum((1, 2, 3)).clamp(min=1)
    rows = (masks.sum((1, 3)) * at).sum(1) / total
    columns = (masks.sum((1, 2)) * at).sum(1) / total
    return torch.stack([rows, columns], 1)


def crops(images: Tensor, middle: Tensor, side: int) -> Tensor:
    """Squares [N, C, side, side] of images [N, C, S, S] around `middle` [N, 2], moved to lie within them."""
    size = images.shape[-1]
    first = (middle - side / 2).round().clamp(0, size - side).long()
    at = torch.arange(side, device=images.device)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (first[:, i, None] + at for i in (0, 1))
    # Channels last, as images lie in memory: a pixel is taken as a whole.
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
