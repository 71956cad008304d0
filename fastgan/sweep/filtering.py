"""Convolutions of a graph by minimal filtering (fastgan.kernels.winograd), for CPUs, where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastgan.kernels import winograd
from fastgan.kernels.winograd import DOWN, UP, WEIGHT, Filtering
from fastgan.sweep.replace import replace, replace_gradients

aten = torch.ops.aten
ops = torch.ops.fastgan


def use_filtering(graph: fx.Graph) -> None:
    """Replace the convolutions of a graph, and their gradients, for which this pays."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            x, weight, bias, *geometry = node.args
            how, transposed = _of(x, weight, geometry), bool(geometry[3])
            if how is not None and how.tile(UP if transposed else DOWN):
                replace(graph, node, (ops.filtered_convolution.default, (x, weight, bias, transposed)))
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
    of_input = ops.filtered_convolution.default, (delta, weight, None, not transposed)
    maps = (x, delta) if transposed else (delta, x)
    replace_gradients(graph, node, of_input, (ops.filtered_weight_gradient.default, (*maps, how.kernel)))


def _of(x: Any, weight: Any, geometry: Any) -> Filtering | None:
    return winograd.filtering_of(x.meta["val"], weight.meta["val"], *geometry)
