"""norm_act on a GPU against the C++ kernels: the same bits, graphs, large tensors, and a launch that fails."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.kernels._runtime import EXTENSION, choice, choose
from fastgan.kernels.batch_norm_act import Norm, native, native_cuda
from fastgan.kernels.batch_norm_act.reference import CASES, arithmetic_type, reference_backward, reference_stats

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason="no native part")
GPU_ONLY = (pytest.mark.gpu, pytest.mark.skipif(not EXTENSION.has_cuda, reason="no CUDA part"))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gpu(test: Any) -> Any:
    for mark in GPU_ONLY:
        test = mark(test)
    return test


@pytest.fixture(autouse=True)
def all_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    monkeypatch.setattr(choice, "_disabled", {})
    choose.cache_clear()
    yield
    choose.cache_clear()


def inputs(case: str, dtype: torch.dtype, act: int = 2) -> tuple[Tensor, Tensor, Norm]:
    shape, channels_last = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    if channels_last:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=arithmetic_type(dtype)) for _ in range(2))
    return x, grad, Norm(*native.stats(x), weight, bias, 1e-5, act, 0.2)


def on_gpu(norm: Norm) -> Norm:
    vectors = {name: getattr(norm, name) for name in ("mean", "var", "weight", "bias")}
    return dataclasses.replace(norm, **{name: None if v is None else v.cuda() for name, v in vectors.items()})


def relative(made: Tensor, exact: Tensor) -> float:
    return ((made.cpu().double() - exact.double()).norm() / exact.double().norm()).item()


@gpu
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_as_on_the_cpu(case: str, dtype: torch.dtype, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, given the statistics and sums; these to their rounding, and the same twice."""
    monkeypatch.setattr(native_cuda, "FUSED", fused)
    tight = 1e-13 if dtype == torch.float64 else 1e-6
    for act in range(7):
        x, grad, norm = inputs(case, dtype, act)
        on_x, on_grad, there = x.cuda(), grad.cuda(), on_gpu(norm)
        equal = torch.equal if dtype != torch.float64 or act < 3 else torch.allclose
        out, mean, var = native.train(on_x, there)
        assert all(map(torch.equal, native.train(on_x, there), (out, mean, var)))
        assert relative((mean.cpu() - norm.mean) / norm.var.sqrt() + 1, torch.ones_like(norm.mean)) < tight
        assert relative(var, norm.var) < tight
        with_these = dataclasses.replace(norm, mean=mean.cpu(), var=var.cpu())
        assert equal(out.cpu(), native.normalise(x, with_these))
        assert equal(native.normalise(on_x, there).cpu(), native.normalise(x, norm))
        dx, sums = native.backward(on_grad, on_x, there)
        assert all(map(torch.equal, native.backward(on_grad, on_x, there), (dx, sums)))
        assert relative(sums, native.backward_sums(grad, x, norm)) < 10 * tight
        count = x.numel() // x.shape[1]
        assert equal(dx.cpu(), native.backward_input(grad, x, norm, sums.cpu(), count))
        in_place = on_grad.clone()
        assert torch.equal(native.backward(in_place, on_x, there, in_place)[0], dx)
    assert choose("batch_norm_act", torch.device("cuda", 0)).native


@gpu
@pytest.mark.parametrize("fused", [True, False])
def test_captured_into_a_graph(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "FUSED", fused)
    x, grad, norm = inputs("dcgan-64 at 8x8, channels-last", torch.bfloat16)
    x, grad, norm = x.cuda(), grad.cuda(), on_gpu(norm)
    expected = [*native.train(x, norm), *native.backward(grad, x, norm)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [*native.train(x, norm), *native.backward(grad, x, norm)]
    for _ in range(3):
        for made in captured:
            made.fill_(torch.nan)
        graph.replay()
        assert all(map(torch.equal, captured, expected))


@gpu
def test_more_elements_than_32_bits_count() -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.zeros(2**16 + 1, 64, 32, 32, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout)
        x[-1] = torch.arange(64.0, device="cuda").view(64, 1, 1)
        out, mean, var = native.train(x, Norm(eps=0.01), x)
        exact = torch.arange(64.0, dtype=torch.float64) / (2**16 + 1)
        torch.testing.assert_close(mean.cpu(), exact, rtol=1e-6, atol=0)
        scale = (var.cpu() + 0.01).sqrt()
        last = (torch.arange(64.0, dtype=torch.float64) - exact) / scale
        torch.testing.assert_close(out[-1, :, 31, 31].cpu().double(), last, rtol=2**-8, atol=0)
        torch.testing.assert_close(out[0, :, 0, 0].cpu().double(), -exact / scale, rtol=2**-8, atol=0)


def test_a_failed_launch_leaves_it_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one warning. Without a GPU too: what is queued is made up."""
    x, grad, norm = inputs("odd sizes", torch.float32)
    device = torch.device("cuda", 0)

    def fail(call: Any, name: str, *arguments: float) -> bool:
        if choose("batch_norm_act", device).native:
            choice.disable("batch_norm_act", device, RuntimeError("no such luck"))
        return False

    monkeypatch.setattr(choice, "_choose_cuda", lambda *_: choice.Choice("CUDA C++", "made up"))
    expected = [*native.train(x, norm), *native.backward(grad, x, norm)]
    separate = [native.stats(x), native.normalise(x, norm), native.backward_sums(grad, x, norm)]
    monkeypatch.setattr(native._Call, "run", fail)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = [*native.train(x, norm), *native.backward(grad, x, norm)]
        dx = native.backward_input(grad, x, norm, made[4], x.numel() // x.shape[1])
        again = [native.stats(x), native.normalise(x, norm), native.backward_sums(grad, x, norm)]
    assert [w.category for w in said] == [RuntimeWarning]
    assert "batch_norm_act runs in PyTorch on cuda:0" in str(said[0].message)
    assert not choose("batch_norm_act", device).native
    for ours, theirs in zip((*made, dx), (*expected, expected[3]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(again, separate, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    exact_dx, dweight, dbias = reference_backward(grad, x, dataclasses.replace(norm, **_stats_of(x)))
    torch.testing.assert_close(dx, exact_dx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made[4].float(), torch.stack([dbias, dweight]), rtol=1e-5, atol=1e-5)


def _stats_of(x: Tensor) -> dict[str, Tensor]:
    mean, var = reference_stats(x)
    return {"mean": mean, "var": var}
