"""What a command prints: lines, a bar in training, a bar per side in evaluation."""

from __future__ import annotations

import contextlib
import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line; one that nobody can read (a closed pipe or terminal, a name outside the terminal's alphabet) ends
    no run."""
    try:
        console.print(text, markup=False)
    except UnicodeEncodeError:
        console.print(text.encode("ascii", "backslashreplace").decode(), markup=False)
    except OSError:
        nobody_reads()


def nobody_reads() -> None:
    """For the rest of the process, what is printed goes nowhere, with what is waiting to be written when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # no file below it
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere, stream.fileno())
    console.file = os.fdopen(nowhere, "w")


@contextlib.contextmanager
def progress():  # type: ignore[no-untyped-def]
    """A bar on a terminal; one line per tick elsewhere. Yields the function that takes each Tick."""
    from fastgan.ticker import Tick, describe

    if not console.is_terminal:
        yield lambda tick: say(describe(tick))
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("first steps...", total=None)

        def show(tick: Tick) -> None:
            bar.update(task, completed=tick.samples, total=tick.total, description=describe(tick))

        yield show


@contextlib.contextmanager
def sides():  # type: ignore[no-untyped-def]
    """A bar per side on a terminal, beside what is printed. Yields what takes (side, done, of how many)."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda side, done, count: None
        return
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(side: str, done: int, count: int) -> None:
            if side not in tasks:
                tasks[side] = bar.add_task(side, total=count or None)
            bar.update(tasks[side], completed=done, total=count or None)

        yield show
