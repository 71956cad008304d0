"""Checkpoints written behind the training loop: it pays for a copy into host memory, a thread for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fastgan.errors import FastganError
from fastgan.run import checkpoint
from fastgan.run.mirror import Mirror
from fastgan.run.snapshot import Groups, Snapshot


class Writer:
    """Saves checkpoints in `folder`, one at a time, and copies each to `copy_to` where there is such a place.

    `save` returns when the tensors are copied; what is written is what they were then. All of fastgan.run.checkpoint
    holds: a checkpoint counts when it was read back, and older ones go after that. What goes wrong in the thread is
    raised by the next `save`, `poll` or `wait`. Host memory: one copy of the tensors, kept between saves.

    say: takes a line for each checkpoint that is safe, and for each copy that failed; called by `save`, `poll`, `wait`
    A context manager: leaving it waits for the thread.
    """

    def __init__(self, folder: Path, *, keep: int, say: Callable[[str], None], copy_to: str = "") -> None:
        self._folder, self._keep, self._say = folder, keep, say
        self._mirror = Mirror(copy_to, keep=keep) if copy_to else None
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._outcome: list[str | BaseException] = []
        self._not_copied: FastganError | None = None

    def save(self, name: str, tensors: Groups, state: Mapping[str, Any]) -> None:
        """Begins to save `folder/name`, as checkpoint.save; first waits for the save before it, if that still runs."""
        self.wait()
        taken = self._snapshot.take(tensors)
        self._thread = threading.Thread(target=self._write, args=(name, taken, dict(state)), name="fastgan-checkpoint",
                                        daemon=True)  # fmt: skip
        self._thread.start()

    def poll(self) -> None:
        """Says, or raises, how the last save ended, if it has."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, outcome, self._outcome = None, self._outcome, []
        for each in outcome:
            if isinstance(each, BaseException):
                raise each
            self._say(each)

    def finish(self) -> None:
        """`wait`, and raises FastganError where the newest checkpoint is not where it was to be copied to."""
        self.wait()
        if self._not_copied is not None:
            raise self._not_copied

    def _write(self, name: str, tensors: Groups, state: Mapping[str, Any]) -> None:
        """The thread."""
        try:
            self._snapshot.wait()
            path = checkpoint.save(self._folder, name, tensors, state, keep=self._keep)
            self._outcome.append(f"saved {path}")
        except BaseException as error:
            self._outcome.append(error)
            return
        if self._mirror is None:
            return
        try:
            self._not_copied = None
            self._outcome.append(f"copied to {self._mirror.copy(path)}")
        except FastganError as error:
            self._not_copied = error
            self._outcome.append(f"{error}; the next checkpoint tries again")
        except BaseException as error:
            self._outcome.append(error)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception):  # an interrupt does not wait: a save that is cut off does no harm
            try:
                self.wait()
            except Exception as second:
                self._say(" ".join(str(second).split()))  # the first error is the one to raise
