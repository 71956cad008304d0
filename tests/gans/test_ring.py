"""Every loss with every penalty trains two small networks on a ring of 8 Gaussians.

Points lie on the unit circle with standard deviation 0.05: neighbouring modes are 15 standard deviations apart.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import Batches, Plane, game, ring, ring_cover

from fastgan.gans import UnconditionalGAN
from fastgan.losses import LOSSES
from fastgan.optim import Averaging
from fastgan.pictures import picture_latents, sample_images
from fastgan.schedule import Schedule

PENALTIES: dict[str, dict[str, float]] = {
    "none": {},
    "r1": {"r1": 0.1},
    "r1+r2": {"r1": 0.05, "r2": 0.05},
    "wgan-gp": {"wgan_gp": 0.1},
}
BATCH = 256


def train(
    steps: int, *, lr: float = 4e-3, clip_weights: float = 0.0, kind: str = "adam", seed: int = 0, **options: object
) -> tuple[int, float, int]:
    """(modes covered, share of samples within 3 sigma, turns skipped) after `steps` steps of 256 points."""
    system = UnconditionalGAN(Plane(96), latent=2, **options)  # type: ignore[arg-type]
    state, step = game(
        system,
        batch=BATCH,
        total=steps * BATCH * system.critic_steps,
        seed=seed,
        kind=kind,
        lr=Schedule(lr, lr / 20, begin=0.4),
        beta1=0.0,
        beta2=0.95,
        clip_weights=clip_weights,
        averaging=Averaging(halflife_kimg=20, rampup=0.1),
    )
    batches = Batches(BATCH, ring(1 << 16, torch.Generator().manual_seed(0)))
    for _ in range(steps):
        step(batches)
    latents = picture_latents(system, range(4000), torch.device("cpu"))
    modes, near = ring_cover(sample_images(system, state.averages, latents, batch=4000))
    return modes, near, int(step.read_statistics()["skipped"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"loss": "non_saturating", "r1": 0.1}, marks=pytest.mark.long),
        pytest.param({"loss": "wasserstein", "wgan_gp": 0.1}, marks=pytest.mark.long),
        pytest.param({"loss": "relativistic", "r1": 0.05, "r2": 0.05}, marks=pytest.mark.long),
    ],
    ids=["non_saturating+r1", "wgan-gp", "relativistic+r1+r2"],
)
def test_the_well_behaved_cover_the_ring(options: dict[str, object]) -> None:
    modes, near, skipped = train(1600, **options)  # type: ignore[arg-type]
    assert skipped == 0
    assert modes == 8
    assert near >= 0.9


def pairs() -> list[Any]:
    """Each of the first seven losses is always run with one of the penalties."""
    return [
        pytest.param(loss, penalty, marks=() if j == 3 * i % 4 and i < 7 else pytest.mark.long)
        for i, loss in enumerate(LOSSES)
        for j, penalty in enumerate(PENALTIES)
    ]


@pytest.mark.parametrize(("loss", "penalty"), pairs())
def test_every_loss_with_every_penalty_trains(loss: str, penalty: str) -> None:
    modes, near, skipped = train(200, loss=loss, **PENALTIES[penalty])  # type: ignore[arg-type]
    print(f"{loss} {penalty}: {modes} modes, {near:.3f} near")
    assert skipped == 0
    assert modes >= 7
    assert near >= 0.3


def test_wasserstein_with_clipped_weights_trains() -> None:
    """Arjovsky et al. 2017: RMSprop, five critic steps, weights in [-c, c]."""
    modes, near, skipped = train(200, loss="wasserstein", critic_steps=5, clip_weights=0.1, kind="rmsprop", lr=1e-3)
    print(modes, near)
    assert skipped == 0
    assert modes >= 1
