"""A folder or zip of images as an ImageSet: decoded once into memory, or on demand where it does not fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil, prod
from typing import TypeAlias

import numpy as np

from fastgan.data.decode import BadImage, decode, open_image
from fastgan.data.files import Files, printable
from fastgan.data.image_set import ImageSet, Indices, Pixels, describe, fetch_from, hash_names
from fastgan.data.options import DataOptions
from fastgan.errors import FastganError

Progress: TypeAlias = Callable[[int, int], None]  # (images looked at, of how many)

MIN_IMAGES = 2
CHUNK = 32  # images that one task decodes


def load(files: Files, options: DataOptions, progress: Progress | None = None) -> ImageSet:
    """Looks at every file and makes a set of the usable ones.

    A set that takes up to `options.memory_gb` is decoded now. Of a larger one only the headers are read, and
    each image is decoded whenever it is asked for, by `options.threads` threads.

    Raises FastganError for fewer than two images, and for more unusable ones than `options.max_bad` allows.
    """
    count = len(files.names)
    if count < MIN_IMAGES:
        raise FastganError(_too_few(files))
    in_memory = count * prod(options.shape) <= options.memory_gb * 1e9
    pixels = np.empty((count if in_memory else 0, *options.shape), np.uint8)
    enlarged = np.zeros(count, np.bool_)
    bad: dict[int, str] = {}

    def examine(index: int) -> None:
        try:
            if in_memory:
                pixels[index], enlarged[index] = decode(io.BytesIO(files.read(index)), options, half=files.half)
                return
            with files.open(index) as stream:
                enlarged[index] = min(open_image(stream, options).size) < options.size
        except BadImage as error:
            bad[index] = f"{printable(files.names[index])} {error}"

    _for_each(examine, count, options.threads, progress)
    _check_bad(files, bad, options)
    kept = np.array([i for i in range(count) if i not in bad], np.int64)
    if in_memory and bad:
        pixels = pixels[kept]
    labels, classes = files.classified() if len(kept) == count else files.keep(kept).classified()
    return ImageSet(
        name=files.name,
        size=options.size,
        channels=options.channels,
        count=len(kept),
        fetch=fetch_from(pixels) if in_memory else _fetch_on_demand(files, kept, options),
        labels=labels,
        classes=classes,
        summary=describe(
            files.name,
            count=len(kept),
            shape=options.shape,
            classes=len(classes),
            where=f"{pixels.nbytes / 1e6:,.1f} MB in memory" if in_memory else "decoded on demand",
            notes=_notes(files, int(enlarged[kept].sum()), len(bad), options),
        ),
        left_out=tuple(bad[i] for i in sorted(bad)),
        kind="memory" if in_memory else "decoded",
        unpacked=True,
        names_sha256=hash_names(files.names[i] for i in kept),
    )


def _fetch_on_demand(files: Files, kept: Indices, options: DataOptions) -> Callable[[Indices, Pixels], None]:
    pool = ThreadPoolExecutor(options.threads, thread_name_prefix="fastgan-decode")

    def fetch(indices: Indices, out: Pixels) -> None:
        def decode_into(positions: range) -> None:
            for position in positions:
                file = int(kept[indices[position]])
                try:
                    out[position], _ = decode(io.BytesIO(files.read(file)), options, half=files.half)
                except BadImage as error:
                    raise FastganError(
                        f"{files.name}: {printable(files.names[file])} {error}; replace or remove it, or raise "
                        "data.memory_gb so that every image is decoded and checked at the start"
                    ) from error

        for _ in pool.map(decode_into, shares(len(indices), options.threads)):
            pass

    return fetch


def shares(count: int, threads: int) -> list[range]:
    """range(count) in pieces: a few for every thread, since a piece costs as much to hand over as a small image."""
    step = max(1, count // (4 * threads))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _for_each(task: Callable[[int], None], count: int, threads: int, progress: Progress | None) -> None:
    """task(0) ... task(count - 1), on `threads` threads."""

    def chunk(start: int) -> int:
        stop = min(start + CHUNK, count)
        for index in range(start, stop):
            task(index)
        return stop

    with ThreadPoolExecutor(threads, thread_name_prefix="fastgan-decode") as pool:
        for done in pool.map(chunk, range(0, count, CHUNK)):  # an interrupt cancels what has not begun
            if progress is not None:
                progress(done, count)


def _check_bad(files: Files, bad: dict[int, str], options: DataOptions) -> None:
    count = len(files.names)
    enough = count - len(bad) >= MIN_IMAGES
    if not bad or (len(bad) <= options.max_bad * count and enough):
        return
    more = f" (and {len(bad) - 1:,} more of the {count:,} images are unusable)" if len(bad) > 1 else ""
    advice = "replace or remove them" if more else "replace or remove it"
    if enough:
        advice += f", or leave out unusable images with data.max_bad={ceil(len(bad) / count * 1e4) / 1e4:g}"
    raise FastganError(f"{files.name}: {bad[min(bad)]}{more}; {advice}")


def _too_few(files: Files) -> str:
    found = f"only one image, {printable(files.names[0])}" if files.names else "no PNG, JPEG or WebP images"
    others = f" (and {files.ignored:,} files of other kinds)" if files.ignored else ""
    return f"{files.name}: {found}{others}; training needs at least {MIN_IMAGES} images"


def _notes(files: Files, enlarged: int, bad: int, options: DataOptions) -> tuple[str, ...]:
    return tuple(
        text
        for number, text in (
            (enlarged, f"{enlarged:,} smaller than {options.size} pixels were enlarged"),
            (files.ignored, f"{files.ignored:,} files of other kinds ignored"),
            (bad, f"{bad:,} unusable images left out"),
        )
        if number
    )
