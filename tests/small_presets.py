"""Every preset with narrow networks: the same turns, losses, penalties and schedules, in milliseconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastgan.contract import Batch, Labelled
from fastgan.dist import ALONE, Ranks
from fastgan.gans import StyleBasedGAN
from fastgan.models import (
    DCGAN,
    R3GAN,
    Dense,
    PatchCritic,
    ResNet,
    ResNetTranslator,
    SRCritic,
    SRResNet,
    StyleGAN2,
    UNet,
)
from fastgan.options import Config
from fastgan.presets import PRESETS
from fastgan.step import Step, TrainState, new_state

NARROW = {
    Dense: {"generator_layers": (12, 10), "generator_width": 4, "critic_stem": 4, "critic_layers": (8,)},
    DCGAN: {"generator_width": 4, "critic_width": 4},
    ResNet: {"generator_width": 8, "generator_max_width": 8, "critic_width": 8, "critic_max_width": 8},
    StyleGAN2: {
        "generator_width": 4,
        "critic_width": 4,
        "max_width": 8,
        "style": 12,
        "mapping_layers": 2,
        "minibatch_std": 2,
    },
    R3GAN: {"widths": (8,) * 7, "blocks": (1,) * 7, "group_size": 4},
}


# Networks of systems that turn images into images.
SLIM = {
    UNet: {"width": 4, "max_width": 8},
    PatchCritic: {"width": 4, "max_width": 8, "layers": 1},
    ResNetTranslator: {"width": 4, "blocks": 1},
    SRResNet: {"width": 4, "blocks": 1, "kernel": 3},
    SRCritic: {"width": 4, "hidden": 8, "halvings": 2},
}


def narrow(preset: str, *, batch: int = 4, **system: object) -> Config:
    """A preset with narrow networks; `system`: options of the system to replace."""
    config = PRESETS[preset]
    if not hasattr(config.system, "networks"):
        parts = {name: getattr(config.system, name) for name in ("generator", "critic")}
        slims = {name: replace(part, **SLIM[type(part)]) for name, part in parts.items()}
        size = min(config.data.size, 32)
        data = replace(config.data, size=size, source_channels=3 if config.data.pairs else 0)
        system_ = replace(config.system, **slims, **system)
        return replace(config, system=system_, data=data, batch=batch, kimg=1.0, threads=0)
    networks = config.system.networks
    slim = replace(networks, **NARROW[type(networks)])
    data = replace(config.data, classes=5) if isinstance(config.system, Labelled) else config.data
    if isinstance(config.system, StyleBasedGAN):
        system = {"latent": 8, "r1_every": 4, "path_every": 2, **system}
    slim_system = replace(config.system, networks=slim, **system)
    return replace(config, data=data, system=slim_system, batch=batch, kimg=1.0, threads=0)


def smallest(preset: str, *, batch: int, critic_steps: int = 2, **system: object) -> Config:
    """A narrow preset on its networks' smallest images, with at most so many critic steps."""
    config = narrow(preset, batch=batch, **system)
    if not hasattr(config.system, "networks"):
        return config
    size = {Dense: 16, DCGAN: 16, ResNet: 32, R3GAN: 8, StyleGAN2: 8}[type(config.system.networks)]
    if isinstance(config.system.networks, R3GAN):
        slim = R3GAN(widths=(8, 4), blocks=(1, 1), group_size=4)
        config = replace(config, system=replace(config.system, networks=slim))
    if hasattr(config.system, "critic_steps"):
        slim_system = replace(config.system, critic_steps=min(config.system.critic_steps, critic_steps))
        config = replace(config, system=slim_system)
    return replace(config, data=replace(config.data, size=size))


def step_of(
    config: Config,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    ranks: Ranks = ALONE,
) -> tuple[TrainState, Step]:
    """A fresh state and its step, as the trainer makes them; config.batch is that of all ranks together."""
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
    options = {"seed": 0, "batch": config.batch // ranks.world, "total": config.images, "autocast": autocast}
    return state, Step(config.system, state, config.averaging, ranks=ranks, **options)  # type: ignore[arg-type]


def batch_of(config: Config, number: int, dtype: torch.dtype = torch.float32, ranks: Ranks = ALONE) -> Batch:
    """This rank's part of batch `number` of noise, laid out as the data feeder does it."""
    generator = torch.Generator().manual_seed(number)
    part = config.batch // ranks.world
    mine = slice(ranks.rank * part, (ranks.rank + 1) * part)

    def pixels(channels: int) -> torch.Tensor:
        size = (config.batch, config.shape.size, config.shape.size, channels)
        noise = torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1
        return noise[mine].to(dtype).permute(0, 3, 1, 2)

    index = torch.arange(config.batch) + number * config.batch
    labels = index * 7 % config.shape.classes if config.shape.classes else None
    images = pixels(config.shape.channels)
    source = pixels(config.shape.source_channels) if config.shape.source_channels else None
    return Batch(images, None if labels is None else labels[mine], index[mine], source)
