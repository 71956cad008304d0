"""The gradient of a critic's loss and gradient penalties, added into the `.grad` of its parameters.

Let D(x)_n be the logit of sample n (for maps: the sum of its logits) and g_n = d D(x)_n / d x_n.

    R1       gamma/2 * mean_n |g_n|^2       at real samples   Mescheder et al. 2018 (arXiv:1801.04406), eq. 9
    R2       gamma/2 * mean_n |g_n|^2       at fake samples   the same, eq. 10
    WGAN-GP  lambda * mean_n (|g_n| - 1)^2  at interpolates   Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3

In a critic that couples samples (BatchNorm) g_n is, as everywhere, the gradient of the whole batch's sum.
`critic_backward` computes it in one shared sweep (`fastgan.sweep`) where the critic allows that, and otherwise
differentiates twice by autograd: any critic, and the reference for the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastgan import sweep
from fastgan.critic_inputs import Samples, check_per_sample, check_samples, described, is_asked, parts_of
from fastgan.errors import FastganError, UnsupportedCritic, suggest

METHODS = ("auto", "sweep", "autograd")
_AUTO = ["auto"]  # what "auto" means, the last one counts

Critic: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class CriticResult:
    """What one `critic_backward` computed. All tensors are detached and on the device of the samples.

    loss:        0-dim, the adversarial loss alone
    r1, r2:      0-dim, mean_n |g_n|^2 on real, on fake samples: not weighted by gamma/2, so that values can
                 be compared across schedules and lazy intervals; None where it was not asked for
    wgan_gp:     0-dim, mean_n (|g_n| - 1)^2 at the interpolates, not weighted by lambda; None likewise
    real_logits: what the critic returned for real
    fake_logits: what the critic returned for fake
    finite:      0-dim bool: logits, loss and weighted penalties are all finite (gradients are not looked at)
    method:      how it was computed: "sweep" or "autograd"
    generator_loss: 0-dim, the generator's loss against the same logits; None where it was not asked for
    fake_gradient:  its gradient by fake, in the form of fake, None for tensors that are not floating point; or None
    """

    loss: Tensor
    r1: Tensor | None
    r2: Tensor | None
    wgan_gp: Tensor | None
    real_logits: Tensor
    fake_logits: Tensor
    finite: Tensor
    method: str
    generator_loss: Tensor | None = None
    fake_gradient: Tensor | tuple[Tensor | None, ...] | None = None


def critic_backward(
    critic: Critic,
    real: Samples,
    fake: Samples,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    r1: float | Tensor = 0.0,
    r2: float | Tensor = 0.0,
    wgan_gp: float | Tensor = 0.0,
    real_labels: Tensor | None = None,
    fake_labels: Tensor | None = None,
    epsilon: Tensor | None = None,
    method: str = "auto",
    generator_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> CriticResult:
    """Add the gradient of loss + gradient penalties into the `.grad` of the critic's parameters.

    They get what `backward()` on that sum would add: `.grad` is made where it was None, frozen parameters are
    left alone, unused ones keep None, hooks run. Nothing else gets a gradient: real and fake are detached, so
    that a generator upstream of `fake` is never reached. The critic sees real, then fake, then the
    interpolates, each once and each as a batch of its own (which counts for BatchNorm, spectral norm and
    dropout); with any method but "autograd" real and fake are joined where nothing tells the difference. Nothing is
    read on the host, save at the first call for a critic and a shape, so that later ones can be captured in a CUDA
    graph. Only penalties that are asked for cost anything.

    critic:      x -> logits [N], [N, 1] or maps [N, ...]. Called as critic(x), or critic(*x) for a tuple,
                 with the labels behind where there are any. An nn.Module (gradients go to its trainable
                 parameters), or any other callable (gradients go to every leaf that it uses).
    real, fake:  [N, ...] or a tuple of such tensors. The penalty gradient is taken over all floating-point
                 tensors of a tuple, their squared norms summed. N may differ between real and fake, save for
                 WGAN-GP.
    loss:        (real_logits, fake_logits) -> scalar, such as losses.RELATIVISTIC.critic; gets half-precision
                 logits in fp32
    r1, r2:      gamma in the formulas of this module, and wgan_gp: lambda. A float, where 0.0 skips the work,
                 or a 0-dim tensor on the critic's device, whose work is always done and whose sign is not
                 looked at.
    real_labels, fake_labels: [N] each, or both None; interpolates get real_labels
    epsilon:     [N] in [0, 1], WGAN-GP's weight of the real sample in each interpolate; drawn when None
    method:      "sweep": one shared sweep of loss and penalties, or UnsupportedCritic; "autograd": double backward;
                 "auto": the sweep for penalties of critics that allow it, else autograd, which a warning says once
    generator_loss: (real_logits, fake_logits) -> scalar, such as losses.RELATIVISTIC.generator. The result then has
                 its value and its gradient by fake, at the critic as it is now (simultaneous updates; the logits of
                 reals count as constants). The sweep has that gradient at hand: with R2 it costs nothing, else as much
                 as one more pass over the fakes. Autograd differentiates once more.

    Half-precision gradients are squared and summed in fp32. For mixed precision call it within
    `torch.autocast` in bf16 (in fp16, gradients of gradients overflow without a loss scale, and there is none
    here). Where |g_n| = 0, WGAN-GP has value 1 and gradient 0, the norm having no derivative there.

    Raises FastganError for inputs that do not fit together, and UnsupportedCritic (a FastganError) for a
    critic whose output cannot be used, before anything is added to any `.grad`.
    """
    if method not in METHODS:
        raise FastganError(f"method {method!r} is unknown{suggest(method, METHODS)}")
    method = _AUTO[-1] if method == "auto" else method
    coefficients = {"r1": r1, "r2": r2, "wgan_gp": wgan_gp}
    asked = {name for name, coefficient in coefficients.items() if is_asked(name, coefficient)}
    reals, fakes = parts_of("real", real), parts_of("fake", fake)
    check_samples(reals, fakes, paired="wgan_gp" in asked)
    check_per_sample(len(reals[0]), len(fakes[0]), real_labels, fake_labels, epsilon)
    trained = _trained_parameters(critic, reals[0].device)
    game = _Game(critic, reals, fakes, loss, {n: coefficients[n] for n in coefficients if n in asked}, real_labels,
                 fake_labels, epsilon, trained, generator_loss)  # fmt: skip
    result = _by_autograd(game) if method == "autograd" or _leaves_to_autograd(game, method) else _by_any(game, method)
    if isinstance(fake, Tensor) and result.fake_gradient is not None:
        (gradient,) = result.fake_gradient
        return replace(result, fake_gradient=gradient)
    return result


@contextmanager
def always(method: str) -> Iterator[None]:
    """Within it "auto" means `method`: for who compares a whole training with the reference."""
    _AUTO.append(method)
    try:
        yield
    finally:
        _AUTO.pop()


def _leaves_to_autograd(game: _Game, method: str) -> bool:
    """Whether nothing can be gained: no penalty, no gradient by fake is wanted, and real and fake cannot be joined."""
    wanted = game.coefficients or game.generator_loss
    return method == "auto" and not wanted and not sweep.may_join(game.critic, game.reals[0].device)


def _by_any(game: _Game, method: str) -> CriticResult:
    """By the sweep where that is possible and pays."""
    try:
        return _by_sweep(game, insist=method == "sweep")
    except sweep.NoFaster:
        pass
    except UnsupportedCritic as error:
        if method == "sweep":
            raise
        if game.coefficients:
            sweep.say_once(game.critic, str(error))
    return _by_autograd(game)


@dataclass(frozen=True)
class _Game:
    """What one `critic_backward` was asked for, checked. coefficients: of the penalties that are asked for."""

    critic: Critic
    reals: list[Tensor]
    fakes: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    coefficients: dict[str, float | Tensor]
    real_labels: Tensor | None
    fake_labels: Tensor | None
    epsilon: Tensor | None
    trained: list[Tensor] | None
    generator_loss: Callable[[Tensor, Tensor], Tensor] | None

    def between(self) -> list[Tensor]:
        with torch.no_grad():
            return _interpolates(self.reals, self.fakes, self.epsilon)

    def result(self, objective: Tensor, real_logits: Tensor, fake_logits: Tensor, penalties: dict[str, Tensor],
               method: str, generator_loss: Tensor | None = None,
               slopes: Sequence[Tensor] | None = None) -> CriticResult:  # fmt: skip
        weighted = [_weight(name, self.coefficients[name]) * value for name, value in penalties.items()]
        terms = [real_logits, fake_logits, objective, *weighted]
        return CriticResult(
            loss=objective.detach(),
            r1=penalties.get("r1"),
            r2=penalties.get("r2"),
            wgan_gp=penalties.get("wgan_gp"),
            real_logits=real_logits.detach(),
            fake_logits=fake_logits.detach(),
            finite=torch.isfinite(torch.cat([term.detach().reshape(-1) for term in terms])).all(),
            method=method,
            generator_loss=generator_loss,
            fake_gradient=None if slopes is None else self._like_fake(iter(slopes)),
        )

    def _like_fake(self, slopes: Iterator[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(next(slopes).to(x.dtype) if x.is_floating_point() else None for x in self.fakes)


def _by_autograd(game: _Game) -> CriticResult:
    """Differentiated twice: the reference."""
    critic, asked, simultaneous = game.critic, game.coefficients, game.generator_loss is not None
    with torch.enable_grad():
        at_real = _score(critic, game.reals, game.real_labels, track="r1" in asked)
        at_fake = _score(critic, game.fakes, game.fake_labels, track="r2" in asked or simultaneous)
        objective = _objective(game.loss, at_real.logits, at_fake.logits)
        penalised = {name: score for name, score in (("r1", at_real), ("r2", at_fake)) if name in asked}
        if "wgan_gp" in asked:
            penalised["wgan_gp"] = _score(critic, game.between(), game.real_labels, track=True)

        squares = _gradient_squares(list(penalised.values()))
        values = {name: _penalty(name, s) for name, s in zip(penalised, squares, strict=True)}
        weighted = [_weight(name, asked[name]) * value for name, value in values.items()]
        generators: tuple[Any, ...] = ()
        if game.generator_loss is not None:
            own = _objective(game.generator_loss, at_real.logits.detach(), at_fake.logits)
            gradients = torch.autograd.grad(own, at_fake.tracked, retain_graph=True, materialize_grads=True)
            generators = own.detach(), gradients
        torch.autograd.backward(sum(weighted, start=objective), inputs=game.trained)

    detached = {name: value.detach() for name, value in values.items()}
    return game.result(objective, at_real.logits, at_fake.logits, detached, "autograd", *generators)


def _by_sweep(game: _Game, *, insist: bool) -> CriticResult:
    """In one shared sweep; raises sweep.NoFaster where that does not pay, unless `insist`.

    A critic without penalty only comes this way to see real and fake as one batch, or for the gradient by fake.
    """
    asked, simultaneous = game.coefficients, game.generator_loss is not None
    sides = [
        sweep.Side(game.reals, game.real_labels, penalised="r1" in asked, scored=True),
        sweep.Side(game.fakes, game.fake_labels, penalised="r2" in asked or simultaneous, scored=True,
                   sloped=simultaneous),
    ]  # fmt: skip
    if "wgan_gp" in asked:
        between = sweep.Side(game.reals, game.real_labels, penalised=True, scored=False, make=game.between)
        sides.append(between)
    swept = sweep.Sweep(game.critic, sides, insist=insist)
    objective, scales = _slopes_of(game.loss, swept.logits[:2])
    squares = dict(zip(("r1", "r2", "wgan_gp"), swept.squares, strict=False))
    with torch.no_grad():
        values = {name: _penalty(name, squares[name]) for name in asked}  # type: ignore[arg-type]
        weights = [_penalty_slope(name, asked.get(name, 0.0), s) for name, s in squares.items()]
    generators: tuple[Any, ...] = ()
    if game.generator_loss is not None:
        own, (_, scale) = _slopes_of(game.generator_loss, swept.logits[:2])
        generators = own.detach(), [_times(scale, slope) for slope in swept.slopes[1]]
    swept.finish([*scales, None][: len(sides)], weights)
    method = "sweep" if insist or asked or simultaneous else "autograd"  # autograd's own formulas, in one batch
    return game.result(objective, swept.logits[0], swept.logits[1], values, method, *generators)


def _slopes_of(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """A loss, and its derivatives by the logits of reals and of fakes; None for what it does not read."""
    leaves = [each.detach().requires_grad_() for each in logits]
    with torch.enable_grad():
        value = _objective(loss, *leaves)
        if not value.requires_grad:
            return value, [None, None]
        return value, list(torch.autograd.grad(value, leaves, allow_unused=True))


def _times(scale: Tensor | None, slope: Tensor) -> Tensor:
    """scale_n slope_n, rounded once. scale: [N] or [N, 1, ...], one number per sample; slope: [N, ...]"""
    if scale is None:
        return torch.zeros_like(slope)
    return (scale.detach().view(-1, *[1] * (slope.ndim - 1)) * slope).to(slope.dtype)


def _penalty_slope(name: str, coefficient: float | Tensor, squares: Tensor | None) -> Tensor | None:
    """w [N]: the derivative of the weighted penalty by g_n is w_n g_n; None where there are no g_n."""
    if squares is None:
        return None
    slope = coefficient / len(squares)
    if name != "wgan_gp":
        return torch.ones_like(squares) * slope
    positive = squares > 0
    return torch.where(positive, 2 * slope * (1 - torch.where(positive, squares, 1.0).rsqrt()), 0.0)


@dataclass(frozen=True)
class _Scored:
    """One pass of the critic: its logits, and the leaves by which their sum is to be differentiated."""

    logits: Tensor
    tracked: list[Tensor]


def _score(critic: Critic, parts: Sequence[Tensor], labels: Tensor | None, *, track: bool) -> _Scored:
    """critic(*parts) on detached parts; with `track` the floating-point ones are leaves that require grad."""
    inputs = [part.detach().requires_grad_(track and part.is_floating_point()) for part in parts]
    logits = critic(*inputs) if labels is None else critic(*inputs, labels)
    sweep.check_logits(logits, len(parts[0]))
    if not logits.requires_grad:
        raise UnsupportedCritic(
            "critic returned logits without gradient: its parameters are frozen, or its forward detaches or "
            "disables grad; call critic.requires_grad_(True) and let gradients flow"
        )
    return _Scored(logits, [x for x in inputs if x.requires_grad])


def _objective(loss: Callable[[Tensor, Tensor], Tensor], real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The adversarial loss, 0-dim."""
    value = loss(_wide(real_logits), _wide(fake_logits))
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise FastganError(
            f"loss must return a 0-dim tensor for (real_logits, fake_logits), got {described(value)}; "
            "take the mean over samples"
        )
    return value


def _gradient_squares(passes: Sequence[_Scored]) -> list[Tensor]:
    """|g_n|^2 of each pass, [N], itself differentiable; one sweep of autograd for all passes."""
    if not passes:
        return []
    logits = [p.logits for p in passes]
    gradients = iter(
        torch.autograd.grad(
            logits,
            list(chain.from_iterable(p.tracked for p in passes)),
            grad_outputs=[torch.ones_like(each) for each in logits],
            create_graph=True,
            materialize_grads=True,  # zeros for a tensor that the critic does not use
        )
    )
    per_tensor = [[_sample_squares(next(gradients)) for _ in p.tracked] for p in passes]
    return [sum(squares[1:], start=squares[0]) for squares in per_tensor]


def _sample_squares(gradient: Tensor) -> Tensor:
    """Squares summed over all but the first dimension, [N]."""
    squares = _wide(gradient).square()
    return squares.sum(dim=tuple(range(1, squares.ndim))) if squares.ndim > 1 else squares


def _penalty(name: str, squares: Tensor) -> Tensor:
    """The penalty before its coefficient, 0-dim. squares: |g_n|^2, [N]."""
    if name != "wgan_gp":
        return squares.mean()
    positive = squares > 0  # the root has no derivative at 0: keep 0 out of it, or 0 * inf = NaN comes back
    norms = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    return (norms - 1).square().mean()


def _weight(name: str, coefficient: float | Tensor) -> float | Tensor:
    """What the penalty is multiplied by: gamma/2 or lambda."""
    if isinstance(coefficient, Tensor):
        coefficient = coefficient.detach()
    return coefficient if name == "wgan_gp" else coefficient / 2


def _interpolates(reals: Sequence[Tensor], fakes: Sequence[Tensor], epsilon: Tensor | None) -> list[Tensor]:
    """epsilon_n * real_n + (1 - epsilon_n) * fake_n; tensors that are not floating point are real's."""
    if epsilon is None:
        epsilon = torch.rand(len(reals[0]), device=reals[0].device)
    between = []
    for real, fake in zip(reals, fakes, strict=True):
        if real.is_floating_point():
            weight = epsilon.to(real.dtype).view(-1, *[1] * (real.ndim - 1))
            between.append(torch.lerp(fake.to(real.dtype), real, weight))
        else:
            between.append(real)
    return between


def _trained_parameters(critic: Critic, device: torch.device) -> list[Tensor] | None:
    """What gets gradients: a module's trainable parameters; None, all leaves, for a plain callable."""
    if not isinstance(critic, nn.Module):
        return None
    trained: list[Tensor] = [p for p in critic.parameters() if p.requires_grad]
    if not trained:
        raise FastganError("critic has no trainable parameter; call critic.requires_grad_(True) before")
    if trained[0].device != device:
        raise FastganError(f"critic is on {trained[0].device}, real on {device}; move one with .to(device)")
    return trained


def _wide(values: Tensor) -> Tensor:
    """Half-precision values in fp32, others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
