"""Images to translate, with images to translate from: side by side in one file, or in two folders.

    side_by_side   anywhere/*.jpg                each file is A (left half) and B (right half): pix2pix data sets
    folders        A/*.jpg and B/*.jpg           partners have the same name, whatever its ending
    unpaired       A/*.jpg and B/*.jpg           two domains, independent: CycleGAN data sets

The folders may lie below others, and may be called trainA and trainB; A and B may be packs. The
result is the set of targets, with the set of sources as its `source`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fastgan.data.decode import BadImage, open_image
from fastgan.data.files import Files, printable
from fastgan.data.folder import MIN_IMAGES, load
from fastgan.data.image_set import ImageSet
from fastgan.data.options import DataOptions
from fastgan.data.pack_format import is_pack
from fastgan.data.pack_reader import open_pack
from fastgan.errors import FastganError

Progress: TypeAlias = Callable[[int, int], None]

DOMAINS = (("A", "B"), ("trainA", "trainB"))
ROTATED = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height


def load_pairs(files: Files, options: DataOptions, progress: Progress | None = None) -> ImageSet:
    """The targets of `files`, whose `source` are the images to translate from, laid out as `options.pairs` says.

    Raises FastganError, one line, for a domain without images, images without a partner, and pairs of different sizes.
    """
    if options.pairs == "side_by_side":
        sides = replace(files, half="left"), replace(files, half="right")
        check = _check_width
    else:
        sides = _domains(files)
        check = _check_sizes
    if options.pairs == "folders":
        sides = _partners(*sides)
    if options.pairs != "unpaired":
        sides = _without_bad(*sides, options, check)
    a, b = (load(side, options, progress) for side in sides)
    if options.pairs != "unpaired" and (a.left_out or b.left_out):
        # Only now is it known that a partner of theirs is damaged: once more, without the pair.
        bad = {line for images in (a, b) for line in images.left_out}
        kept = [i for i in range(len(sides[0].names)) if not any(_is_about(bad, side.names[i]) for side in sides)]
        a, b = (load(side.keep(np.array(kept, np.int64)), options, progress) for side in sides)
    halves = ""
    if options.pairs == "side_by_side":  # who gave images that are no pairs can see it from this
        width, height = _size(sides[0], 0, options)
        halves = f" in each file, the first of {width // 2}x{height} each"
    return _joined(files.name, a, b, options, halves)


def open_packs(folder: Path, options: DataOptions) -> ImageSet | None:
    """The same of two packs, A and B, in `folder`; None where they are none."""
    pairs = [(folder / a, folder / b) for a, b in DOMAINS if is_pack(folder / a) and is_pack(folder / b)]
    if not pairs or options.pairs == "side_by_side":
        return None
    a, b = (open_pack(path, options) for path in pairs[0])
    return _joined(printable(str(folder)), a, b, options)


def _joined(name: str, a: ImageSet, b: ImageSet, options: DataOptions, halves: str = "") -> ImageSet:
    source, target = (a, b) if options.direction == "AtoB" else (b, a)
    what = {
        "side_by_side": f"pairs side by side{halves}",
        "folders": "pairs from two folders",
        "unpaired": f"unpaired, with {len(source):,} images to translate from",
    }[options.pairs]
    return replace(
        target,
        name=name,
        labels=None,  # sub-folders of a data set of pairs are its domains
        classes=(),
        summary=f"{target.summary}; {what}, {options.direction}",
        source=replace(source, labels=None, classes=()),
        aligned=options.pairs != "unpaired",
    )


def _domains(files: Files) -> tuple[Files, Files]:
    """The files below A/ and below B/, with their names from there on."""
    parts = [name.split("/") for name in files.names]
    for names in DOMAINS:
        found = [[(i, at) for i, path in enumerate(parts) if (at := _place(path, name)) >= 0] for name in names]
        if any(found):
            for name, members in zip(names, found, strict=True):
                if len(members) < MIN_IMAGES:
                    few = "only one image" if members else "no PNG, JPEG or WebP images"
                    raise FastganError(
                        f"{files.name}: {few} in {name}/; translation needs at least {MIN_IMAGES} images in "
                        f"{names[0]}/ and in {names[1]}/"
                    )
            first, second = (
                replace(
                    files.keep(np.array([i for i, _ in members], np.int64)),
                    name=f"{files.name}/{name}",
                    names=tuple("/".join(parts[i][at + 1 :]) for i, at in members),
                )
                for name, members in zip(names, found, strict=True)
            )
            return first, second
    raise FastganError(
        f"{files.name}: there are no folders A/ and B/ (or trainA/ and trainB/) with images in it; for pairs in one "
        "file each, use data.pairs=side_by_side"
    )


def _place(path: list[str], domain: str) -> int:
    """Where the folder `domain` is on the way to a file; -1 where it is not."""
    return path.index(domain) if domain in path[:-1] else -1


def _partners(a: Files, b: Files) -> tuple[Files, Files]:
    """Files of the same name, in the same order."""
    numbers = [_by_stem(side) for side in (a, b)]
    for mine, theirs, side, other in ((0, 1, a, b), (1, 0, b, a)):
        alone = [stem for stem in numbers[mine] if stem not in numbers[theirs]]
        if alone:
            more = f" (and {len(alone) - 1:,} others have none)" if len(alone) > 1 else ""
            name = printable(side.names[numbers[mine][alone[0]]])
            raise FastganError(
                f"{side.name}: {name} has no partner in {other.name}{more}; partners have the same name: add or remove "
                "them, or use data.pairs=unpaired"
            )
    stems = sorted(numbers[0])
    first, second = (np.array([found[stem] for stem in stems], np.int64) for found in numbers)
    return a.keep(first), b.keep(second)


def _by_stem(files: Files) -> dict[str, int]:
    """Numbers of the files by their names without endings."""
    found: dict[str, int] = {}
    for number, name in enumerate(files.names):
        stem = name.rpartition(".")[0]
        if stem in found:
            raise FastganError(
                f"{files.name}: {printable(files.names[found[stem]])} and {printable(name)} have the same "
                "partner; remove one"
            )
        found[stem] = number
    return found


def _without_bad(
    a: Files, b: Files, options: DataOptions, check: Callable[[Files, Files, int, DataOptions], None]
) -> tuple[Files, Files]:
    """Without the pairs whose headers cannot be read, as many as `options.max_bad` allows; `load` reports others."""
    bad = []
    for number in range(len(a.names)):
        try:
            check(a, b, number, options)
        except BadImage:
            bad.append(number)
    if not bad or len(bad) > options.max_bad * len(a.names):
        return a, b
    kept = [i for i in range(len(a.names)) if i not in set(bad)]
    return a.keep(np.array(kept, np.int64)), b.keep(np.array(kept, np.int64))


def _check_width(a: Files, b: Files, number: int, options: DataOptions) -> None:
    width, height = _size(a, number, options)
    if width % 2:
        raise FastganError(
            f"{a.name}: {printable(a.names[number])} is {width}x{height}; with data.pairs=side_by_side a file holds "
            "two images of the same size side by side, so that its width is even: replace or remove it"
        )


def _check_sizes(a: Files, b: Files, number: int, options: DataOptions) -> None:
    one, other = (_size(files, number, options) for files in (a, b))
    if one != other:
        raise FastganError(
            f"{a.name}: {printable(a.names[number])} is {one[0]}x{one[1]}, but its partner in {b.name} is "
            f"{other[0]}x{other[1]}; the two images of a pair must have the same size"
        )


def _size(files: Files, number: int, options: DataOptions) -> tuple[int, int]:
    """Width and height, upright. Raises BadImage."""
    with files.open(number) as stream:
        image = open_image(stream, options)
        width, height = image.size
        try:
            rotated = image.getexif().get(274) in ROTATED
        except Exception:  # damaged: decoding says more
            rotated = False
    return (height, width) if rotated else (width, height)


def _is_about(lines: set[str], name: str) -> bool:
    """Whether one of the `left_out` lines names this file."""
    return any(line.startswith(f"{printable(name)} ") for line in lines)
