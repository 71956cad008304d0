"""Values that change in training, as functions of its progress, computed on the device without a host read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.errors import FastganError, suggest

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end`.

    start, end:    the value before `begin` and after `finish`
    begin, finish: fractions of the run's length, 0 <= begin < finish <= 1
    shape:         "linear", or "cosine" (half a period, flat at both ends)
    """

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise FastganError(f"schedule shape {self.shape!r} is unknown{suggest(self.shape, SHAPES)}")
        if not 0 <= self.begin < self.finish <= 1:
            raise FastganError(
                f"a schedule needs 0 <= begin < finish <= 1 (fractions of the run), "
                f"got begin={self.begin}, finish={self.finish}"
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise FastganError(f"a schedule needs finite values, got start={self.start}, end={self.end}")

    @property
    def lowest(self) -> float:
        return min(self.start, self.end)


Scheduled = float | Schedule


def first(value: Scheduled) -> float:
    """The value that a number or a schedule starts with."""
    return value.start if isinstance(value, Schedule) else float(value)


def lowest(value: Scheduled) -> float:
    """The smallest value that a number or a schedule takes."""
    return value.lowest if isinstance(value, Schedule) else value


def highest(value: Scheduled) -> float:
    """The largest value that a number or a schedule takes."""
    return max(value.start, value.end) if isinstance(value, Schedule) else value


def value_at(value: Scheduled, progress: Tensor) -> Tensor:
    """The value at `progress` (0-dim float64, fraction of the run that is done), as a 0-dim float64 tensor."""
    if not isinstance(value, Schedule):
        return torch.full_like(progress, value)
    t = ((progress - value.begin) / (value.finish - value.begin)).clamp(0.0, 1.0)
    if value.shape == "cosine":
        t = (1.0 - torch.cos(t * math.pi)) / 2.0
    return value.start + (value.end - value.start) * t


class Progress:
    """How far a run is, and what every number and schedule is there, in tensors that stay where they are.

    fraction: 0-dim float64 on the device, the part of the run that is done
    """

    def __init__(self, fraction: Tensor) -> None:
        self.fraction = fraction
        self._values: dict[Scheduled, Tensor] = {}

    def advance(self, fraction: Tensor) -> None:
        """Move to `fraction` and set every schedule's tensor to its value there."""
        self.fraction.copy_(fraction)
        for value, tensor in self._values.items():
            if isinstance(value, Schedule):
                tensor.copy_(value_at(value, self.fraction))

    def value(self, value: Scheduled) -> Tensor:
        """The value of a number or a schedule now: 0-dim float64, always the same tensor, not to be changed."""
        if value not in self._values:
            self._values[value] = value_at(value, self.fraction)
        return self._values[value]
