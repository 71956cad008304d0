"""The image files at a path, whatever kind of path it is."""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

from fastgan.data.decode import SUFFIXES
from fastgan.data.files import Files, list_folder, list_zip, printable
from fastgan.data.tar import expand, list_tars
from fastgan.errors import FastganError

ADVICE = "give a folder of images, a .zip or .tar of one, a pack, 'digits' or 'photos'"


def list_files(source: str, *, max_megapixels: float) -> Files:
    """Image files of a folder, a zip, a tar, a folder of tars, or several tars written as `name-{000..012}.tar`.

    Raises FastganError for a path that is not there or cannot be read.
    """
    # The largest image allowed, as 16-bit RGBA and not compressed, bounds what a member of an archive may unpack to.
    max_bytes = 8e6 * max_megapixels
    if not source:
        raise FastganError(f"data.path is empty; {ADVICE}")
    path = Path(os.path.expanduser(source))
    if "{" in source and not path.exists():
        return _tars([Path(os.path.expanduser(one)) for one in expand(source)], source, max_bytes)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        begun = path.with_name(path.name + ".tmp") / "parts" if path.name else path
        if begun.is_dir():
            raise FastganError(
                f"data {printable(source)!r}: packing it was not finished; run the same fastgan pack command again"
            ) from error
        raise FastganError(f"data {printable(source)!r}: {error.strerror}; {ADVICE}") from error
    if stat.S_ISDIR(mode):
        tars = _only_tars(path)
        return _tars(tars, source, max_bytes) if tars else list_folder(path)
    if not stat.S_ISREG(mode):
        raise FastganError(f"data {printable(source)!r} is neither a folder nor a file; {ADVICE}")
    if path.suffix.lower() == ".tar" or (path.suffix.lower() != ".zip" and tarfile.is_tarfile(path)):
        return _tars([path], source, max_bytes)
    return _stamped(list_zip(path, max_bytes=max_bytes), [path])


def _only_tars(folder: Path) -> list[Path]:
    """The tars right in a folder that has no images beside them; [] for any other folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # list_folder will say so
        return []
    tars = [folder / name for name in names if name.endswith(".tar") and not name.startswith(".")]
    return [] if any(name.lower().endswith(SUFFIXES) for name in names) else tars


def _tars(paths: list[Path], source: str, max_bytes: float) -> Files:
    return _stamped(list_tars(paths, printable(source), max_bytes=max_bytes), paths)


def _stamped(files: Files, paths: list[Path]) -> Files:
    status = [path.stat() for path in paths]
    return replace(files, stamp=" ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in status))
