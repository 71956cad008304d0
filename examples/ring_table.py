"""Every adversarial loss on a ring of 8 Gaussians: modes covered, and share of the samples near one.

    python examples/ring_table.py [STEPS] [SEEDS]

prints the table of docs/systems.md: the same two networks, optimiser and number of steps for each loss, without and
with R1, and the Wasserstein loss with clipped weights and with a gradient penalty. With 600 steps and 3 seeds about 5
minutes of one CPU core.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.contract import Batch, ImageShape
from fastgan.gans import UnconditionalGAN
from fastgan.losses import LOSSES
from fastgan.optim import Averaging, Optimizer
from fastgan.pictures import picture_latents, sample_images
from fastgan.schedule import Schedule
from fastgan.step import Step, new_state

MODES, DEVIATION, BATCH = 8, 0.05, 256
ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


@dataclass(frozen=True)
class Plane:
    """Networks of two hidden layers for points [N, 2]."""

    width: int = 96

    def generator(self, image: ImageShape, latent: int) -> nn.Module:
        w = self.width
        return nn.Sequential(nn.Linear(latent, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 2))

    def critic(self, image: ImageShape, outputs: int = 1) -> nn.Module:
        w = self.width
        hidden = (nn.Linear(2, w), nn.LeakyReLU(0.2), nn.Linear(w, w), nn.LeakyReLU(0.2))
        return nn.Sequential(*hidden, nn.Linear(w, outputs), nn.Flatten(0))


def batches(seed: int, numbers: Any) -> Any:
    """Endless points on the ring."""
    generator = torch.Generator().manual_seed(seed)
    for number in numbers:
        centres = CENTRES[torch.randint(MODES, (BATCH,), generator=generator)]
        points = centres + DEVIATION * torch.randn(BATCH, 2, generator=generator)
        yield Batch(points, None, torch.arange(BATCH) + number * BATCH)


def train(steps: int, seed: int, optimizer: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Points [4000, 2] of the averaged generator after `steps` of its updates."""
    system = UnconditionalGAN(Plane(), latent=2, **options)
    lr = optimizer.pop("lr", 4e-3)
    same = Optimizer(lr=Schedule(lr, lr / 20, begin=0.4), beta1=0.0, beta2=0.95, **optimizer)
    averaging = Averaging(halflife_kimg=20, rampup=0.1)
    optimizers = {"generator": same, "critic": same}
    state = new_state(system, ImageShape(2, 1), optimizers, averaging, seed=seed, device=torch.device("cpu"))
    step = Step(system, state, averaging, seed=seed, batch=BATCH, total=steps * BATCH * system.critic_steps)
    data = batches(seed, iter(range(1 << 40)))
    for _ in range(steps):
        step(lambda: next(data))
    return sample_images(system, state.averages, picture_latents(system, range(4000), state.device), batch=4000)


def cover(points: Tensor) -> tuple[int, float]:
    """Modes with a quarter of their fair share within 3 deviations; share of all points within 3 deviations."""
    distance, mode = torch.cdist(points, CENTRES).min(1)
    near = distance < 3 * DEVIATION
    counts = torch.bincount(mode[near], minlength=MODES)
    return int((counts > len(points) / MODES / 4).sum()), float(near.double().mean())


def rows() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, options of the optimiser, options of the system)."""
    table: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for loss in LOSSES:
        table += [(loss, {}, {"loss": loss}), (f"{loss}, R1 0.1", {}, {"loss": loss, "r1": 0.1})]
    clipped = {"kind": "rmsprop", "lr": 1e-3, "clip_weights": 0.1}
    table.append(("wasserstein, clipped to 0.1, 5 critic steps", clipped, {"loss": "wasserstein", "critic_steps": 5}))
    table.append(("wasserstein, gradient penalty 0.1", {}, {"loss": "wasserstein", "wgan_gp": 0.1}))
    table.append(("relativistic, R1 and R2 0.05", {}, {"loss": "relativistic", "r1": 0.05, "r2": 0.05}))
    return table


def main(steps: int, seeds: int) -> None:
    torch.set_num_threads(1)
    print(f"| loss, {steps} steps | modes of 8, by seed | share near a mode, median |\n|---|---|---|", flush=True)
    for name, optimizer, options in rows():
        found = [cover(train(steps, seed, dict(optimizer), options)) for seed in range(seeds)]
        modes = ", ".join(str(number) for number, _ in found)
        print(f"| {name} | {modes} | {median(near for _, near in found):.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
