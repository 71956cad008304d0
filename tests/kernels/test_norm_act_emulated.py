"""The CUDA kernels of norm_act, run on the CPU by the emulator beside this file: every index, sum and wait of theirs.

Statistics and sums against float64; outputs bit for bit those of the C++ kernels, which the same header defines.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import sys
from collections.abc import Callable
from ctypes import c_bool, c_double, c_int, c_int64, c_void_p
from typing import Any

import pytest
import torch
from kernels.emulator.build import build
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.batch_norm_act import Norm, native
from fastgan.kernels.batch_norm_act.native import TYPES
from fastgan.kernels.batch_norm_act.reference import arithmetic_type

pytestmark = [
    pytest.mark.timeout(400),  # the first test compiles the kernels
    pytest.mark.skipif(EXTENSION.module is None, reason="compares with the C++ part"),
    pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"), reason="needs g++ on Linux"),
]

# (shape, channels-last): whole vectors, ragged ones, many positions and few, more channels than a block is wide
SHAPES: dict[str, tuple[tuple[int, ...], bool]] = {
    "channels-last": ((4, 64, 8, 6), True),
    "channels-last, 96 channels": ((2, 96, 5, 7), True),
    "channels-last, 272 channels": ((2, 272, 3, 5), True),
    "channels-last, 17 channels": ((3, 17, 7, 9), True),
    "channels-last, 3 channels": ((4, 3, 9, 40), True),
    "planes": ((3, 5, 8, 16), False),
    "planes of many samples": ((70, 3, 4, 4), False),
    "more than is kept": ((6, 3, 40, 48), False),
    "odd planes": ((3, 5, 7, 9), False),
    "vectors": ((33, 104), False),
    "one channel": ((4, 1, 9, 11), False),
    "one pixel": ((1, 8, 1, 1), False),
}
# Every shape in the types whose vectors are shortest and longest, a few in the others
FEW = ("channels-last, 17 channels", "planes", "vectors")
CASES = [(case, dtype) for case in SHAPES for dtype in (torch.float32, torch.bfloat16)]
CASES += [(case, dtype) for case in FEW for dtype in (torch.float64, torch.float16)]
ADDRESS_FIELDS = ("mean", "var", "weight", "bias")


class NormAct(ctypes.Structure):
    """As in csrc/norm_act.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("x",)),
        *((name, c_int64) for name in ("outer", "channels", "inner")),
        *((name, c_void_p) for name in ADDRESS_FIELDS),
        ("eps", c_double),
        ("act", c_int),
        ("slope", c_double),
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library of csrc/cuda/norm_act*.cu."""
    library = ctypes.CDLL(str(build("g++", tmp_path_factory.mktemp("emulated"), "norm_act.cu", "norm_act_fused.cu")))
    library.fastgan_norm_act_scratch.restype = c_int64
    return library


class Call:
    """One call's NormAct, and memory for what it writes: NaN until it is written."""

    def __init__(self, library: Any, x: Tensor, norm: Norm) -> None:
        self.library, self.x, self.type = library, x, TYPES[x.dtype]
        channels = x.shape[1]
        inner = math.prod(x.shape[2:]) if x.is_contiguous() else 1
        dtypes = (torch.float64, torch.float64, *[arithmetic_type(x.dtype)] * 2)
        given = [(getattr(norm, name), dtype) for name, dtype in zip(ADDRESS_FIELDS, dtypes, strict=True)]
        self.kept = [None if t is None else t.to(dtype).contiguous() for t, dtype in given]
        addresses = [None if t is None else t.data_ptr() for t in self.kept]
        outer = x.numel() // (channels * inner)
        self.norm = NormAct(x.data_ptr(), outer, channels, inner, *addresses, norm.eps, norm.act, norm.slope)
        size = library.fastgan_norm_act_scratch(ctypes.byref(self.norm), 0)
        self.scratch = torch.full((size // 8 + 4,), math.nan, dtype=torch.float64)

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, f"fastgan_norm_act_{name}cuda")(
            ctypes.byref(self.norm), self.type, *arguments, 0, None
        )
        assert status == 0
        assert self.scratch[-4:].isnan().all(), "written past the end of the scratch memory"

    def vectors(self, rows: int) -> Tensor:
        return torch.full((rows, self.x.shape[1]), math.nan, dtype=torch.float64)

    def like_x(self) -> Tensor:
        return torch.full_like(self.x, math.nan)

    # ---- the functions

    def stats(self) -> Tensor:
        made = self.vectors(2)
        self("stats_", *pointers(made[0], made[1], self.scratch))
        return made

    def normalise(self, out: Tensor) -> Tensor:
        self("", *pointers(out))
        return out

    def sums(self, grad: Tensor) -> Tensor:
        made = self.vectors(2)
        self("sums_", *pointers(grad, made, self.scratch))
        return made

    def input(self, grad: Tensor, sums: Tensor | None, count: float, dx: Tensor) -> Tensor:
        self("input_", *pointers(grad, sums), c_double(count), *pointers(dx))
        return dx

    def train(self, fused: bool, out: Tensor) -> tuple[Tensor, Tensor]:
        made = self.vectors(2)
        self("train_", *pointers(made[0], made[1], out, self.scratch), c_bool(fused))
        return made, out

    def backward(self, grad: Tensor, training: bool, fused: bool, dx: Tensor) -> tuple[Tensor, Tensor]:
        made = self.vectors(2)
        self("backward_", *pointers(grad), c_bool(training), *pointers(made, dx, self.scratch), c_bool(fused))
        return made, dx


def pointers(*tensors: Tensor | None) -> list[c_void_p]:
    return [c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def random(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def inputs(case: str, dtype: torch.dtype, act: int) -> tuple[Tensor, Tensor, Norm]:
    """x, a gradient, and a norm with the statistics of x."""
    shape, channels_last = SHAPES[case]
    x, grad = (random(shape, channels_last, dtype, seed) for seed in (0, 1))
    weight, bias = (random(shape[1:2], False, arithmetic_type(dtype), seed) for seed in (2, 3))
    return x, grad, Norm(*native.stats(x), weight, bias, 1e-5, act, 0.2)


def relative(made: Tensor, exact: Tensor) -> float:
    return ((made - exact).norm() / exact.norm()).item() if exact.norm() else made.norm().item()


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_in_two_passes(case: str, dtype: torch.dtype, emulated: Any) -> None:
    emulated.emulator_device(2, 2, True)
    for act in range(7) if case == "planes" else (1,):
        x, grad, norm = inputs(case, dtype, act)
        call = Call(emulated, x, norm)
        mean, var = call.stats()
        tight = 1e-13 if dtype == torch.float64 else 1e-6
        assert relative((mean - norm.mean) / norm.var.clamp(min=1e-30).sqrt() + 1, torch.ones_like(mean)) < tight
        assert relative(var, norm.var) < tight
        equal = torch.equal if dtype != torch.float64 or act < 3 else torch.allclose
        assert equal(call.normalise(call.like_x()), native.normalise(x, norm))
        sums = native.backward_sums(grad, x, norm)
        assert relative(call.sums(grad), sums) < 10 * tight
        count = x.numel() // x.shape[1]
        for given in (None, sums):
            expected = native.backward_input(grad, x, norm, given, count)
            assert equal(call.input(grad, given, count, call.like_x()), expected)
        in_place = grad.clone()
        assert equal(call.input(in_place, sums, count, in_place), native.backward_input(grad, x, norm, sums, count))


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_in_one_kernel(case: str, dtype: torch.dtype, emulated: Any) -> None:
    """In place too. Of the larger ones not everything can be kept, for so few blocks."""
    emulated.emulator_device(1, 2, True)
    x, grad, norm = inputs(case, dtype, 2)
    call = Call(emulated, x, norm)
    stats, out = call.train(True, call.like_x())
    again = Call(emulated, x.clone(), norm)
    assert torch.equal(out, native.normalise(x, Norm(*stats, norm.weight, norm.bias, 1e-5, 2, 0.2)))
    assert torch.equal(again.train(True, again.x)[1], out)
    two_passes = call.train(False, call.like_x())
    tight = 1e-13 if dtype == torch.float64 else 1e-6
    assert relative((stats[0] - norm.mean) / norm.var.clamp(min=1e-30).sqrt() + 1, torch.ones(x.shape[1])) < tight
    assert relative(stats[1], norm.var) < tight
    assert relative(two_passes[0][1], norm.var) < tight

    sums, dx = call.backward(grad, True, True, call.like_x())
    count = x.numel() // x.shape[1]
    assert relative(sums, native.backward_sums(grad, x, norm)) < 10 * tight
    assert torch.equal(dx, native.backward_input(grad, x, norm, sums, count))
    in_place = grad.clone()
    assert torch.equal(call.backward(in_place, True, True, in_place)[1], dx)
    sums, dx = call.backward(grad, False, True, call.like_x())
    assert relative(sums, native.backward_sums(grad, x, norm)) < 10 * tight
    assert torch.equal(dx, native.backward_input(grad, x, norm, None, count))


def test_without_statistics_weight_and_bias(emulated: Any) -> None:
    emulated.emulator_device(2, 2, True)
    for case in ("channels-last", "odd planes"):
        x, grad, norm = inputs(case, torch.float32, 2)
        for given in (Norm(act=2, slope=0.2), Norm(bias=norm.bias, act=3), Norm(norm.mean, norm.var)):
            call = Call(emulated, x, given)
            assert torch.equal(call.normalise(call.like_x()), native.normalise(x, given))
            assert relative(call.sums(grad), native.backward_sums(grad, x, given)) < 1e-5
            assert torch.equal(call.input(grad, None, 1, call.like_x()), native.backward_input(grad, x, given, None, 1))


def test_addresses_that_are_no_multiples_of_16(emulated: Any) -> None:
    emulated.emulator_device(2, 2, True)
    for case, dtype in (("channels-last", torch.float32), ("planes", torch.bfloat16)):
        x, grad, norm = inputs(case, dtype, 1)
        memory = torch.zeros(x.numel() + 1, dtype=dtype)
        moved = torch.as_strided(memory, x.shape, x.stride(), 1).copy_(x)
        call = Call(emulated, moved, norm)
        stats, out = call.train(True, call.like_x())
        assert relative(stats[1], norm.var) < 1e-6
        assert torch.equal(out, native.normalise(x, Norm(*stats, norm.weight, norm.bias, 1e-5, 1, 0.2)))
        sums, dx = call.backward(grad, True, True, call.like_x())
        assert torch.equal(dx, native.backward_input(grad, x, norm, sums, x.numel() // x.shape[1]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_nothing_cancels(channels_last: bool, emulated: Any) -> None:
    """Mean 1e4, deviation 1e-2; and a first value, which the others are taken relative to, far away from them."""
    emulated.emulator_device(2, 2, True)
    x = (1e4 + 1e-2 * random((16, 24, 9, 9), channels_last, torch.float64)).float()
    far = x.clone()
    far[0, :, 0, 0] = -1e4
    for values, tight in ((x, 1e-6), (far, 1e-4)):
        var, mean = torch.var_mean(values.double() - 1e4, (0, 2, 3), correction=0)
        for run in _both(Call(emulated, values, Norm())):
            made_mean, made_var = run()
            assert relative(made_mean - 1e4, mean) < tight
            assert relative(made_var, var) < tight


def _both(call: Call) -> list[Callable[[], Tensor]]:
    return [call.stats, lambda: call.train(True, call.like_x())[0]]


def test_nothing_at_all(emulated: Any) -> None:
    x = torch.empty(0, 3, 4, 4)
    call = Call(emulated, x, Norm())
    assert call.stats().isnan().all()
    assert call.sums(x).eq(0).all()
    call.train(True, x)
    assert call.backward(x, True, True, x)[0].eq(0).all()


def test_a_device_without_cooperative_launches(emulated: Any) -> None:
    emulated.emulator_device(2, 2, False)
    x, grad, norm = inputs("channels-last", torch.float32, 2)
    call = Call(emulated, x, norm)
    stats, out = call.train(True, call.like_x())
    assert torch.equal(out, native.normalise(x, Norm(*stats, norm.weight, norm.bias, 1e-5, 2, 0.2)))
    sums, dx = call.backward(grad, True, True, call.like_x())
    assert torch.equal(dx, native.backward_input(grad, x, norm, sums, x.numel() // x.shape[1]))
