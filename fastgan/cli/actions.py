"""What each command does: flags -> Config -> one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from rich.table import Table

from fastgan import __version__
from fastgan.cli.commands import (
    Bench,
    Command,
    Doctor,
    Encode,
    Eval,
    Export,
    Inpaint,
    Interpolate,
    Sample,
    Train,
    Translate,
    Upscale,
)
from fastgan.cli.pack import Pack, run_pack
from fastgan.cli.screen import console, progress, say, sides
from fastgan.config import Config, resolve, to_toml
from fastgan.dist import gpus_here
from fastgan.errors import FastganError
from fastgan.launch import LAUNCHED, is_first, launch
from fastgan.terminal import as_typed_here


def run(command: Command, arguments: Sequence[str]) -> int:
    """arguments: those that `command` was read from"""
    match command:
        case Train():
            return run_train(command, arguments)
        case Sample():
            return run_sample(command)
        case Interpolate():
            return run_interpolate(command)
        case Encode():
            return run_encode(command)
        case Translate():
            return run_translate(command)
        case Upscale():
            return run_upscale(command)
        case Inpaint():
            return run_inpaint(command)
        case Export():
            return run_export(command)
        case Eval():
            return run_eval(command)
        case Bench():
            return run_bench(command)
        case Pack():
            return run_pack(command)
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
        raise FastganError(
            f"preset {config.preset} needs images: --data FOLDER, ZIP, TAR or PACK (or --preset digits to try it)"
        )
    return config if config.out else replace(config, out=f"runs/{config.preset}")


def launched(command: Train, config: Config) -> int:
    """How many processes `command` is to be launched in; 0 where this one is one of them, or the only one."""
    if command.gpus is None and command.ranks is None:
        return 0
    count, flag = (command.ranks, "--ranks") if command.gpus is None else (command.gpus, "--gpus")
    if count is None or count < 1 or None not in (command.gpus, command.ranks):
        raise FastganError(f"{flag} {count}: give one of --gpus and --ranks, with a number of 1 or more")
    if LAUNCHED in os.environ or command.dry_run:
        return 0
    if "RANK" in os.environ:
        raise FastganError(f"torchrun has started the ranks already (RANK={os.environ['RANK']}); leave {flag} out")
    there = gpus_here()
    if command.gpus is not None and (count > there or config.device not in ("auto", "cuda")):
        raise FastganError(
            f"--gpus {count}: there are {there} GPUs here that PyTorch can use, and --device is {config.device}; use "
            "fewer, or --ranks with --device cpu"
        )
    if command.ranks is not None and config.device != "cpu" and 0 < there < count:
        raise FastganError(f"--ranks {count}: there are {there} GPUs here; use fewer, or --device cpu")
    if config.batch % count:
        raise FastganError(
            f"{flag} {count}: a batch of {config.batch} images cannot be shared out; use another --batch"
        )
    return count if count > 1 else 0


def run_train(command: Train, arguments: Sequence[str]) -> int:
    config = train_config(command)
    if world := launched(command, config):
        command_line = [sys.executable, "-m", "fastgan", *arguments]
        return launch(world, command_line, lambda line: print(f"fastgan: {line}", file=sys.stderr))
    if command.dry_run:
        from fastgan.trial import dry_run

        if not is_first():
            return 0
        say(f"# {config.out} would be trained with\n{to_toml(config)}")
        for line in dry_run(config):
            say(line)
        return 0
    from fastgan.train import train

    if not is_first():
        return train(config).status
    with progress() as on_tick:
        outcome = train(config, echo=say, on_tick=on_tick)
    speed = f", {outcome.images_per_second:.0f} images/s" if outcome.images_per_second else " before; --kimg goes on"
    say(f"{outcome.samples / 1000:g} kimg done{speed}")
    say(f"samples: {outcome.pictures}\nreport:  {outcome.report}")
    if outcome.status == 0:
        commands = (outcome.out / "next.txt").read_text().splitlines()
        say("try next:\n" + "".join(f"  {as_typed_here(line)}\n" for line in commands))
    return outcome.status


def run_sample(command: Sample) -> int:
    from fastgan.trained import draw_samples

    c = command
    draw_samples(c.run, c.seeds, c.labels, c.out, c.singles, c.weights, c.device, say, truncation=c.truncation)
    return 0


def run_interpolate(command: Interpolate) -> int:
    from fastgan.trained import draw_interpolation as draw

    c = command
    truncation, space = c.truncation, c.space
    draw(
        c.run, c.seeds, c.labels, c.frames, c.out, c.fps, c.weights, c.device, say, truncation=truncation, space=space
    )  # fmt: skip
    return 0


def run_encode(command: Encode) -> int:
    from fastgan.encode import encode_images

    encode_images(command.run, command.images, command.out, command.weights, command.device, say)
    return 0


def run_translate(command: Translate) -> int:
    from fastgan.transformed import translate_pictures

    c = command
    translate_pictures(c.run, c.images, c.out, c.back, c.derive, c.weights, c.device, say)
    return 0


def run_upscale(command: Upscale) -> int:
    from fastgan.transformed import upscale_pictures

    c = command
    upscale_pictures(c.run, c.images, c.out, c.tile, c.weights, c.device, say)
    return 0


def run_inpaint(command: Inpaint) -> int:
    from fastgan.transformed import inpaint_pictures

    c = command
    inpaint_pictures(c.run, c.images, c.mask, c.out, c.seed, c.weights, c.device, say)
    return 0


def run_export(command: Export) -> int:
    from fastgan.trained import export_run

    export_run(command.run, command.out, command.onnx, command.weights, say)
    return 0


def run_eval(command: Eval) -> int:
    from fastgan.dist import joined
    from fastgan.scores import SourceOptions, plot_scores, score, scores_as_json, scores_as_text

    options = SourceOptions(**{f.name: getattr(command, f.name) for f in fields(SourceOptions)})
    with joined(command.device) as ranks, sides() as progress:
        shown = progress if ranks.first else lambda side, done, count: None
        scores = score(options, command.metrics, shown, lambda line: print(f"fastgan: {line}", file=sys.stderr), ranks)
    if ranks.first:
        if command.plot is not None:
            plot_scores(scores, command.plot)
        say(scores_as_json(scores) if command.json else scores_as_text(scores))
    return 0


def run_doctor(command: Doctor) -> int:
    from fastgan.assemble import pick_device
    from fastgan.bench import device_info
    from fastgan.kernels import _runtime
    from fastgan.kernels.verify import verify_kernels

    here = device_info(pick_device("auto"))
    say(f"fastgan {__version__}, Python {here.python}, torch {here.torch}, CUDA {here.cuda}, triton {here.triton}")
    say(f"{here.name}, {here.threads} threads")
    say(_runtime.build_summary())
    passed = verify_kernels(say) if command.verify else True
    table = Table("operation", "runs as", "because", box=None, pad_edge=False)
    for op in _runtime.report():
        table.add_row(op.op, op.implementation, op.reason)
    console.print(table)
    return 0 if passed else 1


def run_bench(command: Bench) -> int:
    from fastgan.trial import bench_preset

    c = command
    bench_preset(c.preset, c.batch, c.device, c.steps, c.set, c.against, c.out, say)
    return 0
