"""Optimisers of a player against torch.optim, and what happens around them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastgan.errors import FastganError
from fastgan.optim import Averaging, Optimizer, PlayerState
from fastgan.schedule import Progress, Schedule, value_at

ZERO, NEVER = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.bool)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1)).double()


def train(player: PlayerState, steps: int, decay: float = 0.9) -> None:
    for i in range(steps):
        player.zero_grad()
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        player.module(x).square().mean().backward()
        player.update(Progress(ZERO), torch.tensor(decay, dtype=torch.float64), player.gradient_norm(), NEVER)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (Optimizer("adam", 1e-2, 0.5, 0.9), lambda p: torch.optim.Adam(p, 1e-2, (0.5, 0.9))),
        (Optimizer("sgd", 1e-2, 0.7), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.7)),
        (Optimizer("sgd", 1e-2, 0.0), lambda p: torch.optim.SGD(p, 1e-2)),
        (
            Optimizer("rmsprop", 1e-2, 0.0, 0.95, eps=1e-6),
            lambda p: torch.optim.RMSprop(p, 1e-2, alpha=0.95, eps=1e-6),
        ),
        (Optimizer("adam", 1e-2, 0.0, 0.99, clip_norm=0.05), None),
    ],
)
def test_equals_torch(options: Optimizer, theirs) -> None:  # type: ignore[no-untyped-def]
    player = PlayerState(network(), options, averaged=True)
    other, average = network(), network()
    optimizer = theirs(other.parameters()) if theirs else torch.optim.Adam(other.parameters(), 1e-2, (0.0, 0.99))
    train(player, 5)
    for i in range(5):
        optimizer.zero_grad()
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        other(x).square().mean().backward()
        if options.clip_norm:
            nn.utils.clip_grad_norm_(other.parameters(), options.clip_norm)
        optimizer.step()
        for a, b in zip(average.parameters(), other.parameters(), strict=True):
            a.data.lerp_(b.data, 1 - 0.9)
    tolerance = 1e-5 if options.clip_norm else 1e-12  # torch adds 1e-6 to the norm that it clips by
    assert player.average is not None
    for mine, want in ((player.module, other), (player.average, average)):
        for p, q in zip(mine.parameters(), want.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=tolerance, atol=tolerance)
    assert int(player.updates) == 5


def test_weights_are_clipped() -> None:
    player = PlayerState(network(), Optimizer("rmsprop", 1e-2, clip_weights=0.01), averaged=False)
    train(player, 2)
    assert max(float(p.detach().abs().max()) for p in player.params) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop"])
def test_clipped_weights_are_averaged_clipped_and_skipped(kind: str) -> None:
    player = PlayerState(network(), Optimizer(kind, 1e-2, clip_weights=0.01), averaged=True)
    before = [p.detach().clone() for p in player.params]
    for p in player.params:
        p.grad = torch.ones_like(p)
    player.update(Progress(ZERO), ZERO, player.gradient_norm(), torch.ones((), dtype=torch.bool))
    assert all(torch.equal(p, q) for p, q in zip(player.params, before, strict=True))
    for p in player.params:
        p.grad = torch.ones_like(p)
    player.update(Progress(ZERO), ZERO, player.gradient_norm(), NEVER)
    assert all(torch.equal(a, p) for a, p in zip(player.average_params, player.params, strict=True))
    assert max(float(a.abs().max()) for a in player.average_params) <= 0.01


def test_the_norm_is_of_all_gradients() -> None:
    player = PlayerState(network(), Optimizer(), averaged=False)
    assert float(player.gradient_norm()) == 0
    for p in player.params:
        p.grad = torch.ones_like(p)
    assert float(player.gradient_norm()) == pytest.approx(math.sqrt(sum(p.numel() for p in player.params)))
    player.params[0].grad = torch.full_like(player.params[0], math.nan)
    assert math.isnan(float(player.gradient_norm()))


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop"])
def test_a_parameter_without_a_gradient_is_left_alone(kind: str) -> None:
    player = PlayerState(network(), Optimizer(kind, 0.1), averaged=True)
    before = [p.detach().clone() for p in player.params]
    player.params[0].grad = torch.ones_like(player.params[0])
    player.update(Progress(ZERO), ZERO, player.gradient_norm(), NEVER)
    assert not torch.equal(player.params[0], before[0])
    assert all(torch.equal(p, q) for p, q in zip(player.params[1:], before[1:], strict=True))
    assert all(torch.equal(a, p) for a, p in zip(player.average_params, player.params, strict=True))
    assert player.params[0].grad is None


def test_frozen_parameters_stay() -> None:
    module = network()
    module[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    before = copy.deepcopy(module.state_dict())
    player = PlayerState(module, Optimizer(lr=0.1), averaged=True)
    train(player, 2)
    assert torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(module.state_dict()["3.weight"], before["3.weight"])
    assert player.average is not None
    assert torch.equal(player.average.state_dict()["0.weight"], before["0.weight"])
    with pytest.raises(FastganError, match="without trainable parameters"):
        PlayerState(nn.ReLU(), Optimizer(), averaged=False)


@pytest.mark.parametrize(
    ("images", "rampup", "want"),
    [
        (1000, 0.0, 0.5 ** (100 / 2000)),
        (1000, 0.05, 0.5 ** (100 / 50)),
        (10**6, 0.05, 0.5 ** (100 / 2000)),
        (0, 0.05, 0.0),
    ],
)
def test_averaging_decay(images: int, rampup: float, want: float) -> None:
    decay = Averaging(halflife_kimg=2, rampup=rampup).decay(torch.tensor(float(images), dtype=torch.float64), 100)
    assert float(decay) == pytest.approx(want)


@pytest.mark.parametrize(("progress", "want"), [(0.0, 2.0), (0.1, 2.0), (0.3, 1.5), (0.5, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedules(progress: float, want: float, shape: str) -> None:
    value = Schedule(2.0, 1.0, begin=0.1, finish=0.5, shape=shape)
    assert float(value_at(value, torch.tensor(progress, dtype=torch.float64))) == pytest.approx(want)
    assert float(value_at(3.0, torch.tensor(progress, dtype=torch.float64))) == 3.0


def test_cosine_is_flat_at_its_ends() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    values = torch.stack([value_at(Schedule(1.0, 0.0), x) for x in t])
    assert values[0] - values[1] < 1e-3
    assert values[49] - values[50] > 1e-2


def test_progress_knows_each_value_once_per_step() -> None:
    progress, schedule = Progress(ZERO), Schedule(2.0, 1.0, shape="linear")
    first = progress.value(schedule)
    assert progress.value(Schedule(2.0, 1.0, shape="linear")) is first
    assert (float(first), float(progress.value(0.5))) == (2.0, 0.5)
    progress.advance(torch.tensor(0.5, dtype=torch.float64))
    assert (float(progress.value(schedule)), float(progress.value(0.5))) == (1.5, 0.5)
