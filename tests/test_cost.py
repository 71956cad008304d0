"""The cost model against what a step does, counted by torch's FlopCounterMode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_presets import batch_of, narrow, step_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastgan.cost import Cost, network_cost, step_cost, total
from fastgan.kernels._runtime import plain_layers

# Relative difference allowed. With R1 + R2 it is 1e-4 and 1.7e-3: the edges of the sweep are not counted one by one.
EXACT = {
    "dcgan-64": 0.0,
    "wgan-gp-64": 0.0,
    "sngan-32": 0.0,
    "digits": 2e-3,
    "r3gan-32": 2e-3,
    "digits, simultaneous": 2e-3,
}


@pytest.mark.parametrize("preset", EXACT)
def test_operations_of_a_step(preset: str) -> None:
    name, _, simultaneous = preset.partition(", ")
    config = narrow(name, simultaneous=bool(simultaneous))
    if name == "r3gan-32":  # FlopCounterMode counts the weight gradients of grouped convolutions too high
        networks = replace(config.system.networks, group_size=16)
        config = replace(config, system=replace(config.system, networks=networks))
    _, step = step_of(config)
    ready = [batch_of(config, n) for n in range(step.batches * (2 * config.system.penalty_every))]
    for _ in range(config.system.penalty_every):
        step(lambda: ready.pop())
    for penalised in (True, False) if config.system.penalty_every > 1 else (True,):
        with plain_layers(), FlopCounterMode(display=False) as counter:
            step(lambda: ready.pop())
        parts = step_cost(config.system, config.shape, config.batch, penalised=penalised)
        del parts["update"]  # elementwise: not counted by torch
        assert total(parts).flops == pytest.approx(counter.get_total_flops(), rel=EXACT[preset] or 1e-12)


def test_a_network_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.Conv2d(4, 6, 4, 2, 1, groups=2),
                            nn.ConvTranspose2d(6, 2, 4, 2, 1), nn.Flatten(), nn.Linear(2 * 64, 1))  # fmt: skip
    cost = network_cost(network, (3, 8, 8))
    first, second, third = 2 * 4 * 3 * 9 * 64, 2 * 6 * 2 * 16 * 16, 2 * 6 * 2 * 16 * 16
    assert cost.first.flops == first
    assert cost.whole.flops == first + second + third + 2 * 128
    moved = [3 * 64 + 4 * 64, 4 * 64 + 6 * 16, 6 * 16 + 2 * 64, 128 + 1]
    weights = sum(p.numel() for p in network.parameters())
    assert cost.whole.bytes == 4 * (sum(moved) + weights / 4), "weights are read once per batch of four"
    assert cost.plain.flops == 3 * cost.whole.flops - first
    assert cost.parameters == weights


def test_the_floor_is_the_larger_of_both() -> None:
    assert Cost(10, 100).seconds(matmul_rate=5, copy_rate=100) == 2
    assert Cost(10, 1000).seconds(matmul_rate=5, copy_rate=100) == 10


def test_nothing_changes_in_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network_cost(network, (3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
