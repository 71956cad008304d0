"""masked_act's Triton kernel: in the interpreter, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.interpreter import interpret
from kernels.masks import CPU, HALF, SLOPES, added, additions, of_case, random, same
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels import masked_act as package
from fastgan.kernels._runtime import choose
from fastgan.kernels.masked_act import CASES, apply_mask, apply_mask_, masked_act, masked_act_

pytestmark = pytest.mark.usefixtures("poisoned")

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
    interpret("-c", INTERPRETED, timeout=100)


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
        masked_act(torch.zeros(2, 3, 4, 4).cuda(), 0.2, torch.zeros(3))
