"""Whole training steps as CUDA graphs: what the host does in a step is one launch.

A step is captured as a whole, with its schedules, draws, critic turns, generator's turn, updates and averages, since
a turn may go on from what the turn before it computed (`fastgan.contract.Turn.fresh`). Which turns a step plays
depends on its number alone (lazy penalties); steps that play the same turns are a *phase*, with one graph:

    first steps of a phase    are played as they are, on the stream of the capture: warm-up, and training all the same
    the next one              is captured, which computes nothing, and replayed
    all others                are replayed

A graph reads and writes fixed addresses. Networks, moments, averages, scalars and sums lie at such anyway; batches are
copied into buffers that stay. Batches of another shape or type get buffers and graphs of their own. Where a capture
fails, training goes on uncaptured, and one line says why.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fastgan.contract import Batch
from fastgan.step import Step

WARMUP = 2  # steps of a phase that are played before it is captured
SHAPES = 4  # of batches, for which graphs are kept; the oldest go first
AHEAD = 8  # steps that the host may be ahead of the device: bounds the memory of batches on their way

T = TypeVar("T")
Replay = Callable[[], object]
Signature = tuple[Any, ...]


class Graphs(Protocol):
    """What capturing needs from a device; tests have one that needs no GPU."""

    def arrive(self, fetch: Callable[[], T]) -> T:
        """fetch(), beside what the device is computing."""

    def fill(self, copy: Callable[[], None]) -> None:
        """copy(), after everything computed so far and before everything to come."""

    def warm_up(self, play: Callable[[], None]) -> None:
        """play(), as `capture` will run it."""

    def capture(self, play: Callable[[], None]) -> Replay:
        """A function that does on the device what play() would do now; calling this does nothing of it."""

    def throttle(self) -> None:
        """Wait, on the host, until the device is at most AHEAD steps behind."""


class CudaGraphs:
    """CUDA graphs of one device, all in one pool of memory: none leaves anything in it that another one needs.

    Replays run on the caller's current stream, so that whatever it reads afterwards is in order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._arriving, self._capturing = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._behind: deque[torch.cuda.Event] = deque()

    def arrive(self, fetch: Callable[[], T]) -> T:
        with torch.cuda.stream(self._arriving):
            return fetch()

    def fill(self, copy: Callable[[], None]) -> None:
        # The upload was queued on this stream before, and so runs beside the last step; the copy waits for its end.
        current = torch.cuda.current_stream(self._device)
        self._arriving.wait_stream(current)
        with torch.cuda.stream(self._arriving):
            copy()
        current.wait_stream(self._arriving)

    def warm_up(self, play: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._device)
        self._capturing.wait_stream(current)
        with torch.cuda.stream(self._capturing):
            play()
        current.wait_stream(self._capturing)

    def capture(self, play: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # As torch.cuda.graph does, which hides what went wrong behind the error that ends a broken capture.
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()
        with torch.cuda.stream(self._capturing):
            # Only this thread's calls count: the one that makes batches may allocate pinned memory meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                play()
            except BaseException:
                with contextlib.suppress(Exception):
                    self._end(graph)
                raise
            self._end(graph)
        replay: Replay = graph.replay
        return replay

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture. Where that raises, torch up to 2.11 leaves its allocator and its generator in the middle of
        it (pytorch#180395): the allocator is told, and the generator is taken along by another, empty capture."""
        try:
            graph.capture_end()
        except Exception:
            pool, self._pool = self._pool, None
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self._capturing.device.index, pool)
            with contextlib.suppress(Exception), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._capturing):
                torch.zeros(1, device=self._device)
            raise

    def throttle(self) -> None:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._behind.append(event)
        if len(self._behind) > AHEAD:
            self._behind.popleft().synchronize()


@dataclass
class _Buffers:
    """Batches of one shape at fixed addresses, and the graphs that read them. played: steps per phase so far."""

    batches: list[Batch]
    graphs: dict[tuple[int, ...], Replay] = field(default_factory=dict)
    played: Counter[tuple[int, ...]] = field(default_factory=Counter)

    @staticmethod
    def like(batches: Sequence[Batch]) -> _Buffers:
        return _Buffers([Batch(*(None if t is None else torch.empty_like(t) for t in parts(b))) for b in batches])  # type: ignore[arg-type]

    def fill(self, batches: Sequence[Batch]) -> None:
        for mine, given in zip(self.batches, batches, strict=True):
            for to, source in zip(parts(mine), parts(given), strict=True):
                if to is not None and source is not None:
                    to.copy_(source, non_blocking=True)


def parts(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """All tensors of a batch, in the order of its fields."""
    return batch.images, batch.labels, batch.index, batch.source


def signature(batches: Sequence[Batch]) -> Signature:
    """What a graph takes for granted of its batches: shapes, memory layouts, types."""
    tensors = [t for batch in batches for t in parts(batch)]
    return tuple(None if t is None else (tuple(t.shape), t.stride(), t.dtype) for t in tensors)


class CapturedStep:
    """A training step that is replayed from graphs where that works; used like the `Step` it is made from.

    reason: why steps are no longer captured; "" while they are
    """

    def __init__(self, step: Step, graphs: Graphs, say: Callable[[str], None] = warnings.warn) -> None:
        """say: gets the one line in case that capturing does not work"""
        self.step, self.reason = step, ""
        self._graphs, self._say = graphs, say
        self._buffers: dict[Signature, _Buffers] = {}

    @property
    def batches(self) -> int:
        """Batches that a step takes."""
        return self.step.batches

    @property
    def captured(self) -> int:
        """Graphs that there are now."""
        return sum(len(buffers.graphs) for buffers in self._buffers.values())

    def read_statistics(self) -> dict[str, Any]:
        """As `Step.read_statistics`."""
        return self.step.read_statistics()

    def forget(self) -> None:
        """Drop all graphs: for who changed what they cannot see, such as an attribute or a tensor of a network."""
        self._buffers.clear()

    def __call__(self, next_batch: Callable[[], Batch]) -> None:
        """Play the next step on batches from `next_batch` and advance the state, as `Step` does."""
        if self.reason:
            self.step(next_batch)
            return
        fresh = self._graphs.arrive(lambda: self.step.fetch(next_batch))
        buffers = self._buffers_for(fresh)
        self._graphs.fill(lambda: buffers.fill(fresh))
        self._play(buffers)
        self.step.advance()
        self._graphs.throttle()

    def _buffers_for(self, batches: Sequence[Batch]) -> _Buffers:
        key = signature(batches)
        if key not in self._buffers:
            while len(self._buffers) >= SHAPES:
                del self._buffers[next(iter(self._buffers))]
            self._buffers[key] = _Buffers.like(batches)
        return self._buffers[key]

    def _play(self, buffers: _Buffers) -> None:
        """The present step on the batches in `buffers`, by whatever way its phase is at."""
        phase = self.step.phase
        if phase not in buffers.graphs and buffers.played[phase] >= WARMUP:
            with self._or_without():
                buffers.graphs[phase] = self._graphs.capture(lambda: self.step.run(buffers.batches))
        if phase in buffers.graphs:
            buffers.graphs[phase]()
        elif self.reason:
            buffers.graphs.clear()  # with the memory that they hold
            self.step.run(buffers.batches)
        else:
            buffers.played[phase] += 1
            self._graphs.warm_up(lambda: self.step.run(buffers.batches))

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """Give capturing up where it raises. Nothing was computed then, so that the step can be played as it is."""
        try:
            yield
        except Exception as error:  # whatever a driver, a compiler or somebody's network raises
            lines = str(error).strip().splitlines()
            self.reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            self._buffers = {}
            self._say(f"steps are not replayed as CUDA graphs, so they are slower: {self.reason}; --set capture=false")


def captured(step: Step, say: Callable[[str], None]) -> Step | CapturedStep:
    """The step, captured where its device has graphs."""
    device = step.state.device
    return CapturedStep(step, CudaGraphs(device), say) if device.type == "cuda" else step
