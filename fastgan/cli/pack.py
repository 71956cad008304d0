"""`fastgan pack`: the flags, and what is printed. Nothing here loads PyTorch, so that it starts at once."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import tyro
from rich.progress import BarColumn, Progress, TextColumn
from tyro.conf import Positional

from fastgan.cli.screen import console, say
from fastgan.errors import FastganError
from fastgan.terminal import clock

SECONDS = 5.0  # between two lines of progress where there is no terminal


@dataclass
class Pack:
    """Decode, crop and resize images once, into files that training reads at the speed of memory.

    fastgan pack photos photos-64 --size 64, then fastgan train --data photos-64. The same command again goes on where
    it was stopped; fastgan pack --verify photos-64 compares every image with its checksum.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="SRC", help_behavior_hint="")] = ""
    """folder or .zip of images, .tar of them or a WebDataset (a folder of tars, or 'name-{000..099}.tar'), or a pack"""
    target: Annotated[Positional[str], tyro.conf.arg(metavar="DST", help_behavior_hint="")] = ""
    """folder that becomes the pack"""
    size: int = 64
    """side of the square images, in pixels"""
    format: Literal["auto", "raw", "jpeg", "png"] = "auto"
    """how images are kept: raw pixels; JPEG or PNG; auto: raw up to --raw-limit, then as most of the files are"""
    crop: Literal["center", "random", "none"] = "center"
    """largest square, centred or at a random place (the same in every run); none: all of the image, squeezed"""
    labels: str = "folder"
    """folder: sub-folders are classes, or the .cls and .json files of a WebDataset; or a file: .csv or .tsv of
    name,label, .jsonl, or StyleGAN's dataset.json"""
    max_bad: float = 0.001
    """fraction of the images that may be unusable (they are named in rejected.jsonl); more of them stop packing"""
    raw_limit: float = 64.0
    """GB up to which --format auto keeps raw pixels"""
    quality: int = 95
    """of JPEGs that have to be coded; those that have the size already are copied as they are"""
    channels: Literal[3, 1] = 3
    """3 for RGB, 1 for greyscale"""
    seed: int = 0
    """of the order, which is shuffled once, and of random crops"""
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: one per core)")] = 0
    """threads that decode"""
    shard_mb: float = 1000.0
    """size of a file of the pack, about; a finished one survives a kill"""
    verify: Annotated[str, tyro.conf.arg(metavar="DST", help_behavior_hint="")] = ""
    """check this pack instead: every byte against its checksum"""


def run_pack(command: Pack) -> int:
    """Packs, or verifies a pack; returns the exit status."""
    if command.verify:
        if command.source:
            raise FastganError("pack: --verify DST checks a pack and makes none; leave out SRC and DST")
        return _verify(command.verify, command.workers)
    if not (command.source and command.target):
        raise FastganError("pack: expected SRC and DST, such as: fastgan pack pictures pictures-64 --size 64")
    return _pack(command)


def _pack(command: Pack) -> int:
    from fastgan.data.pack import Packed, pack
    from fastgan.data.pack_source import PackOptions

    fields = {name: value for name, value in vars(command).items() if name != "verify"}
    with _progress("packed") as show:

        def progress(state: Packed) -> None:
            words = [f"{state.images_per_second:,.0f} images/s", f"{_left(state.seconds_left)} left"]
            show(state.done, state.found, [*words, *([f"{state.rejected:,} rejected"] if state.rejected else [])])

        done, index = pack(PackOptions(**fields), progress)
    shape, target = "x".join(map(str, index.shape)), command.target
    classes = f" in {len(index.classes):,} classes" if index.classes else ""
    shards = f"{done.shards:,} shard" + "s" * (done.shards != 1)
    rejected = f"{done.rejected:,} rejected"
    if done.rejected:
        rejected += f" ({os.path.join(target, 'rejected.jsonl')} says why)"
    enlarged = f"; {index.about['enlarged']:,} smaller than that were enlarged" if index.about.get("enlarged") else ""
    speed = f"{done.images_per_second:,.0f} images/s, {clock(done.seconds)}" if done.fresh else "it was there already"
    say(
        f"{target}: {index.count:,} images{classes}, {shape} {index.encoding}, {done.bytes / 1e6:,.1f} MB in {shards}; "
        f"{rejected}{enlarged}; {speed}"
    )
    return 0


def _verify(target: str, workers: int) -> int:
    from fastgan.data.options import DataOptions
    from fastgan.data.pack_reader import verify_pack

    began = monotonic()
    with _progress("verified") as show:
        wrong, index = verify_pack(
            Path(os.path.expanduser(target)), DataOptions(workers=workers).threads, lambda a, b: show(a, b, [])
        )
    if wrong:
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise FastganError(f"pack {target}: {wrong[0]}{more}; copy it again, or pack again")
    size = sum(shard.bytes for shard in index.shards)
    say(
        f"{target}: {index.count:,} images, {size / 1e6:,.1f} MB: every checksum is right; "
        f"{size / 1e6 / max(monotonic() - began, 1e-9):,.0f} MB/s"
    )
    return 0


@contextlib.contextmanager
def _progress(verb: str):  # type: ignore[no-untyped-def]
    """A bar on a terminal, a line now and then elsewhere. Yields what takes (done, of how many, more words)."""
    if not console.is_terminal:
        last = monotonic()

        def line(done: int, count: int, words: list[str]) -> None:
            nonlocal last
            if monotonic() - last >= SECONDS:
                last = monotonic()
                say(", ".join([f"{verb} {done:,} of {count:,} images", *words]))

        yield line
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("listing the images...", total=None)

        def show(done: int, count: int, words: list[str]) -> None:
            text = ", ".join([f"{verb} {done:,} of {count:,} images", *words])
            bar.update(task, completed=done, total=count, description=text)

        yield show


def _left(seconds: float) -> Any:
    return clock(seconds) if isfinite(seconds) else "?"
