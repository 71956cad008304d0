"""Graphs for `CapturedStep` that need no GPU: the operations of a capture on a tape, at their addresses.

Like a CUDA graph, a tape knows operations and tensors only: a number that Python read or computed on the way stays what
it was at the capture, and what was not an operation is not replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastgan.capture import Replay

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """Writes down operations; `rewind` undoes all that they did to tensors from before, `play` does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):  # all: some schemas do not say what is written, as batch_norm's
            if isinstance(tensor, Tensor):
                self._keep(tensor)
        given_then = _views((args, kwargs))
        out = func(*args, **kwargs)
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        fresh = [t for t in tree_leaves(out) if isinstance(t, Tensor) and _memory(t) not in given]
        self._made.update(_memory(t) for t in fresh)
        self.entries.append((func, given_then, _views(out)))
        return out

    def _keep(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        if memory not in self._made and memory not in self._before:
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            self._before[memory] = whole, whole.clone()

    def rewind(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)

    @torch.no_grad()
    def play(self) -> None:
        for func, given, out in self.entries:
            args, kwargs = _views(given)
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and _memory(old) != _memory(new):
                    old.copy_(new)


def _views(tensors: Any) -> Any:
    """The same memory under the present shapes, which in-place operations on the tensors then leave alone."""
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tensors)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class TapeGraphs:
    """What CudaGraphs does, on tapes. calls: names of what was done, in order."""

    def __init__(self, error: Exception | None = None) -> None:
        """error: raised by `capture`, after it has run the step as a capture does"""
        self.error, self.calls = error, list[str]()

    def arrive(self, fetch: Callable[[], T]) -> T:
        self.calls.append("arrive")
        return fetch()

    def fill(self, copy: Callable[[], None]) -> None:
        self.calls.append("fill")
        copy()

    def warm_up(self, play: Callable[[], None]) -> None:
        self.calls.append("warm_up")
        play()

    def capture(self, play: Callable[[], None]) -> Replay:
        self.calls.append("capture")
        tape = Tape()
        with tape:
            play()
        with torch.no_grad():
            tape.rewind()
        if self.error:
            raise self.error

        def replay() -> None:
            self.calls.append("replay")
            tape.play()

        return replay

    def throttle(self) -> None:
        self.calls.append("throttle")
