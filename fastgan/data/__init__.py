"""Training images: a folder, a zip, the digits or the photographs, as one kind of object, and the order in which they
come.

`open_images` finds and checks them, `sampler` says which image is sample number n of a run, `feeder` brings
batches to the device ahead of the trainer.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastgan.data.digits import load_digits
from fastgan.data.folder import Progress, load
from fastgan.data.image_set import ImageSet, fingerprint
from fastgan.data.options import DataOptions
from fastgan.data.pack_format import is_pack
from fastgan.data.pack_reader import open_pack
from fastgan.data.pairs import load_pairs, open_packs
from fastgan.data.photos import HELD_OUT, TRAIN, load_photos, photographs
from fastgan.data.read import read_images
from fastgan.data.sources import list_files
from fastgan.data.stream import is_stream, open_stream
from fastgan.errors import FastganError

BUILT_IN = ("digits", TRAIN, HELD_OUT)
"""Names of sets that are there without any data."""

__all__ = ["BUILT_IN", "DataOptions", "ImageSet", "fingerprint", "open_images", "photographs", "read_images"]


def open_images(options: DataOptions, progress: Progress | None = None) -> ImageSet:
    """The images at `options.path`, each checked: decoded once, or by its header where the set is large.

    progress: called as progress(images looked at, of how many) now and then, from this thread
    Raises FastganError that names the path or the file, what is wrong with it, and what to do.
    """
    folder = Path(os.path.expanduser(options.path))
    if options.pairs:
        return _open_pairs(folder, options, progress)
    if options.path == "digits":
        return load_digits(options)
    if options.path and is_stream(options.path):
        return open_stream(options)
    if options.path in (TRAIN, HELD_OUT):
        return load_photos(options)
    if options.path and is_pack(folder):
        return open_pack(folder, options)
    return load(list_files(options.path, max_megapixels=options.max_megapixels), options, progress)


def _open_pairs(folder: Path, options: DataOptions, progress: Progress | None) -> ImageSet:
    """The images with those that they are to be made from."""
    if options.path in BUILT_IN or is_pack(folder):
        raise FastganError(
            f"data.pairs={options.pairs!r}: {options.path} holds no pairs; leave it out and let sources be made of the "
            "images (system.source=edges or noise), or give a folder"
        )
    found = open_packs(folder, options)
    if found is not None:
        return found
    return load_pairs(list_files(options.path, max_megapixels=options.max_megapixels), options, progress)
