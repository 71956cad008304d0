"""The threads that fill batches in host memory, ahead of the consumer: a lane.

Where images lie in memory or in a mapped file, and the native part is there, a lane is two of its threads (one for
small batches): they work out which images come, copy them and hand over whole batches without Python's lock, which the
training loop needs. Everything else is one thread of Python. The batches are the same to the bit.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import queue
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgan.data.image_set import FromRows, ImageSet
from fastgan.data.options import DataOptions
from fastgan.data.order import Order, Picks
from fastgan.data.rows import AS_STORED, Rows, address, native
from fastgan.data.sampler import second_seed
from fastgan.errors import FastganError
from fastgan.kernels.ingest import TYPES, ingest_into

PREFETCH = 3  # batches that are ready or being made
AHEAD, AHEAD_BYTES = 6, 128 << 20  # the same of native threads, where that takes no more memory
KEPT = 2 * AHEAD + 4  # buffers that are used again, of both sets
HUGE = 2 << 20  # bytes of a large page
SHARE_BYTES = 1 << 20  # of a batch that are worth a second thread


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
        array = large_pages(math.prod(shape) * dtype.itemsize)
        self._arrays.append((array, shape, dtype))
        return torch.from_numpy(array).view(dtype).view(shape)


def large_pages(size: int) -> NDArray[np.uint8]:
    """[size] in memory of large pages where the system has them: small ones have to be looked up again and again."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or size < HUGE:
        return np.empty(size, np.uint8)
    room = mmap.mmap(-1, (size // HUGE + 2) * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    start = -address(whole) % HUGE
    return whole[start : start + size]


@dataclass(frozen=True)
class Plan:
    """Which samples a rank gets, and where their pixels go.

    resident: a batch is the numbers of its images
    on_host: batches stay on the CPU, and are made there as the network takes them
    dtype: of the pixels in host memory
    """

    images: ImageSet
    source: ImageSet | None
    order: Order
    resident: bool
    on_host: bool
    dtype: torch.dtype

    @property
    def sets(self) -> list[ImageSet]:
        return [self.images, *([self.source] if self.source else [])]

    @property
    def threads(self) -> int:
        """How many are worth it to copy a batch."""
        size = sum(one.nbytes // len(one) for one in self.sets) * self.order.batch
        return 2 if DataOptions().threads > 1 and size >= SHARE_BYTES else 1


class Lane(Protocol):
    """Fills slots with the batches of a plan, in order; used by one thread."""

    slots: int
    """How many it should have at a time."""

    threads: int

    def give(self, slot: Slot) -> None:
        """The next batch goes into `slot`."""

    def take(self, wait: bool) -> Slot | BaseException | None:
        """The next batch, or what went wrong with it; None where it is not ready, and not waited for."""

    def stop(self, seconds: float) -> None:
        """Ends the threads; they are not waited for any longer than that."""

    @property
    def images_per_second(self) -> float:
        """Of work, without the time that there was no slot; 0 before the first batch."""


def new_lane(plan: Plan, first: int) -> Lane:
    """The lane for a plan, from sample `first` on. It works once it gets slots."""
    module = native()
    direct = not plan.resident and all(isinstance(one.fetch, FromRows) for one in plan.sets)
    labels = plan.images.labels
    usable = labels is None or (labels.dtype == np.int64 and labels.flags.c_contiguous)
    return NativeLane(module, plan, first) if module is not None and direct and usable else PythonLane(plan, first)


class NativeLane:
    """Threads of the native part (csrc/feed.h)."""

    def __init__(self, module: Any, plan: Plan, first: int) -> None:
        self._plan, self.threads, self._waiting = plan, plan.threads, deque[Slot]()
        size = sum(one.nbytes // len(one) for one in plan.sets) * plan.order.batch * plan.dtype.itemsize
        self.slots = AHEAD if AHEAD * size <= AHEAD_BYTES else PREFETCH + 1
        order, labels = plan.order, plan.images.labels
        seeds, blocks = (order.seed, second_seed(order.seed)), (order.block, order.source_block)
        sets = [
            (addresses, (one.count, block, *rows.pixels.shape[1:]), seed % 2**64)
            for one, seed, block in zip(plan.sets, seeds, blocks, strict=False)
            for rows in [rows_of(one)]
            for addresses in [rows.addresses]
        ]
        # What is not given to the network as it is stored is mirrored on the device.
        flags = order.aligned, order.mirror, order.mirror and plan.on_host
        kind = TYPES.get(plan.dtype, AS_STORED)
        known = (address(labels), len(plan.images.classes))
        self._feed = module.Feed(sets, (first, order.stride, order.batch), flags, kind, known, self.threads)
        # At the latest before the interpreter takes the memory away; `plan` keeps what the threads read until then.
        self._end = weakref.finalize(self, _end, self._feed, plan, self._waiting)

    def give(self, slot: Slot) -> None:
        sides = [slot.images, slot.source or slot.images]
        places = [place(t) for side in sides for t in (side.pixels, side.flipped)]
        self._waiting.append(slot)
        self._feed.give((*places, place(slot.labels)))

    def take(self, wait: bool) -> Slot | BaseException | None:
        found = self._feed.take(wait)
        if found is None:
            return None
        slot = self._waiting.popleft()
        outcome, number, image = found
        if outcome == GOOD:
            return slot
        return self._error(outcome == BAD_IMAGE, self._plan.sets[number], image)

    def _error(self, in_image: bool, images: ImageSet, number: int) -> BaseException:
        if in_image:
            return rows_of(images).bad(number)
        try:
            images.labels_of(np.array([number]), np.empty(1, np.int64))
        except FastganError as error:
            return error
        raise AssertionError(f"label {number} was bad, and is good")

    def stop(self, seconds: float) -> None:
        _end(self._feed, self._plan, self._waiting, seconds)

    @property
    def images_per_second(self) -> float:
        batches, seconds = self._feed.work()
        return self.threads * batches * self._plan.order.batch / seconds if seconds else 0.0


GOOD, BAD_IMAGE = 0, 1  # as FeedOutcome in csrc/feed.h
_HANGING: list[Any] = []  # memory that a thread may still write to


def _end(feed: Any, plan: Plan, waiting: deque[Slot], seconds: float = 10.0) -> None:
    if not feed.stop(seconds):
        _HANGING.append((plan, waiting))


def rows_of(images: ImageSet) -> Rows:
    assert isinstance(images.fetch, FromRows)
    return images.fetch.rows


def place(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class PythonLane:
    """One thread of Python, which asks the sets for their images."""

    slots, threads = PREFETCH, 1

    def __init__(self, plan: Plan, first: int) -> None:
        self._work = _Work(plan, first)
        # The thread holds no reference to what made it: who forgets a feeder is rid of it.
        self._thread = threading.Thread(target=self._work.produce, name="fastgan-feeder", daemon=True)
        self._thread.start()

    def give(self, slot: Slot) -> None:
        self._work.free.put(slot)

    def take(self, wait: bool) -> Slot | BaseException | None:
        try:
            return self._work.ready.get(block=wait)
        except queue.Empty:
            return None

    def stop(self, seconds: float) -> None:
        self._work.closed.set()
        self._work.free.put(None)
        self._thread.join(seconds)

    @property
    def images_per_second(self) -> float:
        work = self._work
        return work.images / work.seconds if work.seconds and not work.plan.resident else 0.0


@dataclass
class _Work:
    """What the thread does, and the queues to it. images, seconds: what it has done so far."""

    plan: Plan
    first: int
    images: int = 0
    seconds: float = 0.0
    free: queue.SimpleQueue[Slot | None] = field(default_factory=queue.SimpleQueue)
    ready: queue.SimpleQueue[Slot | BaseException] = field(default_factory=queue.SimpleQueue)
    closed: threading.Event = field(default_factory=threading.Event)
    room: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def produce(self) -> None:
        """Fills slots until it is stopped, or hands over what went wrong and ends."""
        try:
            for picks in self.plan.order.picks(self.first):
                slot = self.free.get()
                if slot is None or self.closed.is_set():
                    return
                began = time.perf_counter()
                self._fill(slot, picks)
                self.seconds += time.perf_counter() - began
                self.images += self.plan.order.batch
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
        if side.pixels.dtype == torch.uint8:
            raw = images.read(numbers, out=side.pixels.numpy())
            if flip is not None:
                chosen = flip.numpy()
                raw[chosen] = raw[chosen][:, :, ::-1]
        else:
            raw = images.read(numbers, out=self._scratch(images, len(numbers)))
            ingest_into(side.pixels, torch.from_numpy(raw), flip)

    def _scratch(self, images: ImageSet, count: int) -> NDArray[np.uint8]:
        """Memory for images of a set as they are stored."""
        if images.name not in self.room:
            self.room[images.name] = np.empty((count, images.size, images.size, images.channels), np.uint8)
        return self.room[images.name]
