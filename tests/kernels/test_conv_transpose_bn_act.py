"""conv_transpose with prologue and statistics against float64, its derivatives, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from kernels.interpreter import interpret
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels._runtime import choice
from fastgan.kernels.batch_norm_act import ACTS, Norm, batch_norm_stats
from fastgan.kernels.conv_transpose_bn_act import CASES, Geometry, conv_transpose, gpu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
LARGE = [case for case in CASES if case.startswith("dcgan")]
SMALL = [case for case in CASES if case not in LARGE]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New memory is NaN, so that what is not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # only for what it does to new memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def numbers(geometry: Geometry) -> dict[str, Any]:
    g = geometry
    names = {"stride": g.stride, "padding": g.padding, "output_padding": g.output_padding, "dilation": g.dilation}
    return {**names, "groups": g.groups}


def activation(z: Tensor, act: str, slope: float) -> Tensor:
    functions = {"none": lambda z: z, "leaky_relu": lambda z: F.leaky_relu(z, slope), "tanh": torch.tanh}
    functions |= {"sigmoid": torch.sigmoid, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
    return functions[act](z)


def relative(result: Tensor, exact: Tensor) -> float:
    norm = exact.norm().item()
    return (result.double() - exact).norm().item() / norm if norm else result.double().norm().item()


class Block:
    """Leaves and gradient of one case: x, the norm's weight and bias, the convolution's weight and bias."""

    def __init__(self, case: str, device: torch.device, dtype: torch.dtype, *, channels_last: bool = True) -> None:
        n, channels, height, width, self.out, kernel, self.geometry = CASES[case]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = (0.5 + random((n, channels, height, width), device, dtype)).contiguous(memory_format=layout)
        vector = torch.float32 if dtype in DTYPES[2:] else dtype
        shape = (channels, self.out // self.geometry.groups, *kernel)
        weight = random(shape, device, dtype, 3) * (channels * 4) ** -0.5
        self.leaves = [
            x,
            1 + 0.1 * random((channels,), device, vector, 1),
            random((channels,), device, vector, 2),
            weight.contiguous(memory_format=layout),
            random((self.out,), device, dtype, 4),
        ]
        size = self.geometry.output_size((height, width), kernel)
        self.grad = random((n, self.out, *size), device, dtype, 5)

    def eager(self, act: str, act_out: str, *leaves: Tensor) -> Tensor:
        x, scale, shift, weight, bias = leaves
        a = activation(F.batch_norm(x, None, None, scale, shift, training=True), act, 0.2)
        return activation(F.conv_transpose2d(a, weight, bias, **numbers(self.geometry)), act_out, 0.2)

    def ours(self, act: str, act_out: str, *leaves: Tensor) -> Tensor:
        x, scale, shift, weight, bias = leaves
        norm = Norm(*batch_norm_stats(x), scale, shift, 1e-5, ACTS[act], 0.2, True)
        return conv_transpose(x, weight, bias, norm=norm, act_out=act_out, **numbers(self.geometry))[0]

    def gradients(self, function: Any, dtype: torch.dtype | None = None, **acts: str) -> list[Tensor]:
        """Output and gradients, computed in `dtype` where there is one."""
        leaves = [t.to(dtype or t.dtype).detach().requires_grad_() for t in self.leaves]
        y = function(acts["act"], acts["act_out"], *leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.grad.to(dtype or self.grad.dtype))]

    def check(self, fp32: float, fp32_sums: float, **acts: str) -> None:
        exact = self.gradients(self.eager, torch.float64, **acts)
        theirs, made = self.gradients(self.eager, **acts), self.gradients(self.ours, **acts)
        bounds = (fp32, fp32, *[fp32_sums] * 4)
        for name, result, baseline, truth, bound in zip(NAMES, made, theirs, exact, bounds, strict=True):
            assert result.dtype == baseline.dtype, name
            single = {torch.float32: bound, torch.float64: 1e-12}.get(self.leaves[0].dtype)
            limit = 2 * relative(baseline, truth) if single is None else single
            if single is None and result.numel() < 100:  # of so few numbers eager's error is small or not by luck
                limit = max(limit, 2 * torch.finfo(self.leaves[0].dtype).eps)
            assert relative(result, truth) <= limit, (name, acts, relative(result, truth), limit)


NAMES = ("y", "dx", "dscale", "dshift", "dweight", "dbias")


@pytest.mark.parametrize(("case", "dtype"), list(product(SMALL, DTYPES)))
@pytest.mark.usefixtures("implementation")
def test_outputs_and_gradients(case: str, dtype: torch.dtype, device: torch.device) -> None:
    block = Block(case, device, dtype, channels_last=dtype != torch.float64)
    for act, act_out in (("relu", "tanh"), ("leaky_relu", "none"), ("none", "sigmoid"), ("silu", "gelu")):
        block.check(1e-5, 1e-4, act=act, act_out=act_out)


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.usefixtures("implementation")
def test_the_layers_of_a_generator(case: str, device: torch.device) -> None:
    act_out = "tanh" if "image" in case else "none"
    Block(case, device, torch.float32).check(1e-5, 1e-4, act="relu", act_out=act_out)


@pytest.mark.parametrize(("case", "dtype"), list(product(SMALL, DTYPES)))
@pytest.mark.usefixtures("implementation")
def test_statistics(case: str, dtype: torch.dtype, device: torch.device) -> None:
    """They are those of y as it is stored, also where the mean is a million standard deviations."""
    block = Block(case, device, dtype)
    x, _, _, weight, bias = block.leaves
    large = 1e4 if dtype in DTYPES[:2] else 8.0
    y, mean, var = conv_transpose(1e-2 * x, weight, bias + large, want_stats=True, **numbers(block.geometry))
    exact_var, exact_mean = torch.var_mean(y.double() - large, (0, 2, 3), correction=0)
    assert mean.dtype == var.dtype == torch.float64
    assert not mean.requires_grad
    assert relative(mean - large, exact_mean) < 1e-5
    assert relative(var, exact_var) < 1e-4


@pytest.mark.usefixtures("implementation")
def test_without_a_prologue(device: torch.device) -> None:
    for act in ACTS:
        block = Block("odd sizes", device, torch.float64)
        x, _, _, weight, bias = block.leaves
        ours = conv_transpose(x, weight, bias, act_out=act, **numbers(block.geometry))[0]
        theirs = activation(F.conv_transpose2d(x, weight, bias, **numbers(block.geometry)), act, 0.2)
        assert relative(ours, theirs) < 1e-14
        only = Norm(act=ACTS[act], slope=0.3, training=False)
        ours = conv_transpose(x, weight, None, norm=only, **numbers(block.geometry))[0]
        theirs = F.conv_transpose2d(activation(x, act, 0.3), weight, None, **numbers(block.geometry))
        assert relative(ours, theirs) < 1e-14


@pytest.mark.usefixtures("implementation")
def test_one_dimension_is_a_row(device: torch.device) -> None:
    x, weight = random((2, 6, 9), device, torch.float64), random((6, 4, 8), device, torch.float64, 1)
    y, mean, var = conv_transpose(
        x, weight, None, stride=(4,), padding=(2,), output_padding=(1,), dilation=(1,), want_stats=True
    )
    exact = F.conv_transpose1d(x, weight, None, 4, 2, 1)
    assert y.shape == exact.shape
    assert relative(y, exact) < 1e-14
    assert relative(mean, exact.mean((0, 2))) < 1e-13
    assert relative(var, exact.var((0, 2), correction=0)) < 1e-13


@pytest.mark.usefixtures("implementation")
def test_views_without_a_layout_of_their_own(device: torch.device) -> None:
    block = Block("eight channels", device, torch.float32)
    block.leaves[0] = random((4, 34, 4, 8), device, torch.float32)[::2, ::2, :, ::2]
    block.leaves[3] = random((8, 17, 4, 4), device, torch.float32, 3).transpose(0, 1)
    block.grad = random((2, 8, 8, 8), device, torch.float32, 5).transpose(2, 3)
    block.check(1e-5, 1e-4, act="relu", act_out="tanh")


@pytest.mark.usefixtures("implementation")
def test_the_same_twice(device: torch.device) -> None:
    for case in ("odd sizes", "dcgan-64 from 4x4", "dcgan-64 to image"):
        block = Block(case, device, torch.float32)
        first, again = (block.gradients(block.ours, act="relu", act_out="tanh") for _ in range(2))
        assert all(map(torch.equal, first, again))


@pytest.mark.usefixtures("implementation")
def test_only_what_is_needed(device: torch.device) -> None:
    """Frozen parameters get nothing, and what is left is the same."""
    block = Block("odd sizes", device, torch.float64)
    everything = block.gradients(block.ours, act="relu", act_out="none")[1:]
    for wanted in ([0], [3], [4], [1, 2], [0, 3], [3, 4]):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(block.leaves)]
        y = block.ours("relu", "none", *leaves)
        y.backward(block.grad)
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i in wanted)
            if leaf.grad is not None:
                assert relative(leaf.grad, everything[i]) < 1e-14


GRADCHECKED = [("relu", "tanh"), ("silu", "gelu"), ("leaky_relu", "leaky_relu"), ("gelu", "sigmoid"), ("tanh", "relu")]


@pytest.mark.parametrize(("act", "act_out"), GRADCHECKED)
def test_derivatives_of_both_orders(act: str, act_out: str) -> None:
    shapes = [(2, 2, 2, 2), (2,), (2,), (2, 2, 4, 4), (2,)]
    leaves = [random(s, CPU, torch.float64, i).requires_grad_() for i, s in enumerate(shapes)]
    square = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "dilation": (1, 1)}
    row = {"stride": (2,), "padding": (1,), "output_padding": (0,), "dilation": (1,)}

    def chain(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm = Norm(*batch_norm_stats(x), scale, shift, 1e-5, ACTS[act], 0.2, True)
        return conv_transpose(x, weight, bias, norm=norm, act_out=act_out, **square)[0]

    def sequence(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm = Norm(weight=scale, bias=shift, act=ACTS[act], slope=0.2, training=False)
        return conv_transpose(x[:, :, 0], weight[:, :, 1], bias, norm=norm, act_out=act_out, **row)[0]

    for function in (chain, sequence):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("want_stats", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_ops_are_what_torch_expects(want_stats: bool) -> None:
    x, scale, shift, weight, bias = (t.detach().requires_grad_() for t in Block("odd sizes", CPU, torch.float32).leaves)
    mean, var = batch_norm_stats(x)
    geometry = ([2, 2], [1, 1], [0, 0], [1, 1], 1)
    out = (0, 0.2, True) if want_stats else (3, 0.2, False)
    op, backward = torch.ops.fastgan.conv_transpose_bn_act, torch.ops.fastgan.conv_transpose_bn_act_backward
    arguments = (x, mean, var, scale, shift, 1e-5, 1, 0.2, True, weight, bias, *geometry, *out)
    torch.library.opcheck(op, arguments)
    torch.library.opcheck(op, (x, None, None, None, None, 1e-5, 0, 0.2, True, weight, None, *geometry, *out))
    y = torch.tanh(random((3, 17, 14, 18), CPU, torch.float32))
    near = {"rtol": 1e-4, "atol": 1e-4}  # sums of thousands in float32, whose order depends on the processor
    for needs in ([True, True, True],) if want_stats else ([False, True, False], [True, False, False]):
        torch.library.opcheck(backward, (y.flip(0), None if want_stats else y, needs, *arguments), **near)


X, W = torch.zeros(2, 3, 4, 4), torch.zeros(3, 5, 4, 4)
SQUARE = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "dilation": (1, 1)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_transpose(X[:, :2], W, **SQUARE), "expected x with 3 channels, as the weight"),
        (
            lambda: conv_transpose(X.int(), W, **SQUARE),
            "expected x in float32, float64, bfloat16 or float16, got int32",
        ),
        (lambda: conv_transpose(X, W.double(), **SQUARE), "expected weight in the type of x, float32, got float64"),
        (lambda: conv_transpose(X, W, act_out="swish", **SQUARE), "activation 'swish' is not known"),
        (lambda: conv_transpose(X, W, act_out="tanh", want_stats=True, **SQUARE), "act_out has to be none"),
        (
            lambda: conv_transpose(X, W, norm=Norm(bias=torch.zeros(4)), **SQUARE),
            r"expected norm_bias of shape \(3,\), one value per channel",
        ),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message):
        call()


# ---- the candidates on a GPU

INTERPRETED = """
import torch
from fastgan.kernels.batch_norm_act import Norm, batch_norm_stats
from fastgan.kernels.conv_transpose_bn_act import Geometry, gpu, run

torch.manual_seed(0)
weight, geometry = 0.1 * torch.randn(5, 6, 4, 4), Geometry()
x = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
norm = Norm(*batch_norm_stats(x), torch.randn(5), torch.randn(5), 1e-5, 2, 0.2, True)
grad = torch.randn(2, 6, 6, 8).contiguous(memory_format=torch.channels_last)
compared = 0
for act_out, want_stats in ((3, False), (0, True)):
    arguments = (x, norm, weight, torch.randn(6), geometry, act_out, 0.2, want_stats)
    candidates = gpu.forward(lambda: run._library(*arguments), *arguments)
    exact = candidates["library"]()
    for name, candidate in candidates.items():
        for made, truth in zip(candidate(), exact, strict=True):
            assert (made is None) == (truth is None), name
            if truth is not None:
                assert (made - truth).norm() <= 1e-5 * truth.norm(), name
                compared += 1
products = run.library.backward(grad, run.prologue(x, norm), weight, geometry, [True, True, False])
for candidates, truth in (
    (gpu.input_gradient(lambda: products[0], grad, weight, geometry), products[0]),
    (gpu.weight_gradient(lambda: products[1], grad, x, norm, weight, geometry), products[1]),
):
    for name, candidate in candidates.items():
        assert (candidate() - truth).norm() <= 1e-5 * truth.norm(), name
        compared += 1
assert compared == 3 * (1 + 3) + 3 * 2, compared
"""


def test_the_candidates_on_a_gpu_agree_in_the_interpreter() -> None:
    interpret("-c", INTERPRETED)


def test_a_failed_launch_leaves_it_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kernel that was right when it was compared, and is no longer launched."""

    def fail() -> Tensor:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(choice, "_disabled", {})
    monkeypatch.setattr(gpu, "decide", lambda *_: "Triton")
    candidates = {"library": lambda: X, "Triton": fail}
    with pytest.warns(RuntimeWarning, match="conv_transpose_bn_act runs in PyTorch .* no such luck.*report") as said:
        assert gpu.best("forward", X, W, Geometry(), "", candidates) is X
    assert len(said) == 1
    assert not choice.choose("conv_transpose_bn_act", CPU).native
    choice.choose.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_with_our_kernels_on_the_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, forward and backward, through the ops."""
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    choice.choose.cache_clear()
    for case in ("odd sizes", "eight channels", "dcgan-64 from 8x8", "dcgan-64 to image", "vocoder, k16 s8"):
        Block(case, torch.device("cuda", 0), dtype).check(1e-3, 1e-3, act="relu", act_out="tanh")  # TF32
    choice.choose.cache_clear()
