"""Texts between the command line and whoever reads or types them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

RESUMABLE = 3  # exit status


def one_line(box: str) -> str:
    """The text of an error box, without its frame, title and pointers to the help, as one line."""
    rows = [re.sub(r"^[│|]\s?|\s*[│|]$", "", row).strip() for row in box.splitlines()]
    rows = [row for row in rows if row and not re.fullmatch(r"[╭╰─╮╯+\-\s]*|[╭+].*[╮+]", row)]
    rows = [row for row in rows if not re.match(r"For full helptext|in fastgan .*--help$|fastgan .*--help$", row)]
    return re.sub(r"\s+", " ", " ".join(rows)).strip(" .") + "; see fastgan --help"


def as_typed_here(command: str) -> str:
    """A `fastgan ...` command as it works in this shell: with the path of the program where it is not on the PATH."""
    program = os.path.relpath(sys.argv[0])
    if shutil.which("fastgan") or os.path.basename(program) != "fastgan":
        return command
    return command.replace("fastgan", program, 1)


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code."""
    print(f"fastgan: warning: {' '.join(str(message).split())}", file=sys.stderr)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """While libraries are loaded an interrupt is one line and the end of the process.

    Where an exception comes in the middle of an import, the import may swallow it or make another one of it.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"fastgan: interrupted before anything began\n")
        os._exit(RESUMABLE)

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if before != signal.default_int_handler or not main_thread:  # it is somebody else's
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
