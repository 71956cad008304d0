"""critic_backward against closed forms and an independent second derivative."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from penalized import F64, Linear, PairCritic, Quadratic, assert_gradients, conv_critic, expected, images, nothing
from torch import nn

from fastgan import losses
from fastgan.penalty import critic_backward

COMBINATIONS = [c for c in itertools.product((0.0, 0.7), (0.0, 1.3), (0.0, 10.0)) if any(c)]


@pytest.mark.parametrize(("r1", "r2", "wgan_gp"), [(0.0, 0.0, 0.0), *COMBINATIONS])
def test_every_combination_against_an_independent_second_derivative(r1: float, r2: float, wgan_gp: float):
    critic, real, fake, epsilon = conv_critic(), images(5, 1), images(5, 2), torch.rand(5, dtype=F64)
    coefficients = {"r1": r1, "r2": r2, "wgan_gp": wgan_gp}
    loss = losses.RELATIVISTIC.critic
    result = critic_backward(critic, real, fake, loss, epsilon=epsilon, **coefficients)
    assert_gradients(critic, expected(critic, (real,), (fake,), loss, epsilon=epsilon, **coefficients))
    assert result.method == "autograd"
    assert [getattr(result, name) is not None for name in coefficients] == [c != 0 for c in coefficients.values()]


@pytest.mark.parametrize("loss", losses.LOSSES.values(), ids=losses.LOSSES)
def test_every_loss(loss: losses.Loss):
    critic, real, fake = conv_critic(), images(4, 1), images(4, 2)
    result = critic_backward(critic, real, fake, loss.critic, r1=2.0)
    assert_gradients(critic, expected(critic, (real,), (fake,), loss.critic, r1=2.0))
    with torch.no_grad():
        torch.testing.assert_close(result.real_logits, critic(real))
        torch.testing.assert_close(result.fake_logits, critic(fake))
        torch.testing.assert_close(result.loss, loss.critic(critic(real), critic(fake)))


@pytest.mark.parametrize("labelled", [False, True])
def test_tuples_and_labels(labelled: bool):
    torch.manual_seed(0)
    critic = PairCritic().double()
    real, fake = ((images(4, s, (6,)), images(4, s + 1, (3, 2)), torch.randint(5, (4,))) for s in (1, 3))
    options: dict[str, Any] = {"r1": 1.5, "r2": 0.5, "wgan_gp": 3.0, "epsilon": torch.rand(4, dtype=F64)}
    loss = losses.HINGE.critic
    if labelled:
        labels = {"real_labels": torch.tensor([0, 1, 2, 3]), "fake_labels": torch.tensor([4, 4, 0, 0])}
        critic_backward(critic, real, fake, loss, **labels, **options)
        options |= {name: (value,) for name, value in labels.items()}
    else:
        critic_backward(critic, real, fake, loss, **options)
        assert critic.label.weight.grad is None  # an unused parameter
        critic.label.weight.grad = torch.zeros_like(critic.label.weight)
    assert_gradients(critic, expected(critic, real, fake, loss, **options))


def test_linear_critic_in_closed_form():
    """g = w. R1 is gamma/2 |w|^2, its gradient gamma w; WGAN-GP lambda (|w| - 1)^2 and 2 lambda (1 - 1/|w|) w."""
    weight = torch.tensor([2.0, -1.0, 2.0], dtype=F64)  # |w| = 3
    real, fake = images(7, 1, (3,)), images(7, 2, (3,))
    for options, value, gradient in (
        ({"r1": 0.5}, 9.0, 0.5 * weight),
        ({"r2": 3.0}, 9.0, 3.0 * weight),
        ({"wgan_gp": 10.0}, 4.0, 20 * (1 - 1 / 3) * weight),
    ):
        critic = Linear(weight.clone())
        result = critic_backward(critic, real, fake, nothing, **options)
        (name,) = options
        assert getattr(result, name).item() == pytest.approx(value)
        torch.testing.assert_close(critic.weight.grad, gradient)
        assert critic.bias.grad == 0


def test_quadratic_critic_in_closed_form():
    """g = a x: mean |g|^2 = a^2 mean |x|^2, and d/da (gamma/2 a^2 mean |x|^2) = gamma a mean |x|^2."""
    real, fake = images(6, 1), images(3, 2)  # numbers of samples may differ
    critic = Quadratic(1.5)
    result = critic_backward(critic, real, fake, nothing, r1=0.4, r2=2.0)
    mean_real, mean_fake = (x.square().flatten(1).sum(1).mean().item() for x in (real, fake))
    assert result.r1.item() == pytest.approx(2.25 * mean_real)
    assert result.r2.item() == pytest.approx(2.25 * mean_fake)
    assert critic.a.grad.item() == pytest.approx(1.5 * (0.4 * mean_real + 2.0 * mean_fake))


def test_interpolates_lie_where_epsilon_says():
    """D = |x|^2 / 2 has |g_n| = |x_n| at the interpolate, so that the penalty shows where it is."""
    real, fake, epsilon = images(4, 1), images(4, 2), torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64)
    result = critic_backward(Quadratic(1.0), real, fake, nothing, wgan_gp=1.0, epsilon=epsilon)
    points = torch.stack([e * x + (1 - e) * y for e, x, y in zip(epsilon, real, fake, strict=True)])
    wanted = (points.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(result.wgan_gp, wanted)
    torch.manual_seed(0)
    drawn = critic_backward(Quadratic(1.0), real, fake, nothing, wgan_gp=1.0)
    again = critic_backward(Quadratic(1.0), real, fake, nothing, wgan_gp=1.0)
    assert drawn.wgan_gp != again.wgan_gp
    torch.manual_seed(0)
    assert drawn.wgan_gp == critic_backward(Quadratic(1.0), real, fake, nothing, wgan_gp=1.0).wgan_gp


def test_wgan_gp_where_the_gradient_is_zero():
    critic = Quadratic(3.0)  # g = 3 x = 0 at the interpolates of two zero images
    zeros = torch.zeros(2, 1, 2, 2, dtype=F64)
    result = critic_backward(critic, zeros, zeros, nothing, wgan_gp=10.0)
    assert (result.wgan_gp.item(), critic.a.grad.item()) == (1.0, 0.0)
    assert result.finite


def test_maps_count_the_sum_of_a_samples_logits():
    critic = nn.Conv2d(2, 1, 3, padding=1).double()
    real, fake = images(3, 1), images(3, 2)
    critic_backward(critic, real, fake, losses.LEAST_SQUARES.critic, r1=1.0, wgan_gp=2.0,
                    epsilon=torch.full((3,), 0.5, dtype=F64))  # fmt: skip
    wanted = expected(critic, (real,), (fake,), losses.LEAST_SQUARES.critic, r1=1.0, wgan_gp=2.0,
                      epsilon=torch.full((3,), 0.5, dtype=F64))  # fmt: skip
    assert_gradients(critic, wanted)


def test_samples_without_further_dimensions():
    critic = Quadratic(2.0)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    result = critic_backward(lambda v: critic(v[:, None]), x, x, nothing, r1=1.0)
    assert result.r1.item() == pytest.approx(4 * (1 + 4 + 9) / 3)


def test_penalty_is_per_sample():
    """A sample's share is its own, whatever the other samples are."""
    real, fake = images(4, 1), images(4, 2)
    names = ("r1", "r2", "wgan_gp")

    def values(rows: slice, other: float = 1.0) -> list[float]:
        scaled = real.clone(), fake.clone()
        for x in scaled:
            x[1:] *= other
        options = dict.fromkeys(names, 1.0) | {"epsilon": torch.full((len(real[rows]),), 0.3, dtype=F64)}
        result = critic_backward(conv_critic(), scaled[0][rows], scaled[1][rows], nothing, **options)
        return [getattr(result, name).item() for name in names]

    singles = [values(slice(i, i + 1)) for i in range(4)]
    assert values(slice(0, 4)) == pytest.approx([sum(v) / 4 for v in zip(*singles, strict=True)])
    assert values(slice(0, 1), other=5.0) == pytest.approx(singles[0])
    whole = [4 * v for v in values(slice(0, 4), other=5.0)]
    rest = [3 * v for v in values(slice(1, 4), other=5.0)]
    assert [w - r for w, r in zip(whole, rest, strict=True)] == pytest.approx(singles[0])
