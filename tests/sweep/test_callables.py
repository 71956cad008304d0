"""Critics that are plain functions: gradients go to every leaf that they use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from sweep.compare import LOSSES, assert_gradients, clear, gradients, images, refusal, small
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.penalty import critic_backward

REAL, FAKE = images(4, 1), images(4, 2)
HINGE = LOSSES["hinge"]

CALLABLES: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "lambda": lambda critic: lambda x: critic(x),
    "scaled": lambda critic: lambda x: 2.0 * critic(x.flip(3)),
    "partial": lambda critic: functools.partial(_scaled, critic, scale=0.5),
    "method": lambda critic: critic.forward,
    "composition": lambda critic: lambda x: critic[3:](critic[:3](x)),
}


def _scaled(critic: nn.Module, x: Tensor, scale: float) -> Tensor:
    return scale * critic(x)


@pytest.mark.parametrize("method", ["sweep", "auto"])
@pytest.mark.parametrize("name", CALLABLES)
def test_plain_callables(name: str, method: str):
    """Made anew at every call; gradients go to every leaf that they use. "sweep" may refuse them by name."""
    critic, twin = small(), small()
    for seed in range(3):
        make = CALLABLES[name]
        if method == "sweep" and (why := refusal(make(critic), REAL, FAKE)):  # type: ignore[arg-type]
            assert "\n" not in why
            assert all(p.grad is None for p in critic.parameters())
            return
        for each, how in ((critic, method), (twin, "autograd")):
            clear(each)
            critic_backward(make(each), REAL + seed, FAKE, HINGE, method=how, r1=1.0, r2=0.5)
        assert_gradients(gradients(twin), gradients(critic))


@pytest.mark.parametrize("method", ["sweep", "auto"])
def test_a_callable_whose_weights_are_computed_outside_it(method: str):
    """The gradient goes on to the leaf behind, or the sweep refuses."""
    leaves = {}
    for how in ("autograd", method):
        leaf = images(1, 5, (192,))[0].requires_grad_()
        weight = 2 * leaf.abs()

        def critic(x: Tensor, weight: Tensor = weight) -> Tensor:
            return F.relu(x.flatten(1) @ weight)

        if how == "sweep" and refusal(critic, REAL, FAKE):
            assert leaf.grad is None
            return
        leaf.grad = None
        weight = 2 * leaf.abs()
        critic_backward(lambda x, w=weight: F.relu(x.flatten(1) @ w), REAL, FAKE, HINGE, method=how, r1=1.0)
        leaves[how] = {"leaf": leaf.grad}
    assert_gradients(leaves["autograd"], leaves[method])


def test_functions_made_anew_at_every_call():
    """Their captures are found again, or the number of captures does not matter."""
    critic, twin = small(), small()
    for step in range(70):
        for each, method in ((critic, "auto"), (twin, "autograd")):
            critic_backward(lambda x, each=each: each(x) * 2, REAL + step, FAKE, HINGE, method=method, r1=1.0)
        if step % 10 == 0:
            assert_gradients(gradients(twin), gradients(critic))


def test_one_function_of_two_critics():
    """One piece of code, two closures: each has its own weights, and its own number of layers."""

    def critic_of(layers: list[nn.Module], slope: float) -> Callable[[Tensor], Tensor]:
        def critic(x: Tensor) -> Tensor:
            for layer in layers:
                x = F.leaky_relu(layer(x), slope)
            return x.mean((1, 2, 3))

        return critic

    torch.manual_seed(0)
    players = [nn.ModuleList([nn.Conv2d(3, 3, 3) for _ in range(n)]).double() for n in (1, 2, 2)]
    for _ in range(2):
        for player, slope in zip(players, (0.1, 0.2, 0.5), strict=True):
            found = {}
            for method in ("auto", "autograd"):
                clear(player)
                critic_backward(critic_of(list(player), slope), REAL, FAKE, HINGE, method=method, r1=1.0, r2=1.0)
                found[method] = gradients(player)
            assert_gradients(found["autograd"], found["auto"])
