"""From whatever holds samples to batches of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError


def features_of(source: Any, features: Any = None, *, batch_size: int = 64) -> Iterator[Tensor]:
    """Batches [n, d] of features.

    source: features [n, d] already (a NumPy array or a torch tensor), or an iterable of such batches.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        yield matrix(source)
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, dict)):
        for batch in source:
            yield matrix(batch)
    else:
        raise FastganError(f"expected features [n, d] or batches of them, got {type(source).__name__}")


def matrix(value: Any) -> Tensor:
    """value: [n, d], real. Its dtype where that is floating, else fp64."""
    if not isinstance(value, (np.ndarray, Tensor)):
        raise FastganError(f"features: expected an array or a tensor [n, d], got {type(value).__name__}")
    given = torch.as_tensor(value).detach()
    if given.dim() != 2 or not given.shape[1] or given.is_complex():
        raise FastganError(f"features: expected real [n, d], got {given.dtype} {list(given.shape)}")
    return given if given.is_floating_point() else given.double()
