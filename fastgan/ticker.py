"""The clock of a training loop: how fast it goes, how long it waits for data, and a line when one is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from fastgan.bench import peak_memory
from fastgan.capture import CapturedStep
from fastgan.contract import Batch, Draw, Turn
from fastgan.data.feeder import Feeder
from fastgan.run.log import RunLog
from fastgan.step import Step, TrainState
from fastgan.terminal import clock


@dataclass(frozen=True)
class Tick:
    """What the log says at a tick: where the run is, how fast, and the means since the last tick."""

    step: int
    samples: int
    total: int
    images_per_second: float
    seconds_left: float
    statistics: dict[str, float]


class Ticker:
    """Counts what the loop does; reads the device's statistics and logs them.

    interval: seconds between two ticks, at least
    total:   images of the whole run
    on_tick: takes each Tick, after the log
    images, seconds: trained so far in this process, without pauses
    """

    def __init__(
        self,
        state: TrainState,
        step: Step | CapturedStep,
        feeder: Feeder,
        log: RunLog,
        *,
        total: int,
        interval: float,
        on_tick: Callable[[Tick], None],
    ) -> None:
        self.images, self.seconds = 0, 0.0
        self._state, self._step, self._feeder, self._log = state, step, feeder, log
        self._total, self._interval, self._on_tick = total, interval, on_tick
        self._parts: dict[str, float] = {}
        if isinstance(step, Step) and state.device.type == "cpu":  # a GPU works on while the host goes on
            self._time_turns(step)
        self._restart()

    def _restart(self) -> None:
        self._first, self._paused, self._waited = self._state.samples, 0.0, self._feeder.wait_seconds
        self._began = time.monotonic()

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() - self._began >= self._interval

    @property
    def pending(self) -> bool:
        """Whether something was trained since the last tick."""
        return self._state.samples > self._first

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Time within does not count as training, but as `what`."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began
        self._add(what, time.monotonic() - began)

    def _add(self, part: str, seconds: float) -> None:
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    def _time_turns(self, step: Step) -> None:
        """Count what the gradients of every turn take."""

        def timed(turn: Turn) -> Turn:
            def gradients(batch: Batch, draw: Draw) -> dict[str, Tensor]:
                began = time.monotonic()
                try:
                    return turn.gradients(batch, draw)
                finally:
                    self._add(f"{turn.name}'s turn", time.monotonic() - began)

            return replace(turn, gradients=gradients)

        step.turns = tuple(timed(turn) for turn in step.turns)

    def _parts_of(self, seconds: float, waited: float) -> dict[str, float]:
        """Seconds of every part since the last tick: of `seconds` of training, and of the pauses."""
        turns = {name: value for name, value in self._parts.items() if name.endswith("turn")}
        rest = "updates and the rest" if turns else "the step"
        parts = {"waiting for data": waited, **self._parts, rest: max(seconds - waited - sum(turns.values()), 0.0)}
        self._parts = {}
        return {f"part.{name}": value for name, value in parts.items()}

    def tick(self, scores: Mapping[str, float] | None = None) -> Tick:
        """Log where the run is, the means since the last tick, and `scores` of this moment."""
        means = self._step.read_statistics()
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        samples, images = self._state.samples, self._state.samples - self._first
        self.seconds += seconds
        self.images += images
        rate, waited = images / seconds, self._feeder.wait_seconds - self._waited
        statistics = means | {
            "step": self._state.step,
            "images": samples,
            "images_per_second": rate,
            "seconds": self.seconds,
            "wait_share": waited / seconds,
            "feeder_images_per_second": self._feeder.images_per_second,
            "peak_memory_mb": peak_memory(self._state.device) / 2**20,
            "progress": samples / self._total,
            **self._parts_of(seconds, waited),
            **(scores or {}),
        }
        tick = Tick(self._state.step, samples, self._total, rate, max(self._total - samples, 0) / rate, statistics)
        self._log.stats(statistics)
        self._log.line(describe(tick), echo=False)
        self._on_tick(tick)
        self._restart()
        return tick


def describe(tick: Tick) -> str:
    """A tick as one line."""
    losses = (f"{k.removesuffix('.loss')} loss {v:.3f}" for k, v in tick.statistics.items() if k.endswith(".loss"))
    waiting = tick.statistics["wait_share"]
    words = [
        f"{tick.samples / 1000:.1f} of {tick.total / 1000:g} kimg",
        f"{tick.images_per_second:.0f} images/s",
        f"{clock(tick.seconds_left)} left",
        *losses,
        *([f"{waiting:.0%} waiting for data"] if waiting >= 0.01 else []),
    ]
    if tick.statistics["skipped"]:
        words.append(f"{tick.statistics['skipped']:.0f} turns skipped (not finite)")
    return ", ".join(words)


def occasionally(say: Callable[[int, int], None], seconds: float = 5.0) -> Callable[[int, int], None]:
    """`say`, called at most once in so many seconds, and not in the first of them."""
    last = time.monotonic()

    def call(done: int, count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(done, count)

    return call
