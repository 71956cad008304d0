"""NumPy arrays, or lists of numbers, as tensors: also those that `torch.as_tensor` refuses or warns of."""

from __future__ import annotations

import warnings
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
