"""Adversarial losses against numbers worked out by hand, their gradients' signs, and their range."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fastgan import losses
from fastgan.errors import FastganError
from fastgan.losses import LOSSES, Loss

# Two real and two fake logits. sigmoid(log 3) = 3/4 and sigmoid(-log 3) = 1/4, so that logistic losses are
# logs of simple fractions:
#   log sigmoid(x):        log 3/4 at log 3, log 1/2 at 0, log 1/4 at -log 3
#   log (1 - sigmoid(x)):  log 1/4 at log 3, log 1/2 at 0, log 3/4 at -log 3
REAL = [math.log(3), 0.0]
FAKE = [0.0, -math.log(3)]
# log 3 = 1.098612289, log 4/3 = 0.287682072, log 2 = 0.693147181, log 4 = 1.386294361
LOGISTIC_CRITIC = 0.980829253  # (log 4/3 + log 2)/2 for real + (log 2 + log 4/3)/2 for fake = log 8/3

VALUES = {
    # fake: (log 2 + log 4) / 2
    "non_saturating": (LOGISTIC_CRITIC, 1.039720771),
    # fake: (log 1/2 + log 3/4) / 2 = log(3/8) / 2
    "minimax": (LOGISTIC_CRITIC, -0.490414627),
    # critic: ((log 3 - 1)^2 + (0 - 1)^2)/4 + (0 + (log 3)^2)/4 = (0.009724384 + 1 + 1.206948961)/4
    # generator: ((0 - 1)^2 + (-log 3 - 1)^2)/4 = (1 + 4.404173539)/4
    "least_squares": (0.554168336, 1.351043385),
    # critic: (max(0, 1 - 1.0986) + max(0, 1))/2 + (max(0, 1) + max(0, 1 - 1.0986))/2 = (0 + 1)/2 + (1 + 0)/2
    # generator: -(0 - 1.098612289)/2
    "hinge": (1.0, 0.549306144),
    # critic: -0.549306144 - 0.549306144
    "wasserstein": (-1.098612289, 0.549306144),
    # f*(0) = exp(-1) = 0.367879441, f*(-log 3) = exp(-1)/3 = 0.122626480; mean 0.245252961
    # critic: 0.245252961 - 0.549306144
    "kl": (-0.304053183, -0.245252961),
    # both pairs differ by log 3: log(1 + 1/3) for the critic, log(1 + 3) for the generator
    "relativistic": (0.287682072, 1.386294361),
    # E exp(-D(x)) = (1/3 + 1)/2, E D(x~) = -log 3 / 2
    "reverse_kl": (2 / 3 - 0.549306144 - 1, 1.549306144),
    # logistic, moved by 2 log 2 and log 2
    "jensen_shannon": (LOGISTIC_CRITIC - 1.386294361, -0.490414627 + 0.693147181),
    # E exp(-D(x)) = E exp(D(x~)) = 2/3
    "squared_hellinger": (-2 / 3, 1 / 3),
    # f*(0) = 0, f*(-log 3) = 1.206948961/4 - 1.098612289 = -0.796875049; mean -0.398437524
    "pearson": (-0.398437524 - 0.549306144, 0.398437524),
}


def test_every_loss_is_worked_out_here_and_named_by_its_key():
    assert set(VALUES) == set(LOSSES)
    assert all(name == loss.name for name, loss in LOSSES.items())
    named = (losses.NON_SATURATING, losses.MINIMAX, losses.LEAST_SQUARES, losses.HINGE, losses.WASSERSTEIN,
             losses.KL, losses.RELATIVISTIC, losses.REVERSE_KL, losses.JENSEN_SHANNON, losses.SQUARED_HELLINGER,
             losses.PEARSON)  # fmt: skip
    assert list(LOSSES.values()) == list(named)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_value(loss: Loss, shape: tuple[int, ...]):
    real, fake = (torch.tensor(x, dtype=torch.float64).reshape(shape) for x in (REAL, FAKE))
    critic, generator = VALUES[loss.name]
    for value, expected in ((loss.critic(real, fake), critic), (loss.generator(real, fake), generator)):
        assert value.shape == ()
        assert value.item() == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_signs(loss: Loss):
    """The critic raises real logits and lowers fake ones; the generator raises fake ones."""
    real, fake = _logits(8)
    fake = fake.detach().abs().requires_grad_()  # above 0, which is where least squares wants the fake ones
    to_real, to_fake = torch.autograd.grad(loss.critic(real, fake), [real, fake])
    assert (to_real <= 0).all()
    assert (to_real < 0).any()
    assert (to_fake >= 0).all()
    assert (to_fake > 0).any()
    (raised,) = torch.autograd.grad(loss.generator(real, fake), [fake])
    assert (raised < 0).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck(loss: Loss):
    assert torch.autograd.gradcheck(loss.critic, _logits(5))
    real, fake = _logits(5)
    assert torch.autograd.gradcheck(lambda x: loss.generator(real.detach(), x), fake)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_huge_logits_stay_finite(loss: Loss, dtype: torch.dtype):
    real = torch.tensor([1e4, -1e4, 1e4, -1e4], dtype=dtype, requires_grad=True)
    fake = torch.tensor([1e4, -1e4, -1e4, 1e4], dtype=dtype, requires_grad=True)
    for function in (loss.critic, loss.generator):
        value = function(real, fake)
        gradients = torch.autograd.grad(value, [real, fake], allow_unused=True, materialize_grads=True)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_logits_are_computed_in_fp32(loss: Loss):
    real, fake = (x.detach().bfloat16() for x in _logits(33))
    for function in (loss.critic, loss.generator):
        value = function(real, fake)
        assert value.dtype == torch.float32
        assert value == function(real.float(), fake.float())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_generator_compares_says_whether_real_logits_matter(loss: Loss):
    real, fake = (x.detach() for x in _logits(8))
    if loss.generator_compares:
        assert loss.generator(real, fake) != loss.generator(real + 1, fake)
    else:
        assert loss.generator(real, fake) == loss.generator(torch.zeros(()), fake)


def test_kl_is_the_exponential_up_to_its_limit_and_convex_beyond():
    limit = losses.LOG_RATIO_LIMIT
    t = torch.tensor([-5.0, 0.0, 20.0, 1 + limit, 3 + limit], dtype=torch.float64, requires_grad=True)
    values = torch.stack([losses.KL.critic(torch.zeros(1), x[None]) for x in t])
    (slopes,) = torch.autograd.grad(values.sum(), t)
    exact = torch.exp(t.detach() - 1)
    # real logits are 0, so that the loss is f*(t); at t = 3 + L it is exp(L) * (1 + 2), with slope exp(L)
    exact_values = [*exact[:4], 3 * math.exp(limit)]
    torch.testing.assert_close(values, torch.tensor(exact_values, dtype=torch.float64))
    torch.testing.assert_close(slopes, torch.tensor([*exact[:4], math.exp(limit)], dtype=torch.float64))


def test_kl_optimum_is_the_divergence():
    """At D = 1 + log p/q, minus the critic's loss is KL(p | q); here p = (3/4, 1/4) and q = (1/2, 1/2)."""
    p, q = torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    logits = 1 + (p / q).log()
    real, fake = logits[[0, 0, 0, 1]], logits  # three of four real samples and one of two fakes in cell 0
    bound = -losses.KL.critic(real, fake)
    assert bound.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


P, Q = torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
DIVERGENCES = {  # loss -> (the critic's optimum, the divergence there)
    "reverse_kl": ((P / Q).log(), (Q * (Q / P).log()).sum()),
    "jensen_shannon": ((P / Q).log(), (P * (2 * P / (P + Q)).log() + Q * (2 * Q / (P + Q)).log()).sum()),
    "squared_hellinger": ((P / Q).log() / 2, (P.sqrt() - Q.sqrt()).square().sum()),
    "pearson": (2 * (P / Q - 1), ((P - Q).square() / Q).sum()),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_optimum_is_the_divergence(name: str):
    """At the best logits minus the critic's loss is the divergence, and no other logits give more."""
    optimum, divergence = DIVERGENCES[name]
    rows = [0, 0, 0, 1]  # three of four real samples and one of two fakes in cell 0
    assert -LOSSES[name].critic(optimum[rows], optimum).item() == pytest.approx(divergence.item())
    for shift in torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.2, -0.1]], dtype=torch.float64):
        moved = optimum + shift
        assert -LOSSES[name].critic(moved[rows], moved) < divergence


def test_minimax_saturates_where_non_saturating_does_not():
    fake = torch.tensor([-20.0], requires_grad=True)
    weak, strong = (
        torch.autograd.grad(loss.generator(fake, fake), fake)[0].item()
        for loss in (losses.MINIMAX, losses.NON_SATURATING)
    )
    assert weak == pytest.approx(0, abs=1e-8)
    assert strong == pytest.approx(-1)


def test_relativistic_pairs_must_match():
    with pytest.raises(FastganError, match=r"\[4\] and \[4, 1\]; give equally many"):
        losses.RELATIVISTIC.critic(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(FastganError, match=r"\[3\] and \[4\]"):
        losses.RELATIVISTIC.generator(torch.zeros(3), torch.zeros(4))


def test_losses_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        losses.HINGE.name = "other"  # type: ignore[misc]


def _logits(count: int) -> tuple[Tensor, Tensor]:
    """Real and fake logits around 0 in float64, away from the hinge's kinks at 1 and -1."""
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(2, count, dtype=torch.float64, generator=generator) * 1.6 - 0.8
    return pair[0].clone().requires_grad_(), pair[1].clone().requires_grad_()


def test_logits_that_are_large_are_exact_in_float64() -> None:
    """log(1 + exp(x)) = x + log(1 + exp(-x)), its slope sigmoid(x); PyTorch's default gives x and 1 above 20."""
    x = torch.linspace(-45, 45, 901, dtype=torch.float64, requires_grad=True)
    value = losses.softplus(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    logits = x.detach()
    exact = logits.clamp(min=0) + torch.log1p((-logits.abs()).exp())
    torch.testing.assert_close(value, exact, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(slope, torch.sigmoid(logits), rtol=1e-15, atol=0.0)
    assert (exact[logits > 21] - logits[logits > 21]).max() > 5e-10  # there is something to tell them apart by
