"""Rewriting of a traced computation, so that it keeps and moves less."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fastgan.kernels import masked_act
from fastgan.kernels._runtime import choose
from fastgan.sweep.filtering import use_filtering
from fastgan.sweep.graph import Node
from fastgan.sweep.small_maps import use_products
from fastgan.sweep.storage import Storage

aten = torch.ops.aten
ops = torch.ops.fastgan


def rewrite(graph: fx.Graph) -> fx.Graph:
    """The same results by fewer and cheaper operations."""
    graph = _without_detach(graph)
    _each_once(graph)
    graph.eliminate_dead_code()
    _input_gradients_as_convolutions(graph)
    use_filtering(graph)
    use_products(graph)
    _masks_for_activations(graph)
    graph.eliminate_dead_code()
    return graph


def _without_detach(graph: fx.Graph) -> fx.Graph:
    for node in list(graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


def _each_once(graph: fx.Graph) -> None:
    """One node per value: operations on the same arguments are merged, unless they draw random numbers.

    Values that autograd's formulas write to (`masked_fill_`) are left alone.
    """
    seen: dict[Any, Node] = {}
    storage = Storage(graph, pinned=())
    for node in list(graph.nodes):
        if node.op != "call_function" or _is_own_every_time(node) or storage.is_written(node):
            continue
        key = (node.target, *(_frozen(each) for each in (node.args, node.kwargs)))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _is_own_every_time(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is not operator.getitem
    fresh = node.target.overloadpacket in (aten.empty, aten.new_empty, aten.empty_like)
    return fresh or torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable


def _frozen(value: Any) -> Any:
    """Arguments as a key of a dict; 1, 1.0 and True are different."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(each)) for name, each in value.items())
    return type(value), value


def _input_gradients_as_convolutions(graph: fx.Graph) -> None:
    """The gradient of a convolution by its input is the transposed convolution (and the other way round).

    `convolution_backward` takes the input only for its shape, and would keep it in memory until pass 2.
    """
    for node in list(graph.nodes):
        if node.target is not aten.convolution_backward.default or list(node.args[-1]) != [True, False, False]:
            continue
        delta, x, weight, _, stride, padding, dilation, transposed, _output_padding, groups, _ = node.args
        shape, small = x.meta["val"].shape[2:], delta.meta["val"].shape[2:]
        kernel = weight.meta["val"].shape[2:]
        if transposed:
            extra = [0] * len(shape)
        else:
            extra = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, m, s, p, d, k in zip(shape, small, stride, padding, dilation, kernel, strict=True)
            ]
        if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
            continue
        with graph.inserting_before(node):
            gradient = graph.call_function(
                aten.convolution.default,
                (delta, weight, None, stride, padding, dilation, not transposed, extra, groups),
            )
        gradient.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            if user.args[1] == 0:
                user.replace_all_uses_with(gradient)
            graph.erase_node(user)
        graph.erase_node(node)


def _masks_for_activations(graph: fx.Graph) -> None:
    """(Leaky) ReLU keeps one bit per element for its backward and for pass 3, where the scaled bias goes in with it."""
    slopes: dict[Node, list[Node]] = {}  # activation -> the multiplications by its slopes
    of_input: dict[Any, Node] = {}
    for node in graph.nodes:
        if node.target is aten.leaky_relu.default:
            of_input.setdefault((node.args[0], _slope(node)), node)
    for node in graph.nodes:
        act: Any = None
        if node.target is aten.leaky_relu_backward.default:
            act = of_input.get((node.args[1], node.args[2])) if not node.args[3] else node.args[1]
        elif node.target is aten.threshold_backward.default and node.args[2] == 0:
            act = node.args[1]
        if isinstance(act, fx.Node) and act.target in (aten.relu.default, aten.leaky_relu.default):
            slopes.setdefault(act, []).append(node)
    for act, users in slopes.items():
        value = act.meta["val"]
        if value.dtype not in masked_act.TYPES or not choose("masked_act", value.device).native:
            continue
        slope = _slope(act)
        with graph.inserting_before(act):
            both = graph.call_function(ops.masked_act.default, (act.args[0], slope))
            a = graph.call_function(operator.getitem, (both, 0))
            mask = graph.call_function(operator.getitem, (both, 1))
        a.meta["val"] = value
        for user in users:
            with graph.inserting_before(user):
                u, bias, scale = _with_bias(user.args[0])
                product = graph.call_function(ops.apply_mask.default, (u, mask, slope, bias, scale))
            product.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(product)
            graph.erase_node(user)
        act.replace_all_uses_with(a)
        graph.erase_node(act)


def _slope(act: Node) -> Any:
    """Of ReLU or leaky ReLU."""
    return 0.0 if act.target is aten.relu.default else act.args[1] if len(act.args) > 1 else 0.01


def _with_bias(u: Node) -> tuple[Node, Node | None, Node | None]:
    """(v, bias, scale) where u is v + scale_n bias_c and nothing else needs it, otherwise (u, None, None)."""
    if u.target is aten.add.Tensor and len(u.users) == 1 and not u.kwargs and isinstance(u.args[1], fx.Node):
        v, product = u.args
        if product.target is aten.mul.Tensor and v.meta["val"].shape == u.meta["val"].shape:
            dims = u.meta["val"].dim()
            scale = _vector(product.args[0], 0, dims)
            bias = _vector(product.args[1], 1, dims)
            if scale is not None and bias is not None and dims >= 2:
                return v, bias, scale
    return u, None, None


def _vector(node: Any, dim: int, dims: int) -> Node | None:
    """The one-dimensional tensor of which `node` is a view along `dim`, one of `dims` dimensions."""
    if not isinstance(node, fx.Node) or node.target is not aten.view.default:
        return None
    source, shape = node.args[0], node.meta["val"].shape
    one_dimensional = isinstance(source, fx.Node) and source.meta["val"].dim() == 1
    along = all(size == 1 for d, size in enumerate(shape) if d != dim) and len(shape) == dims
    return source if one_dimensional and along else None
