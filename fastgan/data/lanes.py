"""The threads that fill batches in host memory, ahead of the consumer.

One thread is a *lane*. Where images lie in memory and batches are large there are two, which make every other batch
each: neither waits for the other within a batch, and the two together copy faster than one core can. The batches are
the same with any number of lanes.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgan.data.image_set import FromRows, ImageSet
from fastgan.data.options import DataOptions
from fastgan.data.order import Order, Picks
from fastgan.data.rows import AS_STORED, native
from fastgan.kernels.ingest import TYPES, ingest_into

PREFETCH = 3  # batches that are ready or being made, of one lane
AHEAD = 2  # of each of several
KEPT = 2 * 2 * AHEAD + 4  # buffers that are used again, of both sets
SHARE_BYTES = 1 << 20  # of a batch that are worth a second lane


@dataclass(frozen=True)
class Side:
    """The part of a slot that belongs to one of the two sets.

    pixels: [N, H, W, C], uint8 or as the network takes them, or [N] int64 numbers of images that are resident
    flipped: [N] bool, where images are mirrored
    """

    pixels: Tensor
    flipped: Tensor | None


@dataclass(frozen=True)
class Slot:
    """Host memory of one batch. labels: [N] int64."""

    images: Side
    labels: Tensor | None
    source: Side | None


@dataclass
class Clock:
    """What a lane has done so far."""

    images: int = 0
    seconds: float = 0.0


class Memory:
    """Host memory for batches, used again as soon as no tensor in it is left: fresh pages cost as much as the copy.

    A tensor made from an array holds on to it, so that the array's references tell.
    """

    def __init__(self) -> None:
        self._arrays: list[tuple[NDArray[Any], tuple[int, ...], torch.dtype]] = []
        probe = [(np.empty(1), (), torch.uint8)]
        self._unused = next(sys.getrefcount(array) for array, _, _ in probe)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        for array, its_shape, its_dtype in self._arrays:
            if sys.getrefcount(array) <= self._unused and its_shape == shape and its_dtype == dtype:
                return torch.from_numpy(array).view(dtype).view(shape)
        if len(self._arrays) >= KEPT:
            return torch.empty(shape, dtype=dtype)
        array = torch.empty(shape, dtype=dtype).view(-1).view(torch.uint8).numpy()
        self._arrays.append((array, shape, dtype))
        return torch.from_numpy(array).view(dtype).view(shape)


@dataclass(frozen=True)
class Plan:
    """Which samples a rank gets, and where their pixels go.

    resident: a batch is the numbers of its images
    on_host: batches stay on the CPU, and are made there as the network takes them
    """

    images: ImageSet
    source: ImageSet | None
    order: Order
    resident: bool
    on_host: bool

    @property
    def lanes(self) -> int:
        """How many threads are worth it."""
        sets = [self.images, *([self.source] if self.source else [])]
        size = sum(one.nbytes // len(one) for one in sets) * self.order.batch
        direct = all(isinstance(one.fetch, FromRows) for one in sets) and not self.resident
        return 2 if direct and DataOptions().threads > 1 and size >= SHARE_BYTES else 1


@dataclass
class Lane:
    """A thread that fills slots with the batches from sample `first` on, without end, and the queues to it."""

    plan: Plan
    first: int
    clock: Clock = field(default_factory=Clock)
    free: queue.SimpleQueue[Slot | None] = field(default_factory=queue.SimpleQueue)
    ready: queue.SimpleQueue[Slot | BaseException] = field(default_factory=queue.SimpleQueue)
    closed: threading.Event = field(default_factory=threading.Event)
    _room: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def start(self, new_slot: Callable[[], Slot], slots: int) -> None:
        """The thread holds no reference to what made it: who forgets a feeder is rid of it."""
        for _ in range(slots):
            self.free.put(new_slot())
        self.thread = threading.Thread(target=self._produce, name="fastgan-feeder", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.closed.set()
        self.free.put(None)

    def _produce(self) -> None:
        """Fills slots until it is stopped, or hands over what went wrong and ends."""
        try:
            for picks in self.plan.order.picks(self.first):
                slot = self.free.get()
                if slot is None or self.closed.is_set():
                    return
                began = time.perf_counter()
                self._fill(slot, picks)
                self.clock.seconds += time.perf_counter() - began
                self.clock.images += self.plan.order.batch
                self.ready.put(slot)
        except BaseException as error:
            self.ready.put(error)

    def _fill(self, slot: Slot, picks: Picks) -> None:
        """Writes the images and labels of one batch into `slot`."""
        plan = self.plan
        self._fill_side(slot.images, plan.images, picks.images, picks.flipped)
        if slot.source is not None:
            assert plan.source is not None
            assert picks.source is not None
            self._fill_side(slot.source, plan.source, picks.source, picks.source_flipped)
        if slot.labels is not None:
            plan.images.labels_of(picks.images, slot.labels.numpy())

    def _fill_side(
        self, side: Side, images: ImageSet, numbers: NDArray[np.int64], flipped: NDArray[np.bool_] | None
    ) -> None:
        if side.flipped is not None:
            side.flipped.numpy()[:] = flipped
        if self.plan.resident:
            side.pixels.numpy()[:] = numbers
            return
        flip = side.flipped if self.plan.on_host else None  # else the device mirrors
        if isinstance(images.fetch, FromRows) and (module := native()) is not None:
            kind = TYPES.get(side.pixels.dtype, AS_STORED)
            images.fetch.rows.gather(
                module, numbers, side.pixels.data_ptr(), kind, 0 if flip is None else flip.data_ptr()
            )
        elif side.pixels.dtype == torch.uint8:
            raw = images.read(numbers, out=side.pixels.numpy())
            if flip is not None:
                chosen = flip.numpy()
                raw[chosen] = raw[chosen][:, :, ::-1]
        else:
            raw = images.read(numbers, out=self._scratch(images, len(numbers)))
            ingest_into(side.pixels, torch.from_numpy(raw), flip)

    def _scratch(self, images: ImageSet, count: int) -> NDArray[np.uint8]:
        """Memory for images of a set as they are stored."""
        if images.name not in self._room:
            self._room[images.name] = np.empty((count, images.size, images.size, images.channels), np.uint8)
        return self._room[images.name]


def lanes_for(plan: Plan, first: int) -> list[Lane]:
    """The lanes of a plan, not started: lane i makes batches i, i + number of lanes, ..."""
    part = replace(plan, order=replace(plan.order, stride=plan.order.stride * plan.lanes))
    return [Lane(part, first + i * plan.order.stride) for i in range(plan.lanes)]
