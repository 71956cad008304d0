"""Latents that systems share: drawing them, and the way from one to another."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.contract import Draw
from fastgan.errors import FastganError, suggest

DISTRIBUTIONS = ("normal", "uniform")


def check_distribution(name: str) -> None:
    """Raise FastganError unless `name` is one of DISTRIBUTIONS."""
    if name not in DISTRIBUTIONS:
        raise FastganError(f"latent_distribution {name!r} is unknown{suggest(name, DISTRIBUTIONS)}")


def draw_latents(distribution: str, length: int, draw: Draw) -> Tensor:
    """Latents [N, length]: "normal" (standard) or "uniform" (in [-1, 1))."""
    return draw.uniform(length) * 2 - 1 if distribution == "uniform" else draw.normal(length)


def way(distribution: str, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points [T, D] on the way from a [D] to b [D] at t [T] in [0, 1], where the generator has seen latents.

    Normal latents of length D lie near a sphere: the way is a great circle (Shoemake 1985), lengths go linearly.
    In a cube, and between points that are (nearly) opposite or the same, it is a straight line.
    """
    t = t[:, None]
    length_a, length_b = a.norm(), b.norm()
    angle = torch.arccos(((a @ b) / (length_a * length_b)).clamp(-1, 1))
    if distribution == "uniform" or not float(torch.sin(angle)) > 1e-6:
        return a + (b - a) * t
    direction = (torch.sin((1 - t) * angle) * a / length_a + torch.sin(t * angle) * b / length_b) / torch.sin(angle)
    points: Tensor = direction * (length_a + (length_b - length_a) * t)
    return points
