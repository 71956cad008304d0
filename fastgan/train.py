"""train(config): data -> step -> log, pictures, checkpoints, report. The only place where all of them meet."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

import torch

from fastgan.assemble import batch_dtype, build_state, new_step, parameters, prepare_device
from fastgan.capture import CapturedStep
from fastgan.contract import Batch, Labelled, commands_of
from fastgan.data import ImageSet, fingerprint, open_images
from fastgan.data.feeder import Feeder
from fastgan.dist import Ranks, joined
from fastgan.errors import FastganError, StoppedElsewhere
from fastgan.evaluation import evaluate, generated_images, numbers_of, parse_metrics
from fastgan.features import Extractor
from fastgan.feeding import packing_at_start, packing_while_training, way
from fastgan.kernels import _runtime
from fastgan.meeting import Meeting, Stopped
from fastgan.metrics.sources import images_of
from fastgan.options import Config, defaults, to_mapping, to_toml, with_data
from fastgan.pictures import columns_of, draw_pictures, picture_batch, pictured
from fastgan.run import checkpoint as checkpoints
from fastgan.run import folder
from fastgan.run.behind import Writer
from fastgan.run.images import grid, save_png
from fastgan.run.log import NoLog, RunLog
from fastgan.run.mendable import mendable_disk_errors, mendable_memory_errors
from fastgan.run.report import write_report
from fastgan.run.signals import StopSignals
from fastgan.step import Step, TrainState
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
    ranks: Ranks
    out: Path
    images: ImageSet
    data: dict[str, object]  # fingerprint of the images
    state: TrainState
    step: Step | CapturedStep
    feeder: Feeder
    log: RunLog
    extract: Extractor | None = None  # of the scores
    pictured: Batch | None = None  # the images that the grids are made for
    writer: Writer | None = None  # of checkpoints, on the rank that writes
    opening: float = 0.0  # seconds that it took to open the images
    measured: bool = False  # whether the log has said how fast the data comes


def train(
    config: Config,
    *,
    echo: Callable[[str], None] = print,
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Outcome:
    """Train as `config` says, from the start or from where the run in `config.out` stopped.

    echo: takes the log's lines
    Where torchrun has started several processes, each calls this with the same config, and they train together
    (fastgan.dist). The first one writes, and only its `echo` and `on_tick` are called.
    Raises FastganError for what a user can mend; a run's checkpoints are never lost by it.
    """
    with joined(config.device) as ranks, _mendable(Path(config.out)):
        if not ranks.first:
            echo = on_tick = _nothing
        with contextlib.ExitStack() as stack:
            with ranks.together(), _mendable(Path(config.out)):
                if ranks.first:
                    stack.enter_context(folder.only_one(Path(config.out)))
                    # What has to be fetched is there before all of them look.
                    folder.fetch_copy(Path(config.out), config.resume, config.output.copy_to, echo)
            with ranks.together(), _mendable(Path(config.out)):
                run, saved = _prepare(config, ranks, echo, stack)
            _check_same_start(run, saved)
            with ranks.together(), _mendable(run.out):
                # How this command began is not part of the run: its config.toml goes on with what is there.
                if ranks.first:
                    folder.prepare(run.out, to_toml(replace(config, resume="auto", init="")))
                    run.log = stack.enter_context(RunLog(run.out, echo=echo, resume_at=run.state.samples))
                    run.writer = stack.enter_context(_writer(run))
                    _start(run, saved)
            ticker = Ticker(
                run.state,
                run.step,
                run.feeder,
                run.log,
                total=config.images,
                interval=config.output.tick_seconds,
                on_tick=on_tick,
            )
            stopped = _loop(run, ticker)
            outcome = Outcome(
                RESUMABLE if stopped else DONE,
                run.out,
                run.state.samples,
                ticker.images_per_second,
                _fakes_path(run),
                run.out / "report.html",
            )
            with ranks.together(), _mendable(run.out):
                if ranks.first:
                    _finish(run, stopped)
            return outcome


def _writer(run: _Run) -> Writer:
    output = run.config.output
    say = functools.partial(run.log.line, echo=False)
    return Writer(run.out / "checkpoints", keep=output.keep, say=say, copy_to=output.copy_to)


def _nothing(_: object) -> None:
    pass


@contextlib.contextmanager
def _mendable(out: Path) -> Iterator[None]:
    """Errors of the machine as FastganErrors."""
    with mendable_disk_errors(out), mendable_memory_errors():
        yield


def _prepare(
    config: Config, ranks: Ranks, echo: Callable[[str], None], stack: contextlib.ExitStack
) -> tuple[_Run, checkpoints.Checkpoint | None]:
    """Everything that each rank needs, without the log, and what it starts from. Nothing is written."""
    if config.batch % ranks.world:
        below = config.batch - config.batch % ranks.world
        raise FastganError(
            f"a batch of {config.batch} images cannot be shared out to {ranks.world} ranks; use --batch "
            f"{below + ranks.world}" + (f" or {below}" if below else "")
        )
    out, device = Path(config.out), prepare_device(config, ranks)
    began = monotonic()
    images = open_images(config.data, occasionally(lambda done, count: echo(f"read {done:,} of {count:,} images")))
    opening = monotonic() - began
    config = with_data(config, images)
    data = fingerprint(images)
    saved = folder.find_checkpoint(out, config.resume, echo)
    if saved is not None:
        folder.check_same_run(saved, to_mapping(config), data, defaults(config))
    extract = config.evaluation.extractor(device)
    state = build_state(config, device)
    if saved is not None:
        state.restore(saved.tensors, saved.state["counters"])
    elif config.init:
        folder.initialise(state, config.init)
    feeder = Feeder(
        images,
        seed=config.seed,
        batch=config.batch // ranks.world,
        rank=ranks.rank,
        world=ranks.world,
        first_sample=state.samples,
        device=device,
        mirror=config.data.mirror,
        kind=config.data.feeder,
        dtype=batch_dtype(config, state),
    )
    stack.enter_context(feeder)

    def say(line: str) -> None:
        run.log.line(line)  # of the log that is opened later

    run = _Run(config, ranks, out, images, data, state, new_step(config, state, say, ranks), feeder, NoLog(), extract)
    run.opening = opening
    return run, saved


def _check_same_start(run: _Run, saved: checkpoints.Checkpoint | None) -> None:
    """Raise on all ranks unless they have the same options, images, checkpoint and weights."""
    options = to_mapping(replace(run.config, device="", threads=0))
    mine = {
        "options": hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest(),
        "images": run.data,
        "checkpoint": None if saved is None else f"{saved.path.name} at {run.state.samples} images",
    }
    all_ = run.ranks.gather_json(mine)
    error = None
    for what, value in all_[0].items():
        others = [rank for rank, theirs in enumerate(all_) if theirs[what] != value]
        if others and error is None:
            error = FastganError(
                f"rank {others[0]} starts with other {what} ({all_[others[0]][what]}) than rank 0 ({value}); all ranks "
                "need the same command, the same images, and --out on storage that all of them see"
            )
    run.ranks.meet(error)
    run.ranks.check_same(run.state.tensors())


def _start(run: _Run, saved: checkpoints.Checkpoint | None) -> None:
    """First lines of the log; pictures of the reals and of the untrained generator."""
    config, out = run.config, run.out
    run.log.line(_runtime.build_summary())
    run.log.line(run.images.summary)
    run.log.line(f"data: {run.feeder.description}")
    _say(run, packing_at_start(run.images, config.data, run.opening))
    sizes = ", ".join(f"{n} {parameters(m):,}" for n, m in run.state.modules.items())
    ranks = f" with {run.ranks.world} ranks" if run.ranks.world > 1 else ""
    run.log.line(
        f"preset {config.preset}, {config.shape.size}x{config.shape.size}, batch {config.batch}, on "
        f"{run.state.device}{ranks}; parameters: {sizes}"
    )
    device = torch.cuda.get_device_name(run.state.device) if run.state.device.type == "cuda" else "CPU"
    (out / folder.RESUMABLE).unlink(missing_ok=True)
    for line in run.images.left_out:
        run.log.line(line, echo=False)
    folder.write_text(out / "kernels.json", json.dumps([asdict(op) for op in _runtime.report()], indent=1))
    about: dict[str, object] = {"data": run.images.summary, "device": device, "feeder": run.feeder.description}
    about |= {"rejected": run.images.rejected or len(run.images.left_out), "left_out": run.images.left_out[:100]}
    about["classes"] = run.images.classes
    folder.write_text(out / folder.ABOUT, json.dumps(about))
    if saved is not None:
        run.log.line(f"resumed from {saved.path} at {run.state.samples / 1000:.1f} kimg")
    elif config.init:
        run.log.line(f"first weights from {config.init}")
    if saved is not None and (out / "reals.png").exists():
        return
    count = min(config.output.grid_images, len(run.images))
    reals = torch.from_numpy(run.images.read(pictured(run.images, range(count))))
    save_png(grid(reals, columns=_columns(config, count)), out / "reals.png")
    _draw_fakes(run)


def _loop(run: _Run, ticker: Ticker) -> str | None:
    """Train to the end or to a signal, whose name is returned. Checkpoints and pictures on the way."""
    config, state, output, ranks = run.config, run.state, run.config.output, run.ranks
    started, stopped = state.samples, None
    mendable = functools.partial(_mendable, run.out)
    with StopSignals(patient=ranks.world > 1) as signals:
        meeting = Meeting(ranks, run.feeder, signals, run.step.batches)
        try:
            while state.samples < config.images:
                before = state.samples
                run.step(meeting.next_batch)
                score, draw, save = (
                    _crossed(before, state.samples, kimg)
                    for kimg in (config.evaluation.every_kimg, output.grid_kimg, output.checkpoint_kimg)
                )
                over = state.samples >= config.images
                if (score or draw or save) and not over:
                    meeting.agree()  # what takes long is not begun by who is to stop
                scores = _score(run, ticker) if run.extract is not None and (score or over) else {}
                if not ranks.first:
                    continue
                with meeting.writing(mendable):
                    _writer_of(run).poll()
                    if ticker.due or scores:
                        tick = ticker.tick(scores)
                        if not run.measured:
                            _say_way(run, tick.statistics["wait_share"])
                        _check_finite(run, tick)
                    if draw and not over:
                        with ticker.pause("pictures"):
                            _draw_fakes(run)
                    if save and not over:
                        with ticker.pause("checkpoints"):
                            _save(run)
        except Stopped as stop:
            stopped = str(stop)
            if ranks.world > 1:
                signals.ignore()
        except (
            FastganError,
            StoppedElsewhere,
        ) as error:  # an image that cannot be read after all: what was trained is kept
            if ranks.first and state.samples > started and error is not meeting.unwritten:
                _save(run)
            raise
        with ranks.together(), mendable():
            meeting.raise_error()
            if ranks.first and ticker.pending:
                _check_finite(run, ticker.tick())
            if ranks.first and state.samples > started:
                _say_way(run, run.feeder.wait_seconds / max(ticker.seconds, 1e-9))
                _save(run)
            if ranks.first:
                _writer_of(run).wait()
        return stopped


def _say(run: _Run, line: str | None) -> None:
    if line is not None:
        run.log.line(line)


def _say_way(run: _Run, wait_share: float) -> None:
    """How the data comes, and once what packing would bring, measured."""
    run.log.line(way(run.feeder, wait_share))
    if not run.measured:
        run.measured = True
        _say(run, packing_while_training(run.images, run.config.data, run.feeder, wait_share))


def _score(run: _Run, ticker: Ticker) -> dict[str, float]:
    """Scores of the averaged generator, to which all ranks contribute."""
    state, options = run.state, run.config.evaluation
    assert run.extract is not None
    with ticker.pause("scores"):
        fake = generated_images(
            run.config.system, state.averages, run.config.shape, options.samples, state.device, run.images
        )
        reals, names = images_of(run.images), parse_metrics(options.metrics)
        results = evaluate(reals, fake, run.extract, names, ranks=run.ranks)
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


def _columns(config: Config, count: int) -> int:
    return columns_of(count, config.shape.classes if isinstance(config.system, Labelled) else 0)


def _draw_fakes(run: _Run) -> Path:
    """Samples of the averaged generator for the run's fixed latents, as fakes-IMAGES.png."""
    count = run.config.output.grid_images
    run.pictured = run.pictured or picture_batch(run.images, range(count), run.state.device)
    images = draw_pictures(run.config.system, run.state.averages, run.pictured)
    square = max(1, count * images.shape[2] // images.shape[3])  # several side by side take the place of several
    return save_png(grid(images, columns=_columns(run.config, square)), _fakes_path(run))


def _fakes_path(run: _Run) -> Path:
    return run.out / f"fakes-{run.state.samples:09}.png"


def _save(run: _Run) -> None:
    """Begin to save the state as it is now; `run.writer` says how that ended."""
    state = {"config": to_mapping(run.config), "counters": run.state.counters(), "data": run.data}
    _writer_of(run).save(f"step-{run.state.step:09}", run.state.tensors(), state)


def _writer_of(run: _Run) -> Writer:
    assert run.writer is not None, "only the first rank writes"
    return run.writer


def _finish(run: _Run, stopped: str | None) -> None:
    """Last pictures, the report, and how it ended."""
    _draw_fakes(run)
    commands = folder.next_commands(run.out, run.config.kimg, commands_of(run.config.system))
    folder.write_text(run.out / "next.txt", "\n".join(commands) + "\n")
    write_report(run.out)
    if stopped:
        kimg = f"{run.state.samples / 1000:.1f} kimg"
        line = f"stopped by {stopped} at {kimg} and saved; {_how_to_go_on(run)}"
        run.log.line(line)
        folder.write_text(run.out / folder.RESUMABLE, f"{line}\n")


def _how_to_go_on(run: _Run) -> str:
    if run.config.resume == "auto":
        return "the same command goes on"
    return f"fastgan train --config {run.out / 'config.toml'} goes on"
