"""A call without penalty: real and fake as one batch where nothing tells the difference, and never otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_reads import NoHostReads
from sweep.compare import LOSSES, assert_same, images, run, small, spread
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode


class Batches(TorchDispatchMode):
    """Notes the batch sizes of the convolutions, forward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            self.found.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def critic_with(*layers: nn.Module) -> nn.Module:
    """[N, 3, 8, 8] -> [N, 1], with `layers` on [N, 4, 4, 4] in the middle."""
    stem = [nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2), *layers, nn.Flatten()]
    return spread(nn.Sequential(*stem, nn.Linear(64, 1)))


class Deviation(nn.Module):
    """Each sample is scaled by the standard deviation over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.std(0).mean()


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Roll(nn.Module):
    """Couples samples while `on`."""

    on = False

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 0) if self.on else x


def hooked() -> nn.Module:
    critic = small()
    critic[0].register_forward_hook(lambda module, inputs, output: None)
    return critic


def normalised() -> nn.Module:
    critic = small()
    spectral_norm(critic[0])
    return critic


JOINED: dict[str, Callable[[], nn.Module]] = {
    "small": small,
    "smooth": lambda: critic_with(nn.GELU(), nn.LayerNorm([4, 4, 4]), nn.GroupNorm(2, 4)),
    "batch norm in evaluation": lambda: critic_with(nn.BatchNorm2d(4)).eval(),
    "spectral norm in evaluation": lambda: normalised().eval(),
}
APART: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: critic_with(nn.BatchNorm2d(4)),
    "standard deviation": lambda: critic_with(Deviation()),
    "centred logits": lambda: nn.Sequential(small(), Centre()),
    "dropout": lambda: critic_with(nn.Dropout(0.5)),
    "spectral norm": normalised,
    "counter": lambda: critic_with(Counter()),
    "forward hook": hooked,
    "compiled by its owner": lambda: nn.Sequential(torch.compile(small(), backend="eager")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", [*JOINED, *APART])
def test_the_gradient_is_that_of_two_batches_and_one_is_made_where_nothing_couples(name: str):
    critic = (JOINED | APART)[name]()
    other = copy.deepcopy(critic)
    real, fake, loss = images(5, 1), images(3, 2), LOSSES["hinge"]
    for seed in range(2):
        for each in (critic, other):
            each.zero_grad()
        wanted = run(other, real, fake, loss, seed=seed, method="autograd")
        assert_same(wanted, run(critic, real, fake, loss, seed=seed))
    with Batches() as sizes, NoHostReads():
        result = run(critic, real, fake, loss).result
    assert sizes.found == ([8] if name in JOINED else [5, 3])
    assert result.method == "autograd"


def test_what_changes_in_the_critic_is_seen():
    """A joined critic that starts to couple samples is called with real and fake apart from then on."""
    roll = Roll()
    critic = critic_with(roll)
    other = copy.deepcopy(critic)
    real, fake, loss = images(4, 1), images(4, 2), LOSSES["relativistic"]
    for on in (False, False, True, True, False):
        roll.on = other[2].on = on
        for each in (critic, other):
            each.zero_grad()
        assert_same(run(other, real, fake, loss, method="autograd"), run(critic, real, fake, loss))
    assert len(critic[0].weight.grad) == 4


def test_a_critic_that_changes_at_every_call_is_soon_left_alone():
    critic = critic_with(Counter())
    for number in range(20):
        critic[2].calls = 10 * number
        run(critic, images(4, 1), images(4, 2), LOSSES["hinge"])
    from fastgan.sweep.capture import capture_of

    assert capture_of(critic).captures <= 2


def test_gradients_are_handed_over_without_a_copy():
    """What the sweep made becomes .grad itself."""
    for penalties in ({}, {"r1": 1.0, "r2": 1.0}, {"r1": 1.0}):
        critic = small()
        for seed in range(2):
            critic.zero_grad()
            run(critic, images(4, 1), images(4, 2), LOSSES["hinge"], seed=seed, **penalties)
        critic.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run(critic, images(4, 1), images(4, 2), LOSSES["hinge"], **penalties)
        parents = [e.cpu_parent.name for e in profile.events() if e.name == "aten::copy_" and e.cpu_parent]
        assert not any("AccumulateGrad" in parent for parent in parents)
