"""Straight-line Python from a traced computation, cut in two: what needs no signal of the loss, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastgan.sweep.graph import depending
from fastgan.sweep.storage import IN_PLACE, Storage
from fastgan.sweep.trace import Joint

aten = torch.ops.aten
ops = torch.ops.fastgan


@dataclass(frozen=True)
class Plan:
    """The two halves of one way of differentiating a critic, as plain functions of tensors.

    first(args)  -> (outputs, squares, saved): the critic's call, and behind it `slopes` tensors g_n; |g_n|^2 ([N] or
                    None); what `second` needs. It writes the new values into the arguments that the critic mutates.
    second(saved, *signals) -> (check, grads): grads per trained argument in `grads`. It empties `saved` as it goes.
    source:      the code of both
    """

    first: Callable[[Sequence[Any]], tuple[list[Any], Tensor | None, list[Any]]]
    second: Callable[..., tuple[Tensor | None, list[Tensor]]]
    grads: tuple[int, ...]
    kind: str
    source: str
    slopes: int = 0


def plan(joint: Joint, graph: fx.Graph, outputs: Sequence[Any], mutated: Sequence[int]) -> Plan:
    """Cut `graph`, the joint computation after its rewriting, and turn both halves into code.

    outputs: arguments by number where an output of the call is an argument, else None
    mutated: numbers of the arguments that get new values
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    arguments, signals = inputs[: joint.arguments], inputs[joint.arguments :]
    results = list(next(node for node in graph.nodes if node.op == "output").args[0])
    returned = results[: joint.outputs]
    new_values = results[joint.outputs : joint.outputs + joint.mutated]
    rest = results[joint.outputs + joint.mutated :]
    squares = rest.pop(0) if joint.kind != "plain" else None
    check = rest.pop(0) if joint.kind in ("both", "penalty") else None
    slopes, rest = rest[: joint.slopes], rest[joint.slopes :]

    late = depending(graph.nodes, signals)
    body = [n for n in graph.nodes if n.op in ("call_function", "get_attr")]
    needed = _needed([*rest, check])
    late_body = [n for n in body if n in late and n in needed]
    crossing: dict[fx.Node, None] = {}
    for user in late_body:
        crossing.update(dict.fromkeys(n for n in user.all_input_nodes if n not in late))
    crossing.update(dict.fromkeys(n for n in (*rest, check) if isinstance(n, fx.Node) and n not in late))
    early_needed = _needed([*returned, *new_values, squares, *slopes, *crossing])
    early_body = [n for n in body if n not in late and n in early_needed]

    storage = Storage(graph, pinned=_nodes([*returned, *new_values, squares, *slopes]))
    first = _Emitter("first", ["args"], storage)
    first.unpack("args", arguments, clear=False)
    written = [arguments[i] for i in (*mutated, *(i for i in outputs if i is not None))]
    first.body(early_body, keep={*crossing, *written, *_nodes([*returned, *new_values, squares, *slopes])})
    for number, value in zip(mutated, new_values, strict=True):
        first.line(f"{first.name(arguments[number])}.copy_({first.name(value)})")
    returned_names = [
        first.name(arguments[argument]) if argument is not None else first.name(value)
        for value, argument in zip(returned, outputs, strict=True)
    ]
    saved = ", ".join(first.name(n) for n in crossing)
    returned_names += [first.name(n) for n in slopes]
    first.line(f"return [{', '.join(returned_names)}], {first.name(squares)}, [{saved}]")

    second = _Emitter("second", ["saved", *(f"signal_{i}" for i in range(len(signals)))], storage)
    second.unpack("saved", list(crossing), clear=True)
    for i, signal in enumerate(signals):
        second.rename(signal, f"signal_{i}")
    second.body(late_body, keep={*_nodes(rest), *_nodes([check])})
    shared = storage.shared(rest)  # gradients that were found to be the same value
    grads = ", ".join(f"{second.name(n)}.clone()" if n in shared else second.name(n) for n in rest)
    second.line(f"return {second.name(check)}, [{grads}]")

    functions, source = _compile(joint.module, first, second)
    return Plan(functions[0], functions[1], joint.grads, joint.kind, source, joint.slopes)


def _nodes(values: Sequence[Any]) -> list[fx.Node]:
    return [value for value in values if isinstance(value, fx.Node)]


def _needed(values: Sequence[Any]) -> set[fx.Node]:
    """All nodes from which `values` are computed, and themselves."""
    needed: set[fx.Node] = set()
    open_nodes = _nodes(values)
    while open_nodes:
        node = open_nodes.pop()
        if node not in needed:
            needed.add(node)
            open_nodes.extend(node.all_input_nodes)
    return needed


class _Emitter:
    """Writes one function, line by line; every value is dropped after its last use."""

    def __init__(self, function: str, parameters: Sequence[str], storage: Storage) -> None:
        self.storage = storage
        self.lines = [f"def {function}({', '.join(parameters)}):"]
        self.names: dict[fx.Node, str] = {}
        self.constants: dict[str, Any] = {}
        self.targets: dict[Any, str] = {}
        self.function = function

    def line(self, text: str) -> None:
        self.lines.append(f"    {text}")

    def rename(self, node: fx.Node, name: str) -> None:
        self.names[node] = name

    def name(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        return self._literal(value)

    def unpack(self, source: str, nodes: Sequence[fx.Node], *, clear: bool) -> None:
        for node in nodes:
            self.names[node] = node.name
        if nodes:
            self.line(f"{', '.join(self.names[n] for n in nodes)}, = {source}")
        if clear:
            self.line(f"{source}.clear()")

    def body(self, nodes: Sequence[fx.Node], keep: set[fx.Node]) -> None:
        last: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            last.update(dict.fromkeys([*node.all_input_nodes, node], node))
        dying: dict[fx.Node, list[fx.Node]] = {}
        for value, user in last.items():
            if value not in keep:
                dying.setdefault(user, []).append(value)
        for node in nodes:
            self.names[node] = node.name
            self._assign(node, self.storage.reusable(node, last, keep))
            dead = [self.names[value] for value in dying.get(node, []) if not self.names[value].startswith("signal_")]
            if dead:
                self.line(f"del {', '.join(dead)}")

    def _assign(self, node: fx.Node, over: int | None) -> None:
        """One operation; with `over` it writes its result over the argument of that number."""
        if node.op == "get_attr":
            self.line(f"{node.name} = {self._constant(('attribute', str(node.target)))}")
            return
        arguments = [self._literal(a) for a in node.args]
        target = aten.reshape.default if node.target is aten.view.default else node.target  # strides may differ
        if over is not None:
            arguments[0], arguments[over] = arguments[over], arguments[0]
            target = IN_PLACE[node.target]
        call = ", ".join([*arguments, *(f"{k}={self._literal(v)}" for k, v in node.kwargs.items())])
        call = f"{self.targets.setdefault(target, f'op_{self.function}_{len(self.targets)}')}({call})"
        if target is ops.masked_act_.default:
            self.line(f"{node.name} = {arguments[0]}, {call}")
        elif target is ops.apply_mask_.default:
            self.line(call)
            self.line(f"{node.name} = {arguments[0]}")
        else:
            self.line(f"{node.name} = {call}")

    def _literal(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            inner = ", ".join(self._literal(v) for v in value)
            return f"[{inner}]"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"constant_{self.function}_{len(self.constants)}"
        self.constants[name] = value
        return name


def _compile(module: fx.GraphModule, *emitters: _Emitter) -> tuple[list[Callable[..., Any]], str]:
    """The emitters' functions, without gradient, and their source."""
    source = "\n\n".join("\n".join(emitter.lines) for emitter in emitters) + "\n"
    scope: dict[str, Any] = {}
    for emitter in emitters:
        scope.update({name: target for target, name in emitter.targets.items()})
        for name, value in emitter.constants.items():
            is_attribute = isinstance(value, tuple) and value[0] == "attribute"
            scope[name] = getattr(module, value[1]) if is_attribute else value
    exec(compile(source, "<fastgan.sweep>", "exec"), scope)
    return [torch.no_grad()(scope[emitter.function]) for emitter in emitters], source
