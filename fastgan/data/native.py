"""Images as they lie in a folder or zip, at their own size: what is evaluated is neither cropped nor resized before."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgan.data.decode import BadImage, flatten, open_image
from fastgan.data.files import Files, list_folder, list_zip, printable
from fastgan.data.image_set import Pixels
from fastgan.data.options import PILLOW_LIMIT, DataOptions
from fastgan.errors import FastganError

ANY_SIZE = DataOptions(min_side=1, max_megapixels=PILLOW_LIMIT)


@dataclass(frozen=True, eq=False)
class NativeImages:
    """Images of one size, in the order of their names.

    sha256: of the bytes of all files: sets that share it hold the same images in the same order
    """

    name: str
    count: int
    width: int
    height: int
    sha256: str
    files: Files

    def batches(self, size: int, first: int = 0, step: int = 1) -> Iterator[Pixels]:
        """[n, height, width, 3] uint8, n up to `size`; transparent parts on white. Decoded by several threads.

        Every step-th batch, from number `first` on.
        """
        with ThreadPoolExecutor(ANY_SIZE.threads, thread_name_prefix="fastgan-decode") as pool:
            for start in range(first * size, self.count, step * size):
                yield np.stack(list(pool.map(self._decode, range(start, min(start + size, self.count)))))

    def _decode(self, index: int) -> Pixels:
        try:
            with self.files.open(index) as stream:
                image = open_image(stream, ANY_SIZE)
                try:
                    return np.asarray(flatten(image, 3))
                except MemoryError:
                    raise
                except Exception as error:  # the parsers raise nearly anything on damaged bytes
                    raise BadImage(f"is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
        except BadImage as error:
            raise _unusable(self.files, index, str(error)) from error


def open_native(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> NativeImages:
    """The images of a folder or .zip. Every file is read once, for its header and its hash, and none decoded yet.

    progress: called as progress(files read, of how many), from this thread
    Raises FastganError for a path that is not there, without images, for a file that is no image, and for images of
    several sizes.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FastganError(f"images {printable(str(path))!r}: no such file or folder; give a folder or .zip of images")
    files = list_folder(place) if place.is_dir() else list_zip(place, max_bytes=8e6 * PILLOW_LIMIT)
    if not files.names:
        others = f" (and {files.ignored:,} files of other kinds)" if files.ignored else ""
        raise FastganError(f"{files.name}: no PNG, JPEG or WebP images{others}")
    total = hashlib.sha256()
    size: tuple[int, int] | None = None
    with ThreadPoolExecutor(ANY_SIZE.threads, thread_name_prefix="fastgan-read") as pool:
        for index, (found, digest) in enumerate(pool.map(lambda i: _examine(files, i), range(len(files.names)))):
            total.update(digest)
            if size is not None and found != size:
                raise FastganError(
                    f"{files.name}: {printable(files.names[0])} is {size[0]}x{size[1]}, but "
                    f"{printable(files.names[index])} is {found[0]}x{found[1]}; bring them to one size first "
                    "(--size N crops and resizes as in training)"
                )
            size = found
            if progress is not None:
                progress(index + 1, len(files.names))
    assert size is not None
    return NativeImages(files.name, len(files.names), size[0], size[1], total.hexdigest(), files)


def _examine(files: Files, index: int) -> tuple[tuple[int, int], bytes]:
    """(width, height) and SHA-256 of a file."""
    try:
        with files.open(index) as stream:
            data = stream.read()
        if not data:
            raise BadImage("is empty")
        return open_image(io.BytesIO(data), ANY_SIZE).size, hashlib.sha256(data).digest()
    except BadImage as error:
        raise _unusable(files, index, str(error)) from error
    except OSError as error:
        raise _unusable(files, index, f"cannot be read ({error.strerror})") from error


def _unusable(files: Files, index: int, reason: str) -> FastganError:
    return FastganError(f"{files.name}: {printable(files.names[index])} {reason}; replace or remove it")
