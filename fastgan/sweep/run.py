"""A critic's whole backward by the shared sweep: forward passes, the loss's gradient, second halves, accumulation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.dist import current
from fastgan.errors import UnsupportedCritic
from fastgan.sweep.analysis import Analysis, analyse, refuse_unless_tail
from fastgan.sweep.capture import Capture, Program, callers_modes, capture_of, refuse_hooks, remember_apart
from fastgan.sweep.code import Plan, plan
from fastgan.sweep.deliver import accumulate
from fastgan.sweep.graph import aten_graph, value_of, without_autocast
from fastgan.sweep.logits import check_logits
from fastgan.sweep.probe import probe, same_logits
from fastgan.sweep.rewrite import rewrite
from fastgan.sweep.trace import trace


class NoFaster(Exception):
    """Nothing is gained: the critic needs two signals, as much work as autograd, and was measured to take as long; its
    gradient by the samples is not at hand; or there is no penalty, and real and fake are two batches for it."""


@dataclass(frozen=True)
class Side:
    """One batch that the critic sees.

    samples:   what it is called with, one tensor or several; labels follow where there are any
    make:      gives the samples when their turn comes (they may be drawn at random); `samples` are like them then
    penalised: whether |g_n|^2 is wanted; scored: whether the loss is
    sloped:    whether g_n itself is wanted, too
    """

    samples: list[Tensor]
    labels: Tensor | None
    penalised: bool
    scored: bool
    make: Callable[[], list[Tensor]] | None = None
    sloped: bool = False

    def ready(self) -> Side:
        """The side with its own samples."""
        return self if self.make is None else replace(self, samples=self.make(), make=None)

    @property
    def count(self) -> int:
        return len(self.samples[0])

    @property
    def inputs(self) -> list[Tensor]:
        return self.samples if self.labels is None else [*self.samples, self.labels]


@dataclass(eq=False)
class _Pass:
    """One captured call of the critic over one or two sides: first half done, second to come (`Request`)."""

    critic: Callable[..., Any]
    sides: list[Side]
    insist: bool
    sloped: bool = False
    logits: Tensor | None = None
    squares: Tensor | None = None
    slopes: list[Tensor] = field(default_factory=list)
    plan: Plan | None = None
    saved: list[Any] = field(default_factory=list)
    arguments: Sequence[Any] = ()
    returned: Any = None
    rehearsed: bool = False
    looking: bool = False
    alone: Tensor | None = None  # the first side's logits in a call of its own

    @property
    def inputs(self) -> list[Tensor]:
        if len(self.sides) == 1:
            return [part.detach() for part in self.sides[0].inputs]
        return [torch.cat(parts).detach() for parts in zip(*(s.inputs for s in self.sides), strict=True)]

    def call(self, capture: Capture) -> _Pass:
        self.given = self.inputs
        logits = capture.call(self, self.critic, self.given)
        if not self.arguments or logits is not self.returned:
            check_logits(logits, len(self.given[0]))
            raise UnsupportedCritic("its graph has no logits: capturing is off, or they are no result of the critic")
        return self

    def rehearse(self, capture: Capture) -> None:
        """Everything short of running: raises what `call` would raise of this side, with nothing changed yet."""
        self.rehearsed = True
        with contextlib.suppress(_Rehearsed):
            self.call(capture)

    def run(self, program: Program, args: Sequence[Any]) -> Sequence[Any]:
        if self.looking:
            with torch.no_grad():
                self.logits = program.graph(*args)[0]
            raise _Rehearsed
        analysis = self._analysis(program, args)
        if len(self.sides) > 1 and value_of(analysis.graph.logits).shape[:1] != (len(self.given[0]),):
            raise _Apart  # where it turns out to be wrong, and for how many samples
        check_logits(value_of(analysis.graph.logits), len(self.given[0]))
        if len(self.sides) > 1 and not self._may_be_one_batch(program, analysis, args):
            raise _Apart
        kind = self._kind(analysis)
        key = kind, kind.startswith("two") and not self.insist, self.sloped
        if key not in program.memory:
            program.memory[key] = self._plan(program, analysis, kind, args)
        if program.memory[key] is None:
            raise NoFaster
        if self.rehearsed:
            raise _Rehearsed
        self.plan = program.memory[key]
        with callers_modes(), without_autocast():
            outputs, self.squares, self.saved = self.plan.first(args)
        count = len(outputs) - self.plan.slopes
        outputs, self.slopes = outputs[:count], outputs[count:]
        self.logits = self.returned = outputs[0]
        self.arguments = args
        return outputs

    def _may_be_one_batch(self, program: Program, analysis: Analysis, args: Sequence[Any]) -> bool:
        """Whether both sides in one call are what two calls would be; the first is compared with itself alone, once."""
        if "one batch" not in program.memory and _tells_batches_apart(analysis, self.critic):
            program.memory["one batch"] = False
        if "one batch" not in program.memory:
            if self.alone is None:
                raise _InDoubt
            with torch.no_grad():
                together = program.graph(*args)[0][: self.sides[0].count]
            alone = self.alone
            program.memory["one batch"] = _on_all_ranks(lambda: same_logits(together, alone, analysis))
        return bool(program.memory["one batch"])

    def look(self, capture: Capture) -> Tensor:
        """The logits of this side, with nothing changed."""
        self.looking = True
        with contextlib.suppress(_Rehearsed):
            self.call(capture)
        assert self.logits is not None
        return self.logits

    def _analysis(self, program: Program, args: Sequence[Any]) -> Analysis:
        if "analysis" not in program.memory:
            with _our_faults():
                self._analyse(program, args)
        analysis: Analysis = program.memory["analysis"]
        return analysis

    def _analyse(self, program: Program, args: Sequence[Any]) -> None:
        graph = aten_graph(program.graph, args)
        samples = [i for i, arg in enumerate(args) if any(arg is part for part in self.given)]
        if not samples:
            raise UnsupportedCritic("the critic does not use its input")
        if any(i in graph.mutated for i in samples):
            raise UnsupportedCritic("the critic changes its input in place; let it work on a copy")
        trained = _trained(self.critic, args, samples)
        if any(i in graph.mutated for i in trained):
            raise UnsupportedCritic("the critic changes its own trained parameters in forward")
        labels = self.given[-1] if self.sides[0].labels is not None else None
        active = [i for i in samples if args[i].is_floating_point() and args[i] is not labels]
        program.memory.update(analysis=analyse(graph, args, samples, active), trained=trained)

    def _kind(self, analysis: Analysis) -> str:
        side = self.sides[0]
        if not side.penalised:
            return "plain"
        if not analysis.beyond:
            if not side.scored:
                return "penalty"
            if analysis.one_logit_per_sample:
                return "both"
        if self.sloped:  # then g_n is no multiple of what another loss sends to sample n
            if self.insist:
                raise UnsupportedCritic(
                    "the gradient of another loss by the samples takes a pass of its own where samples are coupled, "
                    'layers are smooth, or there are several logits per sample; use method="autograd"'
                )
            raise NoFaster
        refuse_unless_tail(analysis)
        return "two" if side.scored else "two_penalty"

    def _plan(self, program: Program, analysis: Analysis, kind: str, args: Sequence[Any]) -> Plan | None:
        """The plan, checked; None where it takes two signals and does not pay, and nobody insists on it."""
        graph, trained = analysis.graph, program.memory["trained"]
        with _our_faults():
            joint = trace(analysis, kind, args, trained, slopes=self.sloped)
            made = plan(joint, rewrite(joint.module.graph), _arguments_returned(analysis), list(graph.mutated))
        if kind == "plain":  # autograd's own
            return made
        clock = kind.startswith("two") and not self.insist
        fit = _on_all_ranks(lambda: probe(made, program.graph, analysis, args, trained, clock=clock))
        return made if fit else None

    def second(self, scales: Sequence[Tensor | None], weights: Sequence[Tensor | None]) -> dict[Tensor, Tensor]:
        """Gradient per trained parameter, for the signals of the sides."""
        plan, logits = self.plan, self.logits
        assert plan is not None
        assert logits is not None
        signals = []
        if self.sides[0].scored:
            counts = [side.count for side in self.sides]
            given = zip(scales, logits.split(counts), strict=True)  # type: ignore[no-untyped-call]
            whole = torch.cat([torch.zeros_like(like) if scale is None else scale for scale, like in given])
            signals.append(whole if plan.kind in ("plain", "two") else whole.reshape(-1))
        if self.sides[0].penalised:
            signals.append(torch.cat([weight for weight in weights if weight is not None]))
        with without_autocast():
            _, grads = plan.second(self.saved, *signals)
        return {self.arguments[i]: grad for i, grad in zip(plan.grads, grads, strict=True)}


def _on_all_ranks(check: Callable[[], bool]) -> bool:
    """Whether the check, of a rank's own samples and by its own clock, has passed on all ranks of the present turn.

    Where it raises UnsupportedCritic on one, it does on all: they are to go the same way.
    """
    refusal, passed = None, False
    try:
        passed = check()
    except UnsupportedCritic as error:
        refusal = error
    worst = current().highest(2 if refusal is not None else int(not passed))
    if worst == 2:
        raise refusal or UnsupportedCritic('another rank found it to be wrong for its samples; use method="autograd"')
    return worst == 0


@contextlib.contextmanager
def _our_faults() -> Iterator[None]:
    """What goes wrong in our own tracing means that the critic is not supported, not that training stops."""
    try:
        yield
    except (UnsupportedCritic, torch.OutOfMemoryError):
        raise
    except Exception as error:
        line = str(error).strip().splitlines()
        raise UnsupportedCritic(
            f'its graph cannot be traced ({type(error).__name__}: {line[0] if line else ""}); use method="autograd"'
        ) from error


class _InDoubt(Exception):
    """It is not known yet whether two batches may be one."""


class _Rehearsed(Exception):
    """The end of a rehearsal."""


class _Apart(Exception):
    """Real and fake may not be one batch for this critic."""


def _tells_batches_apart(analysis: Analysis, critic: Callable[..., Any]) -> bool:
    """Whether two batches in one call would differ from two: coupled samples, random numbers, buffers, side effects."""
    graph = analysis.graph
    watched = isinstance(critic, nn.Module) and any(m._forward_hooks or m._forward_pre_hooks for m in critic.modules())
    return analysis.couples or graph.random or bool(graph.mutated) or len(graph.outputs) > 1 or watched


def _trained(critic: Callable[..., Any], args: Sequence[Any], samples: Sequence[int]) -> list[int]:
    """Arguments that get gradients."""
    graded = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad and i not in samples]
    if any(not args[i].is_leaf for i in graded):
        raise UnsupportedCritic("the critic uses a weight that is computed from others outside its forward")
    if isinstance(critic, nn.Module):
        own = {id(p) for p in critic.parameters()}
        graded = [i for i in graded if id(args[i]) in own]
    if not graded:
        raise UnsupportedCritic("the critic uses none of its trained parameters")
    return graded


def _arguments_returned(analysis: Analysis) -> list[int | None]:
    """Outputs of the call that are its arguments, as themselves or after their mutation: the same objects again."""
    graph = analysis.graph
    places = {node: i for i, node in enumerate(graph.inputs)} | {node: i for i, node in graph.mutated.items()}
    return [places.get(output) for output in graph.outputs]


class Sweep:
    """Pass 1 and 2 of a critic over its sides, in the order in which it sees them; `finish` does the rest.

    logits:  per side, as the critic returned them
    squares: per side |g_n|^2, [N] in fp32 or wider; None where it was not asked for
    slopes:  per side g_n, [N, ...] per floating-point tensor of the samples; [] where it was not asked for
    """

    def __init__(self, critic: Callable[..., Any], sides: Sequence[Side], *, insist: bool) -> None:
        """The first two sides are one batch if nothing in the critic tells the difference.

        Raises UnsupportedCritic for a critic that the sweep cannot follow, and NoFaster, unless `insist`, where it
        takes as much work as autograd and no less time. Nothing has changed then.
        """
        refuse_hooks(critic)
        capture = capture_of(critic)
        self.sloped = any(side.sloped for side in sides)
        with capture.patience(insist=insist):
            self._first_halves(critic, sides, insist, capture)
        self.logits: list[Tensor] = []
        self.squares: list[Tensor | None] = []
        self.slopes: list[list[Tensor]] = []
        for each in self.passes:
            counts = [side.count for side in each.sides]
            self.logits += each.logits.split(counts)  # type: ignore[union-attr]
            squares: Any = each.squares
            self.squares += [None] * len(counts) if squares is None else squares.split(counts)
            split = [slope.split(counts) for slope in each.slopes]  # type: ignore[no-untyped-call]
            self.slopes += [[part[i] for part in split] for i in range(len(counts))]

    def _first_halves(self, critic: Callable[..., Any], sides: Sequence[Side], insist: bool, capture: Capture) -> None:
        real, fake, *others = sides
        if not real.penalised:  # or it would run before the critic turns out to be unsupported
            for side in sides:
                if side.penalised:
                    _Pass(critic, [side], insist, self.sloped).rehearse(capture)
        self.passes: list[_Pass] = []
        if (real.penalised, real.scored) == (fake.penalised, fake.scored):
            with contextlib.suppress(_Apart):
                self.passes = [_both(critic, real, fake, insist, self.sloped, capture)]
        if not self.passes and not insist and not any(side.penalised for side in sides):
            remember_apart(critic, capture)
            raise NoFaster
        for side in others if self.passes else sides:
            sloped = self.sloped and side.penalised
            self.passes.append(_Pass(critic, [side.ready()], insist, sloped).call(capture))

    def finish(self, scales: Sequence[Tensor | None], weights: Sequence[Tensor | None]) -> None:
        """Add the parameters' gradients to their `.grad`.

        scales:  per side d loss / d logits, in the shape of its logits; None where it is not scored
        weights: per side w [N], d penalty / d g_n being w_n g_n; None where it is not penalised
        """
        given = iter(zip(scales, weights, strict=True))
        total: dict[Tensor, Tensor] = {}
        for each in self.passes:
            pairs = [next(given) for _ in each.sides]
            _add(total, each.second([scale for scale, _ in pairs], [weight for _, weight in pairs]))
        accumulate(total)


def _both(critic: Callable[..., Any], real: Side, fake: Side, insist: bool, sloped: bool, capture: Capture) -> _Pass:
    """Both sides in one call; raises _Apart where that would not be the same."""
    both = _Pass(critic, [real, fake], insist, sloped and fake.penalised)
    try:
        return both.call(capture)
    except _InDoubt:
        both.alone = _logits_of_a_copy(critic, real)
        if both.alone is None:
            both.alone = _Pass(critic, [real], insist).look(capture)
        return both.call(capture)


def _logits_of_a_copy(critic: Callable[..., Any], side: Side) -> Tensor | None:
    """What a copy of the critic says, so that nothing of the critic itself changes; None where there can be no copy."""
    if not isinstance(critic, nn.Module):
        return None
    try:
        twin = copy.deepcopy(critic)
    except Exception:  # some module holds what cannot be copied
        return None
    before = _plain_attributes(twin)
    with torch.no_grad():
        logits = twin(*side.inputs)
    if _plain_attributes(twin) != before:  # it counts its calls: two batches are two calls
        return torch.full((side.count,), torch.nan)  # equal to nothing
    return logits if isinstance(logits, Tensor) else None


def _plain_attributes(module: nn.Module) -> list[dict[str, Any]]:
    """Numbers, texts and the like that the modules hold."""
    kinds = (bool, int, float, str, type(None))
    return [{name: v for name, v in vars(m).items() if isinstance(v, kinds)} for m in module.modules()]


def _add(total: dict[Tensor, Tensor], grads: dict[Tensor, Tensor]) -> None:
    for parameter, grad in grads.items():
        total[parameter] = total[parameter].add_(grad) if parameter in total else grad
