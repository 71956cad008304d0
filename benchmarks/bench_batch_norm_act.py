"""batch_norm_act: training BatchNorm + leaky ReLU, forward and backward, against PyTorch's, eager and compiled.

Both sides use the statistics of the batch and keep no running ones. PyTorch runs in both layouts, since on CPUs
neither is always the faster one.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastgan.kernels.batch_norm_act import CASES, train_batch_norm_act

# The blocks of a DCGAN-64 generator, batch 64
SHAPES = [CASES[f"dcgan-64 at {size}x{size}, channels-last"][0] for size in (32, 16, 8, 4)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SLOPE = 0.2


def ours(x, weight, bias):
    return train_batch_norm_act(x, weight, bias, act="leaky_relu", slope=SLOPE)[0]


def theirs(x, weight, bias):
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True), SLOPE)


def step(function, x, weight, bias, grad):
    """Forward and backward."""
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def check(made, exact):
    for ours, theirs in zip(made, exact, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 1e-5, f"wrong by {error}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, layout, ratio, device):
    torch.manual_seed(0)
    x, grad = (torch.randn(shape, device=device) for _ in range(2))
    weight, bias = torch.rand(shape[1], device=device) + 0.5, torch.randn(shape[1], device=device)
    z = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    grad[z.abs() < 1e-5] = 0  # there rounding decides on which side of the kink an element is

    def arguments(name):
        fresh = [t.clone(memory_format=LAYOUTS[name]) for t in (x, grad)]
        return fresh[0], weight.clone(), bias.clone(), fresh[1]

    candidates = {"fastgan": step(ours, *arguments(layout))}
    torch.compiler.reset()  # no shape of another case counts against the limit of recompilations
    compiled = torch.compile(theirs, fullgraph=True, dynamic=False)
    for name in LAYOUTS:
        candidates[f"PyTorch, {name}"] = step(theirs, *arguments(name))
        candidates[f"torch.compile, {name}"] = step(compiled, *arguments(name))
    exact = step(theirs, *(t.double() for t in (x, weight, bias, grad)))()
    for candidate in candidates.values():
        check(candidate(), exact)
    ratio(
        "batch_norm_act",
        f"{list(shape)}, {layout}",
        candidates,
        ours="fastgan",
        bytes=8 * x.nbytes,  # x is read four times and grad twice, out and dx are written
    )
