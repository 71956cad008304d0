"""When layers have to be made of PyTorch's own operations: for an exported model, and for who reads their graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_plain = False  # a global, not a context variable: torch.compile guards on it


def plain() -> bool:
    """Whether layers call PyTorch's operations instead of ours."""
    return _plain or torch.compiler.is_exporting()


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Layers call PyTorch's operations within."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before
