"""The `fastgan` command, and `python -m fastgan`: loads the rest, which takes a while, and runs it."""

from __future__ import annotations

import os
import signal
from types import FrameType

RESUMABLE = 3


def main() -> int:
    """Run the command in sys.argv; returns its exit status. An interrupt while PyTorch is loaded is one line."""
    # An exception in the middle of an import can be swallowed or turned into another one: this ends the process.
    before = signal.getsignal(signal.SIGINT)
    ours = before == signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from fastgan.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, before)
    return run()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"fastgan: interrupted before it began\n")
    os._exit(RESUMABLE)


if __name__ == "__main__":
    raise SystemExit(main())
