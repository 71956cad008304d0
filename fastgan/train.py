"""train(config): data -> step -> log, pictures, checkpoints, report. The only place where all of them meet."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from torch import nn

from fastgan.capture import CapturedStep, captured
from fastgan.contract import Batch
from fastgan.data import ImageSet, fingerprint, open_images
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError
from fastgan.evaluation import evaluate, generated_images, numbers_of, parse_metrics
from fastgan.features import Extractor
from fastgan.feeding import packing_at_start, packing_while_training, way
from fastgan.kernels import _runtime
from fastgan.metrics.sources import images_of
from fastgan.options import Config, to_mapping, to_toml, with_data
from fastgan.pictures import draw_pictures, picture_batch
from fastgan.run import checkpoint as checkpoints
from fastgan.run import folder
from fastgan.run.images import grid, save_png
from fastgan.run.log import RunLog
from fastgan.run.mendable import mendable_disk_errors, mendable_memory_errors
from fastgan.run.report import write_report
from fastgan.run.signals import StopSignals
from fastgan.step import Step, TrainState, autocast_of, new_state
from fastgan.ticker import Tick, Ticker, occasionally

DONE, RESUMABLE = 0, 3  # exit statuses


@dataclass(frozen=True)
class Outcome:
    """How a call of train() ended. status: DONE or RESUMABLE; pictures and report are paths."""

    status: int
    out: Path
    samples: int
    images_per_second: float
    pictures: Path
    report: Path


@dataclass
class _Run:
    """The parts of a run while it goes on."""

    config: Config
    out: Path
    images: ImageSet
    data: dict[str, object]  # fingerprint of the images
    state: TrainState
    step: Step | CapturedStep
    feeder: Feeder
    log: RunLog
    extract: Extractor | None = None  # of the scores
    pictured: Batch | None = None  # the images that the grids are made for
    measured: bool = False  # whether the log has said how fast the data comes


def pick_device(name: str) -> torch.device:
    """The torch device called `name`, or FastganError; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only CPUs and CUDA devices are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise FastganError(f"device {name!r} cannot be used here ({reason}); use --device cpu, cuda or auto") from None
    return device


def prepare_device(config: Config) -> torch.device:
    """The device of a config, with PyTorch's threads set as it says."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return pick_device(config.device)


def train(
    config: Config,
    *,
    echo: Callable[[str], None] = print,
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Outcome:
    """Train as `config` says, from the start or from where the run in `config.out` stopped.

    echo: takes the log's lines
    Raises FastganError for what a user can mend; a run's checkpoints are never lost by it.
    """
    out = Path(config.out)
    with mendable_disk_errors(out), mendable_memory_errors():
        device = prepare_device(config)
        began = monotonic()
        images = open_images(config.data, occasionally(lambda done, count: echo(f"read {done:,} of {count:,} images")))
        seconds = monotonic() - began
        config = with_data(config, images)
        data = fingerprint(images)
        saved = folder.find_checkpoint(out, config.resume, echo)
        if saved is not None:
            folder.check_same_run(saved, to_mapping(config), data)
        extract = config.evaluation.extractor(device)
        state = build_state(config, device)
        if saved is not None:
            state.restore(saved.tensors, saved.state["counters"])
        elif config.init:
            folder.initialise(state, config.init)
        with Feeder(
            images,
            seed=config.seed,
            batch=config.batch,
            first_sample=state.samples,
            device=device,
            mirror=config.data.mirror,
            kind=config.data.feeder,
        ) as feeder:
            # How this command began is not part of the run: its config.toml goes on with what is there.
            folder.prepare(out, to_toml(replace(config, resume="auto", init="")))
            with RunLog(out, echo=echo, resume_at=state.samples) as log:
                step = new_step(config, state, log.line)
                run = _Run(config, out, images, data, state, step, feeder, log)
                run.extract = extract
                _start(run, saved, seconds)
                ticker = Ticker(
                    state, step, feeder, log, total=config.images, interval=config.output.tick_seconds, on_tick=on_tick
                )
                stopped = _loop(run, ticker)
                return _finish(run, stopped, ticker.images_per_second)


def build_state(config: Config, device: torch.device) -> TrainState:
    """Fresh players and optimisers of a config."""
    return new_state(
        config.system,
        config.shape,
        config.optim,
        config.averaging,
        seed=config.seed,
        device=device,
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format,
    )


def new_step(config: Config, state: TrainState, say: Callable[[str], None] = warnings.warn) -> Step | CapturedStep:
    """The step that `config` trains `state` with. say: gets one line where it cannot be captured."""
    step = Step(
        config.system,
        state,
        config.averaging,
        seed=config.seed,
        batch=config.batch,
        total=config.images,
        autocast=autocast_of(config.precision, state.device),
    )
    return captured(step, say) if config.capture else step


def parameters(module: nn.Module) -> int:
    """How many numbers `module` has to learn."""
    return sum(p.numel() for p in module.parameters())


def _start(run: _Run, saved: checkpoints.Checkpoint | None, opening: float) -> None:
    """First lines of the log; pictures of the reals and of the untrained generator. opening: seconds it took to open
    the images."""
    config, out = run.config, run.out
    run.log.line(_runtime.build_summary())
    run.log.line(run.images.summary)
    run.log.line(f"data: {run.feeder.description}")
    _say(run, packing_at_start(run.images, config.data, opening))
    sizes = ", ".join(f"{n} {parameters(m):,}" for n, m in run.state.modules.items())
    run.log.line(
        f"preset {config.preset}, {config.shape.size}x{config.shape.size}, batch {config.batch}, on "
        f"{run.state.device}; parameters: {sizes}"
    )
    device = torch.cuda.get_device_name(run.state.device) if run.state.device.type == "cuda" else "CPU"
    for line in run.images.left_out:
        run.log.line(line, echo=False)
    folder.write_text(out / "kernels.json", json.dumps([asdict(op) for op in _runtime.report()], indent=1))
    about: dict[str, object] = {"data": run.images.summary, "device": device, "feeder": run.feeder.description}
    about |= {"rejected": run.images.rejected or len(run.images.left_out), "left_out": run.images.left_out[:100]}
    folder.write_text(out / "about.json", json.dumps(about))
    if saved is not None:
        run.log.line(f"resumed from {saved.path} at {run.state.samples / 1000:.1f} kimg")
    elif config.init:
        run.log.line(f"first weights from {config.init}")
    if saved is not None and (out / "reals.png").exists():
        return
    count = min(config.output.grid_images, len(run.images))
    reals = torch.from_numpy(run.images.read(torch.arange(count).numpy()))
    save_png(grid(reals, columns=_columns(count)), out / "reals.png")
    _draw_fakes(run)


def _loop(run: _Run, ticker: Ticker) -> str | None:
    """Train to the end or to a signal, whose name is returned. Checkpoints and pictures on the way."""
    config, state, output = run.config, run.state, run.config.output
    started = state.samples
    with StopSignals() as signals:
        while state.samples < config.images and not signals.received:
            before = state.samples
            try:
                run.step(run.feeder.__next__)
            except FastganError:  # an image that cannot be read after all: what was trained is kept
                if state.samples > started:
                    _save(run)
                raise
            scores = _score(run, before, ticker) if not signals.received else {}
            if ticker.due or scores:
                tick = ticker.tick(scores)
                if not run.measured:
                    run.measured = True
                    _say_way(run, tick.statistics["wait_share"])
                _check_finite(run, tick)
            if state.samples < config.images and not signals.received:
                if _crossed(before, state.samples, output.grid_kimg):
                    with ticker.pause("pictures"):
                        _draw_fakes(run)
                if _crossed(before, state.samples, output.checkpoint_kimg):
                    with ticker.pause("checkpoints"):
                        _save(run)
        if ticker.pending:
            _check_finite(run, ticker.tick())
        if state.samples > started:
            waited = run.feeder.wait_seconds / max(ticker.seconds, 1e-9)
            if run.measured:
                run.log.line(way(run.feeder, waited))
            else:
                _say_way(run, waited)
        if state.samples > started:
            _save(run)
        return signals.received if state.samples < config.images else None


def _say(run: _Run, line: str | None) -> None:
    if line is not None:
        run.log.line(line)


def _say_way(run: _Run, wait_share: float) -> None:
    """How the data comes, and what packing would bring, measured."""
    run.log.line(way(run.feeder, wait_share))
    _say(run, packing_while_training(run.images, run.config.data, run.feeder, wait_share))


def _score(run: _Run, before: int, ticker: Ticker) -> dict[str, float]:
    """Scores of the averaged generator, where they are due since `before` images; else {}."""
    state, options = run.state, run.config.evaluation
    due = _crossed(before, state.samples, options.every_kimg) or state.samples >= run.config.images
    if run.extract is None or not due:
        return {}
    with ticker.pause("scores"):
        fake = generated_images(
            run.config.system, state.averages, run.config.shape, options.samples, state.device, run.images
        )
        results = evaluate(images_of(run.images), fake, run.extract, parse_metrics(options.metrics))
    numbers = numbers_of(results)
    words = ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())
    run.log.line(f"at {state.samples / 1000:.1f} kimg: {words} ({run.extract.name}, {options.samples:,} samples)")
    return {f"score.{name}": value for name, value in numbers.items()}


def _check_finite(run: _Run, tick: Tick) -> None:
    """Stop the run where too many turns in a row were skipped."""
    in_a_row = int(tick.statistics["skipped_in_a_row"])
    if in_a_row >= run.config.max_skipped:
        _save(run)  # nothing of those turns was applied: the weights are the last good ones
        raise FastganError(
            f"{in_a_row} turns in a row had a loss or gradient that is not finite, so training stopped at "
            f"{tick.samples / 1000:.1f} kimg; lower the learning rates (--set optim.critic.lr=...) or raise the "
            f"penalty, and go on with --init {run.out} in a new --out"
        )


def _crossed(before: int, now: int, kimg: float) -> bool:
    """Whether a multiple of `kimg` lies in (before, now]."""
    return kimg > 0 and int(now // (kimg * 1000)) != int(before // (kimg * 1000))


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _draw_fakes(run: _Run) -> Path:
    """Samples of the averaged generator for the run's fixed latents, as fakes-IMAGES.png."""
    count = run.config.output.grid_images
    run.pictured = run.pictured or picture_batch(run.images, range(count), run.state.device)
    images = draw_pictures(run.config.system, run.state.averages, run.pictured)
    return save_png(grid(images, columns=_columns(count)), run.out / f"fakes-{run.state.samples:09}.png")


def _save(run: _Run) -> None:
    state = {"config": to_mapping(run.config), "counters": run.state.counters(), "data": run.data}
    path = checkpoints.save(
        run.out / "checkpoints",
        f"step-{run.state.step:09}",
        run.state.tensors(),
        state,
        keep=run.config.output.keep,
    )
    run.log.line(f"saved {path}", echo=False)


def _finish(run: _Run, stopped: str | None, images_per_second: float) -> Outcome:
    """Last pictures, the report, and how it ended."""
    pictures = _draw_fakes(run)
    folder.write_text(run.out / "next.txt", "\n".join(folder.next_commands(run.out, run.config.kimg)) + "\n")
    report = write_report(run.out)
    if stopped:
        kimg = f"{run.state.samples / 1000:.1f} kimg"
        run.log.line(f"stopped by {stopped} at {kimg} and saved; {_how_to_go_on(run)}")
    return Outcome(
        RESUMABLE if stopped else DONE,
        run.out,
        run.state.samples,
        images_per_second,
        pictures,
        report,
    )


def _how_to_go_on(run: _Run) -> str:
    if run.config.resume == "auto":
        return "the same command goes on"
    return f"fastgan train --config {run.out / 'config.toml'} goes on"
