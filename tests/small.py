"""Small games for tests: points in the plane, and tiny pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.contract import Batch, ImageShape
from fastgan.gans import UnconditionalGAN
from fastgan.optim import Averaging, Optimizer
from fastgan.step import Step, TrainState, new_state


@dataclass(frozen=True)
class Plane:
    """Networks for points [N, 2]: one hidden layer in the generator, two in the critic.

    Points are images of size 1, whose channels may have a label behind them; with another size it is [N, 2] as well.
    """

    width: int = 64

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        w = self.width
        return nn.Sequential(nn.Linear(latent, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 2))

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        w = self.width
        return nn.Sequential(
            nn.Linear(image.channels if image.size == 1 else 2, w),
            nn.LeakyReLU(0.2),
            nn.Linear(w, w),
            nn.LeakyReLU(0.2),
            nn.Linear(w, outputs),
            nn.Flatten(0) if outputs == 1 else nn.Identity(),
        )


@dataclass(frozen=True)
class Pictures:
    """Networks for [N, 1, 8, 8] with batch normalisation in the generator."""

    width: int = 4

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        w = self.width
        return nn.Sequential(
            nn.Unflatten(1, (latent, 1, 1)),
            nn.ConvTranspose2d(latent, w, 4, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            nn.ConvTranspose2d(w, image.channels, 4, 2, 1),
            nn.Tanh(),
        )

    def critic(self, image: ImageShape) -> nn.Module:
        w = self.width
        return nn.Sequential(
            nn.Conv2d(image.channels, w, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(w, 1, 4), nn.Flatten(0)
        )


def ring(count: int, generator: torch.Generator, *, modes: int = 8, deviation: float = 0.05) -> Tensor:
    """Points [count, 2] from `modes` Gaussians on the unit circle."""
    angle = torch.randint(modes, (count,), generator=generator) * (2 * math.pi / modes)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return centre + deviation * torch.randn(count, 2, generator=generator)


def ring_cover(points: Tensor, *, modes: int = 8, deviation: float = 0.05) -> tuple[int, float]:
    """How many modes have at least a quarter of their fair share within 3 sigma; share of points within 3 sigma."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    distance, mode = torch.cdist(points, centres).min(1)
    near = distance < 3 * deviation
    counts = torch.bincount(mode[near], minlength=modes)
    return int((counts > len(points) / modes / 4).sum()), float(near.double().mean())


def modes_of(points: Tensor, *, modes: int = 8) -> tuple[Tensor, Tensor]:
    """The nearest mode of the ring of each of `points` [N, 2], and its distance: [N] each."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    distance, mode = torch.cdist(points, torch.stack([angle.cos(), angle.sin()], 1)).min(1)
    return mode, distance


class Batches:
    """next_batch() for Step: rows of `images`, and of `labels` where there are any, one after the other."""

    def __init__(self, batch: int, images: Tensor, labels: Tensor | None = None) -> None:
        self.batch, self.images, self.labels, self.sample = batch, images, labels, 0

    def __call__(self) -> Batch:
        index = torch.arange(self.sample, self.sample + self.batch)
        self.sample += self.batch
        rows = index % len(self.images)
        return Batch(self.images[rows], None if self.labels is None else self.labels[rows], index)


def game(
    system: UnconditionalGAN,
    *,
    batch: int = 8,
    total: int = 1000,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    averaging: Averaging | None = None,
    device: str = "cpu",
    **optimizer: object,
) -> tuple[TrainState, Step]:
    """State and step of `system` on 8x8 pictures (or points), the same optimiser for both players."""
    averaging = averaging or Averaging(halflife_kimg=0.1)
    options = Optimizer(**optimizer)  # type: ignore[arg-type]
    state = new_state(
        system,
        ImageShape(1, 8),
        {"generator": options, "critic": options},
        averaging,
        seed=seed,
        device=torch.device(device),
        dtype=dtype,
    )
    return state, Step(system, state, averaging, seed=seed, batch=batch, total=total)
