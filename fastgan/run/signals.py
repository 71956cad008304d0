"""Stopping politely: SIGTERM, SIGINT and SIGHUP set a flag that the training loop reads between steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopSignals:
    """Context in which the first of these signals only sets `received`; a second one acts as usual.

    patient: a second one does nothing: whoever started several ranks passes signals on to each, which may have had it

    SIGHUP comes when a terminal or a connection is closed. A signal that is ignored stays so: that is what nohup does.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

    def __init__(self, *, patient: bool = False) -> None:
        self.received: str | None = None
        self._patient = patient
        self._previous: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if not self._patient:
            self._restore()

    def __enter__(self) -> StopSignals:
        try:
            for number in self.SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not in the main thread: the caller's own handlers stay in charge
            self._previous.clear()
        return self

    def ignore(self) -> None:
        """No signal stops this process any more, also after the context: it is ending, and says by its status how."""
        if self._previous:
            for number in self.SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self._previous.clear()

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]
        self._previous.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
