"""Dispatch modes that watch what an operation would make a GPU's host do, and how much memory a step takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(*values: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that brings a value to the host, or whose result's shape depends on values."""

    READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.is_nonzero)
    SHAPES = (
        torch.ops.aten.nonzero,
        torch.ops.aten.nonzero_numpy,
        torch.ops.aten.masked_select,
        torch.ops.aten._unique,
        torch.ops.aten._unique2,
        torch.ops.aten.unique_dim,
        torch.ops.aten.bincount,
        torch.ops.aten.repeat_interleave,
    )
    INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        assert packet not in self.READS, f"{func} reads on the host"
        assert packet not in self.SHAPES, f"{func} has a shape that depends on values: it reads on the host"
        if packet in self.INDEXED:
            masks = [t for t in tensors(args[1]) if t.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask has a shape that depends on values: it reads on the host"
        out = func(*args, **kwargs)
        self.check_devices(func, args, kwargs, out)
        return out

    @staticmethod
    def check_devices(func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """No copy from one kind of device to another. Tensors on "meta" are for a GPU where there is none."""
        kinds = {t.device.type for t in tensors(args, kwargs, out)}
        assert len(kinds) <= 1, f"{func} works on {' and '.join(sorted(kinds))} at once: a copy in each step"


class Memory(TorchDispatchMode):
    """Counts the tensors that are made and their bytes. made: operation -> how many"""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.made = 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tensors(args, kwargs)}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in given:
                self.bytes += tensor.untyped_storage().nbytes()
                self.made[str(func)] += 1
        return out


class LayoutCopies(TorchDispatchMode):
    """Notes every copy of an image-like tensor [N, C, H, W] into another order of its dimensions, in `found`.

    Tensors that are dense in both orders, such as those of one pixel or one channel, do not count.
    """

    COPIES = (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.contiguous)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.COPIES:
            source, target = args[0], out
        elif func.overloadpacket is torch.ops.aten.copy_:
            target, source = args[0], args[1]
        else:
            return out
        orders = _order(source), _order(target)
        if None not in orders and orders[0] != orders[1]:
            self.found.append(f"{func} {list(source.shape)} from {orders[0]} to {orders[1]}")
        return out


def _order(tensor: Tensor) -> str | None:
    """The order of the dimensions in memory; None where it is no image or both orders hold."""
    if tensor.ndim != 4:
        return None
    first, last = tensor.is_contiguous(), tensor.is_contiguous(memory_format=torch.channels_last)
    if first and last:
        return None
    return "NCHW" if first else "NHWC" if last else "neither"
