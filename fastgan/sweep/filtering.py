"""Convolutions of a graph by minimal filtering (fastgan.kernels.winograd), for CPUs, where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastgan.kernels import winograd
from fastgan.kernels.winograd import DOWN, UP, WEIGHT, Filtering

aten = torch.ops.aten
ops = torch.ops.fastgan


def use_filtering(graph: fx.Graph) -> None:
    """Replace the convolutions of a graph, and their gradients, for which this pays."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            x, weight, bias, *geometry = node.args
            how, transposed = _of(x, weight, geometry), bool(geometry[3])
            if how is not None and how.tile(UP if transposed else DOWN):
                _replace(graph, node, ops.filtered_convolution.default, (x, weight, bias, transposed))
        elif node.target is aten.convolution_backward.default:
            _replace_gradients(graph, node)


def _replace_gradients(graph: fx.Graph, node: Any) -> None:
    """The weight gradient alone, or all gradients at once."""
    delta, x, weight, _, *geometry, wanted = node.args
    how, transposed = _of(x, weight, geometry), bool(geometry[3])
    if how is None or not wanted[1] or not how.tile(WEIGHT):
        return
    if wanted[0] and not how.tile(DOWN if transposed else UP):
        return
    for user in list(node.users):
        with graph.inserting_before(user):
            if user.args[1] == 0:
                _replace(graph, user, ops.filtered_convolution.default, (delta, weight, None, not transposed))
            elif user.args[1] == 1:
                maps = (x, delta) if transposed else (delta, x)
                _replace(graph, user, ops.filtered_weight_gradient.default, (*maps, how.kernel))
            else:
                _replace(graph, user, aten.sum.dim_IntList, (delta, [0, 2, 3]))
    graph.erase_node(node)


def _replace(graph: fx.Graph, node: Any, target: Any, arguments: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        made = graph.call_function(target, arguments)
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _of(x: Any, weight: Any, geometry: Any) -> Filtering | None:
    value = x.meta["val"]
    return winograd.filtering_of(value, weight.meta["val"], *geometry) if value.device.type == "cpu" else None
