"""Training images: a folder, a zip, the digits or the photographs, as one kind of object, and the order in which they
come.

`open_images` finds and checks them, `sampler` says which image is sample number n of a run, `feeder` brings
batches to the device ahead of the trainer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastgan.data.decode import BadImage, decode, decode_whole
from fastgan.data.digits import load_digits
from fastgan.data.files import Files, list_folder, list_zip, one_file, printable
from fastgan.data.folder import Progress, load
from fastgan.data.image_set import ImageSet, Pixels, fingerprint
from fastgan.data.options import DataOptions
from fastgan.data.pairs import load_pairs
from fastgan.data.photos import HELD_OUT, TRAIN, load_photos, photographs
from fastgan.errors import FastganError

BUILT_IN = ("digits", TRAIN, HELD_OUT)
"""Names of sets that are there without any data."""

__all__ = ["BUILT_IN", "DataOptions", "ImageSet", "fingerprint", "open_images", "photographs", "read_images"]


def open_images(options: DataOptions, progress: Progress | None = None) -> ImageSet:
    """The images at `options.path`, each checked: decoded once, or by its header where the set is large.

    progress: called as progress(images looked at, of how many) now and then, from this thread
    Raises FastganError that names the path or the file, what is wrong with it, and what to do.
    """
    if options.pairs and options.path in BUILT_IN:
        raise FastganError(
            f"data.pairs={options.pairs!r}: {options.path} are no pairs; leave it out, and let sources be made of them "
            "(system.source=edges or noise), or give a folder"
        )
    if options.path == "digits":
        return load_digits(options)
    if options.path in (TRAIN, HELD_OUT):
        return load_photos(options)
    advice = "give a folder of images, a .zip of one, 'digits' or 'photos'"
    if not options.path:
        raise FastganError(f"data.path is empty; {advice}")
    path = Path(os.path.expanduser(options.path))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FastganError(f"data {printable(options.path)!r}: {error.strerror}; {advice}") from error
    if stat.S_ISDIR(mode):
        return _load(list_folder(path), options, progress)
    if not stat.S_ISREG(mode):
        raise FastganError(f"data {printable(options.path)!r} is neither a folder nor a file; {advice}")
    # The largest image allowed, as 16-bit RGBA and not compressed, bounds what a member may unpack to.
    return _load(list_zip(path, max_bytes=8e6 * options.max_megapixels), options, progress)


def _load(files: Files, options: DataOptions, progress: Progress | None) -> ImageSet:
    return load_pairs(files, options, progress) if options.pairs else load(files, options, progress)


def read_images(path: str, options: DataOptions, *, whole: bool = False) -> Iterator[tuple[str, Pixels]]:
    """(name, [H, W, channels] uint8) of each image at `path`: an image file, a folder or a zip.

    whole: as large as they are; else [size, size, channels], as `options` says
    Raises FastganError, one line, where there are none, and for the first that is unusable.
    """
    place, advice = (
        Path(path).expanduser(),
        "give an image, a folder or zip of images, or one of " + ", ".join(BUILT_IN),
    )
    try:
        is_folder = place.is_dir()
        if not is_folder:
            place.stat()
    except OSError as error:
        raise FastganError(f"{printable(path)}: {error.strerror}; {advice}") from error
    limit = 8e6 * options.max_megapixels
    if is_folder:
        files = list_folder(place)
    else:
        files = list_zip(place, max_bytes=limit) if place.suffix.lower() == ".zip" else one_file(place)
    if not files.names:
        raise FastganError(f"{files.name}: there are no PNG, JPEG or WebP images; {advice}")
    for number, name in enumerate(files.names):
        try:
            with files.open(number) as stream:
                yield name, decode_whole(stream, options) if whole else decode(stream, options)[0]
        except BadImage as error:
            raise FastganError(f"{files.name}: {printable(name)} {error}; replace or remove it") from error
