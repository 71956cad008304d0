"""Images at a path one after the other, without a set made of them: what a trained run is to be used on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastgan.data.decode import SUFFIXES, BadImage, decode, decode_whole
from fastgan.data.files import Files, one_file, printable
from fastgan.data.image_set import Pixels
from fastgan.data.options import DataOptions
from fastgan.data.sources import list_files
from fastgan.errors import FastganError


def read_images(path: str, options: DataOptions, *, whole: bool = False) -> Iterator[tuple[str, Pixels]]:
    """(name, [H, W, channels] uint8) of each image at `path`: an image file, a folder, a zip or a tar.

    whole: as large as they are; else [size, size, channels], as `options` says
    Raises FastganError, one line, where there are none, and for the first that is unusable.
    """
    files = _files(path, options)
    if not files.names:
        raise FastganError(f"{files.name}: there are no PNG, JPEG or WebP images; give an image, or a folder of some")
    for number, name in enumerate(files.names):
        try:
            with files.open(number) as stream:
                yield name, decode_whole(stream, options) if whole else decode(stream, options)[0]
        except BadImage as error:
            raise FastganError(f"{files.name}: {printable(name)} {error}; replace or remove it") from error


def _files(path: str, options: DataOptions) -> Files:
    place = Path(os.path.expanduser(path))
    try:
        single = stat.S_ISREG(place.stat().st_mode) and place.suffix.lower() in SUFFIXES
    except OSError as error:
        raise FastganError(
            f"{printable(path)}: {error.strerror}; give an image, a folder, zip or tar of images, digits or photos"
        ) from error
    return one_file(place) if single else list_files(path, max_megapixels=options.max_megapixels)
