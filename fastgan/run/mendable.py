"""Errors of the machine that a user can mend, a full disk or too little memory, as one line each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastgan.errors import FastganError


@contextmanager
def mendable_memory_errors() -> Iterator[None]:
    """Turn what does not fit into memory into one line for the user."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
        if not known:
            raise
        raise FastganError(
            f"out of memory ({text.partition(chr(10))[0][:150]}); use a smaller --batch or smaller networks; a run "
            f"that was saved goes on from its newest checkpoint"
        ) from error


@contextmanager
def mendable_disk_errors(out: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.ENOENT,
            errno.EEXIST,
            errno.ELOOP,
            errno.ENAMETOOLONG,
        ):
            raise
        raise FastganError(
            f"cannot read or write {error.filename or out}: {error.strerror}; make room or choose another --out, then "
            f"run the same command again: it goes on from the newest checkpoint"
        ) from error
