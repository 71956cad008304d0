"""Stopping politely: SIGTERM, SIGINT and SIGHUP set a flag that the training loop reads between steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopSignals:
    """Context in which the first of these signals only sets `received`; a second one acts as usual.

    SIGHUP comes when a terminal or a connection is closed. A signal that is ignored stays so: that is what nohup does.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def __enter__(self) -> StopSignals:
        try:
            for number in self.SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not in the main thread: the caller's own handlers stay in charge
            self._previous.clear()
        return self

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]
        self._previous.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
