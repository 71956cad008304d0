"""Tar archives, read in place: WebDataset shards, or a folder that was put into a tar.

One pass over the headers gives the place of every image in its archive; from then on images are read in any order.
A WebDataset sample is the files of one folder whose names agree up to the first dot: `000123.jpg`, `000123.cls`.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from fastgan.data.decode import SUFFIXES, BadImage
from fastgan.data.files import Files, is_hidden, printable, refuse_unsafe
from fastgan.data.labels import class_label, numbered
from fastgan.errors import FastganError

MOST_AT_ONCE = 1 << 20  # bytes that one header, with its long names, may take
LABEL_BYTES = 1 << 20
MOST_EXPANDED = 1_000_000  # archives that a brace pattern may stand for
LABEL_KEYS = ("label", "cls", "class")  # of a sample's .json


@dataclass
class _Index:
    """Where images are, over all archives. archive, start, size: of image i; names: what messages call it."""

    names: list[str] = field(default_factory=list)
    archive: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)  # key of each image's sample
    labels: dict[str, int | str] = field(default_factory=dict)
    ignored: int = 0


def list_tars(paths: Sequence[Path], name: str, *, max_bytes: float) -> Files:
    """Images in the archives `paths`, which are read in place. No member may take more than `max_bytes`.

    name: what messages call them all
    Labels come from `.cls` and `.json` members where there are any. Raises FastganError for a damaged or compressed
    archive, and for members that an honest archive does not have.
    """
    index = _Index()
    for number, path in enumerate(paths):
        _read_headers(index, number, path, prefix=f"{path.name}/" if len(paths) > 1 else "")
    order = sorted(range(len(index.names)), key=lambda i: (index.archive[i], index.names[i]))
    names = tuple(index.names[i] for i in order)
    archive, start, size = (np.array([t[i] for i in order], np.int64) for t in (index.archive, index.start, index.size))

    def open_member(i: int) -> BinaryIO:
        length = int(size[i])
        if length > max_bytes:
            raise BadImage(f"declares {length / 1e9:.1f} GB, more than any image that is allowed")
        try:
            with paths[archive[i]].open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, int(start[i]))
        except OSError as error:
            raise BadImage(f"cannot be read from the archive ({error.strerror})") from error
        if len(data) < length:
            raise BadImage("is cut off: the archive has become shorter")
        return io.BytesIO(data)

    labels, classes = None, tuple[str, ...]()
    if index.labels:
        missing = [names[k] for k, i in enumerate(order) if index.samples[i] not in index.labels]
        if missing:
            raise FastganError(
                f"{name}: {len(missing):,} of {len(names):,} images have no label in a .cls or .json file of their "
                f"sample (first: {printable(missing[0])}); label all or none"
            )
        labels, classes = numbered([index.labels[index.samples[i]] for i in order], name)
    return Files(name, names, open_member, index.ignored, labels, classes)


def expand(pattern: str) -> list[str]:
    """`data-{000..012}.tar` and `{a,b}.tar` as the shell expands them; [pattern] without braces."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", found[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MOST_EXPANDED:
            raise FastganError(f"{printable(pattern)}: {{{found[1]}}} is no ascending range of at most a million")
        width = len(span[1]) if len(span[1]) == len(span[2]) else 0
        parts = [f"{i:0{width}}" for i in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    rest = expand(pattern[found.end() :])
    return [pattern[: found.start()] + part + end for part in parts for end in rest]


class _Guarded(io.BufferedReader):
    """A file that nobody reads much of at once: a header may declare an extension of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _read_headers(index: _Index, number: int, path: Path, prefix: str) -> None:
    """Adds the members of one archive to `index`."""
    archive = printable(str(path))
    try:
        end = path.stat().st_size
        with _Guarded(cast(Any, io.FileIO(path))) as file:
            for member in _members(file):
                refuse_unsafe(archive, member.name, link=member.issym() or member.islnk())
                if not member.isfile() or member.issparse():
                    if not member.isdir():
                        raise FastganError(f"{archive}: {printable(member.name)!r} is neither a file nor a folder")
                    continue
                if not 0 <= member.size <= end - member.offset_data:
                    raise tarfile.ReadError(f"{printable(member.name)!r} declares {member.size} bytes, past the end")
                if not is_hidden(member.name):
                    _add(index, number, path, prefix, member)
    except OSError as error:
        raise FastganError(f"{archive}: cannot be opened ({error.strerror})") from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, FastganError):
            raise
        raise FastganError(
            f"{archive}: expected an uncompressed tar archive, but it cannot be read as one ({error}); decompress it, "
            "or copy or download it again"
        ) from error


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            yield member
            cast(Any, archive).members = []  # else it keeps all


def _add(index: _Index, number: int, path: Path, prefix: str, member: tarfile.TarInfo) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    key, ending = f"{number}/{folder}/{stem}", ending.lower()
    if ending in ("cls", "json"):
        label = _label(path, member, ending)
        if label is not None:
            index.labels[key] = label
    elif member.name.lower().endswith(SUFFIXES):
        index.names.append(prefix + member.name.removeprefix("./"))
        index.archive.append(number)
        index.start.append(member.offset_data)
        index.size.append(member.size)
        index.samples.append(key)
    else:
        index.ignored += 1


def _label(path: Path, member: tarfile.TarInfo, ending: str) -> int | str | None:
    """The label in a `.cls` member (a number or a name), or in a `.json` one that has a key for it."""
    where = f"{printable(str(path))}: {printable(member.name)}"
    if member.size > LABEL_BYTES:
        raise FastganError(f"{where}: a label of {member.size:,} bytes; expected a number or a name")
    with path.open("rb") as file:
        data = os.pread(file.fileno(), member.size, member.offset_data)
    try:
        text = data.decode().strip()
        value: object = text
        if ending == "json":
            parsed = json.loads(text)
            value = next((parsed[k] for k in LABEL_KEYS if k in parsed), None) if isinstance(parsed, dict) else None
            if not isinstance(value, (int, str)):  # a caption's word vectors, and so on
                return None
    except (ValueError, RecursionError) as error:
        raise FastganError(f"{where}: cannot be read as a label ({type(error).__name__})") from error
    return class_label(value, where)
