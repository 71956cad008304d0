"""Every system learns a ring of 8 Gaussians in seconds, what it is for: labels, latents, a share for each head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small import Batches, Plane, modes_of, ring, ring_cover
from torch import Tensor, nn

from fastgan.contract import ImageShape, System
from fastgan.errors import FastganError
from fastgan.gans import (
    VAEGAN,
    AuxiliaryGAN,
    BoundaryEquilibriumGAN,
    ConditionalGAN,
    InferenceGAN,
    MixtureGAN,
)
from fastgan.gans.boundary_equilibrium import likeness
from fastgan.optim import Averaging, Optimizer
from fastgan.pictures import picture_draw
from fastgan.schedule import Schedule
from fastgan.step import Step, new_state

BATCH = 256
POINTS = ring(1 << 14, torch.Generator().manual_seed(0))
RING = ImageShape(2, 1, classes=8)
NETWORKS = Plane(96)
PENALTY: Any = {"loss": "relativistic", "r1": 0.05, "r2": 0.05}


def trained(system: System, steps: int, *, lr: float = 4e-3) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The averaged players after `steps` steps of 256 points, and what the log would say."""
    players = system.players(RING)
    optimizer = Optimizer(lr=Schedule(lr, lr / 20, begin=0.4), beta1=0.0, beta2=0.95)
    averaging = Averaging(halflife_kimg=20, rampup=0.1)
    state = new_state(system, RING, dict.fromkeys(players, optimizer), averaging, seed=0, device=torch.device("cpu"))
    step = Step(system, state, averaging, seed=0, batch=BATCH, total=steps * BATCH)
    batches = Batches(BATCH, POINTS, modes_of(POINTS)[0])
    for number in range(steps):
        if number == steps // 2:
            step.read_statistics()  # the log below is of the second half
        step(batches)
    statistics = step.read_statistics()
    assert statistics["skipped"] == 0
    return {name: player.eval() for name, player in state.averages.items()}, statistics


def latents(system: Any, count: int = 4000) -> Tensor:
    drawn: Tensor = system.latents(picture_draw(range(count), torch.device("cpu")))
    return drawn


@pytest.mark.parametrize(
    "system",
    [
        ConditionalGAN(NETWORKS, latent=2, **PENALTY),
        ConditionalGAN(NETWORKS, latent=2, labels="concatenation", label_width=8, loss="wasserstein", wgan_gp=0.1),
        AuxiliaryGAN(NETWORKS, latent=2, **PENALTY),
    ],
    ids=["projection", "concatenation", "auxiliary"],
)
@torch.no_grad()
def test_points_are_of_the_class_that_was_asked_for(system: Any) -> None:
    with torch.enable_grad():
        players, _ = trained(system, 120)
    labels = torch.arange(4000) % 8
    mode, distance = modes_of(system.sample(players, latents(system), labels))
    print(float((mode == labels).double().mean()), float((distance < 0.25).double().mean()))
    assert (mode == labels).double().mean() > 0.97
    assert (distance < 0.25).double().mean() > 0.7


@pytest.mark.parametrize("stochastic", [pytest.param(False, marks=pytest.mark.long), True], ids=["bigan", "ali"])
@torch.no_grad()
def test_the_encoder_inverts_the_generator(stochastic: bool) -> None:
    system = InferenceGAN(NETWORKS, latent=2, stochastic=stochastic, joint_width=96, **PENALTY)
    with torch.enable_grad():
        players, _ = trained(system, 300)
    points = POINTS[:2000]
    again = system.sample(players, system.encode(players, points))
    error = (again - points).norm(dim=1).mean()
    modes, near = ring_cover(system.sample(players, latents(system)), deviation=0.1)
    print(float(error), modes, near)
    assert error < 0.3  # neighbouring modes are 0.77 apart, and a random point of the ring 1.27 away
    assert modes >= 7


@torch.no_grad()
def test_heads_divide_the_modes() -> None:
    system = MixtureGAN(NETWORKS, latent=2, heads=8, diversity=0.3, **PENALTY)
    with torch.enable_grad():
        players, statistics = trained(system, 300)
    drawn = latents(system)
    points = system.sample(players, drawn)
    mode, _ = modes_of(points)
    table = torch.zeros(8, 8).index_put_((system.heads_of(drawn), mode), torch.ones(()), accumulate=True)
    shares = torch.tensor([statistics[f"critic.share_{head}"] for head in range(8)])
    purity = (table.max(1).values / table.sum(1)).mean()
    print(table.int(), float(purity), shares, statistics["critic.class_accuracy"])
    assert ring_cover(points, deviation=0.1)[0] == 8
    assert purity > 0.6  # 1/8 without division, or less than 1/2 for heads that share modes by twos
    assert statistics["critic.class_accuracy"] > 0.6
    assert shares.sum() == pytest.approx(1, abs=1e-4)
    assert shares.min() > 0.02


@torch.no_grad()
def test_the_variational_autoencoder_samples_and_reconstructs() -> None:
    system = VAEGAN(NETWORKS, latent=2, prior=0.05, similarity=1.0, features=32, r1=0.1)
    with torch.enable_grad():
        players, statistics = trained(system, 250)
    points = POINTS[:2000]
    error = (system.sample(players, system.encode(players, points)) - points).norm(dim=1).mean()
    modes, near = ring_cover(system.sample(players, latents(system)), deviation=0.1)
    print(float(error), modes, near, statistics["generator.divergence"])
    assert error < 0.3
    assert modes >= 6
    assert near > 0.3
    assert statistics["generator.divergence"] > 0.5  # the code says something


@pytest.mark.parametrize("margin", [0.0, pytest.param(0.3, marks=pytest.mark.long)], ids=["began", "ebgan"])
@torch.no_grad()
def test_the_autoencoding_critic_brings_samples_to_the_data(margin: float) -> None:
    """To a mode of it at least: one number as code cannot describe, nor ask for, all of a ring, and how many modes are
    found (1 to 5) depends on the processor's rounding."""
    system = BoundaryEquilibriumGAN(NETWORKS, latent=2, code=1, gamma=0.7, rate=0.05, margin=margin)
    with torch.enable_grad():
        players, statistics = trained(system, 400, lr=2e-3)
    points = system.sample(players, latents(system))
    modes, near = ring_cover(points, deviation=0.1)
    print(modes, near, statistics)
    assert statistics["critic.real_energy"] < 0.3  # 0.6 before training
    assert modes >= 1
    assert near > 0.6
    if not margin:
        assert 0 < statistics["generator.balance"] < 1


def test_the_pulling_away_term_is_the_mean_squared_cosine_of_other_samples() -> None:
    codes = torch.randn(6, 4, dtype=torch.float64)
    pairs = [torch.cosine_similarity(codes[i], codes[j], dim=0) ** 2 for i in range(6) for j in range(6) if i != j]
    assert torch.allclose(likeness(codes), torch.stack(pairs).mean(), atol=1e-12)
    assert likeness(torch.eye(4, dtype=torch.float64)) == pytest.approx(0, abs=1e-12)


def test_labels_that_are_missing_are_named() -> None:
    for system in (ConditionalGAN(NETWORKS), AuxiliaryGAN(NETWORKS)):
        with pytest.raises(FastganError, match=r"needs labels, and these images have none: give --data"):
            system.players(replace(RING, classes=0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConditionalGAN(labels="projecton"), "labels 'projecton' is unknown; did you mean 'projection'"),
        (lambda: AuxiliaryGAN(class_weight=-1.0), "class_weight must be 0 or more, got -1"),
        (lambda: InferenceGAN(loss="kl"), "loss 'kl' is not one that an encoder can play"),
        (lambda: MixtureGAN(heads=0), "heads must be 1 or more, got 0"),
        (lambda: VAEGAN(loss="relativistic"), "neither loss 'relativistic' nor wgan_gp can pair"),
        (lambda: VAEGAN(latent_distribution="uniform"), "the prior of a VAE-GAN is normal"),
        (lambda: BoundaryEquilibriumGAN(gamma=1.5), "gamma must be from 0 to 1, got 1.5"),
        (lambda: BoundaryEquilibriumGAN(repelling=-0.1), "repelling must be 0 or more, got -0.1"),
        (lambda: BoundaryEquilibriumGAN(power=3), "power must be 1 or 2, got 3"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(FastganError, match=words):
        make()
