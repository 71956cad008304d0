"""The training steps that bench_step and memory compare: the engine's, and plain loops on its networks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks import baselines
from benchmarks.baselines import Loop, Recipe
from fastgan import baseline_styles, optim
from fastgan.contract import Batch, Draw
from fastgan.gans import StyleBasedGAN
from fastgan.models import DCGAN, R3GAN, Dense, ResNet, StyleGAN2
from fastgan.optim import Averaging
from fastgan.options import Config
from fastgan.penalty import critic_backward
from fastgan.presets import PRESETS
from fastgan.step import Step, TrainState, new_state

SEED = 1
# DCGAN at sizes that no preset has: one more layer each.
EXTRA = {"dcgan-128": "dcgan-64", "dcgan-256": "dcgan-64"}
COMPILED = "tidy loop with torch.compile of "
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def config_of(preset: str, batch: int | None, device: str) -> Config:
    """A case: a preset, or one that is none of its own (EXTRA), with an average of constant decay, so that a plain loop
    can follow it; `batch` per critic step.

    R3GAN and StyleGAN2 take minutes per step on a CPU: there they have an eighth of their width or less, and R3GAN one
    block per size.
    """
    config = PRESETS[EXTRA.get(preset, preset)]
    if preset in EXTRA:
        config = replace(config, preset=preset, data=replace(config.data, size=int(preset.rpartition("-")[2])))
    config = replace(config, averaging=Averaging(halflife_kimg=10.0, rampup=0.0), batch=batch or config.batch)
    if isinstance(config.system.networks, R3GAN) and device == "cpu":
        narrow = replace(config.system.networks, widths=(96, 96, 96, 96, 48, 24, 16), blocks=(1,) * 7)
        config = replace(config, system=replace(config.system, networks=narrow))
    if isinstance(config.system.networks, StyleGAN2) and device == "cpu":
        narrow = replace(config.system.networks, generator_width=16, critic_width=16, max_width=64, style=64)
        config = replace(config, system=replace(config.system, networks=narrow, latent=64))
    return config


def cycle_of(config: Config) -> int:
    """Steps of a lazy cycle."""
    system = config.system
    return system.r1_every if isinstance(system, StyleBasedGAN) else system.penalty_every


NARROW: dict[type, dict[str, object]] = {
    Dense: {"generator_layers": (8,), "generator_width": 4, "critic_stem": 4, "critic_layers": (8,)},
    DCGAN: {"generator_width": 4, "critic_width": 4},
    ResNet: {"generator_width": 8, "generator_max_width": 8, "critic_width": 8, "critic_max_width": 8},
    R3GAN: {"widths": (8,) * 7, "blocks": (1,) * 7, "group_size": 4},
    StyleGAN2: {"generator_width": 4, "critic_width": 4, "max_width": 8, "style": 8},
}


def tiny(config: Config) -> Config:
    """The same turns on networks so narrow that they need no memory worth mentioning."""
    networks = replace(config.system.networks, **NARROW[type(config.system.networks)])
    return replace(config, system=replace(config.system, networks=networks), batch=2)


def recipe_of(config: Config) -> Recipe:
    """What a plain loop has to know of a config, at the start of its schedules."""
    critic = config.optim["critic"]
    assert critic == config.optim["generator"]
    assert critic.kind == "adam"
    return baselines.recipe_of(config.system, critic, config.averaging, config.batch)


def random_batch(config: Config, number: int, device: str, dtype: torch.dtype, layout: torch.memory_format) -> Batch:
    """Batch `number` of made-up images: noise, never zeros."""
    shape = (config.batch, config.shape.channels, config.shape.size, config.shape.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    index = torch.arange(config.batch, device=device) + number * config.batch
    return Batch(noise.clamp(-1, 1).to(device, dtype).contiguous(memory_format=layout), None, index)


@dataclass
class Engine:
    """The engine's step over a fresh state."""

    config: Config
    state: TrainState
    step: Step

    @staticmethod
    def of(config: Config, device: str, dtype: torch.dtype = torch.float32, seed: int = SEED) -> Engine:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        state = new_state(
            config.system,
            config.shape,
            config.optim,
            config.averaging,
            seed=seed,
            device=torch.device(device),
            dtype=dtype,
            memory_format=layout,
        )
        # A run so long that its schedules stay at their starts, as in recipe_of.
        step = Step(config.system, state, config.averaging, seed=seed, batch=config.batch, total=10**15)
        return Engine(config, state, step)

    def drawn(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """What the critic turns of the next step will draw on `batches`: latents and WGAN-GP's weights, in float64."""
        playing = (number for number in self.step.phase for _ in range(self.step.turns[number].repeat))
        fresh = [number for number in playing if self.step.turns[number].fresh]
        draws = [Draw(SEED, batch.index, stream=number) for number, batch in zip(fresh, batches, strict=True)]
        latents = torch.cat([self.config.system.latents(draw).double() for draw in draws])
        return latents, torch.cat([draw.uniform().double() for draw in draws])


def timed_engine(config: Config, device: str) -> Callable[[], None]:
    """The engine's steps of one lazy cycle, on one batch."""
    engine = Engine.of(config, device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    batch = random_batch(config, 0, device, torch.float32, layout)

    def cycle() -> None:
        for _ in range(cycle_of(config)):
            engine.step(lambda: batch)

    return cycle


@dataclass
class Networks:
    """Generator, its average, and critic, for a plain loop."""

    generator: nn.Module
    average: nn.Module
    critic: nn.Module

    @staticmethod
    def of(config: Config, device: str, dtype: torch.dtype = torch.float32, layout: str = "NCHW") -> Networks:
        players = baselines.plain_players(config.system, config.shape)
        return Networks(*(player.to(device, dtype, memory_format=LAYOUTS[layout]).train() for player in players))

    def take_weights(self, engine: Engine) -> None:
        """Start from the engine's weights."""
        players = engine.state.modules
        self.generator.load_state_dict(players["generator"].state_dict())
        self.average.load_state_dict(players["generator"].state_dict())
        self.critic.load_state_dict(players["critic"].state_dict())


def timed_loop(
    make: Callable[..., Loop], config: Config, device: str, layout: str, *, compiled: str = ""
) -> Callable[[], None]:
    """A plain loop's steps of one lazy cycle, on one batch per critic step, latents from torch.randn as usual.

    compiled: one of baselines.ARRANGEMENTS, for the tidy loop
    """
    networks = Networks.of(config, device, layout=layout)
    parts = networks.generator, networks.average, networks.critic
    recipe = recipe_of(config)
    loop = baselines.compiled_loop(compiled, *parts, recipe, device) if compiled else make(*parts, recipe)
    batches = [
        random_batch(config, n, device, torch.float32, LAYOUTS[layout]) for n in range(config.system.critic_steps)
    ]
    images = torch.cat([batch.images for batch in batches]).contiguous(memory_format=LAYOUTS[layout])
    latents = torch.randn(len(images), config.system.latent, device=device)
    if compiled:
        check_compiled(loop, networks, recipe, images, latents)

    def cycle() -> None:
        for _ in range(config.system.penalty_every):
            loop(images, torch.randn_like(latents))

    return cycle


def check_compiled(loop: Loop, networks: Networks, recipe: Recipe, images: Tensor, latents: Tensor) -> None:
    """The compiled loop's first step is the eager one's. (Adam's first step is the sign of the gradient.)"""
    eager, before = copy.deepcopy(networks), copy.deepcopy(networks.critic)
    epsilon = torch.rand(len(images), device=images.device)
    loop(images, latents, epsilon)
    baselines.tidy(eager.generator, eager.average, eager.critic, recipe)(images, latents, epsilon)
    old, ours, theirs = (
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (before, networks.critic, eager.critic)
    )
    assert (ours - theirs).norm() < 0.3 * (theirs - old).norm(), "miscompiled"


def timed_styles(config: Config, device: str, layout: str, *, tidy: bool, compiled: str) -> Callable[[], None]:
    """StyleGAN2's plain loop: one lazy cycle, on one batch."""
    networks = Networks.of(config, device, layout=layout)
    players = networks.generator, networks.critic
    loop = baseline_styles.plain(config.system, *players, config.optim, tidy=tidy, compiled=compiled)
    images = random_batch(config, 0, device, torch.float32, LAYOUTS[layout]).images

    def cycle() -> None:
        for _ in range(cycle_of(config)):
            loop(images)

    return cycle


def timed(name: str, config: Config, device: str) -> Callable[[], None]:
    """One of the candidates by name."""
    if name == "fastgan":
        return timed_engine(config, device)
    kind, layout = name.rsplit(", ", 1)
    if isinstance(config.system, StyleBasedGAN):
        return timed_styles(config, device, layout, tidy="public" not in kind, compiled=kind.partition(COMPILED)[2])
    make = {"tutorial": baselines.tutorial, "public": baselines.r3gan_arrangement}.get(kind.split()[0], baselines.tidy)
    return timed_loop(make, config, device, layout, compiled=kind.partition(COMPILED)[2])


@dataclass
class Stopwatch:
    """Seconds inside forward passes, backward passes and optimiser updates."""

    synchronize: Callable[[], None]
    seconds: float = 0.0
    depth: int = 0
    start: float = 0.0

    def enter(self, *_: object) -> None:
        if self.depth == 0:
            self.synchronize()
            self.start = time.perf_counter()
        self.depth += 1

    def leave(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.synchronize()
            self.seconds += time.perf_counter() - self.start

    def around(self, function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.enter()
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return wrapped


@contextmanager
def stopwatch(engine: Engine) -> Iterator[Stopwatch]:
    """Times, within it, the networks' forward passes, autograd's backward passes, critic_backward and adam_ema_.

    critic_backward sees networks without hooks: with them it would not capture a critic.
    """
    device = engine.state.device
    watch = Stopwatch(torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    handles: list[RemovableHandle] = []

    def add_hooks() -> None:
        for module in engine.state.modules.values():
            handles.extend([module.register_forward_pre_hook(watch.enter), module.register_forward_hook(watch.leave)])

    def remove_hooks() -> None:
        while handles:
            handles.pop().remove()

    def unhooked(*args: object, **kwargs: object) -> object:
        remove_hooks()
        try:
            return critic_backward(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            add_hooks()

    # torch.autograd.backward and torch.autograd.grad both end here.
    backward = mock.patch("torch.autograd._engine_run_backward", watch.around(torch.autograd._engine_run_backward))
    update = mock.patch("fastgan.optim.adam_ema_", watch.around(optim.adam_ema_))
    sweep = mock.patch("fastgan.gans.play.critic_backward", watch.around(unhooked))
    add_hooks()
    try:
        with backward, update, sweep:
            yield watch
    finally:
        remove_hooks()


def overhead(config: Config, device: str, cycles: int = 8) -> float:
    """Share of the engine's step that is not forward, backward or update: median over `cycles` lazy cycles.

    What is left: latents, losses, zeroed gradients, the check for non-finite values, statistics, schedules,
    Python. On a GPU every part is synchronised: the share is an upper bound of what an undisturbed step has.
    """
    engine = Engine.of(config, device)
    batch = random_batch(config, 0, device, torch.float32, torch.channels_last)
    shares = []
    for _ in range(cycles + 2):
        with stopwatch(engine) as watch:
            watch.synchronize()
            start = time.perf_counter()
            for _ in range(cycle_of(config)):
                engine.step(lambda: batch)
            watch.synchronize()
            shares.append(1 - watch.seconds / (time.perf_counter() - start))
    return sorted(shares[2:])[cycles // 2]
