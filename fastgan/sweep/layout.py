"""Where the samples are in each value of a critic's graph, and whether any value mixes them.

The batch lies along one dimension, of size outer * N * inner: the sample's index is (position // inner) % N.
A value for which that is no longer so (a mean over the batch, a batch split in groups) has layout None.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fastgan.sweep.graph import AtenGraph, Node, value_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Layout:
    """The batch along dimension `dim`, of size outer * N * inner."""

    dim: int
    outer: int = 1
    inner: int = 1

    def spread(self, per_sample: Tensor, dims: int) -> Tensor:
        """per_sample [N] in the shape in which it multiplies a tensor of this layout and of `dims` dimensions."""
        if self.inner > 1:
            per_sample = per_sample.repeat_interleave(self.inner)
        if self.outer > 1:
            per_sample = per_sample.repeat(self.outer)
        return per_sample.view([-1 if d == self.dim else 1 for d in range(dims)])


SINGLE = Layout(-1)
"""A batch of one sample: wherever it lies, its one number multiplies everything."""


def layouts(graph: AtenGraph, samples: Iterable[int], count: int) -> dict[Node, Layout | None]:
    """Layout of every node that depends on the arguments `samples`, whose first dimension is the batch of `count`."""
    found: dict[Node, Layout | None] = {graph.inputs[i]: Layout(0) for i in samples}
    for node in graph.nodes:
        sources = [found[n] for n in node.all_input_nodes if n in found]
        if sources:
            known = [source for source in sources if source is not None]
            found[node] = _flow(node, found, count) if len(known) == len(sources) else None
    return found


def _flow(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """Layout of `node` from those of its arguments, of which none is None."""
    packet = getattr(node.target, "overloadpacket", node.target)
    way = _WAYS.get(packet)
    if way is None:
        return None
    layout = way(node, found, count)
    if layout is None:
        return None
    shape = _shape(node)
    if layout.dim >= len(shape) or shape[layout.dim] != layout.outer * count * layout.inner:
        return None
    return layout


def _shape(node: Node) -> tuple[int, ...]:
    value = value_of(node)
    return tuple((value[0] if isinstance(value, (tuple, list)) else value).shape)


_Way = Callable[[Node, dict[Node, Layout | None], int], Layout | None]
_WAYS: dict[Any, _Way] = {}


def _way(*packets: Any) -> Callable[[_Way], _Way]:
    def add(function: _Way) -> _Way:
        _WAYS.update(dict.fromkeys(packets, function))
        return function

    return add


def _own(node: Node, found: dict[Node, Layout | None], argument: int = 0) -> Layout | None:
    """Layout of the node's argument of that number, None if it does not depend on the samples."""
    source = node.args[argument] if len(node.args) > argument else None
    if isinstance(source, (list, tuple)):
        source = next((s for s in source if s in found), None)
    return found.get(source) if isinstance(source, fx.Node) else None


def _argument(node: Node, number: int, name: str, default: Any = None) -> Any:
    return node.args[number] if len(node.args) > number else node.kwargs.get(name, default)


def _dims(value: Any, count: int) -> set[int]:
    """Dimensions as a set of numbers of 0 or more; all of them for None or nothing."""
    given = [value] if isinstance(value, int) else list(value or range(count))
    return {d % count if count else 0 for d in given}


@_way(aten.native_layer_norm)
def _layer_norm(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """Over the last dimensions: the batch is none of them."""
    own = _own(node, found)
    return own if own is not None and own.dim < len(_shape(node)) - len(node.args[1]) else None


@_way(aten.convolution, aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
      aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
      aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d,
      aten.adaptive_avg_pool1d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
      aten.adaptive_max_pool2d, aten.adaptive_max_pool3d,
      aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten._upsample_nearest_exact1d,
      aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d, aten.upsample_linear1d,
      aten.upsample_bilinear2d, aten.upsample_trilinear3d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa,
      aten._upsample_bicubic2d_aa, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle,
      aten.native_group_norm, aten.native_batch_norm, aten._native_batch_norm_legit_no_training,
      aten.cudnn_batch_norm, aten.im2col, aten.col2im, aten.slice_scatter, aten.select_scatter)  # fmt: skip
def _in_front(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """Operations on [N, C, ...] that keep the batch in front, and never look across it."""
    own = _own(node, found)
    if own is None or own.dim != 0:
        return None
    if node.target is aten.constant_pad_nd.default and any(node.args[1][2 * len(_shape(node)) - 2 :]):
        return None
    if node.target in (aten.slice_scatter.default, aten.select_scatter.default):
        return own if _argument(node, 2, "dim", 0) % len(_shape(node)) != own.dim else None
    return own


@_way(aten.relu, aten.leaky_relu, aten._prelu_kernel, aten.abs, aten.clamp, aten.clamp_min, aten.clamp_max,
      aten.hardtanh, aten.threshold, aten.hardshrink, aten.softshrink, aten.add, aten.sub, aten.rsub, aten.mul,
      aten.div, aten.neg,
      aten.where, aten.maximum, aten.minimum, aten.lerp, aten.addcmul, aten._to_copy, aten.clone, aten.detach,
      aten.alias, aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.sign, aten.sgn, aten.masked_fill,
      aten.bernoulli, aten.copy, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like,
      aten.randn_like, aten.expand, aten.logical_and, aten.logical_or, aten.logical_not, aten.pow, aten.sqrt, aten.exp,
      aten.log, aten.tanh, aten.sigmoid, aten.reciprocal, aten.rsqrt, aten.square, aten.native_dropout,
      aten.lift_fresh_copy, aten.gelu, aten.silu, aten.softplus, aten.elu, aten.floor, aten.ceil,
      aten.round)  # fmt: skip
def _elementwise(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """Elementwise and broadcasting operations: dimensions count from the right."""
    dims = len(_shape(node))
    flows = {
        replace(own, dim=own.dim + dims - len(_shape(n)))
        for n in node.all_input_nodes
        if (own := found.get(n)) is not None
    }
    return flows.pop() if len(flows) == 1 else None


@_way(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """The distance from one sample to the next in the flat order stays."""
    own = _own(node, found)
    if own is None:
        return None
    before, after = _shape(node.args[0]), _shape(node)
    distance = math.prod(before[own.dim + 1 :]) * own.inner
    for dim, size in enumerate(after):
        behind = math.prod(after[dim + 1 :])
        if distance % behind == 0 and size % (count * (distance // behind)) == 0 and size:
            inner = distance // behind
            return Layout(dim, size // (count * inner), inner)
    return None


@_way(aten.permute)
def _permute(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, order = _own(node, found), node.args[1]
    dims = len(_shape(node))
    return replace(own, dim=[d % dims for d in order].index(own.dim)) if own else None


@_way(aten.transpose, aten.t)
def _transpose(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, dims = _own(node, found), len(_shape(node))
    if own is None or dims < 2:
        return own
    a, b = _argument(node, 1, "dim0", 0) % dims, _argument(node, 2, "dim1", 1) % dims
    return replace(own, dim={a: b, b: a}.get(own.dim, own.dim))


@_way(aten.unsqueeze, aten.stack)
def _new_dimension(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, new = _own(node, found), _argument(node, 1, "dim", 0) % len(_shape(node))
    if node.target is aten.stack.default and not _agree(node, found):
        return None
    return replace(own, dim=own.dim + (new <= own.dim)) if own else None


def _agree(node: Node, found: dict[Node, Layout | None]) -> bool:
    """Whether all tensors of a list have one layout."""
    return len({found[n] for n in node.args[0] if n in found}) == 1


@_way(aten.squeeze)
def _squeeze(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, shape = _own(node, found), _shape(node.args[0])
    gone = {d for d in _dims(_argument(node, 1, "dim"), len(shape)) if shape[d] == 1}
    if own is None or own.dim in gone:
        return None
    return replace(own, dim=own.dim - sum(d < own.dim for d in gone))


@_way(aten.select)
def _select(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own = _own(node, found)
    if own is None:
        return None
    dim = node.args[1] % len(_shape(node.args[0]))
    return None if dim == own.dim else replace(own, dim=own.dim - (dim < own.dim))


@_way(aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.cumsum, aten.flip, aten.roll, aten.cat,
      aten.gather, aten.index_select)  # fmt: skip
def _along_another(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """Operations along one or more dimensions, none of which may be the batch's."""
    own, dims = _own(node, found), len(_shape(node))
    packet = node.target.overloadpacket
    if own is None:
        return None
    if packet is aten.cat and not _agree(node, found):
        return None
    along: Any
    if packet is aten.unbind:
        along = _argument(node, 1, "dim", 0) % (dims + 1)
        return None if along == own.dim else replace(own, dim=own.dim - (along < own.dim))
    if packet in (aten.split, aten.split_with_sizes, aten.roll):
        along = _argument(node, 2, "dim" if packet is not aten.roll else "dims", 0 if packet is not aten.roll else None)
    else:
        along = _argument(node, 1, "dim", 0)
    if packet is aten.slice and _shape(node) == _shape(node.args[0]):
        return own
    return None if own.dim in _dims(along, dims) else own


@_way(aten.index)
def _index(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """x[:, order]: one one-dimensional index that is not along the batch and does not depend on the samples."""
    own, indices = _own(node, found), node.args[1]
    if own is None:
        return None
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or given[0][0] == own.dim or given[0][1] in found or len(_shape(given[0][1])) != 1:
        return None
    return own


@_way(aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.linalg_vector_norm,
      aten.argmax, aten.argmin, aten.any, aten.all, aten.var_mean, aten.logsumexp)  # fmt: skip
def _reduce(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, dims = _own(node, found), len(_shape(node.args[0]))
    packet = node.target.overloadpacket
    if own is None:
        return None
    if packet is aten.linalg_vector_norm:
        along, keep = _argument(node, 2, "dim"), _argument(node, 3, "keepdim", False)
    else:
        along, keep = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    if packet in (aten.var, aten.std, aten.var_mean):
        keep = node.kwargs.get("keepdim", False)
    gone = _dims(along, dims)
    if own.dim in gone:
        return None
    return own if keep else replace(own, dim=own.dim - sum(d < own.dim for d in gone))


@_way(aten._softmax, aten._log_softmax)
def _normalised(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    own, dims = _own(node, found), len(_shape(node))
    return None if own is None or _argument(node, 1, "dim", 0) % dims == own.dim else own


@_way(aten.mm, aten.addmm, aten.mv, aten.bmm, aten.baddbmm, aten.addmv)
def _matrix(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    """The batch must not be summed over, and must be in one factor or, in bmm, lead both."""
    packet = node.target.overloadpacket
    first = 1 if packet in (aten.addmm, aten.baddbmm, aten.addmv) else 0
    left, right = _own(node, found, first), _own(node, found, first + 1)
    if first and node.args[0] in found:
        dims = len(_shape(node))
        bias = found[node.args[0]]
        bias = replace(bias, dim=bias.dim + dims - len(_shape(node.args[0]))) if bias else None
    else:
        bias = None
    batched = packet in (aten.bmm, aten.baddbmm)
    summed_left, summed_right = (2, 1) if batched else (1, 0)
    if (left and left.dim == summed_left) or (right and right.dim == summed_right):
        return None
    if left and right and not (batched and left == right and left.dim == 0):
        return None
    result = left or right or bias
    return result if bias is None or bias == result else None


@_way(aten.embedding)
def _embedding(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    return None if node.args[0] in found else _own(node, found, 1)


@_way(operator.getitem)
def _getitem(node: Node, found: dict[Node, Layout | None], count: int) -> Layout | None:
    return _own(node, found)
