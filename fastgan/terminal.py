"""Texts between the command line and whoever reads or types them."""

from __future__ import annotations

import os
import re
import shutil
import sys


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
