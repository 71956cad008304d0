"""Other operations in the place of a graph's convolutions and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...]]  # a function and its arguments


def replace(graph: fx.Graph, node: Any, call: Call, like: Any = None) -> None:
    """`call` instead of `node`. like: the node whose value the new one is taken to look like; None: `node`."""
    with graph.inserting_before(node):
        made = graph.call_function(*call)
    made.meta["val"] = (node if like is None else like).meta["val"]
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def replace_gradients(graph: fx.Graph, node: Any, of_input: Call, of_weight: Call) -> None:
    """These, and a sum for the bias, instead of a node of aten.convolution_backward."""
    delta, x, weight = node.args[:3]
    calls = of_input, of_weight, (aten.sum.dim_IntList, (delta, [0, 2, 3]))
    for user in list(node.users):
        number = user.args[1]
        replace(graph, user, calls[number], like=(x, weight, None)[number])
    graph.erase_node(node)
