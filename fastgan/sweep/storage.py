"""Which values share memory, and which operations may therefore write over one of their arguments."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

import fastgan.kernels.masked_act  # noqa: F401, registers the ops
from fastgan.sweep.graph import Node

aten = torch.ops.aten
ops = torch.ops.fastgan

IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.relu.default: aten.relu_.default,
    aten.leaky_relu.default: aten.leaky_relu_.default,
    ops.masked_act.default: ops.masked_act_.default,
    ops.apply_mask.default: ops.apply_mask_.default,
}
"""Operation -> the same over its first argument."""

COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}


class Storage:
    """The memory of the values of a graph.

    pinned: values that leave the computation, whose memory is never written over
    """

    def __init__(self, graph: fx.Graph, pinned: Iterable[Node]) -> None:
        self.root: dict[Node, Node] = {}
        self.sharing: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            root = self._root_of(node)
            self.root[node] = root
            self.sharing.setdefault(root, []).append(node)
        self.written = {self.root[n] for node in graph.nodes for n in _written_arguments(node)}
        self.pinned = {self.root[node] for node in pinned}
        self.pinned |= {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}

    def _root_of(self, node: Node) -> Node:
        if not node.all_input_nodes or not _is_view(node):
            return node
        return self.root[node.all_input_nodes[0]]

    def is_written(self, node: Node) -> bool:
        """Whether some operation of the graph writes to the node's memory."""
        return self.root[node] in self.written

    def shared(self, nodes: Sequence[Node]) -> set[Node]:
        """Those of `nodes` that share memory with another one, or with an input."""
        roots = [self.root[node] for node in nodes]
        return {n for n, r in zip(nodes, roots, strict=True) if roots.count(r) > 1 or r.op == "placeholder"}

    def reusable(self, node: Node, last: dict[Node, Node], keep: set[Node]) -> int | None:
        """The number of the argument over which `node` can write its result, None if there is none.

        last: node -> the node of the same function that uses it last; keep: what the function returns
        """
        if node.target not in IN_PLACE:
            return None
        numbers = [0]
        if node.target in COMMUTATIVE and not node.kwargs:
            numbers.append(1)
        for number in numbers:
            argument = node.args[number]
            if (
                isinstance(argument, fx.Node)
                and self._is_last_use(argument, node, last, keep)
                and _same_place(argument, node)
                and sum(self.root[other] is self.root[argument] for other in _tensors(node)) == 1
            ):
                return number
        return None

    def _is_last_use(self, argument: Node, node: Node, last: dict[Node, Node], keep: set[Node]) -> bool:
        """Whether nothing needs the argument's memory after `node`."""
        root = self.root[argument]
        if root in self.pinned:
            return False
        sharing = self.sharing[root]
        if any(other in keep for other in sharing):
            return False
        return all(last.get(other, node) <= node for other in sharing)


def _tensors(node: Node) -> list[Node]:
    """The arguments of an operation, each as often as it is given."""
    return [each for each in node.args if isinstance(each, fx.Node)]


def _written_arguments(node: Node) -> list[Node]:
    """The arguments that an operation changes."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return []
    named = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    written = [a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [named[name] for name in written if isinstance(named.get(name), fx.Node)]


def _same_place(argument: Node, node: Node) -> bool:
    """Whether the result fits into the argument's memory: the same shape and type, each element by itself."""
    value, result = argument.meta.get("val"), node.meta.get("val")
    if isinstance(result, (tuple, list)) or result is None:
        result = value if node.target is ops.masked_act.default else None
    if not isinstance(value, Tensor) or not isinstance(result, Tensor):
        return False
    formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(value.dim(), [])
    dense = any(value.is_contiguous(memory_format=form) for form in (torch.contiguous_format, *formats))
    same = value.shape == result.shape and value.stride() == result.stride() and value.dtype == result.dtype
    return dense and same


def _is_view(node: Node) -> bool:
    """Whether the node's value may be another look at its first argument's memory."""
    if node.target is operator.getitem:
        source = node.args[0]
        return _is_view(source) or (source.target is ops.masked_act.default and node.args[1] == 0)
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target in (aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default):
        return True
    if node.target in (aten.contiguous.default, aten._to_copy.default):
        return True
    return any(r.alias_info is not None for r in node.target._schema.returns)
