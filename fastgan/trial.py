"""A config tried without a run folder: the dry run of `train`, and the timing of `bench`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastgan import bench
from fastgan.against import RandomBatches, plain_candidates
from fastgan.assemble import build_state, new_step, parameters, prepare_device
from fastgan.capture import CapturedStep
from fastgan.config import resolve
from fastgan.contract import Batch, Labelled
from fastgan.cost import Cost, step_cost
from fastgan.data import open_images
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError
from fastgan.gans import UnconditionalGAN
from fastgan.kernels import _runtime
from fastgan.options import Config, with_data
from fastgan.presets import PRESETS
from fastgan.step import Step

T = TypeVar("T")


def dry_run(config: Config) -> Iterator[str]:
    """Lines about the data, the networks and the kernels; then one step is done and timed. Writes no file."""
    device = prepare_device(config)
    images = open_images(config.data)
    config = with_data(config, images)
    yield images.summary
    state = build_state(config, device)
    for name, module in state.modules.items():
        average = ", averaged" if state.players[name].average is not None else ""
        yield f"{name}: {type(module).__name__}, {parameters(module):,} parameters{average}"
    yield _runtime.build_summary()
    yield from (f"{op.op}: {op.implementation} ({op.reason})" for op in _runtime.report())
    step = new_step(config, state)
    with Feeder(images, seed=config.seed, batch=config.batch, device=device, mirror=config.data.mirror) as feeder:
        began = time.monotonic()
        step(feeder.__next__)
        statistics = step.read_statistics()
    yield f"one step on {device}: {bench.duration(time.monotonic() - began)}"
    yield ", ".join(f"{name} {value:.4g}" for name, value in statistics.items())


@dataclass(frozen=True)
class Part:
    """One row of the table: measured seconds per step; what the cost model says of it, where it does."""

    name: str
    seconds: float
    cost: Cost | None = None


ORDER = ("generator forward", "critic's turn", "generator's turn", "update", "wait for data", "rest")
"""Parts of a step as they are shown."""


class PartClock:
    """Seconds that a step spends in its parts. On a GPU each part waits for the device, which a plain step does not."""

    def __init__(self, step: Step) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # per part that is open: seconds of the parts within it
        self._device = step.state.device
        generator = step.state.players["generator"].module
        begun: list[Callable[[], None]] = []
        self._hooked = [
            generator.register_forward_pre_hook(lambda *_: begun.append(self._begin("generator forward"))),
            generator.register_forward_hook(lambda *_: begun.pop()()),
        ]
        self._turns = step.turns
        step.turns = tuple(
            replace(turn, gradients=self._timed(f"{turn.name}'s turn", turn.gradients)) for turn in step.turns
        )
        for player in step.state.players.values():
            player.update = self._timed("update", player.update)  # type: ignore[method-assign]
        self._step = step

    def close(self) -> None:
        """The step as it was."""
        for hook in self._hooked:
            hook.remove()
        self._step.turns = self._turns
        for player in self._step.state.players.values():
            del player.update

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _begin(self, name: str) -> Callable[[], None]:
        began = self._now()
        self._inner.append(0.0)

        def end() -> None:
            seconds = self._now() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inner.pop()
            self._inner[-1] += seconds

        return end

    def _timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        def run(*args: object, **kwargs: object) -> T:
            end = self._begin(name)
            try:
                return function(*args, **kwargs)
            finally:
                end()

        return run

    def around(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """`function`, whose time counts as `name`."""
        return self._timed(name, function)


def parts_of(config: Config, step: Step, batches: Callable[[], Batch], cycles: int) -> list[Part]:
    """Mean seconds of each part of the step over `cycles` lazy cycles, slowest machine effects included."""
    clock = PartClock(step)
    steps = cycles * step.cycle
    waiting = clock.around("wait for data", batches)
    try:
        whole = clock.around("rest", step)
        for _ in range(steps):
            whole(waiting)
    finally:
        clock.close()
    costs = cycle_cost(config)
    wanted = ("r1", "r2", "wgan_gp", "simultaneous")
    swept = any(getattr(_gan(config), name, False) for name in wanted) and "r1's turn" not in clock.seconds
    called = {"critic's turn": "critic's turn: sweep" if swept else "critic's turn: forward, backward"}
    turns = [name for name in clock.seconds if name.endswith("'s turn") and name not in ORDER]
    order = [name for name in (*ORDER[:3], *turns, *ORDER[3:]) if name in clock.seconds]
    return [Part(called.get(name, name), clock.seconds[name] / steps, costs.get(name)) for name in order]


def _gan(config: Config) -> Any:
    """The options of the config's system, the unconditional GAN: the one that the cost model and the loops know."""
    return config.system


def _has_cost(config: Config) -> bool:
    """Whether the cost model and the plain loops know the config's system."""
    return isinstance(config.system, UnconditionalGAN)


def cycle_cost(config: Config) -> dict[str, Cost]:
    """Cost of a config's mean step over a lazy cycle; nothing for systems that the cost model does not know."""
    if not _has_cost(config):
        return {}
    every = _gan(config).penalty_every
    mean: dict[str, Cost] = {}
    for number in range(every):
        for name, cost in step_cost(config.system, config.shape, config.batch, penalised=number == 0).items():
            mean[name] = mean.get(name, Cost()) + cost * (1 / every)
    return mean


def bench_step(config: Config, steps: int, say: Callable[[str], None], against: str, out: Path) -> None:
    """Time whole training steps on random images; say images/s, ms per part, shares of the ceilings, peak memory.

    against: "eager", "compile" or both with a comma: the same networks and losses in a careful loop of plain PyTorch,
    timed in turn with the engine; or ""
    out: folder for step.json, all times as benchmarks/ keep them, and step.svg, the parts beside their floors
    """
    with _writable(out):
        out.mkdir(parents=True, exist_ok=True)  # now, not after minutes
    load = bench.load_average()
    device = prepare_device(config)
    info = bench.device_info(device)
    say(f"{info.name}, {info.threads} threads, torch {info.torch}, fastgan {info.fastgan}, load {load:.1f}")
    copy_rate, matmul_rate = bench.copy_rate(str(device)), bench.matmul_rate(str(device))
    say(f"ceilings measured here: copy {copy_rate / 1e9:.1f} GB/s, matrix product {matmul_rate / 1e9:.0f} GFLOP/s")
    step = new_step(config, build_state(config, device), say)
    plain = step.step if isinstance(step, CapturedStep) else step
    batches, every = RandomBatches(config, device), plain.cycle

    def cycle() -> None:
        for _ in range(every):
            step(batches)

    for _ in range(2):
        cycle()
    peak = bench.peak_memory(device)  # before others take some, too
    candidates: dict[str, Callable[[], object]] = {"fastgan": cycle}
    candidates |= plain_candidates(config, device, against, every, say)
    seconds = bench.measure(candidates, device=device, rounds=steps, min_time=0.0, warmup=2)
    per_step = {name: [s / every for s in each] for name, each in seconds.items()}
    case = bench.Case(f"{config.preset}, batch {config.batch}", "fastgan", per_step, memory={"fastgan": peak})
    images, median = step.batches * config.batch, case.median("fastgan")
    say(f"preset {config.preset}, batch {config.batch}, {step.batches} critic batch(es) a step; medians of {steps}")
    for name in case.seconds:
        ratio = "" if name == "fastgan" else f"; fastgan is {case.ratio(name)} as fast"
        say(f"  {name:<44}{images / case.median(name):10.1f} images/s {bench.duration(case.median(name)):>9}{ratio}")
    means = ", ".join(f"{name} {value:.3g}" for name, value in step.read_statistics().items())
    say(f"peak memory {peak / 2**20:.0f} MiB (of this process, without others); means: {means}")
    parts = parts_of(config, plain, batches, max(1, steps // every))
    say(table(parts, matmul_rate, copy_rate, median))
    if _has_cost(config):
        say("floor: operations at the product rate or bytes at the copy rate; what stays in caches can be faster")
    else:
        say(f"operations, bytes and floor: not known for {type(config.system).__name__}")
    say(chart(parts, matmul_rate, copy_rate))
    case = replace(case, notes={part.name: bench.duration(part.seconds) for part in parts})
    result = bench.Result("step", info, copy_rate, matmul_rate, load, (case,))
    with _writable(out):
        kept = result.write(out / "step.json"), out / "step.svg"
        kept[1].write_text(bars(config.preset, parts, matmul_rate, copy_rate))
    say(f"kept: {kept[0]} and {kept[1]}")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FastganError(f"cannot write into {out}: {error.strerror}; choose another --out") from None


def table(parts: Sequence[Part], matmul_rate: float, copy_rate: float, step: float) -> str:
    """The parts as lines, the whole step last: ms, operations, bytes, shares of the two measured limits, the floor."""
    width = max(20, *(len(part.name) for part in parts)) + 1
    heads = ("ms", "GFLOP", "MB", "of products", "of copy", "floor ms", "floor/time")
    lines = ["".join([f"{'part':<{width}}", *(f"{head:>12}" for head in heads)])]
    known = [part.cost for part in parts if part.cost]
    rows = [*parts, Part("whole step", step, sum(known, start=Cost()) if known else None)]
    floors = [p.cost.seconds(matmul_rate, copy_rate) if p.cost else None for p in rows]
    floors[-1] = sum(f for f in floors[:-1] if f) if known else None
    for part, floor in zip(rows, floors, strict=True):
        line = f"{part.name:<{width}}{part.seconds * 1e3:12.2f}"
        if part.cost and floor is not None:
            line += f"{part.cost.flops / 1e9:12.2f}{part.cost.bytes / 1e6:12.1f}"
            shares = part.cost.flops / matmul_rate / part.seconds, part.cost.bytes / copy_rate / part.seconds
            line += f"{shares[0]:12.0%}{shares[1]:12.0%}"
            line += f"{floor * 1e3:12.2f}{floor / part.seconds:12.0%}"
        lines.append(line)
    return "\n".join(lines)


def chart(parts: Sequence[Part], matmul_rate: float, copy_rate: float) -> str:
    """The same as lines for a terminal: a bar of time each, its beginning dark as far as the floor goes."""
    floors = [part.cost.seconds(matmul_rate, copy_rate) if part.cost else 0.0 for part in parts]
    scale = 50 / max(part.seconds for part in parts)
    lines = []
    for part, floor in zip(parts, floors, strict=True):
        length, dark = round(part.seconds * scale), round(min(floor, part.seconds) * scale)
        lines.append(f"{part.name:<34}{'█' * dark}{'░' * (length - dark)} {part.seconds * 1e3:.1f} ms")
    return "\n".join(lines) + ("\n(dark: the floor)" if any(floors) else "")


def bars(title: str, parts: Sequence[Part], matmul_rate: float, copy_rate: float) -> str:
    """The parts as an SVG picture: a wide bar of measured time each, and a narrow dark one for the floor."""
    floors = [part.cost.seconds(matmul_rate, copy_rate) if part.cost else 0.0 for part in parts]
    scale = 420 / max(*(part.seconds for part in parts), *floors)
    drawn = [f'<text x="10" y="22" font-size="15">{escape(title)}: ms per step, and the floor (dark)</text>']
    for row, (part, floor) in enumerate(zip(parts, floors, strict=True)):
        y = 40 + 28 * row
        end = 226 + scale * max(part.seconds, floor)
        drawn += [
            f'<text x="210" y="{y + 14}" text-anchor="end">{escape(part.name)}</text>',
            f'<rect x="220" y="{y}" width="{part.seconds * scale:.1f}" height="18" fill="#9db8d9"/>',
            f'<rect x="220" y="{y + 6}" width="{floor * scale:.1f}" height="6" fill="#27517f"/>',
            f'<text x="{end:.1f}" y="{y + 14}">{part.seconds * 1e3:.1f}</text>',
        ]
    size = f'width="720" height="{52 + 28 * len(parts)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *drawn, "</svg>"]) + "\n"


def _family(preset: str) -> tuple[str, int]:
    """A preset of the same name but for its size, and that size; the preset itself and 0 where it is one."""
    stem, _, size = preset.rpartition("-")
    others = [name for name in PRESETS if name.rpartition("-")[0] == stem and name.rpartition("-")[2].isdigit()]
    if preset in PRESETS or not stem or not size.isdigit() or not others:
        return preset, 0
    return min(others, key=lambda name: abs(math.log(int(name.rpartition("-")[2]) / max(1, int(size))))), int(size)


def bench_preset(
    preset: str,
    batch: int | None,
    device: str,
    steps: int,
    sets: Sequence[str],
    against: str,
    out: Path | None,
    say: Callable[[str], None],
) -> None:
    """`fastgan bench` under the names of its flags. A preset at another size, such as dcgan-128, is that of its family
    which is nearest, with data.size."""
    flags: dict[str, Any] = {"device": device} | ({} if batch is None else {"batch": batch})
    found, size = _family(preset)
    if size:
        flags["data.size"] = size
        say(f"{preset}: the preset {found} at {size}x{size}")
    config = replace(resolve(found, None, flags, sets), preset=preset)
    if steps < 1:
        raise FastganError(f"--steps must be 1 or more, got {steps}")
    if isinstance(config.system, Labelled) and not config.data.classes:
        config = replace(config, data=replace(config.data, classes=10))  # of random images: any number does
    if config.data.pairs and not config.data.source_channels:
        config = replace(config, data=replace(config.data, source_channels=config.data.channels))
    bench_step(config, steps, say, against, out or Path("runs") / f"bench-{config.preset}")
