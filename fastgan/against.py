"""What `fastgan bench step --against` times beside the engine: plain PyTorch on the same random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastgan import baseline, baseline_styles, baseline_turns
from fastgan.contract import Batch
from fastgan.errors import FastganError, suggest
from fastgan.gans import StyleBasedGAN, UnconditionalGAN
from fastgan.options import Config
from fastgan.step import autocast_of

AGAINST = ("eager", "compile")


@dataclass
class RandomBatches:
    """Uniform noise instead of images, from memory: next() takes no time worth mentioning."""

    config: Config
    device: torch.device
    sample: int = 0

    def __post_init__(self) -> None:
        c = self.config
        pixels = np.random.default_rng(0).random((c.batch, c.shape.size, c.shape.size, c.shape.channels), np.float32)
        self._images = (torch.from_numpy(pixels) * 2 - 1).to(self.device).permute(0, 3, 1, 2)
        others = self._images.flip(0).contiguous(memory_format=torch.channels_last)
        self._source = others[:, : c.shape.source_channels] if c.shape.source_channels else None
        classes = c.shape.classes
        self._labels = torch.arange(c.batch, device=self.device) % classes if classes else None

    def __call__(self) -> Batch:
        index = torch.arange(self.sample, self.sample + self.config.batch, device=self.device)
        self.sample += self.config.batch
        return Batch(self._images, self._labels, index, self._source)


def plain_candidates(
    config: Config, device: torch.device, against: str, cycle: int, say: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    """The plain loops named in `against` ("eager", "compile", or both with a comma), each as `cycle` steps."""
    made: dict[str, Callable[[], object]] = {}
    arrangements, make = _loops(config)
    for name in filter(None, (part.strip() for part in against.split(","))):
        if name not in AGAINST:
            raise FastganError(f"--against {name!r} is unknown{suggest(name, AGAINST)}")
        for compiled in arrangements if name == "compile" else ("",):
            label = f"plain PyTorch, {name}" + (f" ({compiled})" if compiled else "")
            step = _under_autocast(config, device, make(config, device, compiled))
            run = _repeated(step, cycle)
            try:
                run()
            except Exception as error:  # whatever the compiler raises is an answer, too
                if not compiled:
                    raise
                lines = str(error).strip().splitlines()
                say(f"{label} does not work here: {type(error).__name__}: {lines[0] if lines else ''}")
            else:
                made[label] = run
                break
    return made


def _repeated(step: Callable[[], object], count: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def _under_autocast(config: Config, device: torch.device, step: Callable[[], object]) -> Callable[[], object]:
    autocast = autocast_of(config.precision, device)

    def run() -> None:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            step()

    return run


Made = Callable[[Config, torch.device, str], Callable[[], object]]


def _loops(config: Config) -> tuple[Sequence[str], Made]:
    """Arrangements of torch.compile, and what makes a plain step, for the config's system."""
    system: Any = config.system
    if isinstance(system, UnconditionalGAN) and _is_tidy(system):
        return baseline.arrangements_of(system), _unconditional
    if isinstance(config.system, StyleBasedGAN) and config.system.loss == "non_saturating":
        return baseline_styles.ARRANGEMENTS, _style_based
    return baseline_turns.ARRANGEMENTS, _turns


def _is_tidy(system: Any) -> bool:
    """Whether fastgan.baseline.tidy knows the options."""
    plain = system.prior == "none" and system.augment.kind == "none" and not system.simultaneous
    return plain and system.loss in baseline.KNOWN_LOSSES and not getattr(system.networks, "multi_scale", False)


def _layout(config: Config) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format


def _unconditional(config: Config, device: torch.device, compiled: str) -> Callable[[], object]:
    """The tidy loop on the preset's networks of PyTorch's own layers, in the preset's layout."""
    system, layout = _options(config), _layout(config)
    generator, average, critic = (
        player.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        for player in baseline.plain_players(system, config.shape)
    )
    recipe = baseline.recipe_of(system, config.optim["critic"], config.averaging, config.batch)
    loop = baseline.compiled_loop(compiled, generator, average, critic, recipe, device.type)
    images = torch.cat([RandomBatches(config, device)().images] * system.critic_steps).contiguous(memory_format=layout)
    return lambda: loop(images, torch.randn(len(images), system.latent, device=device))


def _style_based(config: Config, device: torch.device, compiled: str) -> Callable[[], object]:
    system, layout = _options(config), _layout(config)
    with baseline.unfused():
        made: Any = system.players(config.shape)
    players = {name: player.to(device, memory_format=layout).train() for name, player in made.items()}
    images = RandomBatches(config, device)().images.contiguous(memory_format=layout)
    networks = players["generator"], players["critic"]
    loop = baseline_styles.plain(system, *networks, config.optim, compiled=compiled)
    return lambda: loop(images)


def _turns(config: Config, device: torch.device, compiled: str) -> Callable[[], object]:
    given = config.system, config.shape, config.optim, config.averaging
    loop = baseline_turns.plain_turns(*given, device, _layout(config), compiled=compiled)
    batch = RandomBatches(config, device)()
    return lambda: loop(batch)


def _options(config: Config) -> Any:
    return config.system
