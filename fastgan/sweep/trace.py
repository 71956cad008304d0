"""The whole computation for one way of differentiating a critic, as one ATen graph: forward, sweeps and pull-back.

Kinds (units: the work of one forward pass):

    plain     3 units  gradient of sum_n <l'_n, D(x)_n>: the loss alone
    penalty   4        gradient of the penalty alone
    both      4        loss and penalty in one affine sweep; one logit per sample
    two       6        the two signals of a critic with a tail that is not piecewise linear, couples samples or has
                       several logits per sample
    two_penalty        the same for the penalty alone

Inputs behind the critic's arguments: `l` for the loss (l'_n, [N], or of the shape of the logits in "plain" and "two"),
then `w` [N] for the penalty, whose derivative by g_n is w_n g_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from fastgan.sweep.analysis import Analysis
from fastgan.sweep.graph import fake_input, value_of, without_autocast, without_grad
from fastgan.sweep.layout import Layout
from fastgan.sweep.rules import Affine, At, Constant, rule_of

aten = torch.ops.aten

VIEWS = {aten.view.default, aten._unsafe_view.default}


@dataclass(frozen=True)
class Joint:
    """The traced computation. Its outputs are, in this order:

    outputs: what the critic's call returns; mutated: the new values of the arguments that it mutates
    squares: |g_n|^2, [N], of all but "plain"
    check:   <F(l' x + w g, l')>_n, [N], of "both" and "penalty" (for the probe)
    slopes:  g_n per differentiated sample tensor, where asked for
    grads:   one per trained argument, None where it has none
    """

    module: fx.GraphModule
    arguments: int
    outputs: int
    mutated: int
    grads: tuple[int, ...]  # trained arguments that get a gradient
    kind: str
    slopes: int = 0


def trace(analysis: Analysis, kind: str, args: Sequence[Any], trained: Sequence[int], *, slopes: bool = False) -> Joint:
    """Trace the computation of `kind` for arguments like `args`, of which those numbered in `trained` get gradients.

    slopes: g_n itself is wanted, of "both" or "penalty"
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [fake_input(mode, arg) for arg in args]
    logits = value_of(analysis.graph.logits)
    samples = len(args[analysis.samples[0]])
    l_like, w_like = (logits.shape if kind in ("plain", "two") else (samples,)), (samples,)
    with mode:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        signals = []
        if kind not in ("penalty", "two_penalty"):
            signals.append(torch.empty(l_like, dtype=logits.dtype, device=logits.device))
        if kind != "plain":
            signals.append(torch.empty(w_like, dtype=wide, device=logits.device))
    found: dict[str, Any] = {}

    def compute(arguments: list[Any], signals: list[Tensor]) -> list[Tensor]:
        l_signal = signals[0] if kind not in ("penalty", "two_penalty") else None
        w_signal = signals[-1] if kind != "plain" else None
        run = _Run(analysis, arguments, trained, slopes)
        way: Any = getattr(run, f"_{kind}", run._sweep)
        results: list[Tensor] = way(l_signal, w_signal, kind)
        found.update(run.summary())
        return results

    # Autograd's own threads would see the stand-ins out of order (pytorch#86245).
    one_thread = torch.autograd.set_multithreading_enabled(False)
    with mode, torch.enable_grad(), without_autocast(), one_thread:
        module = make_fx(compute, tracing_mode="real")(fakes, signals)
    return Joint(module, len(args), kind=kind, **found)


@dataclass
class _Run:
    """One tracing: the values of all nodes, with the autograd graph from parameters to constants."""

    analysis: Analysis
    arguments: list[Any]
    trained: Sequence[int]
    slopes: bool
    values: dict[fx.Node, Any] = field(default_factory=dict)
    leaves: dict[fx.Node, Any] = field(default_factory=dict)
    leaf_grads: dict[fx.Node, list[Tensor]] = field(default_factory=dict)
    graded: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = {i: self.arguments[i].detach().requires_grad_() for i in self.trained}
        for i, node in enumerate(self.analysis.graph.inputs):
            if i in self.analysis.active_inputs:
                self.arguments[i] = self._laid_out(node, self.arguments[i])
            self.values[node] = self.parameters.get(i, self.arguments[i])

    def summary(self) -> dict[str, Any]:
        graph = self.analysis.graph
        counts = {"outputs": len(graph.outputs), "mutated": len(graph.mutated), "grads": tuple(self.graded)}
        return counts | {"slopes": len(self.analysis.active_inputs) if self.slopes else 0}

    # ---- the kinds

    def _plain(self, l_signal: Tensor, _: None, kind: str) -> list[Tensor]:
        for node in self.analysis.graph.inputs:
            self.values[node] = self._laid_out(node, self.values[node])
        for node in self.analysis.graph.nodes:
            self.values[node] = self._laid_out(node, self._evaluate(node, self.values))
        logits = self.values[self.analysis.graph.logits]
        grads = torch.autograd.grad(logits, list(self.parameters.values()), l_signal, allow_unused=True)
        return [*self._returned(), *self._kept(dict(zip(self.parameters, grads, strict=True)))]

    def _sweep(self, l_signal: Tensor | None, w_signal: Tensor, kind: str) -> list[Tensor]:
        """For "both" and "penalty": nothing of the critic is beyond the rules."""
        self._forward(grad=False)
        graph = self.analysis.graph
        logits = self.values[graph.logits]
        delta, gradients = self._backward([graph.logits], [torch.ones_like(logits)])
        squares = squares_of(list(gradients.values()))
        samples = {i: (self.arguments[i], gradients[i]) for i in self.analysis.active_inputs}
        if kind == "both":
            start = {i: _sum_of(x, l_signal, g, w_signal) for i, (x, g) in samples.items()}
        else:
            start = {i: _sum_of(None, None, g, w_signal) for i, (_, g) in samples.items()}
        through = self._again(start, l_signal if kind == "both" else None, delta)
        end = through[graph.logits]
        check = end.flatten(1).sum(1) if end.dim() > 1 else end
        slopes = list(gradients.values()) if self.slopes else []
        return [*self._returned(), squares, check, *slopes, *self._pull_back()]

    def _two(self, l_signal: Tensor | None, w_signal: Tensor, kind: str) -> list[Tensor]:
        """Two signals: the loss's and the logits'; the tail by autograd."""
        self._forward(grad=True)
        graph, frontier = self.analysis.graph, self.analysis.frontier
        heads = {node: self.values[node].detach().requires_grad_() for node in frontier}
        values = {**self.values, **self.leaves, **heads}
        for node in graph.nodes:
            if node in self.analysis.tail:
                values[node] = self.values[node] = self._evaluate(node, values)
        logits = values[graph.logits]
        head_list = list(heads.values())
        ones = torch.ones_like(logits)
        q = torch.autograd.grad(logits, head_list, ones, create_graph=True, materialize_grads=True)
        delta, gradients = self._backward(frontier, [each.detach() for each in q])
        squares = squares_of(list(gradients.values()))
        start = {i: _sum_of(None, None, g, w_signal) for i, g in gradients.items()}
        through = self._again(start, None, delta)

        tail_leaves = {n: leaf for n, leaf in self.leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
        targets = [*head_list, *tail_leaves.values()]
        outputs = [each for each, node in zip(q, frontier, strict=True) if each.requires_grad and node in through]
        cotangents = [through[n] for each, n in zip(q, frontier, strict=True) if each.requires_grad and n in through]
        if l_signal is not None:
            outputs, cotangents = [*outputs, logits], [*cotangents, l_signal]
        seconds: Sequence[Tensor | None] = [None] * len(targets)
        if outputs:
            seconds = torch.autograd.grad(outputs, targets, cotangents, allow_unused=True)
        eta = [(self.values[n], e) for n, e in zip(frontier, seconds, strict=False) if e is not None]
        self._collect(tail_leaves, seconds[len(head_list) :])
        eta = [(value, e) for value, e in eta if value.requires_grad]
        if eta and tail_leaves:
            firsts = torch.autograd.grad(
                [v for v, _ in eta], list(tail_leaves.values()), [e for _, e in eta], allow_unused=True
            )
            self._collect(tail_leaves, firsts)
        return [*self._returned(), squares, *self._pull_back()]

    _two_penalty = _two

    # ---- the passes

    def _forward(self, *, grad: bool) -> None:
        """Pass 1. Constants keep their graph; activations start anew from leaves (`grad`) or plain constants."""
        analysis = self.analysis
        self.tracked = {i: self.arguments[i].detach().requires_grad_() for i in analysis.active_inputs}
        self.forward: dict[fx.Node, Any] = {}
        for i, node in enumerate(analysis.graph.inputs):
            if i in self.tracked:
                self.values[node], self.forward[node] = self.tracked[i], self.arguments[i]
            else:
                self._leaf(node)
        for node in analysis.graph.nodes:
            if node in analysis.tail:
                continue
            if node in analysis.active:
                constants = self.leaves if grad else self.forward
                self.values[node] = self._evaluate(
                    node, {n: self.values[n] if n in analysis.active else constants[n] for n in node.all_input_nodes}
                )
                self.forward[node] = tree_map(_detached, self.values[node])
            else:
                self.values[node] = self._evaluate(
                    node,
                    {n: self.forward[n] if n in analysis.active else self.values[n] for n in node.all_input_nodes},
                )
                self._leaf(node)

    def _backward(
        self, heads: Sequence[fx.Node], cotangents: Sequence[Tensor]
    ) -> tuple[dict[fx.Node, Tensor], dict[int, Tensor]]:
        """Pass 2: the gradient of <heads, cotangents> at the sites and at the samples."""
        sites = [node for node in self.analysis.sites if node not in self.analysis.tail]
        outputs = [self._main(self.values[node]) for node in sites]
        inputs = [*outputs, *self.tracked.values()]
        if not inputs:
            return {}, {}
        pairs = [(self.values[h], c) for h, c in zip(heads, cotangents, strict=True) if self.values[h].requires_grad]
        grads = torch.autograd.grad(
            [h for h, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True, retain_graph=True
        )
        delta = {node: g.detach() for node, g in zip(sites, grads, strict=False) if g is not None}
        gradients = {
            i: (torch.zeros_like(x) if g is None else g.detach())
            for (i, x), g in zip(self.tracked.items(), grads[len(sites) :], strict=True)
        }
        return delta, gradients

    def _again(
        self, start: dict[int, Tensor], scale: Tensor | None, delta: dict[fx.Node, Tensor]
    ) -> dict[fx.Node, Any]:
        """Pass 3: from `start` through every rule, gathering the weights' gradients on the way."""
        analysis = self.analysis
        c: dict[fx.Node, Any] = {analysis.graph.inputs[i]: x for i, x in start.items()}
        for node in analysis.graph.nodes:
            if node in analysis.active and node not in analysis.tail:
                c[node] = self._site(node, c, scale, delta.get(node))
        return c

    def _site(self, node: fx.Node, c: dict[fx.Node, Any], scale: Tensor | None, signal: Tensor | None) -> Any:
        """One operation at its slopes; where constants enter, their gradient with the cotangent `signal`."""
        at = At(node, self.analysis.layout(node), scale, self.analysis.active, self.forward)
        known = {n: c.get(n, self.leaves.get(n)) for n in node.all_input_nodes}
        rule = rule_of(node)
        assert rule is not None, f"{node.target} has no rule"
        out = rule(at, *fx.map_arg(node.args, known.get), **fx.map_arg(node.kwargs, known.get))
        assert out is not NotImplemented, f"{node.target}: its rule does not hold here"
        linear, constants = (out.linear, out.constants) if isinstance(out, Affine) else (out, [])
        main = self._main(linear)
        leaves = {n: self.leaves[n] for n in node.all_input_nodes if n in self.leaves and _needs_grad(self.leaves[n])}
        if leaves and signal is not None and main.requires_grad:
            grads = torch.autograd.grad(main, list(leaves.values()), signal, allow_unused=True)
            self._collect(leaves, grads)
        value = tree_map(_detached, linear)
        if scale is None:
            return value
        spread = at.layout.spread(scale, main.dim()).to(main.dtype)
        for constant in constants:
            source = next((n for n, leaf in leaves.items() if leaf is constant.value), None)
            if source is not None and signal is not None:
                grad = _gradient_of_constant(constant, signal, scale, at.layout)
                self.leaf_grads.setdefault(source, []).append(grad.to(constant.value.dtype))
            shaped = constant.value.detach().view(constant.view).to(main.dtype)
            value = value + spread * (shaped if constant.times == 1 else shaped * constant.times)
        return value

    # ---- small things

    def _leaf(self, node: fx.Node) -> None:
        """The constant as a leaf of the sweep, to which gradients come; `_pull_back` takes them to the parameters."""

        def leaf(value: Any) -> Any:
            return value.detach().requires_grad_() if _needs_grad(value) else value

        self.values[node] = self._laid_out(node, self.values[node])
        self.leaves[node] = tree_map(leaf, self.values[node])
        self.forward[node] = tree_map(_detached, self.leaves[node])

    def _laid_out(self, node: fx.Node, value: Any) -> Any:
        """Channels-last where that is faster; most values have that layout already, or follow."""
        if node not in self.analysis.channels_last:
            return value
        return value.contiguous(memory_format=torch.channels_last)

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return getattr(self.analysis.graph.module, str(node.target))
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        target: Any = aten.reshape.default if node.target in VIEWS else node.target  # layouts may differ by now
        out = target(*args, **kwargs)
        return tree_map(_detached, out) if without_grad(node) else out

    @staticmethod
    def _main(value: Any) -> Tensor:
        main: Tensor = value[0] if isinstance(value, (tuple, list)) else value
        return main

    def _collect(self, leaves: dict[fx.Node, Tensor], grads: Sequence[Tensor | None]) -> None:
        for node, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                self.leaf_grads.setdefault(node, []).append(grad.detach())

    def _pull_back(self) -> list[Tensor]:
        """From the gradients at the constants to those of the parameters."""
        sources = [(self.values[n], sum(g[1:], start=g[0])) for n, g in self.leaf_grads.items()]
        grads: Sequence[Tensor | None] = [None] * len(self.parameters)
        if sources:
            grads = torch.autograd.grad(
                [value for value, _ in sources],
                list(self.parameters.values()),
                [grad for _, grad in sources],
                allow_unused=True,
            )
        return self._kept(dict(zip(self.parameters, grads, strict=True)))

    def _kept(self, grads: dict[int, Tensor | None]) -> list[Tensor]:
        self.graded = [i for i, grad in grads.items() if grad is not None]
        return [grads[i].detach() for i in self.graded]  # type: ignore[union-attr]

    def _returned(self) -> list[Any]:
        """Outputs of the call, then the new values of mutated arguments."""
        graph = self.analysis.graph
        wanted = [*graph.outputs, *graph.mutated.values()]
        return [tree_map(_detached, self.values[n]) if isinstance(n, fx.Node) else n for n in wanted]


def squares_of(gradients: Sequence[Tensor]) -> Tensor:
    """|g_n|^2 over several tensors [N, ...]: [N], in fp32 or wider."""
    wide = [g if g.dtype == torch.float64 else g.float() for g in gradients]
    # Over all dimensions at once: flattening a channels-last gradient would copy it.
    squares = [g.square().sum(dim=tuple(range(1, g.dim()))) if g.dim() > 1 else g.square() for g in wide]
    return sum(squares[1:], start=squares[0])


def _detached(value: Any) -> Any:
    return value.detach() if _needs_grad(value) else value


def _needs_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _sum_of(x: Tensor | None, scale: Tensor | None, g: Tensor, weight: Tensor) -> Tensor:
    """s_n x_n + w_n g_n, rounded once."""
    wide = Layout(0).spread(weight, g.dim()) * g
    if x is not None and scale is not None:
        wide = wide + Layout(0).spread(scale, x.dim()) * x
    return wide.to(g.dtype)


def _gradient_of_constant(constant: Constant, signal: Tensor, scale: Tensor, layout: Layout) -> Tensor:
    """sum_n s_n signal, over all dimensions along which the constant is repeated."""
    repeated = [d for d, n in enumerate(constant.view) if n == 1 and d != layout.dim]
    partial = signal.sum(repeated, keepdim=True) if repeated else signal
    times = layout.spread(scale, signal.dim()).to(signal.dtype)
    if layout == Layout(0) and constant.view[0] == 1:  # a product of matrices, summed as such
        grad = scale.to(signal.dtype) @ partial.flatten(1) if partial.dim() > 1 else (scale * partial).sum()
    else:
        grad = partial * times
        if constant.view[layout.dim] == 1:
            grad = grad.sum(layout.dim, keepdim=True)
    grad = grad.reshape(constant.value.shape)
    return grad if constant.times == 1 else grad * constant.times
