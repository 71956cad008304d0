"""Files of a run directory: replaced whole or not at all, and a full disk is one clear line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgan.errors import FastganError

ADVICE = "free some space or make the folder writable, then run the same command again"


def reason(error: OSError) -> str:
    """What the operating system said, such as "no space left on device"."""
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Turns an OSError of the block into `FastganError("cannot {what}: {reason}; {advice}")`."""
    try:
        yield
    except OSError as error:
        raise FastganError(f"cannot {what}: {reason(error)}; {advice}") from error


def write_durable(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the parts, one after the other, to `path` and waits until the device has them. Raises OSError."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until what was created, renamed or removed in `folder` is on the device. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durable(path: Path, data: bytes) -> None:
    """Replaces `path` in one step: who reads it, even after a crash, finds the old bytes or the new.

    Raises OSError.
    """
    path = Path(os.path.realpath(path))  # a link is followed, not replaced
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "exists and is not a regular file")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durable(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> Path:
    """`replace_durable` for pictures and reports.

    Raises FastganError where the disk is full or the folder cannot be written.
    """
    with explained(f"write {path}", ADVICE):
        replace_durable(path, data)
    return path
