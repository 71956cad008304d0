"""Many steps of the engine and of the plain loop that it is measured against leave the same weights, in float64."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import pytest
import torch
from small_presets import batch_of, narrow

from benchmarks import baselines, steps
from fastgan.models import R3GAN
from fastgan.optim import Averaging
from fastgan.options import Config

ALL = os.environ.get("FASTGAN_TESTS") == "all"
STEPS = 200 if ALL else 20


def small(preset: str) -> Config:
    """A preset at its networks' smallest size, with an average that a plain loop can follow."""
    config = narrow(preset, batch=3)
    size = {"digits": 16, "sngan": 32, "r3gan": 8}.get(preset.split("-")[0], 16)
    if isinstance(config.system.networks, R3GAN):
        slim = R3GAN(widths=(8, 4), blocks=(1, 1), group_size=4)
        config = replace(config, system=replace(config.system, networks=slim))
    if not ALL:
        config = replace(config, system=replace(config.system, critic_steps=min(config.system.critic_steps, 2)))
    return replace(
        config, data=replace(config.data, size=size), averaging=Averaging(halflife_kimg=0.5, rampup=0.0), threads=0
    )


@pytest.mark.parametrize(
    "preset", ["digits", "dcgan-64", "wgan-gp-64", pytest.param("sngan-32", marks=pytest.mark.long), "r3gan-32"]
)
def test_the_engine_trains_as_the_plain_loop_does(preset: str) -> None:
    config = small(preset)
    engine = steps.Engine.of(config, "cpu", torch.float64)
    modules = engine.state.modules
    generator, critic = (copy.deepcopy(modules[name]) for name in ("generator", "critic"))
    average = copy.deepcopy(generator).requires_grad_(False)
    loop = baselines.tidy(generator, average, critic, steps.recipe_of(config))
    for number in range(STEPS):
        batches = [
            batch_of(config, number * engine.step.batches + i, torch.float64) for i in range(engine.step.batches)
        ]
        loop(torch.cat([batch.images for batch in batches]), *engine.drawn(batches))
        engine.step(iter(batches).__next__)
    trained = engine.state.players["generator"].average
    assert trained is not None
    for name, ours, theirs in (
        ("generator", modules["generator"], generator),
        ("critic", modules["critic"], critic),
        ("average", trained, average),
    ):
        for (key, mine), plain in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            error = (mine - plain).norm() / plain.norm().clamp(min=1)
            assert error < 1e-9, f"{name}.{key} differs by {error:.1e}"
    assert engine.step.read_statistics()["skipped"] == 0
