"""Where all ranks agree, before each step, whether to play it: signals, and errors that only one of them has."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from fastgan.contract import Batch
from fastgan.data.feeder import Feeder
from fastgan.dist import Ranks
from fastgan.errors import FastganError
from fastgan.run.signals import StopSignals

GPU_RANKS_PER_STEP = 8
"""On GPUs ranks agree at every step up to so many ranks, and with more of them less often in proportion: agreeing takes
a message from host to host per rank, in which time small networks would play several steps."""


class Stopped(Exception):
    """All ranks stop before the next step. Str: the name of the signal that one of them got."""


class Meeting:
    """The batches of the steps, given out once all ranks have theirs and nobody has asked to stop.

    unwritten: the error that ends the run because something could not be written: it is not tried again
    """

    def __init__(self, ranks: Ranks, feeder: Feeder, signals: StopSignals, batches: int) -> None:
        """batches: that a step takes"""
        self.ranks, self.unwritten = ranks, None
        self._feeder, self._signals, self._batches = feeder, signals, batches
        on_gpu = feeder.device.type == "cuda"
        self._every = max(1, ranks.world // GPU_RANKS_PER_STEP) if on_gpu else 1
        self._steps = 0
        self._ready: list[Batch] = []
        self._error: FastganError | None = None

    unwritten: FastganError | None

    def next_batch(self) -> Batch:
        """The next batch of this rank; for the first one of a step all ranks have to agree to play it.

        Raises Stopped; an error of this rank, or StoppedElsewhere for one of another (see Ranks.meet). Nothing has
        changed then since the end of the last step.
        """
        if not self._ready:
            ready = []
            try:
                ready = [next(self._feeder) for _ in range(self._batches)]
            except FastganError as error:
                self._error = self._error or error
            if self._steps % self._every == 0:
                self.agree()
            elif self._error is not None:  # the others wait in the step, and notice when this rank is gone
                raise self._error
            self._ready = ready
            self._steps += 1
        return self._ready.pop(0)

    def agree(self) -> None:
        """Raise on all ranks, as `next_batch`, where one has an error or was asked to stop."""
        received = self._signals.received
        number = self.ranks.meet(self._error, signal.Signals[received].value if received else 0)
        if number:
            raise Stopped(signal.Signals(number).name)

    def raise_error(self) -> None:
        """Raise an error of this rank that the others have not learnt of yet."""
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def writing(self, mendable: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
        """What only this rank does within it may fail: with a FastganError, made by `mendable` of the machine's errors.

        Where other ranks wait for this one, it is raised on all when they agree the next time; else at once.
        """
        try:
            with mendable():
                yield
        except FastganError as error:
            self.unwritten = self._error = error
            if self.ranks.world == 1:
                raise
