"""Paired translation on 64x64 photographs: the engine against a plain loop of the published arrangement.

The loop is what pix2pix implementations in PyTorch do (Isola et al. 2017): U-Net and 70x70 patches of PyTorch's own
layers, one generator pass per step whose detached result the critic sees first, binary cross-entropy and 100 L1, two
torch.optim.Adam. Both get the same batches and start from the same weights. First some float64 steps are compared, then
float32 steps are timed in turn, then both train for the same steps and are scored on held-out patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.image_peers import PlainTranslation, unfused
from benchmarks.image_quality import compared, sets
from fastgan.contract import Batch
from fastgan.data.feeder import Feeder
from fastgan.gans import Translation
from fastgan.gans.sources import gray
from fastgan.models import PatchCritic, UNet
from fastgan.options import Config, with_data
from fastgan.pictures import evaluating, picture_batch
from fastgan.presets import PRESETS
from fastgan.step import Step, new_state

BATCH, STEPS = 8, 250
LR = 1e-3  # not the 2e-4 of long runs
WIDTH = {"cpu": 16, "cuda": 64}


def config_of(device: str) -> Config:
    """pix2pix-64 without dropout, from gray to colour."""
    base = PRESETS["pix2pix-64"]
    width = WIDTH[device]
    system = Translation(UNet(width=width, dropout=0.0), PatchCritic(width=width), source="gray")
    data = replace(base.data, path="photos", pairs="")
    optim = {name: replace(options, lr=LR) for name, options in base.optim.items()}
    return replace(base, system=system, data=data, optim=optim, batch=BATCH, kimg=BATCH * STEPS / 1000, threads=0)


def both(config: Config, device: str, dtype: torch.dtype) -> tuple[Step, PlainTranslation]:
    """The engine and the loop with the same weights, in the preset's layout."""
    place = torch.device(device)
    options = {"seed": config.seed, "device": place, "dtype": dtype, "memory_format": torch.channels_last}
    state = new_state(config.system, config.shape, config.optim, config.averaging, **options)  # type: ignore[arg-type]
    networks = (unfused(state.players[name].module) for name in ("generator", "critic"))
    plain = PlainTranslation(*networks, LR)
    step = Step(config.system, state, config.averaging, seed=0, batch=BATCH, total=config.images)
    return step, plain


def batches(config: Config, images: object, device: str, dtype: torch.dtype) -> Iterator[Batch]:
    with Feeder(images, seed=0, batch=BATCH, device=device, dtype=dtype, mirror=True) as feeder:  # type: ignore[arg-type]
        yield from feeder


@pytest.mark.timeout(1800)
def test_translation(ratio, device):
    train, held_out = sets(config_of(device).data)
    config = with_data(config_of(device), train)
    step, plain = both(config, device, torch.float64)
    plain.share = 1.0  # the half changes nothing with Adam, but for its epsilon
    stream = batches(config, train, device, torch.float64)
    for _ in range(3):
        batch = next(stream)
        step(lambda: batch)  # noqa: B023
        plain(gray(batch.images), batch.images)
    for name, module in (("generator", plain.generator), ("critic", plain.critic)):
        for (key, ours), theirs in zip(step.state.modules[name].named_parameters(), module.parameters(), strict=True):
            assert (ours - theirs).norm() <= 1e-9 * theirs.norm().clamp(min=1), f"{name}.{key}"

    step, plain = both(config, device, torch.float32)
    stream = batches(config, train, device, torch.float32)
    batch = next(stream)
    candidates: dict[str, Callable[[], object]] = {
        "fastgan": lambda: step(lambda: batch),
        "plain loop": lambda: plain(gray(batch.images), batch.images),
    }
    notes = quality(config, device, train, held_out)
    ratio("translation", f"pix2pix, 64x64, width {WIDTH[device]}, batch {BATCH}", candidates, "fastgan", notes=notes)


def quality(config: Config, device: str, train: object, held_out: object) -> dict[str, str]:
    """PSNR on held-out patches after STEPS steps of each on the same batches."""
    step, plain = both(config, device, torch.float32)
    stream = batches(config, train, device, torch.float32)
    for _ in range(STEPS):
        batch = next(stream)
        step(lambda: batch)  # noqa: B023
        plain(gray(batch.images), batch.images)
    shown = picture_batch(held_out, range(len(held_out)), torch.device(device))  # type: ignore[arg-type]
    source, target = gray(shown.images), shown.images
    made = {"gray image": source.expand_as(target)}
    players = {"live": step.state.modules["generator"], "averaged": step.state.averages["generator"]}
    players |= {"plain loop": plain.generator}
    with evaluating(players):
        made |= {name: generator(source) for name, generator in players.items()}
    numbers = compared(made, target)
    return {f"after {STEPS} steps, {name}": f"{value:.2f}" for name, value in numbers.items() if "PSNR" in name}
