"""Batches on the device, ahead of the trainer. Three ways for the pixels, of which the size of the set decides:

    resident   the whole set lies on the device; a batch is one gather there, and only its numbers cross the bus
    mapped     one thread gathers from memory or from mapped files into pinned memory, copied on a stream of its own
    decoded    the same, where images are JPEG or PNG files that a pool of threads decodes

Batches are the same to the bit whichever way they come: a batch is a function of the images, the seed and its sample
numbers. Pixels cross the bus as uint8; they are turned into floating point and mirrored where they are used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.contract import Batch
from fastgan.data.image_set import ImageSet
from fastgan.data.lanes import Memory, Plan, Side, Slot, new_lane
from fastgan.data.options import FEEDERS
from fastgan.data.order import Order
from fastgan.errors import FastganError, suggest
from fastgan.kernels.ingest import ingest

CLOSE_SECONDS = 10.0
RESIDENT_SHARE = 0.25  # of the device's free memory: what the networks need comes on top, and is not known yet
UPLOAD_BYTES = 64 << 20
WAYS = {
    "memory": "from memory by one thread",
    "mapped": "memory-mapped, gathered by one thread",
    "decoded": "decoded by a pool of threads",
    "stream": "streamed and decoded by a pool of threads",
}


@dataclass(frozen=True)
class _Staged:
    """A batch whose copies are under way. done: an event after them, None where copies are not asynchronous."""

    images: Side
    labels: Tensor | None
    source: Side | None
    done: Any


class Feeder:
    """Endless iterator over the batches of one rank, each a pure function of (seed, its sample numbers).

    Batch b covers the global samples first_sample + (b·world + rank)·batch and on, so a run resumes at
    any sample and on any number of ranks, and sees the same images in the same order.

    batch: images per batch of this rank
    mirror: show a random half of the samples flipped left to right
    dtype: of the images, whose values are (uint8 - 127.5) / 127.5, computed in float32; uint8: as they are stored
    source: a second set of images for each batch; None: that of `images`, if there is one
    aligned: image number i of `source` is the partner of image i, and mirrored with it; else it comes in an order of
        its own. As `images` says where `source` is None.
    kind: "resident", "host" (the other two ways), or "auto": resident on a GPU where the images take up to a quarter of
        the memory that is free

    Raises FastganError when the batches of all ranks together exceed the set, for pairs that are none, and from `next`
    whatever went wrong in the threads. A context manager; `close` ends them. They make no device calls, so that they do
    not disturb graph capture; the next batch is copied while the device computes on the one before.
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
        source: ImageSet | None = None,
        aligned: bool = False,
        kind: str = "auto",
    ) -> None:
        assert batch >= 1
        assert 0 <= rank < world
        assert first_sample >= 0
        if kind not in FEEDERS:
            raise FastganError(f"data.feeder: unknown way {kind!r}{suggest(kind, FEEDERS)}")
        if source is None:
            source, aligned = images.source, images.aligned
        _check_sets(images, source, aligned, batch, world)
        self.device, self.dtype = torch.device(device), dtype
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self.kind: str = images.kind
        self._on_device: tuple[Tensor | None, Tensor | None] = (None, None)
        if _is_resident(kind, images, source, self.device):
            try:
                self._on_device, self.kind = _upload(images, source, self.device), "resident"
            except torch.OutOfMemoryError:  # somebody else took it meanwhile
                if kind != "auto":
                    raise
        order = Order(seed, len(images), batch, batch * world, mirror, len(source) if source else 0, aligned)
        order = replace(order, block=images.block, source_block=source.block if source else 0)
        self._plan = self._plan_for(images, source, order)
        self._sample = first_sample + rank * batch
        self._lane, self._closed = new_lane(self._plan, self._sample), False
        self._staged: _Staged | BaseException | None = None
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._memory = Memory()
        for _ in range(self._lane.slots):
            self._lane.give(self._new_slot())

    @property
    def images_per_second(self) -> float:
        """Images that the threads make ready in a second of their work; 0 before the first, and for resident ones."""
        return self._lane.images_per_second

    @property
    def description(self) -> str:
        """The way of the images, for the log."""
        if self._plan.resident:
            where = "the GPU" if self.device.type == "cuda" else "the device"
            size = sum(part.nbytes for part in self._on_device if part is not None)
            return f"resident on {where} ({size / 1e6:,.1f} MB)"
        return WAYS[self.kind].replace("one thread", "two threads" if self._lane.threads == 2 else "one thread")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        assert not self._closed, "the feeder is closed"
        staged = self._staged or self._stage(wait=True)
        self._staged = None
        if isinstance(staged, BaseException):
            self._staged = staged  # for whoever asks again
            raise staged
        assert staged is not None
        batch = self._finish(staged)
        if self._stream is not None:
            self._staged = self._stage(wait=False)  # copied while the device computes on this batch
        return batch

    def close(self) -> None:
        """Ends the threads; what they are reading is finished first, but not waited for beyond ten seconds."""
        self._closed = True
        self._lane.stop(CLOSE_SECONDS)

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stage(self, wait: bool) -> _Staged | BaseException | None:
        """Begins to copy the next batch; None where it is not ready and must not be waited for."""
        begin = time.perf_counter()
        slot = self._lane.take(wait)
        if slot is None:
            return None
        if wait:
            self.wait_seconds += time.perf_counter() - begin
        if isinstance(slot, BaseException):
            return slot
        self._lane.give(self._new_slot())
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            images, source = self._copy(slot.images), None if slot.source is None else self._copy(slot.source)
            labels = None if slot.labels is None else slot.labels.to(self.device, non_blocking=True)
            done = None if self._stream is None else self._stream.record_event()
        return _Staged(images, labels, source, done)

    def _copy(self, side: Side) -> Side:
        flipped = None if side.flipped is None else side.flipped.to(self.device, non_blocking=True)
        return Side(side.pixels.to(self.device, non_blocking=True), flipped)

    def _finish(self, staged: _Staged) -> Batch:
        """The batch in floating point, on the consumer's current stream."""
        if staged.done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(staged.done)
            sides = [staged.images, *([staged.source] if staged.source else [])]
            for tensor in (staged.labels, *(t for side in sides for t in (side.pixels, side.flipped))):
                if tensor is not None:
                    tensor.record_stream(current)
        index = torch.arange(self._sample, self._sample + self._plan.order.batch, device=self.device)
        self._sample += self._plan.order.stride
        source = None if staged.source is None else self._pixels(staged.source, self._on_device[1])
        return Batch(self._pixels(staged.images, self._on_device[0]), staged.labels, index, source)

    def _pixels(self, side: Side, resident: Tensor | None) -> Tensor:
        """[N, C, H, W] in `dtype`, channels-last."""
        if resident is None and self._plan.on_host:  # made by the thread
            return side.pixels.to(self.dtype).permute(0, 3, 1, 2)
        pixels = side.pixels if resident is None else resident.index_select(0, side.pixels)
        if self.dtype == torch.uint8:
            if side.flipped is not None:
                pixels = torch.where(side.flipped[:, None, None, None], pixels.flip(2), pixels)
            return pixels.permute(0, 3, 1, 2)
        return ingest(pixels, side.flipped, self.dtype)

    def _plan_for(self, images: ImageSet, source: ImageSet | None, order: Order) -> Plan:
        on_host = self.device.type == "cpu"
        kind = torch.float32 if self.dtype == torch.float64 else self.dtype  # of which float64 is made
        return Plan(images, source, order, self.kind == "resident", on_host, kind if on_host else torch.uint8)

    def _new_slot(self) -> Slot:
        """Fresh memory. Pinned memory comes from torch's cache, which waits for the copies out of it."""
        plan, pin = self._plan, self.device.type == "cuda"
        number = plan.order.batch

        def side(images: ImageSet) -> Side:
            shape: tuple[int, ...] = (number, images.size, images.size, images.channels)
            kind = plan.dtype
            if plan.resident:
                shape, kind = (number,), torch.int64
            flipped = torch.empty(number, dtype=torch.bool, pin_memory=pin) if plan.order.mirror else None
            pinned = torch.empty(shape, dtype=kind, pin_memory=True) if pin else None
            return Side(self._memory.take(shape, kind) if pinned is None else pinned, flipped)

        labels = None if plan.images.labels is None else torch.empty(number, dtype=torch.int64, pin_memory=pin)
        return Slot(side(plan.images), labels, None if plan.source is None else side(plan.source))


def _check_sets(images: ImageSet, source: ImageSet | None, aligned: bool, batch: int, world: int) -> None:
    smaller = min((s for s in (images, source) if s is not None), key=len)
    if batch * world > len(smaller):
        raise FastganError(
            f"batch {batch * world} is larger than the {len(smaller)} images in {smaller.name}: "
            f"use --batch {len(smaller) // world * world} or less"
        )
    if source is None or not aligned:
        return
    if len(source) != len(images):
        raise FastganError(
            f"pairs: {images.name} has {len(images):,} images, but {source.name} has {len(source):,}; give as many, "
            "with the same names"
        )
    if images.names_sha256 and source.names_sha256 and images.names_sha256 != source.names_sha256:
        raise FastganError(
            f"pairs: images in {images.name} and in {source.name} have different names or another order; give the "
            "partners the same names (endings apart), and pack both or none, with the same seed"
        )


def _is_resident(kind: str, images: ImageSet, source: ImageSet | None, device: torch.device) -> bool:
    """Whether the images go onto the device, all of them."""
    if kind != "auto":
        return kind == "resident"
    sets = [images, *([source] if source else [])]
    if device.type != "cuda" or any(one.kind == "stream" for one in sets):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(one.nbytes for one in sets) <= RESIDENT_SHARE * free


def _upload(images: ImageSet, source: ImageSet | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """All images of both sets on the device, [count, H, W, C] uint8."""

    def upload(one: ImageSet) -> Tensor:
        whole = torch.empty((len(one), one.size, one.size, one.channels), dtype=torch.uint8, device=device)
        step = max(1, UPLOAD_BYTES // (one.size * one.size * one.channels))
        for start in range(0, len(one), step):
            numbers = np.arange(start, min(start + step, len(one)))
            whole[start : start + len(numbers)] = torch.from_numpy(one.read(numbers)).to(device)
        return whole

    uploaded = upload(images), upload(source) if source is not None else None
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # batches may be gathered on any stream
    return uploaded
