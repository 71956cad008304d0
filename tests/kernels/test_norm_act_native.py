"""The native functions of norm_act, each against its formula in float64, in every type, layout and activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.batch_norm_act import Norm, native

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason=f"no native part: {EXTENSION.cpu}")

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
SLOPE, EPS = 0.2, 1e-5
ACTS = [
    lambda z: z,
    torch.relu,
    lambda z: F.leaky_relu(z, SLOPE),
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.gelu,
]

# The limits at which csrc/cpu/norm_act_grid.h divides differently, and odd sizes. False: contiguous.
CASES: dict[str, tuple[tuple[int, ...], bool]] = {
    "one value": ((1, 1), False),
    "one pixel, one sample": ((1, 7, 1, 1), False),
    "vectors": ((37, 17), False),
    "wide vectors": ((9, 2048), False),
    "odd and wide": ((5, 1031), False),
    "sequences": ((3, 5, 9), False),
    "sequences in rows": ((3, 5, 67), False),
    "odd maps": ((3, 5, 7, 9), False),
    "maps of a vector": ((6, 33, 4, 4), False),
    "maps of two vectors": ((5, 70, 8, 4), False),
    "maps beyond a run": ((2, 3, 67, 65), False),
    "many samples": ((300, 2, 5, 1), False),
    "one sample in rows": ((1, 3, 16, 16), False),
    "chunks": ((70, 4, 24, 24), False),
    "odd, channels-last": ((3, 17, 7, 9), True),
    "three channels, channels-last": ((4, 3, 19, 11), True),
    "eight channels, channels-last": ((2, 8, 33, 33), True),
    "one sample, channels-last": ((1, 96, 5, 3), True),
    "beyond a group, channels-last": ((2, 1031, 3, 3), True),
    "chunks, channels-last": ((9, 64, 31, 17), True),
    "volumes, channels-last": ((2, 3, 4, 5, 6), True),
}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New memory is NaN, so that what is not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # only for what it does to new memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def random(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (0.5 + spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    return x.contiguous(memory_format=native.CHANNELS_LAST[x.dim()]) if channels_last else x


def of_case(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Norm]:
    """x, grad, and a Norm with statistics that are not those of x."""
    shape, channels_last = CASES[case]
    x, grad = (random(shape, dtype, channels_last, seed, 1.7) for seed in (0, 1))
    mean, var, weight, bias = (random(shape[1:2], torch.float64, False, seed) for seed in (2, 3, 4, 5))
    single = dtype if dtype == torch.float64 else torch.float32
    return x, grad, Norm(mean, var.square() + 0.1, weight.to(single), bias.to(single), EPS, 0, SLOPE)


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.double().view(-1, *[1] * (x.dim() - 2))


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """x^ in float64."""
    if norm.mean is None or norm.var is None:
        return x.double()
    return (x.double() - per_channel(norm.mean, x)) / (per_channel(norm.var, x) + norm.eps).sqrt()


def before(x: Tensor, norm: Norm) -> Tensor:
    """z in float64."""
    z = normalised(x, norm)
    z = z if norm.weight is None else z * per_channel(norm.weight, x)
    return z if norm.bias is None else z + per_channel(norm.bias, x)


def sums_of(x: Tensor) -> Tensor:
    return x.sum([d for d in range(x.dim()) if d != 1])


def exact_dz(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    z = before(x, norm).requires_grad_()
    return torch.autograd.grad(ACTS[norm.act](z), z, grad.double())[0]


def exact_sums(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    dz = exact_dz(grad, x, norm)
    return torch.stack([sums_of(dz), sums_of(dz * normalised(x, norm))])


def exact_input(grad: Tensor, x: Tensor, norm: Norm, sums: Tensor | None, count: float) -> Tensor:
    dz = exact_dz(grad, x, norm)
    if sums is not None:
        dz = dz - per_channel(sums[0], x) / count - normalised(x, norm) * per_channel(sums[1], x) / count
    dz = dz if norm.weight is None else dz * per_channel(norm.weight, x)
    return dz if norm.var is None else dz / (per_channel(norm.var, x) + norm.eps).sqrt()


def assert_close(ours: Tensor, exact: Tensor, *, single: float = 5e-7, double: float = 1e-14) -> None:
    """Norm of the difference over the norm. Of a half type: twice what rounding the exact result to it makes."""
    error, norm = (ours.double() - exact).norm().item(), exact.norm().item()
    if ours.dtype in HALF:
        assert error <= 2 * (exact.to(ours.dtype).double() - exact).norm().item() + single * norm
    else:
        assert error <= (double if ours.dtype == torch.float64 else single) * norm, error / norm


# ---- the numbers


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, DTYPES)))
def test_statistics(case: str, dtype: torch.dtype) -> None:
    x, _, _ = of_case(case, dtype)
    mean, var = native.stats(x)
    exact = x.double().transpose(0, 1).flatten(1)
    bound = 1e-14 if dtype == torch.float64 else 2e-6  # float32 sums, of 16-bit numbers as well
    for ours, theirs in ((mean, exact.mean(1)), (var, exact.var(1, unbiased=False))):
        assert ours.dtype == torch.float64
        assert (ours - theirs).norm() <= bound * exact.square().mean().sqrt() * math.sqrt(x.shape[1])


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, DTYPES)))
def test_normalisation(case: str, dtype: torch.dtype) -> None:
    x, _, norm = of_case(case, dtype)
    for act in range(len(ACTS)):
        norm = replace(norm, act=act)
        out = native.normalise(x, norm)
        assert_close(out, ACTS[act](before(x, norm)))
        assert out.dtype == dtype
        assert out.stride() == x.stride()
        in_place = x.clone()
        assert native.normalise(in_place, norm, in_place) is in_place
        assert torch.equal(in_place, out)


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, DTYPES)))
def test_derivatives(case: str, dtype: torch.dtype) -> None:
    x, grad, norm = of_case(case, dtype)
    count = x.numel() / x.shape[1] + 3  # the sums may be of more than this process has
    for act in range(len(ACTS)):
        norm = replace(norm, act=act)
        sums = native.backward_sums(grad, x, norm)
        assert_close(
            sums.to(dtype if dtype == torch.float64 else torch.float32), exact_sums(grad, x, norm), single=5e-6
        )
        for given in (sums, None):
            dx = native.backward_input(grad, x, norm, given, count)
            assert_close(dx, exact_input(grad, x, norm, given, count), single=5e-6)  # 1 - tanh^2 cancels
            assert dx.stride() == x.stride()
            in_place = grad.clone()
            assert native.backward_input(in_place, x, norm, given, count, in_place) is in_place
            assert torch.equal(in_place, dx)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_absent_is_one_or_zero(dtype: torch.dtype) -> None:
    x, grad, norm = of_case("odd maps", dtype)
    for without in ({"mean": None, "var": None}, {"weight": None}, {"bias": None}, {"weight": None, "bias": None}):
        partial = replace(norm, act=2, **without)
        assert_close(native.normalise(x, partial), ACTS[2](before(x, partial)))
        sums = native.backward_sums(grad, x, partial)
        assert_close(sums.float(), exact_sums(grad, x, partial), single=5e-6)
        assert_close(native.backward_input(grad, x, partial, None, 1), exact_input(grad, x, partial, None, 1))


@pytest.mark.parametrize("case", ["chunks", "chunks, channels-last", "odd maps", "one sample in rows"])
@pytest.mark.parametrize("spoiled", [False, True])
def test_no_cancellation(case: str, spoiled: bool) -> None:
    """Mean 1e4 and standard deviation 1e-2 (in float32, of which the last digit is 1e-3 there); where it is `spoiled`,
    the first values, from which the mean is guessed, are far off."""
    shape, channels_last = CASES[case]
    x = (1e4 + 1e-2 * (random(shape, torch.float64, channels_last, 0) - 0.5)).float()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    if spoiled:
        x[0, :, :1, :16] = 9e3
    mean, var = native.stats(x)
    exact = x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(mean, exact.mean(1), rtol=1e-8, atol=0)
    assert torch.allclose(var, exact.var(1, unbiased=False), rtol=1e-4 if spoiled else 1e-5, atol=0)
    norm = Norm(mean, var, None, None, 1e-12)
    assert_close(native.normalise(x, norm), before(x, norm))
    grad = random(shape, torch.float32, channels_last, 1)
    assert_close(native.backward_sums(grad, x, norm).float(), exact_sums(grad, x, norm), single=1e-5)


@pytest.mark.parametrize("act", [3, 4, 5, 6])
def test_activations_to_the_last_digits(act: int) -> None:
    """In units in the last place of the result, over all magnitudes; of SiLU and GELU, also of their negative tail."""
    ends = 85.0 if act == 5 else (80.0 if act == 4 else 12.0)
    z = torch.cat([torch.linspace(-ends, ends, 200_001), torch.logspace(-30, 0, 5000), -torch.logspace(-30, 0, 5000)])
    exact = z.double() * 0.5 * torch.erfc(-z.double() / math.sqrt(2)) if act == 6 else ACTS[act](z.double())
    ours = native.normalise(z[:, None], Norm(act=act)).flatten().double()
    error = ((ours - exact) / exact).abs()[exact != 0] / 2**-23
    assert error.max() < (60 if act == 6 else 3)  # exp(-z^2 / 2): z^2 is rounded before
    near = z.abs() < 4
    assert error[near[exact != 0]].max() < (8 if act == 6 else 3)


def test_kinks_and_special_values() -> None:
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, -0.0, 2.0]] * 40)
    for act, kind in ((1, torch.relu), (2, lambda z: F.leaky_relu(z, SLOPE))):
        assert torch.equal(native.normalise(x, Norm(act=act, slope=SLOPE)).nan_to_num(7), kind(x).nan_to_num(7))
        leaf = x.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(kind(leaf).sum(), leaf)
        ours = native.backward_input(torch.ones_like(x), x, Norm(act=act, slope=SLOPE), None, 1)
        assert torch.equal(ours[:, 3:], theirs[:, 3:])


# ---- the same bits


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, (torch.float32, torch.bfloat16))))
def test_the_number_of_threads_does_not_show(case: str, dtype: torch.dtype) -> None:
    x, grad, norm = of_case(case, dtype)
    norm = replace(norm, act=2)
    made = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            sums = native.backward_sums(grad, x, norm)
            results = [*native.stats(x), native.normalise(x, norm), sums]
            results += [native.backward_input(grad, x, norm, sums, 5), *native.train(x, norm)]
            made.append([*results, *native.backward(grad, x, norm)])
    finally:
        torch.set_num_threads(before)
    for results in made[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(results, made[0], strict=True))


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, DTYPES)))
def test_fused_passes_are_the_separate_ones(case: str, dtype: torch.dtype) -> None:
    x, grad, norm = of_case(case, dtype)
    norm = replace(norm, act=5)
    mean, var = native.stats(x)
    out = native.normalise(x, replace(norm, mean=mean, var=var))
    for ours, theirs in zip(native.train(x, norm), (out, mean, var), strict=True):
        assert torch.equal(ours, theirs)
    sums = native.backward_sums(grad, x, norm)
    for training in (False, True):
        dx = native.backward_input(grad, x, norm, sums if training else None, x.numel() // x.shape[1])
        ours, ours_sums = native.backward(grad, x, replace(norm, training=training))
        assert torch.equal(ours, dx)
        assert torch.equal(ours_sums, sums)


# ---- layouts, and what is refused


def test_any_layout() -> None:
    x, grad, norm = of_case("odd, channels-last", torch.float32)
    out, dx = native.normalise(x, norm), native.backward_input(grad, x, norm, None, 1)
    spaced = torch.stack([x, x], -1)[..., 0]
    assert not spaced.is_contiguous()
    assert torch.equal(native.normalise(spaced, norm), out)
    assert torch.equal(native.backward_input(grad.contiguous(), x, norm, None, 1), dx)
    assert torch.equal(native.backward_input(grad[:1].expand_as(grad), x, norm, None, 1)[:1], dx[:1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (0, 5), (2, 0, 3)])
def test_nothing(shape: tuple[int, ...]) -> None:
    x, norm = torch.empty(shape), Norm(*torch.ones(2, shape[1], dtype=torch.float64))
    out, mean, var = native.train(x, norm)
    assert out.shape == x.shape
    assert mean.isnan().all()
    assert var.isnan().all()
    dx, sums = native.backward(x, x, norm)
    assert dx.shape == x.shape
    assert torch.equal(sums, torch.zeros(2, shape[1], dtype=torch.float64))


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: native.stats(X.long()), "expected x in float32, .* got torch.int64"),
        (lambda: native.normalise(X, Norm(mean=X[0, :, 0, 0])), "both mean and var or neither"),
        (lambda: native.normalise(X, Norm(bias=torch.zeros(4))), r"expected bias of shape \(3,\), .* got \(4,\)"),
        (lambda: native.normalise(X, Norm(), X.half()), "expected out like x, .* got .* torch.float16"),
        (lambda: native.normalise(X, Norm(), X.mT), "as dense as x, got .* torch.empty_like"),
        (lambda: native.backward_sums(X[:1], X, Norm()), r"expected grad of the shape of x, \(2, 3, 4, 4\), got"),
        (lambda: native.backward_input(X, X, Norm(), torch.zeros(3), 1), r"expected sums of shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bad: object, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        bad()  # type: ignore[operator]
    assert "\n" not in str(error.value)
