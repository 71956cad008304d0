"""Convolutions with small maps as products of matrices: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastgan.losses import RELATIVISTIC
from fastgan.penalty import critic_backward
from fastgan.sweep import small_maps

CASES = [  # C, D, (H, W), kernel, stride, padding
    (3, 5, (8, 8), [4, 4], [2, 2], [1, 1]),
    (4, 6, (7, 9), [3, 2], [2, 1], [1, 0]),
    (2, 3, (4, 4), [4, 4], [1, 1], [0, 0]),
    (2, 3, (6, 5), [3, 3], [1, 1], [2, 1]),
    (2, 3, (9, 8), [2, 3], [3, 2], [0, 1]),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("before", "after", "size", "kernel", "stride", "padding"), CASES)
def test_against_the_library(before, after, size, kernel, stride, padding, memory_format):
    x = torch.randn(3, before, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(after, before, *kernel, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    bias = torch.randn(after, dtype=torch.float64)
    wanted = F.conv2d(x, weight, bias, stride, padding)
    delta = torch.randn_like(wanted)
    of_x, of_weight = torch.autograd.grad(wanted, (x, weight), delta)
    with torch.no_grad():
        torch.testing.assert_close(small_maps.convolution(x, weight, bias, stride, padding), wanted)
        torch.testing.assert_close(
            small_maps.convolution(x, weight, None, stride, padding) + bias.view(-1, 1, 1), wanted
        )
        given = small_maps.input_gradient(delta, weight, list(size), stride, padding)
        torch.testing.assert_close(given, of_x, check_stride=False)
        torch.testing.assert_close(small_maps.weight_gradient(delta, x, kernel, stride, padding), of_weight)


@pytest.mark.parametrize("penalties", [{"r1": 1.0, "r2": 1.0}, {"r1": 1.0}, {"wgan_gp": 1.0}], ids=str)
def test_they_are_used_and_agree_with_autograd(penalties):
    penalties = {**penalties, "epsilon": torch.rand(4)}
    torch.manual_seed(0)
    critic = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.Linear(64 * 16, 1),
    )  # fmt: skip
    real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    calls = []
    original = small_maps.patches

    def counted(*args):
        calls.append(args)
        return original(*args)

    small_maps.patches = counted
    try:
        critic_backward(critic, real, fake, RELATIVISTIC.critic, method="sweep", **penalties)
    finally:
        small_maps.patches = original
    assert calls
    ours = [p.grad.clone() for p in critic.parameters()]
    critic.zero_grad()
    critic_backward(critic, real, fake, RELATIVISTIC.critic, method="autograd", **penalties)
    for one, parameter in zip(ours, critic.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-5)
