"""masked_act and apply_mask against float64, and their masks bit by bit, in every type and layout."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from kernels.masks import (
    CPU,
    DTYPES,
    HALF,
    SLOPES,
    added,
    additions,
    assert_accurate,
    eager,
    of_case,
    plus,
    random,
    same,
)
from torch import Tensor

from fastgan.kernels import masked_act as package
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.masked_act import CASES, apply_mask, apply_mask_, masked_act, masked_act_, reference_apply
from fastgan.kernels.masked_act.reference import CHANNELS_LAST

pytestmark = pytest.mark.usefixtures("poisoned")


def bits(mask: Tensor, numel: int) -> list[bool]:
    """The mask by its definition, bit by bit; those past the end have to be 0."""
    every = [bool(byte >> i & 1) for byte in mask.flatten().tolist() for i in range(8)]
    assert not any(every[numel:])
    return every[:numel]


def in_memory_order(x: Tensor) -> list[Any]:
    """The elements of a contiguous or channels-last tensor as they lie in memory."""
    return torch.as_strided(x, (x.numel(),), (1,)).tolist()


# Large cases in the two types that training uses.
CASES_AND_TYPES = [
    (case, dtype) for case, dtype in product(CASES, DTYPES) if "dcgan" not in case or dtype in (DTYPES[0], DTYPES[2])
]


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
