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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastgan import sweep
from fastgan.errors import FastganError, UnsupportedCritic, suggest

METHODS = ("auto", "sweep", "autograd")

Samples: TypeAlias = Tensor | tuple[Tensor, ...]
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
    """

    loss: Tensor
    r1: Tensor | None
    r2: Tensor | None
    wgan_gp: Tensor | None
    real_logits: Tensor
    fake_logits: Tensor
    finite: Tensor
    method: str


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
) -> CriticResult:
    """Add the gradient of loss + gradient penalties into the `.grad` of the critic's parameters.

    They get what `backward()` on that sum would add: `.grad` is made where it was None, frozen parameters are
    left alone, unused ones keep None, hooks run. Nothing else gets a gradient: real and fake are detached, so
    that a generator upstream of `fake` is never reached. The critic sees real, then fake, then the
    interpolates, each once and each as a batch of its own (which counts for BatchNorm, spectral norm and
    dropout); the sweep joins real and fake where nothing tells the difference. Nothing is read on the host, save
    at the first call for a critic and a shape, so that later ones can be captured in a CUDA graph. Only penalties
    that are asked for cost anything.

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

    Half-precision gradients are squared and summed in fp32. For mixed precision call it within
    `torch.autocast` in bf16 (in fp16, gradients of gradients overflow without a loss scale, and there is none
    here). Where |g_n| = 0, WGAN-GP has value 1 and gradient 0, the norm having no derivative there.

    Raises FastganError for inputs that do not fit together, and UnsupportedCritic (a FastganError) for a
    critic whose output cannot be used, before anything is added to any `.grad`.
    """
    if method not in METHODS:
        raise FastganError(f"method {method!r} is unknown{suggest(method, METHODS)}")
    coefficients = {"r1": r1, "r2": r2, "wgan_gp": wgan_gp}
    asked = {name for name, coefficient in coefficients.items() if _is_asked(name, coefficient)}
    reals, fakes = _parts("real", real), _parts("fake", fake)
    _check_samples(reals, fakes, paired="wgan_gp" in asked)
    _check_per_sample(len(reals[0]), len(fakes[0]), real_labels, fake_labels, epsilon)
    trained = _trained_parameters(critic, reals[0].device)
    game = _Game(critic, reals, fakes, loss, {n: coefficients[n] for n in coefficients if n in asked}, real_labels,
                 fake_labels, epsilon, trained)  # fmt: skip
    if method == "autograd" or (method == "auto" and not asked):
        return _by_autograd(game)
    try:
        return _by_sweep(game, insist=method == "sweep")
    except sweep.NoFaster:
        pass
    except UnsupportedCritic as error:
        if method == "sweep":
            raise
        sweep.say_once(critic, str(error))
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

    def between(self) -> list[Tensor]:
        with torch.no_grad():
            return _interpolates(self.reals, self.fakes, self.epsilon)

    def result(self, objective: Tensor, real_logits: Tensor, fake_logits: Tensor, penalties: dict[str, Tensor],
               method: str) -> CriticResult:  # fmt: skip
        weighted = [_weight(name, self.coefficients[name]) * value for name, value in penalties.items()]
        terms = [real_logits, fake_logits, objective, *weighted]
        return CriticResult(
            loss=objective.detach(),
            r1=penalties.get("r1"),
            r2=penalties.get("r2"),
            wgan_gp=penalties.get("wgan_gp"),
            real_logits=real_logits.detach(),
            fake_logits=fake_logits.detach(),
            finite=torch.stack([torch.isfinite(term.detach()).all() for term in terms]).all(),
            method=method,
        )


def _by_autograd(game: _Game) -> CriticResult:
    """Differentiated twice: the reference."""
    critic, asked = game.critic, game.coefficients
    with torch.enable_grad():
        at_real = _score(critic, game.reals, game.real_labels, track="r1" in asked)
        at_fake = _score(critic, game.fakes, game.fake_labels, track="r2" in asked)
        objective = _objective(game.loss, at_real.logits, at_fake.logits)
        penalised = {name: score for name, score in (("r1", at_real), ("r2", at_fake)) if name in asked}
        if "wgan_gp" in asked:
            penalised["wgan_gp"] = _score(critic, game.between(), game.real_labels, track=True)

        squares = _gradient_squares(list(penalised.values()))
        values = {name: _penalty(name, s) for name, s in zip(penalised, squares, strict=True)}
        weighted = [_weight(name, asked[name]) * value for name, value in values.items()]
        torch.autograd.backward(sum(weighted, start=objective), inputs=game.trained)

    detached = {name: value.detach() for name, value in values.items()}
    return game.result(objective, at_real.logits, at_fake.logits, detached, "autograd")


def _by_sweep(game: _Game, *, insist: bool) -> CriticResult:
    """In one shared sweep; raises sweep.NoFaster where that does not pay, unless `insist`."""
    asked = game.coefficients
    sides = [
        sweep.Side(game.reals, game.real_labels, penalised="r1" in asked, scored=True),
        sweep.Side(game.fakes, game.fake_labels, penalised="r2" in asked, scored=True),
    ]
    if "wgan_gp" in asked:
        between = sweep.Side(game.reals, game.real_labels, penalised=True, scored=False, make=game.between)
        sides.append(between)
    swept = sweep.Sweep(game.critic, sides, insist=insist)
    leaves = [logits.detach().requires_grad_() for logits in swept.logits[:2]]
    with torch.enable_grad():
        objective = _objective(game.loss, *leaves)
        scales: list[Tensor | None] = [None, None, None]
        if objective.requires_grad:
            scales[:2] = torch.autograd.grad(objective, leaves, allow_unused=True)
    squares = dict(zip(("r1", "r2", "wgan_gp"), swept.squares, strict=False))
    with torch.no_grad():
        values = {name: _penalty(name, squares[name]) for name in asked}  # type: ignore[arg-type]
        weights = [_penalty_slope(n, asked[n], s) if n in asked else None for n, s in squares.items()]  # type: ignore[arg-type]
    swept.finish(scales[: len(sides)], weights)
    return game.result(objective, swept.logits[0], swept.logits[1], values, "sweep")


def _penalty_slope(name: str, coefficient: float | Tensor, squares: Tensor) -> Tensor:
    """w [N]: the derivative of the weighted penalty by g_n is w_n g_n."""
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
            f"loss must return a 0-dim tensor for (real_logits, fake_logits), got {_described(value)}; "
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


def _is_asked(name: str, coefficient: float | Tensor) -> bool:
    """Whether the penalty's work is to be done; FastganError for what is no coefficient."""
    if isinstance(coefficient, Tensor):
        if coefficient.ndim != 0:
            raise FastganError(f"{name} must be a number or a 0-dim tensor, got {_described(coefficient)}")
        return True
    if not 0 <= coefficient < math.inf:
        raise FastganError(f"{name} must be a finite number of 0 or more, got {coefficient}")
    return coefficient != 0


def _parts(name: str, samples: Samples) -> list[Tensor]:
    """The tensors of one tensor or a tuple of them, checked for themselves."""
    parts = list(samples) if isinstance(samples, tuple) else [samples]
    if not parts or not all(isinstance(part, Tensor) and part.ndim > 0 for part in parts):
        raise FastganError(f"{name} must be a tensor [N, ...] or a tuple of them, got {_described(samples)}")
    if len({len(part) for part in parts}) != 1 or len(parts[0]) == 0:
        raise FastganError(f"{name} must have the same N > 0 in all tensors, got {_described(samples)}")
    if not any(part.is_floating_point() for part in parts):
        raise FastganError(
            f"{name} must be floating point, got {_described(samples)}; "
            "bring uint8 images to [-1, 1] with x / 127.5 - 1"
        )
    return parts


def _check_samples(reals: Sequence[Tensor], fakes: Sequence[Tensor], *, paired: bool) -> None:
    """real and fake against each other. paired: they must be equally many."""
    if [part.shape[1:] for part in reals] != [part.shape[1:] for part in fakes]:
        raise FastganError(f"real and fake differ in shape: {_described(reals)} against {_described(fakes)}")
    devices = sorted({str(part.device) for part in chain(reals, fakes)})
    if len(devices) > 1:
        raise FastganError(f"real and fake must be on one device, got {' and '.join(devices)}")
    if paired and len(reals[0]) != len(fakes[0]):
        raise FastganError(
            f"wgan_gp needs as many fake as real samples, got {len(reals[0])} real and {len(fakes[0])} fake"
        )


def _check_per_sample(reals: int, fakes: int, real_labels: Tensor | None, fake_labels: Tensor | None,
                      epsilon: Tensor | None) -> None:  # fmt: skip
    """Labels and epsilon against the numbers of samples."""
    if (real_labels is None) != (fake_labels is None):
        raise FastganError("real_labels and fake_labels must be given both or neither")
    for name, tensor, count in (
        ("real_labels", real_labels, reals),
        ("fake_labels", fake_labels, fakes),
    ):
        if tensor is not None and tensor.shape[:1] != (count,):
            raise FastganError(f"{name} must be [{count}], one per sample, got {list(tensor.shape)}")
    if epsilon is not None and epsilon.shape != (reals,):
        raise FastganError(f"epsilon must be [{reals}], one per sample, got {list(epsilon.shape)}")


def _described(value: object) -> str:
    """`torch.float32 [8, 3, 32, 32]`, comma-separated for several."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_described, value)) or "nothing"
    return type(value).__name__


def _wide(values: Tensor) -> Tensor:
    """Half-precision values in fp32, others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
