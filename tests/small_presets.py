"""Every preset with narrow networks: the same turns, losses, penalties and schedules, in milliseconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastgan.contract import Batch
from fastgan.models import DCGAN, R3GAN, Dense, ResNet
from fastgan.options import Config
from fastgan.presets import PRESETS
from fastgan.step import Step, TrainState, new_state

NARROW = {
    Dense: {"generator_layers": (12, 10), "generator_width": 4, "critic_stem": 4, "critic_layers": (8,)},
    DCGAN: {"generator_width": 4, "critic_width": 4},
    ResNet: {"generator_width": 8, "generator_max_width": 8, "critic_width": 8, "critic_max_width": 8},
    R3GAN: {"widths": (8,) * 7, "blocks": (1,) * 7, "group_size": 4},
}


def narrow(preset: str, *, batch: int = 4, **system: object) -> Config:
    """A preset with narrow networks; `system`: options of the system to replace."""
    config = PRESETS[preset]
    networks = config.system.networks
    slim = replace(networks, **NARROW[type(networks)])
    return replace(config, system=replace(config.system, networks=slim, **system), batch=batch, kimg=1.0, threads=0)


def step_of(
    config: Config,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> tuple[TrainState, Step]:
    """A fresh state and its step, as the trainer makes them."""
    state = new_state(
        config.system,
        config.shape,
        config.optim,
        config.averaging,
        seed=config.seed,
        device=torch.device(device),
        dtype=dtype,
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format,
    )
    options = {"seed": 0, "batch": config.batch, "total": config.images, "autocast": autocast}
    return state, Step(config.system, state, config.averaging, **options)  # type: ignore[arg-type]


def batch_of(config: Config, number: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Batch `number` of noise, laid out as the data feeder does it."""
    size = (config.batch, config.shape.size, config.shape.size, config.shape.channels)
    pixels = torch.rand(size, generator=torch.Generator().manual_seed(number), dtype=torch.float64) * 2 - 1
    index = torch.arange(config.batch) + number * config.batch
    return Batch(pixels.to(dtype).permute(0, 3, 1, 2), None, index)
