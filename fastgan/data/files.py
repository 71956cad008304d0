"""Which image files a folder or a zip archive holds: names in a fixed order, bytes, classes."""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastgan.data.decode import SUFFIXES, BadImage
from fastgan.data.image_set import Indices
from fastgan.errors import FastganError

MOST_BYTES = 512 << 20  # of one file; a 16-bit RGBA image of 64 megapixels, not compressed, takes as much
TOO_LONG = f"is longer than {MOST_BYTES >> 20} MiB"
# What zipfile raises for members that are damaged, encrypted (RuntimeError) or compressed in an unknown way.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)


@dataclass(frozen=True)
class Files:
    """Image files of one source.

    name: the source, as the user gave it
    names: paths inside it with "/" between the parts, sorted, the same on every file system
    open: index -> the file's bytes, of which a header may be all that is wanted; raises BadImage
    ignored: how many files of other kinds were passed over (hidden ones are not counted)
    at_once: `read`, where there is a faster way than `open`
    stamp: changes when an archive is written anew; "" for a folder
    half: "left" or "right" where each file holds two images side by side and this one is meant
    labels, classes: as in ImageSet, where the source has labels of its own beside the images; else None and ()
    """

    name: str
    names: tuple[str, ...]
    open: Callable[[int], BinaryIO]
    ignored: int
    labels: Indices | None = None
    classes: tuple[str, ...] = ()
    stamp: str = ""
    at_once: Callable[[int], bytes] | None = None
    half: str = ""

    def read(self, index: int) -> bytes:
        """All bytes of a file. Raises BadImage, also for more than MOST_BYTES."""
        if self.at_once is not None:
            return self.at_once(index)
        with self.open(index) as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadImage(TOO_LONG)
        return data

    def keep(self, kept: Indices) -> Files:
        """The files of numbers `kept`, in that order."""
        names = tuple(self.names[i] for i in kept)
        labels = None if self.labels is None else self.labels[kept]
        return replace(self, names=names, open=lambda i: self.open(int(kept[i])), labels=labels, at_once=None)

    def classified(self) -> tuple[Indices | None, tuple[str, ...]]:
        """Labels [len(names)] and names of classes: its own, or those of the sub-folders."""
        return (self.labels, self.classes) if self.labels is not None else classes_of(self.names)


def list_folder(path: Path) -> Files:
    """Images in `path` and its sub-folders; links are followed.

    Raises FastganError for a folder that cannot be listed.
    """
    names: list[str] = []
    ignored = 0
    pending = [("", frozenset([_identity(path)]))]
    while pending:
        prefix, above = pending.pop()
        for entry in _entries(path / prefix):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                identity = _identity(Path(entry.path))
                if identity not in above:  # else a link to a folder that it lies in
                    pending.append((f"{prefix}{entry.name}/", above | {identity}))
            elif entry.name.lower().endswith(SUFFIXES):
                names.append(prefix + entry.name)
            else:
                ignored += 1
    names.sort()

    def open_file(index: int) -> BinaryIO:
        file = path / names[index]
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait forever
                raise BadImage("is not a regular file")
            return file.open("rb")
        except OSError as error:
            raise BadImage(f"cannot be opened ({error.strerror})") from error

    root = str(path)

    def read_file(index: int) -> bytes:
        try:
            # Four system calls: Python's open() makes eight, which for small images is a third of all the time.
            # Not to block: a pipe would wait for who writes into it.
            file = os.open(f"{root}/{names[index]}", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise BadImage("is not a regular file")
                if status.st_size > MOST_BYTES:
                    raise BadImage(TOO_LONG)
                return os.read(file, status.st_size)
            finally:
                os.close(file)
        except OSError as error:
            raise BadImage(f"cannot be opened ({error.strerror})") from error

    return Files(printable(root), tuple(names), open_file, ignored, at_once=read_file)


def one_file(path: Path) -> Files:
    """The image file `path` alone."""

    def open_file(index: int) -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise BadImage(f"cannot be opened ({error.strerror})") from error

    return Files(printable(str(path.parent)), (path.name,), open_file, 0)


def list_zip(path: Path, *, max_bytes: float) -> Files:
    """Images in the archive `path`, which is read in place. No member may take more than `max_bytes`.

    Raises FastganError for a damaged archive and for members that an honest archive does not have.
    """
    name = printable(str(path))
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise FastganError(f"{name}: cannot be opened ({error.strerror})") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise FastganError(
            f"{name}: expected a folder or a zip archive, but it cannot be read as zip ({error}); "
            "copy or download it again, or give another path"
        ) from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        refuse_unsafe(name, member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
    visible = [member for member in members if not is_hidden(member.filename)]
    images = [m for m in visible if m.filename.lower().endswith(SUFFIXES)]
    images.sort(key=lambda member: member.filename)
    lock = threading.Lock()  # a ZipFile counts its readers without one
    size = path.stat().st_size

    def open_member(index: int) -> BinaryIO:
        member = images[index]
        if member.file_size > max_bytes:
            raise BadImage(f"declares {member.file_size / 1e9:.1f} GB, more than any image that is allowed")
        data = _read_member(archive, size, member)
        if data is not None:
            return io.BytesIO(data)
        try:
            with lock:
                return io.BytesIO(archive.read(member))
        except UNREADABLE as error:
            raise BadImage(f"cannot be read from the archive ({error})") from error

    return Files(name, tuple(m.filename for m in images), open_member, len(visible) - len(images))


def _read_member(archive: zipfile.ZipFile, size: int, member: zipfile.ZipInfo) -> bytes | None:
    """A member of an archive of `size` bytes, by any number of threads at once; None where zipfile should judge it.

    zipfile reads for one thread at a time, and takes as long as decoding a small image does.
    """
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return None
    if archive.fp is None or not hasattr(os, "pread"):
        return None
    file = archive.fp.fileno()
    head = os.pread(file, 30, member.header_offset)
    start = member.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if head[:4] != b"PK\x03\x04" or not 0 <= member.compress_size <= size - start:
        return None
    data = os.pread(file, member.compress_size, start)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.file_size + 1)
        except zlib.error:
            return None
    return data if len(data) == member.file_size and zlib.crc32(data) == member.CRC else None


def classes_of(names: Sequence[str]) -> tuple[Indices | None, tuple[str, ...]]:
    """Labels [len(names)] and class names, from sub-folders; (None, ()) where images lie outside of them.

    Folders that all images share (`photos/` in `photos/cat/1.png`, `photos/dog/2.png`) say nothing and are
    passed over, so that an archive of a folder gives the same classes as the folder.
    """
    folders = [name.split("/")[:-1] for name in names]
    first, last = min(folders), max(folders)
    depth = 0
    while depth < len(first) and first[depth] == last[depth]:
        depth += 1
    if any(len(parts) == depth for parts in folders):
        return None, ()
    classes = sorted({parts[depth] for parts in folders})
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[parts[depth]] for parts in folders], np.int64), tuple(classes)


def printable(name: str) -> str:
    """`name` on one line and encodable, whatever bytes the file system has for it."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise FastganError(f"{printable(str(folder))}: cannot be listed ({error.strerror})") from error


def is_hidden(member: str) -> bool:
    """Whether a member of an archive is one that file managers hide."""
    parts = member.removeprefix("./").split("/")
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def refuse_unsafe(archive: str, member: str, *, link: bool) -> None:
    """Refuses what reaches outside of the archive: nothing is extracted, but no honest archive has it."""
    parts = member.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", parts[0]):
        kind = "an absolute path or '..'"
    elif link:
        kind = "a link"
    else:
        return
    raise FastganError(f"{archive}: {printable(member)!r} is {kind}; pack the archive without it")
