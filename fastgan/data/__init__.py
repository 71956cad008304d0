"""Training images: a folder, a zip, the digits or the photographs, as one kind of object, and the order in which they
come.

`open_images` finds and checks them, `sampler` says which image is sample number n of a run, `feeder` brings
batches to the device ahead of the trainer.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fastgan.data.digits import load_digits
from fastgan.data.files import Files, list_folder, list_zip, printable
from fastgan.data.folder import Progress, load
from fastgan.data.image_set import ImageSet, fingerprint
from fastgan.data.options import DataOptions
from fastgan.data.pairs import load_pairs
from fastgan.data.photos import HELD_OUT, TRAIN, load_photos, photographs
from fastgan.errors import FastganError

__all__ = ["DataOptions", "ImageSet", "fingerprint", "open_images", "photographs"]


def open_images(options: DataOptions, progress: Progress | None = None) -> ImageSet:
    """The images at `options.path`, each checked: decoded once, or by its header where the set is large.

    progress: called as progress(images looked at, of how many) now and then, from this thread
    Raises FastganError that names the path or the file, what is wrong with it, and what to do.
    """
    if options.pairs and options.path in ("digits", TRAIN, HELD_OUT):
        raise FastganError(
            f"data.pairs={options.pairs!r}: {options.path} are no pairs; leave it out and let the system make its sources "
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
