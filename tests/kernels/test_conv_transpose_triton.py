"""Transposed convolution in Triton: phases and tiles, kernels in the interpreter, compiled ahead of time, on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.interpreter import ROOT, interpret
from torch.nn import functional as F

from fastgan.kernels.conv_transpose_bn_act.phases import Phases, box_of, patch_of, phases_of, product_tile

KERNELS = ROOT / "fastgan" / "kernels" / "conv_transpose_bn_act"
K4 = Phases((2, 2), (2, 2), (1, 1))

LONG = pytest.mark.long


# ---- phases, boxes and patches


def by_phases(x: torch.Tensor, weight: torch.Tensor, phases: Phases) -> torch.Tensor:
    """One dimension, one channel, as phases.py has it."""
    s, taps, p = phases.stride[1], phases.taps[1], phases.padding[1]
    y = torch.zeros(len(x) * s, dtype=x.dtype)
    for o in range(len(y)):
        h, a = divmod(o, s)
        r, c = (a + p) % s, (a + p) // s
        y[o] = sum(x[h + c - t] * weight[r + s * t] for t in range(taps) if 0 <= h + c - t < len(x))
    return y


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2), st.integers(1, 7))
def test_the_phases_are_the_transposed_convolution(stride: int, taps: int, extra: int, more: int, size: int) -> None:
    kernel, extra = stride * taps, extra % stride  # more, or PyTorch refuses it
    padding = max(0, (kernel - stride + extra) // 2 + (more == 2))
    phases = phases_of((kernel,), (stride,), (padding,), (extra,))
    fits = (size - 1) * stride - 2 * padding + kernel + extra == size * stride
    assert (phases is not None) == fits
    if phases is None:
        return
    x, weight = torch.randn(size, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    theirs = F.conv_transpose1d(x[None, None], weight[None, None], None, stride, padding, extra)[0, 0]
    torch.testing.assert_close(by_phases(x, weight, phases), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel": (3, 3)},
        {"padding": (0, 1)},
        {"output_padding": (1, 0)},
        {"dilation": (1, 2)},
        {"groups": 2},
        {"kernel": (4, 4, 4), "stride": (2, 2, 2), "padding": (1, 1, 1)},
    ],
)
def test_what_does_not_split_is_left_to_others(wrong: dict[str, object]) -> None:
    right = {"kernel": (4, 4), "stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "groups": 1}
    assert phases_of(**right) == K4
    assert phases_of(**(right | wrong)) is None


@settings(deadline=None)
@given(st.sampled_from([16, 64, 128, 256]), st.integers(1, 300), st.integers(1, 300))
def test_boxes_cover_every_pixel_once_and_do_not_cross_samples(pixels: int, height: int, width: int) -> None:
    box = box_of(pixels, height, width)
    if box is None:
        return
    assert box.n * box.h * box.w == pixels
    assert all(side & (side - 1) == 0 and side <= 256 for side in (box.n, box.h, box.w))
    assert height % box.h == 0
    assert box.n == 1 or box.h == height
    assert box.count(3, height, width) == -(-3 // box.n) * (height // box.h) * -(-width // box.w)


def test_boxes_of_the_usual_maps() -> None:
    """None of the layers that matter is left without descriptors, and none wastes half of a tile."""
    for pixels in (64, 128, 256):
        for size in (4, 8, 16, 32, 64, 128):
            box = box_of(pixels, size, size)
            assert box is not None
            assert box.count(256, size, size) * pixels == 256 * size * size
    assert box_of(128, 1, 8192) is not None
    assert box_of(128, 6, 4) is None


@settings(deadline=None)
@given(st.sampled_from([16, 256]), st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2]), st.integers(1, 4))
def test_patches_reach_what_their_outputs_need(pixels: int, height: int, width: int, taps: int, half: int) -> None:
    phases = Phases((2 * half, 2 * half), (taps, taps), ((taps - 1) * half, (taps - 1) * half))
    patch = patch_of(phases, pixels, height, width)
    assert patch.h * patch.w == pixels
    for side, inner, extent, dim in ((patch.h, patch.inner_h, height, 0), (patch.w, patch.inner_w, width, 1)):
        assert inner + sum(phases.reach(dim)) <= side or (inner == side and side >= extent)


def test_tiles_fill_the_gpu_where_they_can() -> None:
    for m, n, copies in ((16384, 256, 4), (4096, 512, 4), (1024, 512, 4), (262144, 64, 1), (1048576, 32, 4)):
        tile = product_tile(m, n, 512, copies, 2, True, True)
        assert copies * -(-m // tile.m) * -(-n // tile.n) >= 128
    assert product_tile(16384, 256, 512, 4, 2, True, True).n == 256
    assert product_tile(16384, 256, 512, 4, 2, False, True).n == 128


# ---- in the interpreter


def test_which_version_and_how_many_parts() -> None:
    """Descriptors where TMA can describe the tensors; parts of a weight gradient only where that fills the GPU."""
    pytest.importorskip("triton")
    from fastgan.kernels.conv_transpose_bn_act import calls

    def versions(size: tuple[int, int], cin: int, cout: int, offset: int = 0) -> list[str]:
        storage = torch.empty(2 * size[0] * size[1] * cin + offset)
        x, weight = storage[offset:].view(2, *size, cin), torch.empty(cin, 4, 4, cout)
        call, y, *_ = calls.forward(x, weight, None, K4, calls.Prologue(), 0, 0.0, False, how)
        made = [call, calls.convolution(y, weight, None, K4, 0, 0.0, how)[0]]
        made.append(calls.weight_gradient(x, y, K4, calls.Prologue(), x.dtype, how)[0][0])
        return [call.kernel.__module__.rpartition(".")[2] for call in made]

    how = calls.How(90, True)
    assert versions((4, 4), 64, 32) == ["descriptors"] * 3
    assert versions((4, 3), 24, 64) == ["descriptors"] * 3
    assert versions((4, 4), 64, 24) == ["descriptors", "pointers", "pointers"]  # would reach into the next column
    assert versions((4, 4), 62, 64) == ["pointers"] * 3
    assert versions((4, 4), 64, 64, offset=1) == ["pointers", "descriptors", "pointers"]
    assert versions((6, 4), 64, 64)[0] == "pointers"
    how = calls.How(90, False)
    assert versions((4, 4), 64, 32) == ["pointers"] * 3
    x, grad = torch.empty(256, 32, 32, 128, device="meta"), torch.empty(256, 64, 64, 64, device="meta")
    assert calls.weight_gradient(x, grad, K4, calls.Prologue(), x.dtype, how)[0][0].grid == (16, 16)


@pytest.mark.parametrize(
    "table",
    [
        "layers descriptors",
        pytest.param("odd pointers", marks=LONG),
        pytest.param("layers pointers", marks=LONG),
        pytest.param("image pointers", marks=LONG),
    ],
)
def test_same_as_float64(table: str) -> None:
    interpret(str(ROOT / "tests" / "transposed.py"), *table.split())


STATISTICS = """
import torch
from fastgan.kernels.conv_transpose_bn_act import calls, triton
from fastgan.kernels.conv_transpose_bn_act.phases import Tile
torch.manual_seed(0)
def check(y, mean, var, bound):
    exact, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert torch.allclose(mean, exact_mean, rtol=1e-9, atol=0), (mean, exact_mean)
    assert torch.allclose(var, exact, rtol=bound, atol=0), var / exact
# The mean is a million times the deviation: in float32 the deviation is some ten steps of rounding
phases = triton.phases_of((4, 4), (2, 2), (1, 1))
x, weight, bias = torch.randn(3, 16, 2, 3), torch.randn(16, 16, 4, 4) * 1.25e-3, torch.full((16,), 1e4)
for descriptors in (False, True):
    how = triton.How(90, descriptors, Tile(16, 16, 16, 4, 2))
    y, mean, var = triton.forward(x, weight, bias, phases, want_stats=True, how=how)
    assert 5e-3 < var.sqrt().min() and var.sqrt().max() < 2e-2
    check(y, mean, var, 1e-4)
# 301 tiles of 1 to 9 numbers, which are merged in parts; one channel more than a program has
counts = torch.randint(1, 10, (301,), dtype=torch.int32)
groups = [torch.randn(n, 33, dtype=torch.float64) * 1e-2 + 1e4 for n in counts]
rounded = [g.mean(0).float() for g in groups]
rest = [(g - r.double()).mean(0).float() for g, r in zip(groups, rounded)]
m2 = [(g - g.mean(0)).square().sum(0).float() for g in groups]
made = torch.stack([torch.stack(three) for three in zip(rounded, rest, m2)])
work, mean, var = calls.merge(made, counts, int(counts.sum()))
assert work[0].grid[1] > 3 and made.shape[0] % work[0].arguments["part"]
for call in work:
    call.launch()
check(torch.cat(groups)[:, :, None, None], mean, var, 1e-6)
"""


def test_statistics_of_a_mean_far_from_zero() -> None:
    interpret("-c", STATISTICS)


# The prologue makes every pixel 1, whatever x is; the padding around it has to stay 0
PADDING = """
import torch
from torch.nn import functional as F
from fastgan.kernels.conv_transpose_bn_act import triton
from fastgan.kernels.conv_transpose_bn_act.phases import Tile
x, weight = torch.randn(1, 16, 2, 3), torch.ones(16, 16, 4, 4)
phases = triton.phases_of((4, 4), (2, 2), (1, 1))
ones = triton.Prologue(torch.zeros(16), torch.zeros(16), torch.ones(16), 1)
for channels, descriptors in ((16, False), (16, True), (3, False)):
    w, how = weight[:, :channels], triton.How(90, descriptors, Tile(16, 16, 16, 4, 2))
    y, *_ = triton.forward(x, w, None, phases, ones, how=how)
    assert torch.equal(y, F.conv_transpose2d(torch.ones_like(x), w, None, 2, 1)), (channels, descriptors)
"""


def test_zero_padding_comes_after_the_prologue() -> None:
    interpret("-c", PADDING)


# A critic's convolution: the kernel of the input gradient, with bias and activation; and channels-first memory
CONVOLUTION = """
import torch
from torch.nn import functional as F
from fastgan.kernels.conv_transpose_bn_act import triton
from fastgan.kernels.conv_transpose_bn_act.phases import Tile
torch.manual_seed(0)
phases = triton.phases_of((4, 4), (2, 2), (1, 1))
for channels, descriptors in ((3, False), (16, True)):
    x, weight, bias = torch.randn(2, channels, 4, 6), torch.randn(24, channels, 4, 4), torch.randn(24)
    how = triton.How(90, descriptors, Tile(16, 16, 16, 4, 2))
    y = triton.convolution(x, weight, bias, phases, act=2, slope=0.25, how=how)
    exact = F.leaky_relu(F.conv2d(x.double(), weight.double(), bias.double(), 2, 1), 0.25)
    assert (y - exact).norm() < 1e-6 * exact.norm()
"""


def test_convolution_of_a_critic() -> None:
    interpret("-c", CONVOLUTION)


def test_every_masked_load_says_what_else() -> None:
    """The interpreter gives 0 there; on a GPU it is undefined."""
    found = 0
    for name in ("parts", "pointers", "image", "descriptors"):
        for load in re.findall(r"tl\.load\(.*", (KERNELS / f"{name}.py").read_text()):
            assert "mask=" in load, load
            assert "other=" in load, load
            found += 1
    assert found == 23


# ---- compiled for GPUs that are not here


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], tuple[str, ...]]:
    """compiled(capability, case): what instructions the one such case is built on; nothing is wrong with it."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from fastgan.kernels._runtime.aot import compile_case
    from fastgan.kernels.conv_transpose_bn_act.cases import aot_cases

    def compile(capability: int, name: str) -> tuple[str, ...]:
        (case,) = (c for c in aot_cases() if c.capabilities == (capability,) and c.name == name)
        made = compile_case(case, capability)
        assert made.problem() == ""
        return made.instructions

    return compile


def test_hopper_multiplies_boxes_by_wgmma(compiled: Callable[[int, str], tuple[str, ...]]) -> None:
    for name in ("norm, forward, statistics: 8x8, 512 to 256", "input gradient: 8x8, 512 to 256"):
        assert compiled(90, f"{name}, descriptors") == ("wgmma", "TMA")
    assert compiled(90, "norm, image layer, tanh: 64x64, 64 to 3, pointers") == ("wgmma",)


def test_ada_multiplies_by_mma(compiled: Callable[[int, str], tuple[str, ...]]) -> None:
    assert compiled(89, "norm, forward, statistics: 8x8, 512 to 256, pointers") == ("mma",)


# ---- on a GPU

LARGE = ["k4, 512 to 256", "k4, 128 to 64, batch and width ragged", "k4, 24 to 40", "image", "vocoder", "one sample"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("name", LARGE)
def test_on_the_gpu(name: str, descriptors: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half types at most twice the error of PyTorch in the same type; in float32, without TF32, 1e-5 or 1e-4."""
    pytest.importorskip("triton")
    from transposed import LEAKY_RELU, NONE, TANH, Case, outcomes

    from fastgan.kernels.conv_transpose_bn_act import triton as ours

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = {
        "k4, 512 to 256": Case(16, 512, 256, (8, 8)),
        "k4, 128 to 64, batch and width ragged": Case(5, 128, 64, (16, 24)),
        "k4, 24 to 40": Case(3, 24, 40, (7, 9), act_in=NONE),
        "image": Case(4, 64, 3, (64, 48), act_out=TANH, statistics=False),
        "vocoder": Case(2, 128, 64, (1000,), (16, 8, 4, 0), norm=False, act_in=LEAKY_RELU, statistics=False),
        "one sample": Case(1, 64, 32, (4, 4)),
    }[name]
    capability = ours.default_how(torch.empty(0, device="cuda")).capability
    if descriptors and capability < 90:
        pytest.skip("tensor descriptors need compute capability 9.0")
    for of in outcomes(case, dtype, "cuda", ours.How(capability, descriptors)):
        error, eager = of.errors
        if of.name in ("mean", "var"):
            bound = 1e-6
        elif dtype == torch.float32:
            bound = 1e-4 if of.name == "dw" else 1e-5
        else:
            bound = 2 * eager
        assert error <= bound, f"{of.name} is off by {error}, more than {bound}"


@pytest.mark.gpu
@pytest.mark.parametrize("descriptors", [False, True])
def test_captured_into_a_graph(descriptors: bool) -> None:
    pytest.importorskip("triton")
    from fastgan.kernels.conv_transpose_bn_act import triton as ours

    x = torch.randn(4, 64, 8, 8, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 32, 4, 4, device="cuda", dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    how = ours.default_how(x)
    how = ours.How(how.capability, descriptors and how.capability >= 90)
    made = ours.forward(x, weight, None, K4, want_stats=True, how=how)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours.forward(x, weight, None, K4, want_stats=True, how=how)
    graph.replay()
    assert all(torch.equal(one, two) for one, two in zip(made, captured, strict=True))
