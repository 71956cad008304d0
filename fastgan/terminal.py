"""Texts between the command line and whoever reads or types them."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from fastgan.errors import suggest

RESUMABLE = 3  # exit status


def one_line(box: str, helped: str) -> str:
    """What an error box of tyro says, as one line that names what came and what was expected.

    helped: the command whose help it points to
    """
    text = _unboxed(box)
    if found := re.match(r"Unrecognized options: (.*?) Available subcommands: (.*)", text):
        return f"unknown command {found[1]}{suggest(found[1], found[2].split(', '))}"
    if found := re.match(r"Unrecognized options: (--?[^\s,]+)(.*)", text):
        options = set(re.findall(r"(?<= )--[a-z][\w-]*(?= [A-Z{])", found[2]))
        if near := difflib.get_close_matches(found[1], options, n=1, cutoff=0.75):
            return f"unknown option {found[1]}; did you mean {near[0]}? See {helped} --help"
        text = f"unknown option {found[1]}"
    elif found := re.match(r"Unrecognized options: (.*)", text):
        text = f"unexpected {found[1]}"
    elif found := re.match(r"Error parsing (\S+): .*?('[^']*').* Argument helptext: \S+ (\S+)", text):
        text = f"{found[1]}: expected {found[3]}, got {found[2]}"
    return f"{text}; see {helped} --help"


def _unboxed(box: str) -> str:
    """The text of a box, without its frame, title and pointers to the help, in one line."""
    rows = [row for row in (re.sub(r"^[│|]\s?|\s*[│|]$", "", row).strip() for row in box.splitlines()) if row]
    if len(rows) > 1 and re.fullmatch("-+", rows[1]):  # where the terminal cannot show a frame, there is a title above
        del rows[0]
    rows = [row for row in rows if not re.fullmatch(r"[╭╰─╮╯+\-\s]*|[╭+].*[╮+]", row)]
    rows = [row for row in rows if not re.match(r"For full helptext|in fastgan .*--help$|fastgan .*--help$", row)]
    return re.sub(r"\s+", " ", " ".join(rows)).strip(" .")


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
