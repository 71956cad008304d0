"""NumPy's arrays as tensors: those that `torch.as_tensor` refuses or warns of too, and memory in large pages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor stays what it is, detached; of an array the memory is shared, where its order of bytes and its strides
    allow that. FastganError, which calls it `name`, where it is not made of numbers."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        with warnings.catch_warnings():  # that a read-only array could be written through the tensor, which nobody does
            warnings.simplefilter("ignore", UserWarning)
            return torch.as_tensor(array)
    except (TypeError, ValueError):
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise FastganError(f"{name}: expected an array or a tensor of numbers, got {kind}") from None


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor, with anything in it. On a CPU it is NumPy's, which asks Linux for large pages: the first use
    of a page costs as much as writing it several times, and a matrix of 8 MB has 2,000 of the usual size."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), np.float32 if dtype == torch.float32 else np.float64))
