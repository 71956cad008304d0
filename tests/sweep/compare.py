"""critic_backward by two methods on equal critics, and a comparison of everything that it leaves behind."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastgan import losses
from fastgan.penalty import CriticResult, Samples, UnsupportedCritic, critic_backward

F64 = torch.float64
Gradients: TypeAlias = dict[str, Tensor | None]
LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

EVERYTHING = os.environ.get("FASTGAN_TESTS") == "all"
"""Long tests run too, and 200 random critics instead of 25."""

EXACT = 1e-12
"""Largest relative difference to autograd in float64."""

PENALTIES: dict[str, dict[str, float]] = {
    "r1": {"r1": 1.7},
    "r2": {"r2": 0.6},
    "r1+r2": {"r1": 0.8, "r2": 2.3},
    "wgan_gp": {"wgan_gp": 10.0},
    "r1+wgan_gp": {"r1": 0.9, "wgan_gp": 3.0},
    "none": {},
}

LOSSES = {name: losses.LOSSES[name].critic for name in ("hinge", "relativistic", "wasserstein", "least_squares")}


@dataclass(frozen=True)
class Outcome:
    """What a call leaves: its result, the gradients, buffers and training flags of the critic, the random state."""

    result: CriticResult
    gradients: Gradients
    buffers: dict[str, Tensor]
    random: Tensor


def images(count: int, seed: int, shape: tuple[int, ...] = (3, 8, 8), dtype: torch.dtype = F64) -> Tensor:
    """Normal random numbers [count, *shape]."""
    return torch.randn(count, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spread(critic: nn.Module, seed: int = 0, *, equalised: bool = False) -> nn.Module:
    """The critic in float64 with weights of variance 1/fan_in and biases of 0.3: every part of it counts.

    equalised: its weights have variance 1 and are scaled in forward
    """
    generator = torch.Generator().manual_seed(seed)
    critic = critic.double()
    with torch.no_grad():
        for parameter in critic.parameters():
            noise = torch.randn(parameter.shape, dtype=F64, generator=generator)
            fan_in = 1 if equalised else max(math.prod(parameter.shape[1:]), 1)
            gain = 3.0 if fan_in == 1 and not equalised else 1.3  # the lengths of weight norm
            parameter.copy_(noise * (gain / math.sqrt(fan_in) if parameter.ndim > 1 else 0.3))
    return critic


def small() -> nn.Module:
    """[N, 3, 8, 8] -> [N, 1]."""
    stem = [nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten()]
    return spread(nn.Sequential(*stem, nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1)))


def gradients(critic: nn.Module) -> Gradients:
    """A copy of every parameter's gradient."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in critic.named_parameters()}


def clear(critic: nn.Module) -> None:
    """No gradients."""
    for parameter in critic.parameters():
        parameter.grad = None


def run(
    critic: nn.Module, real: Samples, fake: Samples, loss: LossFunction, *, seed: int = 0, **options: Any
) -> Outcome:
    """One call of critic_backward from a given random state."""
    torch.manual_seed(seed)
    result = critic_backward(critic, real, fake, loss, **options)
    buffers = {name: b.clone() for name, b in critic.named_buffers()}
    return Outcome(result, gradients(critic), buffers, torch.get_rng_state())


def gradient_errors(wanted: Gradients, given: Gradients) -> dict[str, float]:
    """|given - wanted| of every parameter, relative to |wanted|.

    A gradient below 1e-3 of the norm of all of them is measured against that: it may be nothing but the rounding of
    terms that cancel, such as the last bias under a loss of differences of logits.
    """
    assert wanted.keys() == given.keys()
    missing = {name for name in wanted if (wanted[name] is None) != (given[name] is None)}
    assert not missing, f"only one method gives a gradient to {sorted(missing)}"
    present = {name: gradient for name, gradient in wanted.items() if gradient is not None}
    for name, gradient in present.items():
        assert (given[name].dtype, given[name].shape) == (gradient.dtype, gradient.shape), name
    norms = {name: gradient.double().norm().item() for name, gradient in present.items()}
    floor = 1e-3 * sum(norm**2 for norm in norms.values()) ** 0.5
    differences = {name: (given[name].double() - g.double()).norm().item() for name, g in present.items()}
    return {name: 0.0 if d == 0 else d / (max(norms[name], floor) or 1e-300) for name, d in differences.items()}


def assert_gradients(wanted: Gradients, given: Gradients, tolerance: float = EXACT) -> None:
    errors = gradient_errors(wanted, given)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative errors of gradients: { {n: f'{e:.1e}' for n, e in wrong.items()} }"


def assert_results(wanted: CriticResult, given: CriticResult, tolerance: float = EXACT) -> None:
    for field in dataclasses.fields(CriticResult):
        one, other = getattr(wanted, field.name), getattr(given, field.name)
        if field.name == "method":
            continue
        assert (one is None) == (other is None), field.name
        if one is not None:
            assert not other.requires_grad, field.name
            # (|g| - 1)^2 and differences of logits cancel: an absolute part beside the relative one
            torch.testing.assert_close(
                other, one, rtol=tolerance, atol=tolerance / 10, msg=lambda m, n=field.name: f"{n}: {m}"
            )


def assert_same(wanted: Outcome, given: Outcome, tolerance: float = EXACT) -> None:
    """Gradients, values, buffers and random state."""
    assert_results(wanted.result, given.result, tolerance)
    assert_gradients(wanted.gradients, given.gradients, tolerance)
    assert wanted.buffers.keys() == given.buffers.keys()
    for name, buffer in wanted.buffers.items():
        torch.testing.assert_close(
            given.buffers[name], buffer, rtol=tolerance, atol=tolerance / 10, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(wanted.random, given.random), "the random state differs after the call"


def assert_exact(
    make: Callable[[], nn.Module],
    real: Samples,
    fake: Samples,
    loss: LossFunction = LOSSES["relativistic"],
    *,
    calls: int = 2,
    method: str = "sweep",
    tolerance: float = EXACT,
    expect: str | None = "sweep",
    **options: Any,
) -> None:
    """Two critics from `make`, one by autograd, one by `method`, stay the same over `calls` calls on other data.

    Gradients are not cleared between calls: the second call adds to what is there.
    """
    by_autograd, by_method = _made(make), _made(make)
    for seed in range(calls):
        wanted = run(by_autograd, real, fake, loss, seed=seed, method="autograd", **options)
        given = run(by_method, real, fake, loss, seed=seed, method=method, **options)
        assert_same(wanted, given, tolerance)
        assert given.result.finite
        if expect is not None:
            assert given.result.method == expect
        real, fake = _other(real), _other(fake)


def assert_exact_or_refused(
    make: Callable[[], nn.Module], real: Samples, fake: Samples, loss: LossFunction = LOSSES["hinge"], **options: Any
) -> None:
    """The sweep does it exactly, or refuses it in one line and leaves gradients and buffers as they were."""
    critic, twin = _made(make), _made(make)
    buffers = {name: b.clone() for name, b in critic.named_buffers()}
    try:
        given = run(critic, real, fake, loss, method="sweep", **options)
    except UnsupportedCritic as error:
        message = str(error)
    else:
        assert_same(run(twin, real, fake, loss, method="autograd", **options), given)
        return
    assert "\n" not in message
    assert all(p.grad is None for p in critic.parameters())
    for name, buffer in critic.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def refusal(critic: Callable[..., Tensor], real: Samples, fake: Samples, **options: Any) -> str | None:
    """Why the sweep refuses the critic; None if it does not."""
    try:
        critic_backward(critic, real, fake, LOSSES["hinge"], method="sweep", **{"r1": 1.0, **options})
    except UnsupportedCritic as error:
        return str(error)
    return None


def assert_agrees(critic: nn.Module, real: Samples, fake: Samples, **options: Any) -> None:
    """The same stateless critic by the sweep and by autograd. Its gradients are None before and after."""
    loss = options.pop("loss", LOSSES["relativistic"])
    outcomes = {}
    for method in ("sweep", "autograd"):
        clear(critic)
        outcomes[method] = run(critic, real, fake, loss, method=method, **options)
        assert outcomes[method].result.method == method
    clear(critic)
    assert_same(outcomes["autograd"], outcomes["sweep"])


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """From the same random state each time: the vectors of spectral norm are drawn when it is made."""
    torch.manual_seed(0)
    return make()


def _other(samples: Samples) -> Samples:
    """Other samples of the same shape."""
    if isinstance(samples, tuple):
        return tuple(_other(part) if part.is_floating_point() else part for part in samples)
    return 0.7 * samples.flip(0) + 0.1


def total_error(wanted: Gradients, given: Gradients) -> float:
    """|given - wanted| over all parameters together, relative to |wanted|."""
    names = [name for name, gradient in wanted.items() if gradient is not None]
    one, other = (torch.cat([g[name].double().flatten() for name in names]) for g in (wanted, given))
    return ((other - one).norm() / one.norm()).item()
