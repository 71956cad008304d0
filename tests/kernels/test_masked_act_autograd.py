"""masked_act and apply_mask as differentiable ops of torch: derivatives, compilation, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from kernels.masks import added, eager, plus, random, relative
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels.masked_act import apply_mask, apply_mask_, masked_act, masked_act_
from fastgan.kernels.masked_act.reference import in_layout

pytestmark = pytest.mark.usefixtures("poisoned")

# ---- derivatives


def away_from_zero(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    x = random(shape, device, torch.float64, seed)
    return (x + 0.3 * x.sign()).requires_grad_()


@pytest.mark.parametrize(("slope", "shape"), list(product((0.0, 0.2), ((2, 3, 2, 2), (3, 2), (5,)))))
@pytest.mark.usefixtures("implementation")
def test_derivatives_of_first_and_second_order(slope: float, shape: tuple[int, ...], device: torch.device) -> None:
    z, u = away_from_zero(shape, device, 0), away_from_zero(shape, device, 1)
    vectors = [(0.1 * random((n,), device, torch.float64, n)).requires_grad_() for n in shape[:2]][::-1]
    bias, scale = vectors if len(shape) > 1 else (None, None)
    layouts = [z, z.to(memory_format=torch.channels_last)] if z.dim() == 4 else [z]
    for x, b, s in product(layouts, (None, bias), (None, scale)):
        mask = masked_act(x, slope, b)[1]
        assert not mask.requires_grad
        checks: list[tuple[Any, tuple[Tensor, ...]]] = [
            (lambda x, *b: masked_act(x, slope, *b)[0], (x.detach().requires_grad_(), *[b] * (b is not None)))
        ]
        if b is not None or s is None:
            added = tuple(v for v in (b, s) if v is not None)
            checks.append((lambda u, *v, m=mask: apply_mask(u, m, slope, *v), (u, *added)))
        for function, inputs in checks:
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.usefixtures("implementation")
def test_a_gradient_penalty_is_that_of_plain_layers(slope: float, device: torch.device) -> None:
    x = random((4, 3, 6, 6), device, torch.float64).requires_grad_()
    weights = [random(shape, device, torch.float64, 7) for shape in ((5, 3, 3, 3), (5,), (2, 5, 3, 3), (2,))]

    def gradients(act: Any) -> list[Tensor]:
        w1, b1, w2, b2 = leaves = [w.clone().requires_grad_() for w in weights]
        logits = act(F.conv2d(act(F.conv2d(x, w1), b1), w2), b2).sum((1, 2, 3))
        (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return list(torch.autograd.grad(logits.mean() + g.square().sum(), leaves))

    ours = gradients(lambda z, b: masked_act(z, slope, b)[0])
    for mine, theirs in zip(ours, gradients(lambda z, b: eager(plus(z, b), slope)), strict=True):
        assert relative(mine, theirs) < 1e-12


@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("implementation")
def test_gradients_have_the_types_of_their_tensors(bias_dtype: torch.dtype, device: torch.device) -> None:
    u = random((9, 4, 8, 8), device, torch.bfloat16).requires_grad_()
    bias, scale = (random((n,), device, bias_dtype, n).requires_grad_() for n in (4, 9))
    a, mask = masked_act(u, 0.2, bias)
    loss = (a * 0.3).sum() + (apply_mask(u, mask, 0.2, bias, scale) * 0.7).sum()
    grads = torch.autograd.grad(loss, (u, bias, scale))
    wide = [x.detach().double().requires_grad_() for x in (u, bias, scale)]
    exact = (masked_act(wide[0], 0.2, wide[1])[0] * 0.3).sum()
    exact = exact + (apply_mask(wide[0], mask, 0.2, wide[1], wide[2]) * 0.7).sum()
    for tensor, grad, expected in zip((u, bias, scale), grads, torch.autograd.grad(exact, wide), strict=True):
        assert grad.dtype == tensor.dtype
        assert relative(grad, expected) < 1e-2


@pytest.mark.usefixtures("implementation")
def test_in_place_without_derivative_is_refused_where_one_is_needed(device: torch.device) -> None:
    z, bias = random((3, 4), device, torch.float32), random((4,), device, torch.float32).requires_grad_()
    before = z.clone()
    mask = masked_act(z, 0.2)[1]
    for op in (
        lambda: masked_act_(z, 0.2, bias),
        lambda: apply_mask_(z, mask, 0.2, bias),
        lambda: torch.ops.fastgan.masked_act_(z, 0.2, bias),
        lambda: torch.ops.fastgan.apply_mask_(z, mask, 0.2, bias),
    ):
        with pytest.raises(FastganError, match=r"_: has no derivative, but .* requires one; use \w+[a-z], or torch"):
            op()
        assert torch.equal(z, before)
    with torch.no_grad():
        masked_act_(z, 0.2, bias)
    assert not torch.equal(z, before)


# ---- as ops of torch


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.usefixtures("implementation")
def test_opcheck(channels_last: bool, device: torch.device) -> None:
    z = in_layout(random((2, 3, 4, 5), device, torch.float32), channels_last)
    bias, scale = added(z, "bias and scale")
    ops, mask = torch.ops.fastgan, masked_act(z, 0.2)[1]
    torch.library.opcheck(ops.masked_act_.default, (z.clone(), 0.2, bias))
    torch.library.opcheck(ops.apply_mask_.default, (z.contiguous(), mask, 0.2, bias, scale))
    assert bias is not None
    assert scale is not None
    leaves = [v.requires_grad_() for v in (z, bias, scale)]
    for x in (z, z.transpose(2, 3)):
        torch.library.opcheck(ops.masked_act.default, (x, 0.0))
        torch.library.opcheck(ops.masked_act.default, (x, 0.2, bias))
        torch.library.opcheck(ops.apply_mask.default, (x, mask, 0.0))
        torch.library.opcheck(ops.apply_mask.default, (x, mask, 0.2, *leaves[1:]))


@pytest.mark.usefixtures("implementation")
def test_under_torch_compile(device: torch.device) -> None:
    def turn(z: Tensor, u: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        a, mask = masked_act(z, 0.2, bias)
        c = u * 1
        with torch.no_grad():
            d = u.clone()
            apply_mask_(d, mask, 0.2, bias, scale)
            other = masked_act_(d, 0.0)
        return a * 2, mask, apply_mask(c, mask, 0.2, bias, scale), d, other

    compiled = torch.compile(turn, fullgraph=True, backend="aot_eager")
    for n in (4, 6):
        z, u = (random((n, 3, 5, 5), device, torch.float32, i).requires_grad_() for i in range(2))
        bias, scale = (v.requires_grad_() for v in added(z.detach(), "bias and scale") if v is not None)
        results = [turn(z, u, bias, scale), compiled(z, u, bias, scale)]
        assert all(map(torch.equal, *results))
        grads = [torch.autograd.grad(r[0].sum() + (r[2] ** 2).sum(), (z, u, bias, scale)) for r in results]
        assert all(map(torch.allclose, *grads))


LIBRARY = """
import sys, torch
from fastgan.kernels import masked_act
from fastgan.kernels._runtime import choose
assert choose("masked_act", torch.device("cpu")).implementation == "PyTorch"
z = torch.arange(-6.0, 6.0).view(3, 4)
mask = masked_act.masked_act_(z, 0.5)
assert z.flatten().tolist() == [-3, -2.5, -2, -1.5, -1, -0.5, 0, 1, 2, 3, 4, 5], z
assert mask.tolist() == [128, 15], mask
assert masked_act.apply_mask(z, mask, 0.0).flatten().tolist() == [0] * 7 + [1, 2, 3, 4, 5]
assert "triton" not in sys.modules, "Triton takes long to load"
"""


def test_library_path_in_a_process_of_its_own() -> None:
    environment = {**os.environ, "FASTGAN_KERNELS": "library", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LIBRARY], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


Z, MASK = torch.zeros(2, 3, 4, 4), torch.zeros(12, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: masked_act(Z.long(), 0.2), "masked_act: expected z in float32, .* got int64"),
        (lambda: masked_act_(Z, 0.2, torch.zeros(4)), r"masked_act_: expected bias of shape \(3,\) .* got \(4,\)"),
        (lambda: masked_act(Z, 0.2, torch.zeros(3, 1)), r"expected bias of shape \(3,\) .* got \(3, 1\)"),
        (lambda: masked_act(Z[:, 0, 0, 0], 0.2, torch.zeros(2)), r"along dimension 1: expected z .* got \(2,\)"),
        (lambda: masked_act(Z, 0.2, torch.zeros(3).double()), "expected bias in float32 for z in float32, got float64"),
        (lambda: masked_act(Z.half(), 0.2, torch.zeros(3).bfloat16()), "expected bias in float16 or float32 for z"),
        (lambda: apply_mask(Z.int(), MASK, 0.2), "apply_mask: expected u in float32, .* got int32"),
        (lambda: apply_mask(Z, MASK[1:], 0.2), r"expected mask as uint8 \(12,\) or \(1, 12\) .* got uint8 \(11,\)"),
        (lambda: apply_mask(Z, MASK.bool(), 0.2), r"expected mask as uint8 .* got bool \(12,\)"),
        (lambda: apply_mask(Z.flatten(1), MASK[None], 0.2), r"expected mask as uint8 \(12,\) for u .* \(1, 12\)"),
        (lambda: apply_mask_(Z, MASK, 0.2, torch.zeros(3), torch.zeros(3)), r"expected scale of shape \(2,\)"),
        (lambda: apply_mask_(Z, MASK, 0.2, None, torch.zeros(2)), "a scale multiplies the bias: expected a bias"),
        (
            lambda: apply_mask(Z, MASK, 0.2, torch.zeros(3), torch.zeros(2).half()),
            "expected scale in float32 for u in float32, got float16",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bad: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        bad()
    assert "\n" not in str(error.value)
