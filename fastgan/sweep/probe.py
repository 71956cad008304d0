"""The check of a fresh plan against autograd, on the arguments at hand, before it is used for the first time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastgan.errors import UnsupportedCritic
from fastgan.sweep.analysis import Analysis
from fastgan.sweep.code import Plan
from fastgan.sweep.graph import without_autocast
from fastgan.sweep.trace import squares_of

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2}
"""Of the norm of the gradient's difference, by the coarsest dtype on the way. A fault shows as 0.1 or more."""
HALF_TOLERANCE = 0.3
ROUNDS = 3


def probe(
    plan: Plan,
    captured: fx.GraphModule,
    analysis: Analysis,
    args: Sequence[Any],
    trained: Sequence[int],
    *,
    clock: bool,
) -> bool:
    """Raise UnsupportedCritic where the plan is not what autograd computes, for random signals.

    Every sample has signals of its own, so that an influence of one sample on another that the graph does not show is
    found as well. With `clock`, returns whether the plan takes less time than autograd, else True. Nothing is changed:
    buffers and random numbers are as before, and no hook runs.
    """
    bench = _Bench(captured, analysis, args, trained)
    tolerance = _tolerance(analysis)
    try:
        if not plan.kind.startswith("two") and _agrees_in_first_order(bench, plan, tolerance):
            return True
        signals, ours = bench.by_plan(plan, None)
        _compare(ours, bench.by_autograd(plan.kind, signals), tolerance)
        ways = (lambda: bench.by_plan(plan, signals), lambda: bench.by_autograd(plan.kind, signals))
        return not clock or _faster(*ways, bench.device)
    finally:
        bench.rewind()


def _agrees_in_first_order(bench: _Bench, plan: Plan, tolerance: float) -> bool:
    """Whether the plan fits to first derivatives by autograd, which take no more time and memory than a plain step.

    With w = 0 the sweep's gradient is that of the loss, which checks every signal and every weight gradient. With
    w > 0 what pass 3 ends with has to be l_n D(x_n) + w_n |g_n|^2: F is linear, and g its slope. (Where a sample lies
    on a kink at which autograd's second derivative has another slope than its first, both may rightly fail.)
    """
    with without_autocast():
        outputs, squares, saved = plan.first(bench.rewind())
        signals = _signals(plan.kind, outputs[0], squares)
        check, _ = plan.second(saved, *signals)
    scale = signals[0] if plan.kind != "penalty" else None
    grads, expected_squares, logits = bench.first_order(scale)
    end = signals[-1] * expected_squares + (0 if scale is None else scale * logits.reshape(-1))
    fits = _difference([squares, check], [expected_squares, end], tolerance) <= tolerance
    if scale is not None and fits:
        _, ours = bench.by_plan(plan, [scale, torch.zeros_like(signals[-1])])
        fits = _difference(ours, grads, tolerance) <= tolerance
    return fits


class _Bench:
    """One critic's call, to be repeated in the two ways from the same state."""

    def __init__(
        self, captured: fx.GraphModule, analysis: Analysis, args: Sequence[Any], trained: Sequence[int]
    ) -> None:
        self.captured, self.analysis, self.trained = captured, analysis, list(trained)
        self.args = list(args)
        self.device = args[analysis.samples[0]].device
        self.random = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        )

    def rewind(self) -> list[Any]:
        """Random numbers as at first; the arguments with buffers of their own and parameters that have no hooks."""
        torch.set_rng_state(self.random[0])
        if self.random[1] is not None:
            torch.cuda.set_rng_state(self.random[1], self.device)
        args = [arg.clone() if i in self.analysis.graph.mutated else arg for i, arg in enumerate(self.args)]
        for i in self.trained:
            args[i] = args[i].detach().requires_grad_()
        return args

    def by_plan(self, plan: Plan, signals: list[Tensor] | None) -> tuple[list[Tensor], list[Tensor | None]]:
        """The signals, drawn if there are none, and the gradients that belong to them."""
        with without_autocast():
            outputs, squares, saved = plan.first(self.rewind())
            signals = signals or _signals(plan.kind, outputs[0], squares)
            _, grads = plan.second(saved, *signals)
        by_number = dict(zip(plan.grads, grads, strict=True))
        return signals, [by_number.get(i) for i in self.trained]

    def first_order(self, scale: Tensor | None) -> tuple[Sequence[Tensor | None], Tensor, Tensor]:
        """By autograd: the gradient of sum_n scale_n D(x_n), |g_n|^2, and the logits."""
        args = self.rewind()
        with torch.enable_grad():
            tracked = [args[i].detach().requires_grad_() for i in self.analysis.active_inputs]
            for i, x in zip(self.analysis.active_inputs, tracked, strict=True):
                args[i] = x
            logits = self.captured(*args)[0]
            ones = torch.ones_like(logits)
            g = torch.autograd.grad(logits, tracked, ones, materialize_grads=True, retain_graph=scale is not None)
            grads: Sequence[Tensor | None] = []
            if scale is not None:
                parameters = [args[i] for i in self.trained]
                grads = torch.autograd.grad(logits, parameters, scale.view_as(logits), allow_unused=True)
        return grads, squares_of(g), logits.detach()

    def by_autograd(self, kind: str, signals: list[Tensor]) -> Sequence[Tensor | None]:
        return _by_autograd(self.captured, self.analysis, self.rewind(), self.trained, kind, signals)


def _faster(ours: Callable[[], object], theirs: Callable[[], object], device: torch.device) -> bool:
    """By the median of a few runs in turn; both have run before."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, taken in zip((ours, theirs), times, strict=True):
            begin = _now(device)
            run()
            taken.append(_now(device) - begin)
    return statistics.median(times[0]) < statistics.median(times[1])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _signals(kind: str, logits: Tensor, squares: Tensor | None) -> list[Tensor]:
    """Random l (of either sign, one per sample or logit) and w, such that loss and penalty weigh about the same."""
    assert squares is not None
    generator = torch.Generator(logits.device).manual_seed(0)
    shape = logits.shape if kind == "two" else (len(logits),)
    l_signal = torch.randn(shape, device=logits.device, dtype=logits.dtype, generator=generator)
    w_signal = torch.rand(squares.shape, device=logits.device, dtype=squares.dtype, generator=generator) + 0.5
    w_signal = w_signal / squares.detach().mean().sqrt().clamp_min(1e-6)
    return [w_signal] if kind in ("penalty", "two_penalty") else [l_signal, w_signal]


def _by_autograd(captured: fx.GraphModule, analysis: Analysis, args: list[Any], trained: Sequence[int], kind: str,
                 signals: list[Tensor]) -> Sequence[Tensor | None]:  # fmt: skip
    """The gradient of sum_n l_n D(x_n) + w_n/2 |g_n|^2, differentiated twice."""
    with torch.enable_grad():
        for i in analysis.active_inputs:
            args[i] = args[i].detach().requires_grad_()
        logits = captured(*args)[0]
        tracked = [args[i] for i in analysis.active_inputs]
        g = torch.autograd.grad(logits, tracked, torch.ones_like(logits), create_graph=True, materialize_grads=True)
        total = (signals[-1] * squares_of(g)).sum() / 2
        if kind not in ("penalty", "two_penalty"):
            scale = signals[0]
            flat = logits.reshape(len(logits), -1).sum(1) if scale.shape != logits.shape else logits
            total = total + (scale * flat).sum()
        parameters = [args[i] for i in trained]
        if not total.requires_grad or not parameters:
            return [None] * len(parameters)
        return torch.autograd.grad(total, parameters, allow_unused=True)


def _tolerance(analysis: Analysis) -> float:
    return max(TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in analysis.dtypes)


def same_logits(a: Tensor, b: Tensor, analysis: Analysis) -> bool:
    """Whether they are the same but for rounding. Reads the device."""
    tolerance = _tolerance(analysis) / 10
    a, b = a.double().flatten(), b.double().flatten()
    return a.shape == b.shape and bool((a - b).norm() <= tolerance * b.norm())


def _compare(ours: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float) -> None:
    """UnsupportedCritic if they are not the same."""
    worst = _difference(ours, expected, tolerance)
    if worst > tolerance:
        raise UnsupportedCritic(
            f"the gradient of the sweep differs from autograd's (by {worst:.1e} of its norm): the output of a sample "
            'depends on other samples, or on something that the captured graph does not show; use method="autograd"'
        )


def _difference(ours: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float) -> float:
    """The largest relative difference of two tensors; what is small beside all others counts less."""
    pairs = [
        (torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b)  # type: ignore[arg-type]
        for a, b in zip(ours, expected, strict=True)
        if a is not None or b is not None
    ]
    if not pairs:
        return 0.0
    norms = torch.stack([torch.stack([(a.double() - b.double()).norm(), b.double().norm()]) for a, b in pairs])
    if not torch.isfinite(norms).all():
        return 0.0  # nothing to compare; the step's own flag says that something is not finite
    whole = norms[:, 1].norm()
    return float((norms[:, 0] / (norms[:, 1] + tolerance * whole + 1e-30)).max())
