"""The `fastgan` command: flags -> Config -> one call each. The only room that knows tyro and rich.

commands: what can be asked;  actions: what it does;  screen: what is printed

Exit status: 0 done, 2 something the user can mend (one line), 3 stopped early and resumable, 1 a bug (traceback).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# PyTorch's threads wait asleep, not spinning: on a machine that does something else too, spinning made small
# operations 5 to 20 times slower. It is read when torch is loaded, so it comes before any other import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from fastgan.allocator import keep_freed_memory
from fastgan.errors import FastganError, RankFailed, RankLost, StoppedElsewhere
from fastgan.launch import end_with_parent, is_first
from fastgan.terminal import nothing_begun, one_line, say_warning

if TYPE_CHECKING:
    from fastgan.cli.commands import Command

BUG, MENDABLE, RESUMABLE = 1, 2, 3


def parse(args: Sequence[str]) -> Command:
    """The command in `args`. An unknown or missing flag is one line, not a box."""
    from fastgan.cli.commands import Command

    helped = " ".join(["fastgan", *(word for word in args[:1] if not word.startswith("-"))])
    command: Command = _parse(Command, args, helped, prog="fastgan", description=(__doc__ or "").split("\n\n")[-1])
    return command


def _parse(kind: Any, args: Sequence[str], helped: str, **words: Any) -> Any:
    """helped: the command whose help an error points to"""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(kind, args=args, config=(DisallowNone, FlagCreatePairsOff), **words)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise FastganError(one_line(caught.getvalue(), helped)) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. Of several ranks the first one prints, and each what it alone knows."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say_warning if is_first() else _say_nothing
            keep_freed_memory()
            end_with_parent()
            return _run(sys.argv[1:] if args is None else args)
    except FastganError as error:
        return _ended(error if is_first() else "", MENDABLE)
    except (RankFailed, StoppedElsewhere) as error:
        return _ended(error, MENDABLE)
    except RankLost as error:
        return _ended(f"rank {os.environ.get('RANK', '?')}: {error}", BUG)
    except KeyboardInterrupt:
        print("fastgan: interrupted; a run that was saved goes on with the same command", file=sys.stderr)
        return RESUMABLE


def _ended(why: Exception | str, status: int) -> int:
    """Print why, if that is anything, as one line."""
    if line := " ".join(str(why).split()):
        print(f"fastgan: {line}", file=sys.stderr)
    return status


def _say_nothing(*_: object, **__: object) -> None:
    pass


def _run(args: Sequence[str]) -> int:
    if args and args[0] == "pack":  # does not wait for PyTorch to load
        with nothing_begun():
            from fastgan.cli.pack import Pack, run_pack
        return run_pack(_parse(Pack, args[1:], "fastgan pack", prog="fastgan pack"))
    with nothing_begun():
        from fastgan.cli import actions
    return actions.run(parse(args), args)
