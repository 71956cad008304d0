"""Kills at a change of the file system: a file opened for writing, an fsync, a rename, a removal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.fsync")


def die_at_change(number: int, armed: Callable[[], bool] = lambda: True) -> None:
    """This process kills itself before change `number` (from 0) of the file system; `armed`: whether it counts."""
    left = number

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES or not armed():
            return
        if event == "open" and args[2] is not None and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return  # reading changes nothing
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(descriptor: Any, fsync: Callable[[Any], None] = os.fsync) -> None:
        sys.audit("os.fsync", descriptor)
        fsync(descriptor)

    os.fsync = audited
    sys.addaudithook(count)
