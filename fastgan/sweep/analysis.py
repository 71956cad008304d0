"""Which operations of a critic the sweep can follow, and what is in the way of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fastgan.errors import UnsupportedCritic
from fastgan.sweep.graph import AtenGraph, Node, depending, place, value_of, without_grad
from fastgan.sweep.layout import SINGLE, Layout, layouts
from fastgan.sweep.rules import NO_DERIVATIVE, rule_of

aten = torch.ops.aten

SMOOTH = {
    aten.gelu, aten.silu, aten.softplus, aten.elu, aten.mish, aten.hardswish, aten.hardsigmoid,
    aten.log_sigmoid_forward, aten.celu, aten.tanh, aten.sigmoid, aten.native_layer_norm, aten.native_group_norm,
    aten.native_batch_norm,
    aten._native_batch_norm_legit, aten._native_batch_norm_legit_functional, aten.cudnn_batch_norm, aten._softmax,
    aten._log_softmax, aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_cudnn_attention, aten._fused_rms_norm,
}  # fmt: skip
"""Never part of a tail with weights behind them: where these are, they are all over the critic."""

LARGEST_TAIL = 0.5
"""The share of the forward pass's multiplications that a tail may have: beyond it autograd is no slower."""


@dataclass(frozen=True)
class Analysis:
    """A critic's graph, seen from its samples.

    samples:       arguments that are samples or labels; active_inputs: those that are differentiated by
    layouts:       where the samples are in each value that depends on them
    active:        nodes that depend on the active inputs by a derivative
    tail:          active nodes beyond the rules and all nodes that need them; what is beyond, and why, is in `beyond`
    """

    graph: AtenGraph
    samples: tuple[int, ...]
    active_inputs: tuple[int, ...]
    layouts: dict[Node, Layout | None]
    active: set[Node]
    beyond: dict[Node, str]

    @cached_property
    def tail(self) -> set[Node]:
        return depending(self.graph.nodes, self.beyond)

    @cached_property
    def channels_last(self) -> set[Node]:
        """4-D samples and weights of 2-D convolutions, where channels-last is the faster layout: fp32 and bf16 on CPUs.

        (oneDNN; NCHW there takes up to twice the time.) All values between them follow. Where products of matrices
        are most of the work, copying into that layout and back takes longer than it spares.
        """
        convolutions = [n for n in self.graph.nodes if n.target is aten.convolution.default and n in self.active]
        if 2 * sum(map(_multiplications, convolutions)) < sum(map(_multiplications, self.graph.nodes)):
            return set()
        weights = {n.args[1] for n in convolutions if n.args[1] not in self.active}
        samples = {self.graph.inputs[i] for i in self.active_inputs}

        def fits(node: Node) -> bool:
            value = value_of(node)
            fast = value.device.type == "cpu" and value.dtype in (torch.float32, torch.bfloat16)
            return bool(fast and value.dim() == 4)

        return {n for n in (*weights, *samples) if fits(n)} if any(map(fits, weights)) else set()

    @cached_property
    def frontier(self) -> list[Node]:
        """Active values from which the tail or the logits are computed."""
        nodes = [*(self.graph.inputs[i] for i in self.active_inputs), *self.graph.nodes]
        ahead = [n for n in nodes if n in self.active and n not in self.tail]
        used = {n for node in self.tail for n in node.all_input_nodes} | {self.graph.logits}
        return [n for n in ahead if n in used]

    @cached_property
    def sites(self) -> list[Node]:
        """Active nodes into which floating-point constants enter."""

        def enters(node: Node) -> bool:
            return node not in self.active and isinstance(value := value_of(node), Tensor) and value.is_floating_point()

        return [n for n in self.graph.nodes if n in self.active and any(map(enters, n.all_input_nodes))]

    def layout(self, node: Node) -> Layout:
        """Of an active node outside the tail."""
        layout = self.layouts[node]
        assert layout is not None, f"{node} mixes samples"
        return layout

    @property
    def couples(self) -> bool:
        """Whether any value that is used, differentiated or not, mixes samples."""
        return any(layout is None and node.users for node, layout in self.layouts.items())

    @property
    def one_logit_per_sample(self) -> bool:
        value = value_of(self.graph.logits)
        return bool(value.numel() == len(value))

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The floating-point types of the values."""
        nodes = (*self.graph.inputs, *self.graph.nodes)
        values = [node.meta.get("val") for node in nodes]
        return {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}

    def first_beyond(self) -> str:
        """What is in the way, with its place."""
        node, reason = next(iter(self.beyond.items()))
        return f"{_name(node)} at {place(node)}: {reason}"


def analyse(graph: AtenGraph, args: Sequence[Any], samples: Sequence[int], active_inputs: Sequence[int]) -> Analysis:
    """`samples`: the arguments whose first dimension is the batch, labels included."""
    count = len(args[samples[0]])
    found: dict[Node, Layout | None]
    if count > 1:
        found = layouts(graph, samples, count)
    else:  # s is one number, wherever it stands
        found = dict.fromkeys(depending(graph.nodes, (graph.inputs[i] for i in samples)), SINGLE)
    active = _active(graph, active_inputs)
    analysis = Analysis(graph, tuple(samples), tuple(active_inputs), found, active, _beyond(graph, active, found))
    if graph.logits not in active:
        raise UnsupportedCritic("the critic's logits do not depend on the samples by a derivative")
    return analysis


def refuse_unless_tail(analysis: Analysis) -> None:
    """UnsupportedCritic unless what is beyond the rules is no more than a tail."""
    if not analysis.beyond:
        return
    for node, reason in analysis.beyond.items():
        if getattr(node.target, "overloadpacket", None) in SMOOTH and _weighted_behind(analysis, node):
            raise UnsupportedCritic(f'{_name(node)} at {place(node)}: {reason}; use method="autograd"')
    tail = sum(_multiplications(n) for n in analysis.graph.nodes if n in analysis.tail)
    whole = sum(_multiplications(n) for n in analysis.graph.nodes if n in analysis.active)
    if whole == 0 or tail > LARGEST_TAIL * whole:
        raise UnsupportedCritic(f'{analysis.first_beyond()}; use method="autograd"')


def _active(graph: AtenGraph, floats: Sequence[int]) -> set[Node]:
    active = {graph.inputs[i] for i in floats}
    for node in graph.nodes:
        value = node.meta.get("val")
        main = value[0] if isinstance(value, (tuple, list)) else value
        if node.target.__class__.__name__ == "builtin_function_or_method":  # getitem: its own value counts
            main = value
        differentiable = isinstance(main, Tensor) and main.is_floating_point()
        packet = getattr(node.target, "overloadpacket", None)
        through = differentiable and packet not in NO_DERIVATIVE and not without_grad(node)
        if through and any(n in active for n in node.all_input_nodes) and not _second_result(node):
            active.add(node)
    return active


def _second_result(node: Node) -> bool:
    """A mask of dropout, the statistics of a norm."""
    source: Any = node.args[0] if node.args else None
    several = {aten.native_dropout, aten.native_batch_norm, aten._native_batch_norm_legit_no_training,
               aten.max_pool2d_with_indices, aten.max_pool3d_with_indices}  # fmt: skip
    return (
        getattr(source, "op", "") == "call_function"
        and getattr(source.target, "overloadpacket", None) in several
        and node.args[1] != 0
    )


def _beyond(graph: AtenGraph, active: set[Node], found: dict[Node, Layout | None]) -> dict[Node, str]:
    beyond: dict[Node, str] = {}
    behind: set[Node] = set()  # of those: they are in the tail whatever they are
    for node in graph.nodes:
        if node not in active:
            continue
        after = any(n in beyond or n in behind for n in node.all_input_nodes)
        if (reason := _reason(node, active, found, after=after)) is not None:
            beyond[node] = reason
        elif after:
            behind.add(node)
    return beyond


def _reason(node: Node, active: set[Node], found: dict[Node, Layout | None], *, after: bool) -> str | None:
    """Why the sweep cannot follow this operation, None if it can."""
    if rule_of(node) is None:
        return "not piecewise linear, or no rule for it"
    several = [n for n in node.all_input_nodes if n in active]
    packet = getattr(node.target, "overloadpacket", None)
    if not _rule_holds(node, active):
        return "not piecewise linear" if len(several) > 1 or packet in SMOOTH else "no rule for these arguments"
    if found.get(node) is None and not after:
        return "couples samples"
    return None


def _rule_holds(node: Node, active: set[Node]) -> bool:
    """Whether the rule of an operation covers the way in which it is used."""
    packet = getattr(node.target, "overloadpacket", None)

    def is_active(number: int) -> bool:
        return len(node.args) > number and isinstance(node.args[number], fx.Node) and node.args[number] in active

    def tensors(first: int) -> bool:
        return any(isinstance(arg, fx.Node) for arg in node.args[first:])

    if packet in (aten.mul, aten.mm, aten.bmm, aten.mv):
        return not (is_active(0) and is_active(1))
    if packet is aten.div:
        return not is_active(1) and not node.kwargs.get("rounding_mode")
    if packet in (aten.addmm, aten.baddbmm, aten.addmv, aten.addcmul):
        return not (is_active(1) and is_active(2))
    if packet is aten.convolution:
        return is_active(0) and not is_active(1) and not is_active(2)
    if packet in (aten.clamp, aten.clamp_min, aten.clamp_max, aten.threshold):
        return not tensors(1)
    if packet in (aten.lerp, aten.masked_fill):
        return not is_active(2) and not (packet is aten.masked_fill and tensors(2))
    if packet is aten._prelu_kernel:
        return not is_active(1)
    if packet is aten.native_batch_norm:
        return not node.args[5]
    if packet in (aten.max, aten.min):
        return len(node.args) > 1 and not tensors(1)
    return True


def _weighted_behind(analysis: Analysis, node: Node) -> bool:
    """Whether multiplications with constants follow `node`."""
    behind = {node}
    for each in analysis.graph.nodes:
        if any(n in behind for n in each.all_input_nodes):
            behind.add(each)
            constants = [n for n in each.all_input_nodes if n not in analysis.active]
            if _multiplications(each) and constants:
                return True
    return False


def _multiplications(node: Node) -> int:
    """Multiplications of a product of matrices or a convolution, roughly; 0 for others."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.convolution:
        weight = value_of(node.args[1])
        grid = node.args[0] if node.args[6] else node  # transposed: by its input
        return int(value_of(grid).numel() // value_of(grid).shape[1] * weight.numel())
    if packet in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv):
        left = node.args[1] if packet in (aten.addmm, aten.baddbmm, aten.addmv) else node.args[0]
        return int(value_of(node).numel() * value_of(left).shape[-1])
    return 0


def _name(node: Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).replace("function ", "")
