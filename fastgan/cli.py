"""The `fastgan` command: flags -> Config -> one call each. The only module that knows tyro and rich.

Exit status: 0 done, 2 something the user can mend (one line), 3 stopped early and resumable, 1 a bug (traceback).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

# PyTorch's threads wait asleep, not spinning: on a machine that does something else too, spinning made small
# operations 5 to 20 times slower. It is read when torch is loaded, so it comes before any other import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, UseAppendAction

from fastgan import __version__
from fastgan.allocator import keep_freed_memory
from fastgan.config import Config, resolve, to_mapping, to_toml
from fastgan.errors import FastganError
from fastgan.presets import DEFAULT_PRESET
from fastgan.terminal import as_typed_here, one_line, say_warning

MENDABLE, RESUMABLE = 2, 3
console = Console(highlight=False, soft_wrap=True)


def _default(text: str) -> Any:
    """What the help says in place of `None`."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass
class Train:
    """Train a GAN on a folder or zip of images; the same command again goes on where it stopped."""

    data: Annotated[str | None, _default("the preset's")] = None
    """folder or zip of images, or "digits" (1,797 handwritten digits, no data needed)"""
    preset: Annotated[str | None, _default("dcgan-64")] = None
    """networks, losses, optimisers: digits, dcgan-64, wgan-gp-64, sngan-32, r3gan-32, r3gan-64, r3gan-256"""
    out: Annotated[str | None, _default("runs/PRESET")] = None
    """run folder"""
    kimg: Annotated[float | None, _default("the preset's")] = None
    """length of the run, in thousands of images"""
    batch: Annotated[int | None, _default("the preset's")] = None
    """images per step"""
    seed: Annotated[int | None, _default("0")] = None
    """of weights, order and noise"""
    init: Annotated[str | None, _default("fresh weights")] = None
    """start from the weights of a run, a checkpoint or a .safetensors file"""
    config: Annotated[Path | None, _default("the preset alone")] = None
    """TOML file, such as another run's config.toml"""
    set: Annotated[list[str], UseAppendAction] = field(default_factory=list)
    """any key of the config, such as data.size=128, system.r1=0.5, optim.critic.lr=1e-4; --dry-run prints all"""
    dry_run: bool = False
    """print the config, the data, the networks and what runs on which kernel; do one step; write nothing"""
    resume: Annotated[str | None, _default("auto")] = None
    """auto, never, or a run or checkpoint to go on from"""
    device: Annotated[str | None, _default("auto")] = None
    """auto, cpu, cuda, cuda:1"""
    workers: Annotated[int | None, _default("one per core")] = None
    """threads that decode images"""
    eval_every: Annotated[float | None, _default("never")] = None
    """score the generator every so many thousand images; how: --set evaluation.metrics=fid,kid and others"""


@dataclass
class Sample:
    """Draw pictures from a trained run; the same seeds give the same pictures."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    seeds: str = "0-63"
    """numbers and ranges, such as 0-63 or 3,7,20-29"""
    out: Path | None = None
    """PNG file of the grid (default: RUN/samples-SEEDS.png)"""
    singles: Path | None = None
    """also one PNG per seed, into this folder"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Interpolate:
    """Walk through latents from seed to seed: an animation and a film strip."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    seeds: str = "0-7"
    """two or more, such as 0-7 or 3,7,20"""
    frames: int = 16
    """pictures from each seed to the next"""
    out: Path | None = None
    """WebP file of the animation (default: RUN/interpolation-SEEDS.webp); the strip lies beside it as PNG"""
    fps: int = 16
    """pictures per second"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Eval:
    """Score a run or a set of images against real ones: FID and others."""

    source: Positional[Path]
    """run folder (or a checkpoint in it), or a folder or zip of images"""
    data: Annotated[str | None, _default("what the run was trained on")] = None
    """real images: folder, zip, "digits", or .npz of statistics (mu, sigma) for the FID"""
    metrics: str = "fid"
    """with commas: fid, kid, is, prdc (precision_recall and density_coverage), prd, fid_infinity"""
    features: Annotated[str | None, _default("digits for digits, else inception")] = None
    """inception, vgg16, digits (each also with :LAYER), or a file of TorchScript or torch.export"""
    weights: Annotated[Path | None, _default("the cache folder's")] = None
    """file of the network's weights"""
    download: bool = False
    """get the published weights where they are not here yet; they are verified"""
    resize: Literal["tensorflow", "pytorch", "clean"] = "tensorflow"
    """how images are brought to the Inception's size: as torch-fidelity and StyleGAN, as pytorch-fid, as clean-fid"""
    samples: int = 50_000
    """pictures drawn from a run"""
    size: Annotated[int | None, _default("as they are; for a run, its size")] = None
    """crop and resize all images to this first, as in training"""
    live: bool = False
    """the weights of the last step, not the averaged ones"""
    batch: int = 64
    """images that the network sees at once"""
    json: bool = False
    """print JSON and nothing else"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Export:
    """Write a run's generator for others: safetensors, torch.export and ONNX, each checked against the run."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    out: Annotated[Path | None, _default("RUN/export")] = None
    """folder for generator.safetensors with config.json, generator.pt2, generator.onnx"""
    onnx: bool = False
    """ONNX too; needs pip install 'fastgan[export]'"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""


@dataclass
class Doctor:
    """Say what is installed, and for each kernel which implementation runs here and why."""

    verify: bool = False
    """check our kernels on the GPUs that are here; those that pass are used from then on"""


@dataclass
class Bench:
    """Measure the step on random images: images/s, ms per part, share of the machine's ceilings, peak memory."""

    what: Positional[Literal["step"]] = "step"
    """the whole training step"""
    preset: str = DEFAULT_PRESET
    """preset whose step is measured"""
    batch: int | None = None
    """images per step"""
    steps: int = 5
    """timed rounds, after untimed ones"""
    against: str = ""
    """eager, compile or eager,compile: plain PyTorch with the same networks and losses, timed in turn"""
    plot: Path | None = None
    """SVG file for the parts of the step beside their floors"""
    set: Annotated[list[str], UseAppendAction] = field(default_factory=list)
    """any key of the config, such as data.size=128"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


Command = Train | Sample | Interpolate | Eval | Export | Doctor | Bench


def parse(args: Sequence[str] | None) -> Command:
    """The command in `args`. An unknown or missing flag is one line, not a box."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                Command,
                prog="fastgan",
                args=args,
                description=__doc__.split("\n\n")[1] if __doc__ else None,
                config=(DisallowNone, FlagCreatePairsOff),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise FastganError(one_line(caught.getvalue())) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say_warning
            keep_freed_memory()
            return run(parse(args))
    except FastganError as error:
        print(f"fastgan: {' '.join(str(error).split())}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt:
        print("fastgan: interrupted; a run that was saved goes on with the same command", file=sys.stderr)
        return RESUMABLE


def run(command: Command) -> int:
    match command:
        case Train():
            return run_train(command)
        case Sample():
            return run_sample(command)
        case Interpolate():
            return run_interpolate(command)
        case Export():
            return run_export(command)
        case Eval():
            return run_eval(command)
        case Bench():
            return run_bench(command)
        case Doctor():
            return run_doctor(command)


def train_config(command: Train) -> Config:
    """The Config that the flags of `train` mean."""
    flags = {
        "data.path": command.data,
        "kimg": command.kimg,
        "batch": command.batch,
        "seed": command.seed,
        "out": command.out,
        "init": command.init,
        "resume": command.resume,
        "device": command.device,
        "data.workers": command.workers,
        "evaluation.every_kimg": command.eval_every,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    preset = command.preset or ("digits" if command.data == "digits" and command.config is None else None)
    config = resolve(preset, command.config, given, command.set)
    if not config.data.path:
        raise FastganError(f"preset {config.preset} needs images: --data FOLDER or ZIP (or --preset digits to try it)")
    return config if config.out else replace(config, out=f"runs/{config.preset}")


def run_train(command: Train) -> int:
    from fastgan.train import train
    from fastgan.trial import dry_run

    config = train_config(command)
    if command.dry_run:
        _say(f"# {config.out} would be trained with\n{to_toml(config)}")
        for line in dry_run(config):
            _say(line)
        return 0
    with _progress() as on_tick:
        # How this command began is not part of the run: its config.toml goes on with what is there.
        toml = to_toml(replace(config, resume="auto", init=""))
        outcome = train(config, mapping=to_mapping(config), toml=toml, echo=_say, on_tick=on_tick)
    speed = f", {outcome.images_per_second:.0f} images/s" if outcome.images_per_second else " before; --kimg goes on"
    _say(f"{outcome.samples / 1000:g} kimg done{speed}")
    _say(f"samples: {outcome.pictures}\nreport:  {outcome.report}")
    if outcome.status == 0:
        commands = (outcome.out / "next.txt").read_text().splitlines()
        _say("try next:\n" + "".join(f"  {as_typed_here(line)}\n" for line in commands))
    return outcome.status


def _say(text: str) -> None:
    """Print a line; one that nobody can read (a closed pipe, a name outside the terminal's alphabet) ends no run."""
    try:
        console.print(text, markup=False)
    except UnicodeEncodeError:
        console.print(text.encode("ascii", "backslashreplace").decode(), markup=False)
    except BrokenPipeError:
        console.file = open(os.devnull, "w")  # noqa: SIM115  (for the rest of the process)


@contextlib.contextmanager
def _progress():  # type: ignore[no-untyped-def]
    """A bar on a terminal; one line per tick elsewhere. Yields the function that takes each Tick."""
    from fastgan.ticker import Tick, describe

    if not console.is_terminal:
        yield lambda tick: _say(describe(tick))
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("first steps...", total=None)

        def show(tick: Tick) -> None:
            bar.update(task, completed=tick.samples, total=tick.total, description=describe(tick))

        yield show


def run_sample(command: Sample) -> int:
    from fastgan.trained import draw_samples

    draw_samples(command.run, command.seeds, command.out, command.singles, command.weights, command.device, _say)
    return 0


def run_interpolate(command: Interpolate) -> int:
    from fastgan.trained import draw_interpolation as draw

    draw(command.run, command.seeds, command.frames, command.out, command.fps, command.weights, command.device, _say)
    return 0


def run_export(command: Export) -> int:
    from fastgan.trained import export_run

    export_run(command.run, command.out, command.onnx, command.weights, _say)
    return 0


def run_eval(command: Eval) -> int:
    from fastgan.trained import SourceOptions, score, scores_as_json, scores_as_text

    options = SourceOptions(**{f.name: getattr(command, f.name) for f in fields(SourceOptions)})
    with _sides() as progress:
        scores = score(options, command.metrics, progress, lambda line: print(f"fastgan: {line}", file=sys.stderr))
    _say(scores_as_json(scores) if command.json else scores_as_text(scores))
    return 0


@contextlib.contextmanager
def _sides():  # type: ignore[no-untyped-def]
    """A bar per side on a terminal, beside what is printed. Yields what takes (side, done, of how many)."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda side, done, count: None
        return
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(side: str, done: int, count: int) -> None:
            if side not in tasks:
                tasks[side] = bar.add_task(side, total=count or None)
            bar.update(tasks[side], completed=done, total=count or None)

        yield show


def run_doctor(command: Doctor) -> int:
    from fastgan.bench import device_info
    from fastgan.kernels import _runtime
    from fastgan.kernels.verify import verify_kernels
    from fastgan.train import pick_device

    here = device_info(pick_device("auto"))
    _say(f"fastgan {__version__}, Python {here.python}, torch {here.torch}, CUDA {here.cuda}, triton {here.triton}")
    _say(f"{here.name}, {here.threads} threads")
    _say(_runtime.build_summary())
    passed = verify_kernels(_say) if command.verify else True
    table = Table("operation", "runs as", "because", box=None, pad_edge=False)
    for op in _runtime.report():
        table.add_row(op.op, op.implementation, op.reason)
    console.print(table)
    return 0 if passed else 1


def run_bench(command: Bench) -> int:
    from fastgan.trial import bench_preset

    c = command
    bench_preset(c.preset, c.batch, c.device, c.steps, c.set, c.against, c.plot, _say)
    return 0
