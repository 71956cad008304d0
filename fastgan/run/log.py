"""The log of a run: log.txt for people, stats.jsonl for programs, TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import numpy.typing as npt

from fastgan.run.files import ADVICE, explained

POSITION = "images"  # the statistic that says where in the run a line belongs


class RunLog:
    """Appends to log.txt and stats.jsonl in the folder `out`, which is made if need be. A context manager.

    echo:      takes every line of the log too, for the terminal
    resume_at: images seen where the run goes on. Statistics of later images, of work that was lost and is
               done again, are removed, so that no curve is drawn twice; None leaves all.

    Every line is with the operating system when a call returns. Raises FastganError, in one line, where the
    disk is full or the folder cannot be written.
    """

    def __init__(self, out: Path, *, echo: Callable[[str], None], resume_at: int | None = None) -> None:
        self._out, self._echo = out, echo
        self._purge = None if not resume_at else resume_at + 1
        with self._writing():
            out.mkdir(parents=True, exist_ok=True)
            truncate_statistics(out / "stats.jsonl", resume_at)
            self._log = _open_to_append(out / "log.txt")
            self._stats = _open_to_append(out / "stats.jsonl")
        self._board: Any = None  # a SummaryWriter from the first statistics on; Any, as it may not be there
        self._board_wanted = importlib.util.find_spec("tensorboard") is not None

    def line(self, text: str, *, echo: bool = True) -> None:
        """One line (or several) with the time in front; echoed without it, unless `echo` is False."""
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with self._writing():
            self._log.writelines(f"{stamp}  {part}\n" for part in text.splitlines() or [""])
            self._log.flush()
        if echo:
            self._echo(text)

    def stats(self, values: Mapping[str, float]) -> None:
        """One JSON object; not a number and infinity are written as null. `values` should have `images`."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self._writing():
            self._stats.write(json.dumps(finite, allow_nan=False) + "\n")
            self._stats.flush()
        if self._board_wanted:
            self._write_scalars(finite)

    def close(self) -> None:
        """Closes the files. Further calls do nothing."""
        if self._board is not None:
            with self._board_may_fail():
                self._board.close()
            self._board = None
        with self._writing():
            self._log.close()
            self._stats.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_scalars(self, values: Mapping[str, float | None]) -> None:
        with self._board_may_fail():
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always there

                folder = str(self._out / "tensorboard")
                self._board = SummaryWriter(folder, purge_step=self._purge, flush_secs=30)
            for key, value in values.items():
                if value is not None and key != POSITION:
                    tag = key.replace(".", "/", 1)  # TensorBoard groups by what is before the slash
                    self._board.add_scalar(tag, value, int(values.get(POSITION) or 0))

    @contextlib.contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """Curves elsewhere are not worth a run: whatever TensorBoard raises ends it, with one line."""
        try:
            yield
        except Exception as error:
            self._board_wanted, self._board = False, None
            first_line = (str(error).splitlines() or [""])[0]
            self.line(f"TensorBoard does not work here and is left out: {type(error).__name__}: {first_line}")

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return explained(f"write the log in {self._out}", ADVICE)


class NoLog(RunLog):
    """The log of a rank that writes nothing."""

    def __init__(self) -> None:
        pass

    def line(self, text: str, *, echo: bool = True) -> None:
        pass

    def stats(self, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def truncate_statistics(path: Path, resume_at: int | None) -> None:
    """Cuts stats.jsonl before the first line of later images than `resume_at`; also half a last line."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            position = _position(line)
            if resume_at is not None and position is not None and position > resume_at:
                break
            if not line.endswith(b"\n"):  # the end of a killed run
                break
            end += len(line)
    with path.open("r+b") as file:
        file.truncate(end)


def read_statistics(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The columns of stats.jsonl, [lines] each, NaN where a line has no such number; {} without the file.

    Lines that are damaged are left out.
    """
    if not path.exists():
        return {}
    columns: dict[str, array[float]] = {}
    lines = 0
    with path.open("rb") as file:
        for values in filter(None, map(_parse, file)):
            for key, value in values.items():
                column = columns.setdefault(key, array("d"))
                if len(column) < lines:
                    column.extend([math.nan] * (lines - len(column)))
                try:
                    column.append(value)
                except (TypeError, OverflowError):  # null or text; beyond a double
                    column.append(math.nan)
            lines += 1
    for column in columns.values():
        column.extend([math.nan] * (lines - len(column)))
    return {key: np.array(column) for key, column in columns.items()}


def _parse(line: bytes) -> dict[str, Any]:
    """The object in a line of stats.jsonl; {} for a damaged line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _position(line: bytes) -> float | None:
    value = _parse(line).get(POSITION)
    return value if isinstance(value, (int, float)) else None


def _open_to_append(path: Path) -> TextIO:
    """Opens a text file at its end, on a line of its own."""
    file = path.open("a", encoding="utf-8")
    if path.stat().st_size:
        with path.open("rb") as reader:
            reader.seek(-1, 2)
            if reader.read(1) != b"\n":
                file.write("\n")
    return file
