"""Batches on the device, ahead of the trainer: one thread gathers while the device computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgan.contract import Batch
from fastgan.data.image_set import ImageSet, Indices
from fastgan.data.sampler import flips, image_order
from fastgan.errors import FastganError

PREFETCH = 3  # batches that are ready or being made
CLOSE_SECONDS = 10.0
SOURCE_KEY = 0x5851F42D4C957F2D  # keeps the order of an independent second set apart from that of the first


@dataclass(frozen=True)
class _Slot:
    """Host memory of one batch. images, source: [N, H, W, C], float32 for the CPU, else uint8; labels: [N] int64."""

    images: Tensor
    labels: Tensor | None
    source: Tensor | None


@dataclass(frozen=True)
class _Plan:
    """Which samples a rank gets, and the queues between the thread and the consumer."""

    images: ImageSet
    seed: int
    batch: int
    stride: int  # samples that all ranks together take per batch
    mirror: bool
    free: queue.SimpleQueue[_Slot | None] = field(default_factory=queue.SimpleQueue)
    ready: queue.SimpleQueue[_Slot | BaseException] = field(default_factory=queue.SimpleQueue)
    closed: threading.Event = field(default_factory=threading.Event)


class Feeder:
    """Endless iterator over the batches of one rank, each a pure function of (seed, its sample numbers).

    Batch b covers the global samples first_sample + (b·world + rank)·batch and on, so a run resumes at
    any sample and on any number of ranks, and sees the same images in the same order.

    batch: images per batch of this rank
    mirror: show a random half of the samples flipped left to right
    dtype: of the images, whose values are (uint8 - 127.5) / 127.5, computed in float32

    Raises FastganError when the batches of all ranks together exceed the set, and from `next` whatever went
    wrong in the thread. A context manager; `close` ends the thread. The thread makes no device calls, so that
    it does not disturb graph capture; copies are asynchronous, on the consumer's current stream.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        seed: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        first_sample: int = 0,
        device: torch.device | str = "cpu",
        mirror: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        assert batch >= 1
        assert 0 <= rank < world
        assert first_sample >= 0
        if batch * world > len(images):
            raise FastganError(
                f"batch {batch * world} is larger than the {len(images)} images in {images.name}: "
                f"use --batch {len(images) // world * world} or less"
            )
        self.device, self.dtype = torch.device(device), dtype
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._plan = _Plan(images, seed, batch, batch * world, mirror)
        self._sample = first_sample + rank * batch
        for _ in range(PREFETCH):
            self._plan.free.put(self._new_slot())
        self._thread = threading.Thread(
            target=_produce, args=(self._plan, self._sample), name="fastgan-feeder", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        assert not self._plan.closed.is_set(), "the feeder is closed"
        begin = time.perf_counter()
        slot = self._plan.ready.get()
        self.wait_seconds += time.perf_counter() - begin
        if isinstance(slot, BaseException):
            self._plan.ready.put(slot)  # for whoever asks again
            raise slot
        self._plan.free.put(self._new_slot())
        labels = None if slot.labels is None else slot.labels.to(self.device, non_blocking=True)
        index = torch.arange(self._sample, self._sample + self._plan.batch, device=self.device)
        self._sample += self._plan.stride
        source = None if slot.source is None else self._on_device(slot.source)
        return Batch(self._on_device(slot.images), labels, index, source)

    def _on_device(self, images: Tensor) -> Tensor:
        """[N, H, W, C] in host memory as [N, C, H, W] in [-1, 1], channels-last."""
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).sub_(127.5).div_(127.5)
        return images.to(self.dtype).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Ends the thread; what it is reading is finished first, but not waited for beyond ten seconds."""
        self._plan.closed.set()
        self._plan.free.put(None)
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_slot(self) -> _Slot:
        """Fresh memory. Pinned memory comes from torch's cache, which waits for the copies out of it."""
        images, on_cpu, pin = self._plan.images, self.device.type == "cpu", self.device.type == "cuda"
        count = self._plan.batch

        def pixels(of: ImageSet) -> Tensor:
            shape = (count, of.size, of.size, of.channels)
            return torch.empty(shape, dtype=torch.float32 if on_cpu else torch.uint8, pin_memory=pin)

        labels = None if images.labels is None else torch.empty(count, dtype=torch.int64, pin_memory=pin)
        return _Slot(pixels(images), labels, None if images.source is None else pixels(images.source))


def _produce(plan: _Plan, first: int) -> None:
    """The thread: fills slots until it is closed, or hands over what went wrong and ends."""
    try:
        for start in count(first, plan.stride):
            slot = plan.free.get()
            if slot is None or plan.closed.is_set():
                return
            _fill(slot, plan, np.arange(start, start + plan.batch, dtype=np.int64))
            plan.ready.put(slot)
    except BaseException as error:
        plan.ready.put(error)


def _fill(slot: _Slot, plan: _Plan, samples: Indices) -> None:
    """Writes the images, labels and source of `samples` [N] into `slot`."""
    images = plan.images
    indices = image_order(plan.seed, len(images), samples)
    flipped = flips(plan.seed, samples) if plan.mirror else None
    _fill_pixels(slot.images, images, indices, flipped)
    if slot.labels is not None:
        assert images.labels is not None
        np.take(images.labels, indices, out=slot.labels.numpy(), mode="clip")
    if slot.source is not None:
        assert images.source is not None
        if not images.aligned:  # an order and flips of its own
            seed = plan.seed ^ SOURCE_KEY
            indices = image_order(seed, len(images.source), samples)
            flipped = flips(seed, samples) if plan.mirror else None
        _fill_pixels(slot.source, images.source, indices, flipped)


def _fill_pixels(out: Tensor, images: ImageSet, indices: Indices, flipped: NDArray[np.bool_] | None) -> None:
    """Images number `indices` [N] into `out` [N, H, W, C]; those that are `flipped` [N] mirrored."""
    target = out.numpy()
    raw = images.read(indices, out=target if target.dtype == np.uint8 else None)
    if flipped is not None:
        whole = raw.view(f"V{raw.shape[-1]}")  # a pixel as one item: a third of the time
        whole[flipped] = whole[flipped][:, :, ::-1]
    if target.dtype == np.float32:
        # NumPy, not torch: a second thread with torch operations would start a second pool of OpenMP threads.
        np.subtract(raw, np.float32(127.5), out=target, dtype=np.float32)
        np.divide(target, np.float32(127.5), out=target)
