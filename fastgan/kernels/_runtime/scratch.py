"""Memory that native parts compute in, kept from call to call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_KEPT = threading.local()


def scratch(count: int, dtype: torch.dtype) -> Tensor:
    """Memory for `count` numbers on the CPU, kept per thread: fresh pages cost more than what is done in them.

    Whoever asks next gets the same.
    """
    kept: Tensor | None = getattr(_KEPT, str(dtype), None)
    if kept is None or len(kept) < count:
        kept = torch.empty(count, dtype=dtype)
        setattr(_KEPT, str(dtype), kept)
    return kept[:count]
