"""masked_act and apply_mask against float64, their masks bit by bit, their derivatives, and what they refuse."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels import masked_act as package
from fastgan.kernels._runtime import EXTENSION, choose
from fastgan.kernels.masked_act import CASES, apply_mask, apply_mask_, masked_act, masked_act_, reference_apply
from fastgan.kernels.masked_act.reference import CHANNELS_LAST, in_layout

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
SLOPES = (0.0, 0.2, -0.5, 1.0)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New memory is NaN, or 255 in masks, so that what is not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # only for what it does to new memory
    assert torch.empty(1).isnan()
    assert torch.empty(1).new_empty(1, dtype=torch.uint8) == 255
    yield
    torch.use_deterministic_algorithms(False)


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def of_case(case: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    shape, channels_last = CASES[case]
    return in_layout(random(shape, device, dtype), channels_last)


def added(z: Tensor, what: str) -> tuple[Tensor | None, Tensor | None]:
    """(bias, scale) for z: none, the bias alone, or both."""
    bias = random(z.shape[1:2], z.device, z.dtype, 1) if what != "nothing" else None
    return bias, (random(z.shape[:1], z.device, z.dtype, 2) if what == "bias and scale" else None)


def eager(y: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(y, slope) if slope else F.relu(y)


def plus(z: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    if bias is None:
        return z
    bias = bias.view(-1, *[1] * (z.dim() - 2))
    return z + (bias if scale is None else scale.view(-1, *[1] * (z.dim() - 1)) * bias)


def bits(mask: Tensor, numel: int) -> list[bool]:
    """The mask by its definition, bit by bit; those past the end have to be 0."""
    every = [bool(byte >> i & 1) for byte in mask.flatten().tolist() for i in range(8)]
    assert not any(every[numel:])
    return every[:numel]


def in_memory_order(x: Tensor) -> list[Any]:
    """The elements of a contiguous or channels-last tensor as they lie in memory."""
    return torch.as_strided(x, (x.numel(),), (1,)).tolist()


def relative(ours: Tensor, exact: Tensor) -> float:
    norm = exact.norm().item()
    return (ours.double() - exact).norm().item() / norm if norm else 0.0


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal, where NaN is equal to NaN."""
    return ours.dtype == theirs.dtype and torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(
        ours.nan_to_num(9), theirs.nan_to_num(9)
    )  # fmt: skip


def assert_accurate(ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    assert ours.dtype == eager.dtype
    assert ours.shape == exact.shape
    bound = {torch.float32: 2e-7, torch.float64: 1e-15}.get(ours.dtype)
    assert relative(ours, exact) <= (2 * relative(eager, exact) if bound is None else bound)


# Large cases in the two types that training uses.
CASES_AND_TYPES = [
    (case, dtype) for case, dtype in product(CASES, DTYPES) if "dcgan" not in case or dtype in (DTYPES[0], DTYPES[2])
]


def additions(case: str) -> list[str]:
    return ["nothing", "bias", "bias and scale"] if len(CASES[case][0]) > 1 else ["nothing"]


# ---- the numbers


@pytest.mark.parametrize(("case", "dtype"), CASES_AND_TYPES)
@pytest.mark.usefixtures("implementation")
def test_activation_and_mask(case: str, dtype: torch.dtype, device: torch.device) -> None:
    z = of_case(case, device, dtype)
    for slope, what in product(SLOPES[:2] if z.numel() > 100_000 else SLOPES, additions(case)[:2]):
        bias, _ = added(z, what)
        a, mask = masked_act(z, slope, bias)
        exact = plus(z.double(), bias if bias is None else bias.double())
        assert_accurate(a, eager(plus(z, bias), slope), eager(exact, slope))
        assert a.stride() == z.stride() or z.numel() == 0
        channels_last = not z.is_contiguous()
        assert mask.shape == ((1,) * channels_last + ((z.numel() + 7) // 8,))
        if z.numel() < 20_000:
            assert bits(mask, z.numel()) == in_memory_order(exact > 0)


@pytest.mark.parametrize(("case", "dtype"), CASES_AND_TYPES)
@pytest.mark.usefixtures("implementation")
def test_application(case: str, dtype: torch.dtype, device: torch.device) -> None:
    """With u in the layout of the mask, and in another one."""
    z = of_case(case, device, dtype)
    mask = masked_act(z, 0.2)[1]
    on = z > 0
    for what, u in product(additions(case), (random(z.shape, device, dtype, 5), z.flip(0).contiguous())):
        bias, scale = added(z, what)
        y, exact = plus(u, bias, scale), plus(*(v if v is None else v.double() for v in (u, bias, scale)))
        for slope in (0.2, 0.0):
            result = apply_mask(u, mask, slope, bias, scale)
            assert_accurate(result, torch.where(on, y, y * slope), torch.where(on, exact, exact * slope))
            assert result.stride() == z.stride() or z.numel() == 0


LEVELS = range((EXTENSION.module.SIMD_LEVEL if EXTENSION.module else -1) + 1)


@pytest.mark.skipif(EXTENSION.module is None, reason="no native part")
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_gives_the_bits_of_the_reference(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, infinities and NaN among the numbers, on small tensors and on one that ends within a vector."""
    monkeypatch.setattr(EXTENSION.module, "SIMD_LEVEL", level)
    for case, dtype, slope in product(CASES, DTYPES, SLOPES):
        z = of_case(case, CPU, dtype)
        if z.numel() > 20_000:
            continue
        flat = torch.as_strided(z, (z.numel(),), (1,))
        flat[::7], flat[1::29], flat[2::31], flat[3::37], flat[4::41] = 0, math.inf, -math.inf, math.nan, -0.0
        for what in additions(case):
            bias, scale = added(z, what)
            a, mask = masked_act(z, slope, bias)
            expected, expected_mask = package.reference(z, slope, bias)
            assert torch.equal(mask, expected_mask)
            assert same(a, expected)
            assert same(apply_mask(z, mask, slope, bias, scale), reference_apply(z, mask, slope, bias, scale))


@pytest.mark.skipif(EXTENSION.module is None, reason="no native part")
@pytest.mark.parametrize(("level", "dtype"), list(product(LEVELS, HALF)))
def test_every_half_number(level: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slope 1 gives back all 65536; and float32 is rounded to them as torch does, ties and overflow included."""
    monkeypatch.setattr(EXTENSION.module, "SIMD_LEVEL", level)
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    assert same(masked_act(every, 1.0)[0], every)
    bias = torch.tensor([2.0**-30, -(2.0**-30), 1.0])
    sums = every.float()[:, None] * torch.ones(3) + bias
    assert same(masked_act(every[:, None].repeat(1, 3), 1.0, bias)[0], sums.to(dtype))
    largest = torch.finfo(dtype).max
    ties = torch.tensor([0.5, 1.5, 2.5, 3.0]) * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    numbers = torch.cat([ties, largest * torch.tensor([1.0, 1 + torch.finfo(dtype).eps / 4, 1.01, -1.01])])
    out = apply_mask(torch.zeros(8, 8, dtype=dtype), torch.zeros(8, dtype=torch.uint8), 1.0, numbers, torch.ones(8))
    assert same(out[0], numbers.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("implementation")
def test_special_values(dtype: torch.dtype, device: torch.device) -> None:
    inf, nan = math.inf, math.nan
    z = torch.tensor([nan, inf, -inf, 0.0, -0.0, 2.0, -2.0], device=device, dtype=dtype)
    for slope, expected in ((0.0, [nan, inf, 0, 0, 0, 2, 0]), (0.5, [nan, inf, -inf, 0, 0, 2, -1])):
        a, mask = masked_act(z, slope)
        assert same(a, torch.tensor(expected, device=device, dtype=dtype))
        assert mask.tolist() == [0b0100010]
    assert apply_mask(z, torch.zeros_like(mask), 0.0).tolist() == [0] * 7  # whatever u holds
    relu = torch.cat([masked_act(z, 0.0)[0][2:], apply_mask(z, torch.zeros_like(mask), 0.0)])
    assert not relu.signbit().any()


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.5])
@pytest.mark.usefixtures("implementation")
def test_kinks_are_those_of_torch(slope: float, device: torch.device) -> None:
    z = torch.tensor([[-1.0, 0.0, -0.0, 1.0, 0.5]], device=device, requires_grad=True)
    bias = torch.tensor([1.0, 0.0, 0.0, -1.0, -0.5], device=device)  # y = 0 everywhere
    for b in (None, bias):
        (ours,) = torch.autograd.grad(masked_act(z, slope, b)[0].sum(), z)
        (theirs,) = torch.autograd.grad(eager(plus(z, b), slope).sum(), z)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.usefixtures("implementation")
def test_half_types_are_rounded_once(dtype: torch.dtype, device: torch.device) -> None:
    """As float32 arithmetic that is rounded at the end, with bias and scale in either type."""
    z = random((6, 16, 5, 5), device, dtype)
    bias, scale = random((16,), device, torch.float32, 1), random((6,), device, torch.float32, 2)
    a, mask = masked_act(z, 0.2, bias)
    exact, exact_mask = package.reference(z.float(), 0.2, bias)
    assert torch.equal(a, exact.to(dtype))
    assert torch.equal(mask, exact_mask)
    u = random((6, 16, 5, 5), device, dtype, 3)
    for b, s in ((bias, scale), (bias.to(dtype), scale), (bias, scale.to(dtype))):
        assert torch.equal(
            apply_mask(u, mask, 0.2, b, s), reference_apply(u.float(), mask, 0.2, b.float(), s.float()).to(dtype)
        )


@pytest.mark.usefixtures("implementation")
def test_same_bits_twice_and_with_more_threads(device: torch.device) -> None:
    """Two million elements in which no row ends with a byte, so that the shares of the threads meet anywhere."""
    z, u = random((5, 13, 171, 183), device, torch.float32), random((5, 13, 171, 183), device, torch.float32, 9)
    bias, scale = added(z, "bias and scale")
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 1, 3):
            torch.set_num_threads(count)
            a, mask = masked_act(z, 0.2, bias)
            results.append((a, mask, apply_mask(u, mask, 0.2, bias, scale)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


# ---- layouts


def test_the_mask_by_hand() -> None:
    z = torch.tensor([1.0, -1, 1, 1, -1, -1, -1, 1, -1, 1]).view(1, 2, 5, 1)
    assert masked_act(z, 0.0)[1].tolist() == [0b10001101, 0b10]
    last = masked_act(z.to(memory_format=torch.channels_last), 0.0)[1]  # 1 -1, -1 -1, 1 1, 1 -1, -1 1
    assert last.tolist() == [[0b01110001, 0b10]]


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 4, 1, 1), (3, 4, 1, 1, 1)])
@pytest.mark.usefixtures("implementation")
def test_what_is_both_contiguous_and_channels_last_counts_as_contiguous(
    shape: tuple[int, ...], device: torch.device
) -> None:
    z = random(shape, device, torch.float32).contiguous(memory_format=CHANNELS_LAST[len(shape)])
    a, mask = masked_act(z, 0.2)
    assert mask.dim() == 1
    assert torch.equal(apply_mask(z, mask, 0.2), a)
    assert torch.equal(apply_mask(z, mask[None], 0.2), a)


def views() -> dict[str, Tensor]:
    z = random((4, 6, 5, 7), CPU, torch.float32)
    return {
        "contiguous": z,
        "channels-last": z.to(memory_format=torch.channels_last),
        "transposed": z.transpose(1, 3).contiguous().transpose(1, 3),
        "with gaps": torch.zeros(4, 6, 5, 14)[..., ::2].copy_(z),
        "part of a batch": torch.cat([z, z])[4:],
        "part of the channels": torch.cat([z, z], 1)[:, 3:9].copy_(z),
        "not aligned": torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape),
    }


@pytest.mark.parametrize("view", views())
@pytest.mark.usefixtures("implementation")
def test_any_strides_in_place_or_not(view: str, device: torch.device) -> None:
    """In place equals functional, and keeps the strides; u may have another layout than the mask."""
    z = views()["contiguous"].to(device)
    bias, scale = added(z, "bias and scale")
    a = masked_act(z, 0.2, bias)[0]
    with_strides = views()[view]  # on the CPU, where .to() would not keep gaps
    z = torch.empty_strided(with_strides.shape, with_strides.stride(), device=device).copy_(with_strides)
    functional, mask = masked_act(z, 0.2, bias)
    assert torch.equal(functional, a)
    assert mask.dim() == (2 if view == "channels-last" else 1)
    assert functional.is_contiguous() or mask.dim() == 2
    before, version = z.stride(), z._version
    mask_ = masked_act_(z, 0.2, bias)
    assert torch.equal(z, a)
    assert torch.equal(mask_, mask)
    assert z.stride() == before
    assert z._version > version
    for other in views().values():
        m = masked_act(other.to(device), 0.2, bias)[1]
        u = torch.empty_strided(z.shape, z.stride(), device=device).copy_(random(z.shape, device, z.dtype, 4))
        expected, version = apply_mask(u, m, 0.2, bias, scale), u._version
        apply_mask_(u, m, 0.2, bias, scale)
        assert torch.equal(u, expected)
        assert u.stride() == before
        assert u._version > version
        assert expected.is_contiguous() == (m.dim() == 1)


@pytest.mark.usefixtures("implementation")
def test_a_strided_mask(device: torch.device) -> None:
    z = random((3, 40), device, torch.float32)
    a, mask = masked_act(z, 0.2)
    assert torch.equal(apply_mask(z, torch.stack([mask, mask], 1)[:, 0], 0.2), a)


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


# ---- Triton

# What the kernel makes of every small case, in Triton's interpreter; bit for bit, NaN and infinities included.
INTERPRETED = """
import math, torch
from fastgan.kernels.masked_act import reference, reference_apply, triton
from fastgan.kernels.masked_act.reference import CASES, empty_in_layout, in_layout
torch.manual_seed(0)
runs = 0
def check(ours, theirs):
    assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9)) and torch.equal(ours.isnan(), theirs.isnan()), name
def special(x):
    flat = torch.as_strided(x, (x.numel(),), (1,))
    flat[::7], flat[1::29], flat[2::31], flat[3::37], flat[4::41] = 0, math.inf, -math.inf, math.nan, -0.0
    return x
for name, (shape, channels_last) in CASES.items():
    if not 0 < math.prod(shape) <= 12000:
        continue
    z, u = (special(in_layout(torch.randn(shape), channels_last)) for _ in range(2))
    for slope in (0.0, 0.2, -0.5):
        for bias in (None, torch.randn(shape[1])) if len(shape) > 1 else (None,):
            a, mask = reference(z, slope, bias)
            out, made = empty_in_layout(a, mask.dim() == 2).fill_(math.nan), torch.full_like(mask, 255)
            triton.launch(z, out, made, slope, bias, None, apply=False)
            check(out, a)
            assert torch.equal(made, mask), name
            for scale in (None, torch.randn(shape[0])) if bias is not None else (None,):
                out.fill_(math.nan)
                triton.launch(u, out, mask, slope, bias, scale, apply=True)
                check(out, reference_apply(u, mask, slope, bias, scale))
                runs += 1
assert runs > 80, runs
"""


def test_the_triton_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_every_masked_load_of_the_triton_kernel_says_what_else() -> None:
    """The interpreter gives 0 there; on a GPU it is undefined."""
    source = Path(package.__path__[0], "triton.py").read_text()
    loads = [line for line in source.splitlines() if "tl.load(" in line]
    assert len(loads) == 7
    assert all("mask=" in line and "other=" in line for line in loads)


@pytest.fixture
def all_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("triton")
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.usefixtures("all_kernels")
def test_same_bits_on_the_gpu(dtype: torch.dtype) -> None:
    for case, slope in product(CASES, SLOPES):
        z = of_case(case, CPU, dtype)
        for what in additions(case):
            bias, scale = added(z, what)
            on_gpu = [v if v is None else v.cuda() for v in (z, bias, scale)]
            for on_cpu, made in zip(masked_act(z, slope, bias), masked_act(on_gpu[0], slope, on_gpu[1]), strict=True):
                assert same(made.cpu(), on_cpu)
            mask = masked_act(z, slope, bias)[1]
            ours = apply_mask(on_gpu[0].flip(0), mask.cuda(), slope, *on_gpu[1:])
            assert same(ours.cpu(), apply_mask(z.flip(0), mask, slope, bias, scale))


@pytest.mark.gpu
@pytest.mark.usefixtures("all_kernels")
def test_more_elements_than_32_bits_count() -> None:
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    z = torch.full((2**16 + 1, 32, 32, 32), -1.0, dtype=torch.bfloat16, device="cuda")
    z[-1] = 3.0
    bias = torch.arange(32.0, device="cuda")
    mask = masked_act_(z, 0.5, -bias)
    assert torch.equal(z[-1, :, 0, 0].float(), torch.where(bias < 3, 3 - bias, (3 - bias) / 2))
    assert torch.equal(z[0, :, 0, 0].float(), (-1 - bias) / 2)
    assert mask.count_nonzero() == 3 * 32 * 32 // 8
    apply_mask_(z, mask, 0.0, bias, torch.ones(len(z), device="cuda"))
    assert z[:-1].count_nonzero() == 0
    assert torch.equal(z[-1, :, 5, 5].float(), torch.where(bias < 3, 3.0, 0.0))


@pytest.mark.gpu
@pytest.mark.usefixtures("all_kernels")
def test_captured_into_a_graph() -> None:
    z, bias = random((4, 8, 16, 16), torch.device("cuda", 0), torch.float32), torch.ones(8, device="cuda")
    a, mask = masked_act(z, 0.2, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, captured_mask = masked_act(z, 0.2, bias)
        applied = apply_mask(z, captured_mask, 0.2, bias)
    graph.replay()
    assert torch.equal(captured, a)
    assert torch.equal(captured_mask, mask)
    assert torch.equal(applied, apply_mask(z, mask, 0.2, bias))


@pytest.mark.gpu
@pytest.mark.usefixtures("all_kernels")
def test_a_failed_launch_leaves_it_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.kernels._runtime import choice
    from fastgan.kernels.masked_act import triton

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(choice, "_disabled", {})
    monkeypatch.setattr(triton, "launch", fail)
    z = random((4, 8), torch.device("cuda", 0), torch.float32)
    with pytest.warns(RuntimeWarning, match="masked_act runs in PyTorch .* no such luck"):
        a, _ = masked_act(z, 0.2)
    assert torch.equal(a, F.leaky_relu(z, 0.2))
    assert choose("masked_act", z.device).implementation == "PyTorch"


@pytest.mark.gpu
def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(FastganError, match="expected all tensors on one device, got cuda:0 and cpu"):
        masked_act(Z.cuda(), 0.2, torch.zeros(3))
