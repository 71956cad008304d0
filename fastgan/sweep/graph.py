"""One guarded call of a critic as a functional ATen graph: straight-line, without mutation, with places."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from fastgan.errors import UnsupportedCritic
from fastgan.kernels._runtime import DECOMPOSITIONS

Node: TypeAlias = Any
"""An fx.Node; its arguments may be of so many types that a checker asks at every step which one."""

MARK = "fastgan"  # key of our marks in a node's meta["custom"]


@dataclass(frozen=True)
class AtenGraph:
    """A critic's forward.

    module:  holder of the constants that `get_attr` nodes name
    inputs:  placeholders, one per argument
    nodes:   the operations, in order
    outputs: what the call returns, the logits first
    mutated: argument -> the value that it has after the call (a buffer updated in training)
    """

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    outputs: tuple[Any, ...]
    mutated: dict[int, fx.Node]

    @property
    def logits(self) -> fx.Node:
        logits = self.outputs[0]
        if not isinstance(logits, fx.Node) or logits in self.inputs:
            raise UnsupportedCritic("the critic returns no tensor of its own computation")
        return logits

    @property
    def random(self) -> bool:
        """Whether the call draws random numbers."""
        return any(
            isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
            for node in self.nodes
        )


def aten_graph(captured: fx.GraphModule, args: Sequence[Any]) -> AtenGraph:
    """The ATen graph of `captured` (torch-level operations, as Dynamo gives them) on arguments like `args`."""

    def call(*inputs: Any) -> Any:
        with traceback.preserve_node_meta():
            return _Marking(captured).run(*inputs)

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [fake_input(mode, arg) for arg in args]
    with mode, torch.enable_grad():
        module = make_fx(functionalize(call, remove="mutations"), tracing_mode="real")(*fakes)
    return _without_mutation(module)


def fake_input(mode: FakeTensorMode, arg: Any) -> Any:
    """`arg` without its numbers, and without gradient."""
    if not isinstance(arg, Tensor):
        return arg
    return mode.from_tensor(arg.detach(), static_shapes=True)


def place(node: fx.Node) -> str:
    """Where in the critic a node comes from, such as "critic.blocks.2.act"."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1].replace("L['critic']", "critic") if paths else "critic"


def without_grad(node: fx.Node) -> bool:
    """Whether the critic computes this node under `torch.no_grad()`."""
    return (node.meta.get("custom") or {}).get(MARK) == "no_grad"


def depending(nodes: Iterable[Node], sources: Iterable[Node]) -> set[Node]:
    """`sources` and those of `nodes`, which are in order, that are computed from them."""
    found = set(sources)
    for node in nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def value_of(node: Any) -> Any:
    """The fake tensor (or tuple of them) of a node."""
    return node.meta["val"]


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Autocast off within: its casts are part of the graph by then."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class _Marking(fx.Interpreter):
    """Runs the captured graph; nodes made under `no_grad` are marked, since ATen graphs do not know of it."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["custom"] = {MARK: "grad" if torch.is_grad_enabled() else "no_grad"}
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in DECOMPOSITIONS:
            return DECOMPOSITIONS[target](*args, **kwargs)
        if target is torch._C._nn.pad and "circular" in (*args[2:3], kwargs.get("mode")):
            return _pad_circular(args[0], args[1] if len(args) > 1 else kwargs["pad"])
        return super().call_function(target, args, kwargs)


def _pad_circular(x: Tensor, pad: Sequence[int]) -> Tensor:
    """As torch's, which writes into views of an empty tensor in a way that functionalisation does not see."""
    for number, (before, behind) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = x.dim() - 1 - number
        size = x.shape[dim]
        x = x.narrow(dim, max(0, -before), size + min(0, before) + min(0, behind))
        pieces = [x.narrow(dim, x.shape[dim] - before, before)] if before > 0 else []
        pieces += [x, x.narrow(dim, 0, behind)] if behind > 0 else [x]
        x = torch.cat(pieces, dim) if len(pieces) > 1 else x
    return x


def _without_mutation(module: fx.GraphModule) -> AtenGraph:
    """Takes the final copies into mutated arguments out of the graph and lists them."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    mutated: dict[int, fx.Node] = {}
    nodes = []
    outputs: tuple[Any, ...] = ()
    for node in module.graph.nodes:
        if node.op == "output":
            returned = node.args[0]
            outputs = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
        elif node.op == "call_function" and node.target is torch.ops.aten.copy_.default:
            if node.args[0] not in inputs:
                raise UnsupportedCritic(f"aten.copy_ at {place(node)}: writes into a tensor that is not an input")
            mutated[inputs.index(node.args[0])] = node.args[1]
        elif node.op in ("call_function", "get_attr"):
            nodes.append(node)
    return AtenGraph(module, tuple(inputs), tuple(nodes), outputs, mutated)
