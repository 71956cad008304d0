"""train(config): data -> step -> log, pictures, checkpoints, report. The only place where all of them meet."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from fastgan.capture import CapturedStep, captured
from fastgan.contract import ImageShape, System
from fastgan.data import DataOptions, ImageSet, fingerprint, open_images
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError, suggest
from fastgan.evaluation import Evaluation, evaluate, generator_images, numbers_of, parse_metrics
from fastgan.features import Extractor
from fastgan.kernels import _runtime
from fastgan.metrics.sources import images_of
from fastgan.optim import Averaging, Optimizer
from fastgan.pictures import picture_latents, sample_images
from fastgan.run import checkpoint as checkpoints
from fastgan.run import folder
from fastgan.run.images import grid, save_png, to_uint8
from fastgan.run.log import RunLog
from fastgan.run.mendable import mendable_disk_errors, mendable_memory_errors
from fastgan.run.report import write_report
from fastgan.run.signals import StopSignals
from fastgan.step import PRECISIONS, Step, TrainState, autocast_of, new_state
from fastgan.ticker import Tick, Ticker, occasionally

DONE, RESUMABLE = 0, 3  # exit statuses


@dataclass(frozen=True)
class Output:
    """When a run writes what.

    tick_seconds:     a line in the log, in stats.jsonl and on the terminal at least this many seconds apart
    grid_kimg:        a grid of samples every so many thousand images (0: at start and end only)
    checkpoint_kimg:  a checkpoint every so many thousand images (0: at the end only)
    keep:             checkpoints that stay on the disk
    grid_images:      pictures in a grid
    """

    tick_seconds: float = 10.0
    grid_kimg: float = 50.0
    checkpoint_kimg: float = 50.0
    keep: int = 3
    grid_images: int = 64

    def __post_init__(self) -> None:
        for name in ("tick_seconds", "grid_kimg", "checkpoint_kimg"):
            if not getattr(self, name) >= 0:
                raise FastganError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("grid_kimg", "checkpoint_kimg"):
            if 0 < getattr(self, name) < 1e-3:
                raise FastganError(f"{name} must be 0 or at least 0.001 (one image), got {getattr(self, name)}")
        for name in ("keep", "grid_images"):
            if getattr(self, name) < 1:
                raise FastganError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run.

    preset:        name of the preset that the rest started from
    system:        adversarial system with its networks, losses and penalties
    optim:         optimiser of each player, by name
    kimg:          length of the run, in thousands of real images
    batch:         images per turn
    seed:          of initial weights, order of the data, and all noise
    out:           run folder
    device:        "auto", "cpu", "cuda", "cuda:1", ...
    threads:       CPU threads of PyTorch (0: as many as it chooses); small networks are faster with one
    channels_last: memory format of the networks
    precision:     "auto" (bfloat16 on GPUs that have it), "bfloat16" (mixed, weights in float32), "float32"
    capture:       on a GPU, whole steps are replayed as CUDA graphs
    init:          run folder, checkpoint or .safetensors file to take first weights from ("": none)
    resume:        "auto" (go on with what is in `out`), "never", or a run folder or checkpoint to go on from
    max_skipped:   training stops after so many turns in a row that were not finite
    """

    preset: str
    system: System
    optim: dict[str, Optimizer]
    data: DataOptions = field(default_factory=DataOptions)
    averaging: Averaging = field(default_factory=Averaging)
    output: Output = field(default_factory=Output)
    evaluation: Evaluation = field(default_factory=Evaluation)
    kimg: float = 1000.0
    batch: int = 64
    seed: int = 0
    out: str = ""
    device: str = "auto"
    threads: int = 0
    channels_last: bool = True
    precision: str = "auto"
    capture: bool = True
    init: str = ""
    resume: str = "auto"
    max_skipped: int = 100

    def __post_init__(self) -> None:
        for name in ("kimg", "batch", "max_skipped"):
            if not getattr(self, name) > 0 or math.isinf(getattr(self, name)):
                raise FastganError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.kimg > 1e9:
            raise FastganError(f"kimg must be at most 1e9 (a trillion images), got {self.kimg}")
        if not 0 <= self.threads <= 1024:
            raise FastganError(f"threads must be from 0 to 1024, got {self.threads}")
        if self.precision not in PRECISIONS:
            raise FastganError(f"precision {self.precision!r} is unknown{suggest(self.precision, PRECISIONS)}")
        if not 0 <= self.seed < 2**63:
            raise FastganError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.data.channels, self.data.size)

    @property
    def images(self) -> int:
        """Length of the run in images."""
        return max(1, round(self.kimg * 1000))


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
    mapping: dict[str, object]  # the config as plain values, for the checkpoints
    out: Path
    images: ImageSet
    data: dict[str, object]  # fingerprint of the images
    state: TrainState
    step: Step | CapturedStep
    feeder: Feeder
    log: RunLog
    extract: Extractor | None = None  # of the scores


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
    mapping: dict[str, object],
    toml: str,
    echo: Callable[[str], None] = print,
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Outcome:
    """Train as `config` says, from the start or from where the run in `config.out` stopped.

    mapping, toml: the config as plain values and as TOML, to be stored;  echo: takes the log's lines
    Raises FastganError for what a user can mend; a run's checkpoints are never lost by it.
    """
    out = Path(config.out)
    with mendable_disk_errors(out), mendable_memory_errors():
        device = prepare_device(config)
        images = open_images(config.data, occasionally(lambda done, count: echo(f"read {done:,} of {count:,} images")))
        data = fingerprint(images)
        saved = folder.find_checkpoint(out, config.resume, echo)
        if saved is not None:
            folder.check_same_run(saved, mapping, data)
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
        ) as feeder:
            folder.prepare(out, toml)
            with RunLog(out, echo=echo, resume_at=state.samples) as log:
                step = new_step(config, state, log.line)
                run = _Run(config, mapping, out, images, data, state, step, feeder, log)
                run.extract = extract
                _start(run, saved)
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


def _start(run: _Run, saved: checkpoints.Checkpoint | None) -> None:
    """First lines of the log; pictures of the reals and of the untrained generator."""
    config, out = run.config, run.out
    run.log.line(_runtime.build_summary())
    run.log.line(run.images.summary)
    sizes = ", ".join(f"{n} {parameters(m):,}" for n, m in run.state.modules.items())
    run.log.line(
        f"preset {config.preset}, {config.shape.size}x{config.shape.size}, batch {config.batch}, on "
        f"{run.state.device}; parameters: {sizes}"
    )
    device = torch.cuda.get_device_name(run.state.device) if run.state.device.type == "cuda" else "CPU"
    for line in run.images.left_out:
        run.log.line(line, echo=False)
    folder.write_text(out / "kernels.json", json.dumps([asdict(op) for op in _runtime.report()], indent=1))
    folder.write_text(out / "about.json", json.dumps({"data": run.images.summary, "device": device}))
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
                _check_finite(run, ticker.tick(scores))
            if state.samples < config.images and not signals.received:
                with ticker.pause():
                    if _crossed(before, state.samples, output.grid_kimg):
                        _draw_fakes(run)
                    if _crossed(before, state.samples, output.checkpoint_kimg):
                        _save(run)
        if ticker.pending:
            _check_finite(run, ticker.tick())
        if state.samples > started:
            _save(run)
        return signals.received if state.samples < config.images else None


def _score(run: _Run, before: int, ticker: Ticker) -> dict[str, float]:
    """Scores of the averaged generator, where they are due since `before` images; else {}."""
    state, options = run.state, run.config.evaluation
    due = _crossed(before, state.samples, options.every_kimg) or state.samples >= run.config.images
    if run.extract is None or not due:
        return {}
    with ticker.pause():
        fake = generator_images(run.config.system, state.averages, options.samples, state.device)
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
    latents = picture_latents(run.config.system, range(count), run.state.device)
    images = to_uint8(sample_images(run.config.system, run.state.averages, latents))
    return save_png(grid(images, columns=_columns(count)), run.out / f"fakes-{run.state.samples:09}.png")


def _save(run: _Run) -> None:
    state = {"config": run.mapping, "counters": run.state.counters(), "data": run.data}
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
