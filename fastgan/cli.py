"""The `fastgan` command: flags -> Config -> one call each. The only module that knows tyro and rich.

Exit status: 0 done, 2 something the user can mend (one line), 3 stopped early and resumable, 1 a bug (traceback).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

# PyTorch's threads wait asleep, not spinning: on a machine that does something else too, spinning made small
# operations 5 to 20 times slower. It is read when torch is loaded, so it comes before any other import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, UseAppendAction

from fastgan import __version__
from fastgan.config import Config, from_mapping, resolve, to_mapping, to_toml
from fastgan.errors import FastganError
from fastgan.presets import DEFAULT_PRESET

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
class Doctor:
    """Say what is installed, and for each kernel which implementation runs here and why."""

    verify: bool = False
    """check our kernels on the GPUs that are here; those that pass are used from then on"""


@dataclass
class Bench:
    """Measure the engine's step on random images: images/s, ms per step, peak memory, and the machine's ceilings."""

    preset: str = DEFAULT_PRESET
    """preset whose step is measured"""
    batch: int | None = None
    """images per step"""
    steps: int = 5
    """timed steps, after two untimed ones"""
    set: Annotated[list[str], UseAppendAction] = field(default_factory=list)
    """any key of the config, such as data.size=128"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


Command = Train | Sample | Interpolate | Doctor | Bench


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


def one_line(box: str) -> str:
    """The text of an error box, without its frame, title and pointers to the help, as one line."""
    rows = [re.sub(r"^[│|]\s?|\s*[│|]$", "", row).strip() for row in box.splitlines()]
    rows = [row for row in rows if row and not re.fullmatch(r"[╭╰─╮╯+\-\s]*|[╭+].*[╮+]", row)]
    rows = [row for row in rows if not re.match(r"For full helptext|in fastgan .*--help$|fastgan .*--help$", row)]
    return re.sub(r"\s+", " ", " ".join(rows)).strip(" .") + "; see fastgan --help"


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            return run(parse(args))
    except FastganError as error:
        print(f"fastgan: {' '.join(str(error).split())}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt:
        print("fastgan: interrupted; a run that was saved goes on with the same command", file=sys.stderr)
        return RESUMABLE


def _say_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code."""
    print(f"fastgan: warning: {' '.join(str(message).split())}", file=sys.stderr)


def run(command: Command) -> int:
    match command:
        case Train():
            return run_train(command)
        case Sample():
            return run_sample(command)
        case Interpolate():
            return run_interpolate(command)
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


def as_typed_here(command: str) -> str:
    """A `fastgan ...` command as it works in this shell: with the path of the program where it is not on the PATH."""
    program = os.path.relpath(sys.argv[0])
    if shutil.which("fastgan") or os.path.basename(program) != "fastgan":
        return command
    return command.replace("fastgan", program, 1)


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


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` as [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        if not match:
            raise FastganError(f"--seeds {text!r} is not a list of numbers and ranges such as 0-63 or 3,7,20-29")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 100_000 or last >= 2**62:
            raise FastganError(f"--seeds {part.strip()!r} must go up, over at most 100,000 numbers below 2^62")
        seeds.extend(range(first, last + 1))
    return seeds


def _load_run(path: Path, weights: str, device_name: str):  # type: ignore[no-untyped-def]
    """(config, players, device) of a run or checkpoint."""
    from fastgan.pictures import load_players
    from fastgan.run import folder
    from fastgan.train import pick_device

    device = pick_device(device_name)
    saved = folder.load(path, _say)
    mapping = dict(saved.state["config"])
    config = from_mapping(mapping.pop("preset"), mapping)
    players = load_players(config.system, config.shape, saved.tensors, averaged=weights == "average", device=device)
    return config, players, device


def _file_name(seeds: str) -> str:
    """Seeds as part of a file's name, a long list by its beginning."""
    name = seeds.replace(" ", "")
    return name if len(name) <= 60 else name[:57] + "..."


def _run_folder(path: Path) -> Path:
    return path.parent.parent if (path / "state.json").exists() else path


def run_sample(command: Sample) -> int:
    from fastgan.pictures import picture_latents, sample_images
    from fastgan.run.images import grid, save_png, to_uint8

    seeds = parse_seeds(command.seeds)
    config, players, device = _load_run(command.run, command.weights, command.device)
    images = to_uint8(sample_images(config.system, players, picture_latents(config.system, seeds, device)))
    out = command.out or _run_folder(command.run) / f"samples-{_file_name(command.seeds)}.png"
    with _writable(out):
        save_png(grid(images), out)
        if command.singles:
            command.singles.mkdir(parents=True, exist_ok=True)
            for seed, image in zip(seeds, images, strict=True):
                save_png(grid(image[None], cell=0), command.singles / f"seed-{seed:06}.png")
    _say(f"{len(seeds)} pictures: {out}" + (f" and {command.singles}/" if command.singles else ""))
    return 0


def run_interpolate(command: Interpolate) -> int:
    from fastgan.pictures import latent_path, picture_latents, sample_images
    from fastgan.run.images import grid, save_animation, save_png, to_uint8

    seeds = parse_seeds(command.seeds)
    if len(seeds) < 2:
        raise FastganError(f"--seeds {command.seeds!r}: an interpolation needs two or more, such as 0-7")
    for name in ("frames", "fps"):
        if getattr(command, name) < 1:
            raise FastganError(f"--{name} must be 1 or more, got {getattr(command, name)}")
    config, players, device = _load_run(command.run, command.weights, command.device)
    path = latent_path(config.system, picture_latents(config.system, seeds, device), command.frames)
    images = to_uint8(sample_images(config.system, players, path))
    out = command.out or _run_folder(command.run) / f"interpolation-{_file_name(command.seeds)}.webp"
    strip = out.with_suffix(".png")
    with _writable(out):
        save_animation(images, out, fps=command.fps)
        save_png(grid(images, columns=command.frames), strip)
    _say(f"{len(images)} pictures: {out} (animation) and {strip} (a row per seed)")
    return 0


@contextlib.contextmanager
def _writable(path: Path):  # type: ignore[no-untyped-def]
    """One clear line where `path` cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise FastganError(f"cannot write {path}: {error.strerror}; choose another --out") from None


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
    from fastgan.trial import bench_step

    config = resolve(
        command.preset,
        None,
        {"device": command.device} | ({"batch": command.batch} if command.batch is not None else {}),
        command.set,
    )
    if command.steps < 1:
        raise FastganError(f"--steps must be 1 or more, got {command.steps}")
    bench_step(config, command.steps, _say)
    return 0
