"""Conditional batch normalisation: its formula, its derivatives of both orders, in both memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from fastgan.errors import FastganError
from fastgan.kernels.activations import ACTS, activate
from fastgan.nn import ConditionalBatchNormAct1d, ConditionalBatchNormAct2d, ConditionalSequential

LABELS = torch.tensor([0, 2, 2, 1, 0])
FORMATS = [torch.contiguous_format, torch.channels_last]


def layer(act: str, *, vectors: bool = False) -> ConditionalBatchNormAct2d:
    made = (ConditionalBatchNormAct1d if vectors else ConditionalBatchNormAct2d)(6, 3, act=act)
    made = made.double()
    generator = torch.Generator().manual_seed(0)
    for table in (made.gain, made.bias):
        table.weight.data += 0.5 * torch.randn(3, 6, generator=generator, dtype=torch.float64)
    return made


def formula(made: ConditionalBatchNormAct2d, x: Tensor, *, training: bool) -> Tensor:
    mean, var = (None, None) if training else (made.norm.running_mean, made.norm.running_var)
    normal = batch_norm(x, mean, var, training=training, eps=made.norm.eps)
    shape = (5, 6, *[1] * (x.dim() - 2))
    z = normal * made.gain.weight[LABELS].view(shape) + made.bias.weight[LABELS].view(shape)
    return activate(z, ACTS[made.act], made.negative_slope)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("act", ["relu", "leaky_relu", "none"])
def test_the_formula_and_its_gradients(act: str, memory_format: torch.memory_format) -> None:
    made = layer(act)
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = (x, made.gain.weight, made.bias.weight)
    for training in (True, False):
        made.train(training)
        ours = made(x, LABELS)
        theirs = formula(made, x, training=training)
        assert (ours - theirs).abs().max() < 1e-12
        direction = torch.randn_like(ours)
        for mine, reference in zip(
            torch.autograd.grad(ours, weights, direction),
            torch.autograd.grad(theirs, weights, direction),
            strict=True,
        ):
            assert (mine - reference).abs().max() < 1e-11
    assert (made.norm.running_mean != 0).all()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_second_order_is_exact(memory_format: torch.memory_format) -> None:
    made = layer("leaky_relu")
    x = torch.randn(5, 6, 3, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()

    def run(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        state = {"gain.weight": gain, "bias.weight": bias}
        return torch.func.functional_call(made, state, (x, LABELS))  # type: ignore[no-any-return]

    inputs = (x, made.gain.weight.detach().requires_grad_(), made.bias.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_vectors_and_rows_of_layers() -> None:
    made = layer("relu", vectors=True)
    row = ConditionalSequential(torch.nn.Linear(4, 6).double(), made)
    z = torch.randn(5, 4, dtype=torch.float64)
    assert (row(z, LABELS) - formula(made, row[0](z), training=True)).abs().max() < 1e-12
    assert not torch.allclose(row(z, LABELS), row(z, LABELS.flip(0)))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_transposed_convolution_in_front_is_one_block_with_it(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(3, 6, 4, 2, 1, bias=False)
    made = layer("relu").float()
    row = ConditionalSequential(torch.nn.Identity(), conv, made, torch.nn.Conv2d(6, 2, 3)).to(
        memory_format=memory_format
    )
    x = torch.randn(5, 3, 4, 4).to(memory_format=memory_format)
    ours = row(x, LABELS)
    theirs = row[3](formula(made, conv(x), training=True))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    for mine, reference in zip(
        torch.autograd.grad(ours.square().sum(), list(row.parameters())),
        torch.autograd.grad(theirs.square().sum(), list(row.parameters())),
        strict=True,
    ):
        assert (mine - reference).norm() < 1e-4 * reference.norm()


def test_what_is_refused() -> None:
    with pytest.raises(FastganError, match="classes must be 1 or more, got 0"):
        ConditionalBatchNormAct2d(4, 0)
    with pytest.raises(FastganError, match="'rellu'"):
        ConditionalBatchNormAct2d(4, 2, act="rellu")
