"""batch_norm_stats, batch_norm_act and bias_act against float64 formulas, their derivatives, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels.batch_norm_act import (
    ACTS,
    CASES,
    batch_norm_act,
    batch_norm_stats,
    bias_act,
    train_batch_norm_act,
)
from fastgan.kernels.masked_act.reference import CHANNELS_LAST

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


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


def of_case(case: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    shape, channels_last = CASES[case]
    x = random(shape, device, dtype, seed)
    return x.contiguous(memory_format=CHANNELS_LAST[x.dim()]) if channels_last else x


def activation(z: Tensor, act: str, slope: float) -> Tensor:
    """As torch has it."""
    functions = {"none": lambda z: z, "leaky_relu": lambda z: F.leaky_relu(z, slope), "tanh": torch.tanh}
    functions |= {"sigmoid": torch.sigmoid, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
    return functions[act](z)


def eager(x: Tensor, weight: Tensor | None, bias: Tensor | None, act: str, slope: float = 0.2) -> Tensor:
    """Batch normalisation in training and the activation by torch's layers."""
    return activation(F.batch_norm(x, None, None, weight, bias, training=True), act, slope)


def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, act: str, slope: float = 0.2) -> Tensor:
    return batch_norm_act(x, *batch_norm_stats(x), weight, bias, act=act, slope=slope)


def relative(result: Tensor, exact: Tensor) -> float:
    norm = exact.norm().item()
    return (result.double() - exact).norm().item() / norm if norm else result.double().norm().item()


def assert_accurate(result: Tensor, eager: Tensor, exact: Tensor, fp32: float) -> None:
    """fp32: the bound in float32; half types may err twice as much as eager does."""
    bound = {torch.float32: fp32, torch.float64: 1e-12}.get(result.dtype)
    assert relative(result, exact) <= (2 * relative(eager, exact) + 1e-6 if bound is None else bound)


def gradients(function, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, act: str) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves, act)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


SMALL = [case for case, (shape, _) in CASES.items() if math.prod(shape) < 200_000]


@pytest.mark.parametrize(("case", "dtype"), list(product(SMALL, DTYPES)))
@pytest.mark.usefixtures("implementation")
def test_training(case: str, dtype: torch.dtype, device: torch.device) -> None:
    """Output and gradients, with every activation."""
    x, grad = of_case(case, device, dtype), of_case(case, device, dtype, 1)
    vector = torch.float32 if dtype in DTYPES[2:] else dtype
    weight, bias = (random((x.shape[1],), device, vector, seed) for seed in (2, 3))
    for act in ACTS:
        exact = gradients(eager, x.double(), weight.double(), bias.double(), grad.double(), act)
        theirs = gradients(eager, x, weight, bias, grad, act)
        made = gradients(ours, x, weight, bias, grad, act)
        for result, baseline, truth, bound in zip(made, theirs, exact, (1e-5, 1e-5, 1e-4, 1e-4), strict=True):
            assert_accurate(result, baseline, truth, bound)
        assert made[0].dtype == made[1].dtype == dtype
        assert made[0].stride() == x.stride()


@pytest.mark.parametrize("case", [case for case in CASES if case not in SMALL])
@pytest.mark.usefixtures("implementation")
def test_training_at_the_sizes_of_a_generator(case: str, device: torch.device) -> None:
    x, grad = of_case(case, device, torch.float32), of_case(case, device, torch.float32, 1)
    weight, bias = (random((x.shape[1],), device, torch.float32, seed) for seed in (2, 3))
    exact = gradients(eager, x.double(), weight.double(), bias.double(), grad.double(), "leaky_relu")
    made = gradients(ours, x, weight, bias, grad, "leaky_relu")
    for result, truth, bound in zip(made, exact, (1e-5, 1e-5, 1e-4, 1e-4), strict=True):
        assert relative(result, truth) < bound


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.usefixtures("implementation")
def test_nothing_cancels(dtype: torch.dtype, channels_last: bool, device: torch.device) -> None:
    """Mean 1e4, standard deviation 1e-2. The numbers themselves are coarse in float32: they are what is normalised."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = (1e4 + 1e-2 * random((16, 24, 9, 9), device, torch.float64)).to(dtype).contiguous(memory_format=layout)
    grad = random(tuple(x.shape), device, dtype, 1)
    weight, bias = (random((24,), device, dtype, seed) for seed in (2, 3))
    mean, var = batch_norm_stats(x)
    exact_var, exact_mean = torch.var_mean(x.double() - 1e4, (0, 2, 3), correction=0)
    assert relative(mean - 1e4, exact_mean) < 1e-6
    assert relative(var, exact_var) < 1e-6
    near_zero = x.double() - 1e4  # without rounding, and nothing can cancel there
    exact = gradients(eager, near_zero, weight.double(), bias.double(), grad.double(), "leaky_relu")
    made = gradients(ours, x, weight, bias, grad, "leaky_relu")
    for result, truth in zip(made, exact, strict=True):
        assert relative(result, truth) < (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("implementation")
def test_evaluation(dtype: torch.dtype, device: torch.device) -> None:
    """With constants for mean and variance: nothing flows through them."""
    x, grad = of_case("odd sizes, channels-last", device, dtype), of_case("odd sizes, channels-last", device, dtype, 1)
    mean = random((17,), device, torch.float64, 4)
    var = random((17,), device, torch.float64, 5).square()
    vector = torch.float32 if dtype in DTYPES[2:] else dtype
    weight, bias = (random((17,), device, vector, seed) for seed in (2, 3))

    def theirs(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
        m, v = mean.to(weight.dtype), var.to(weight.dtype)
        return activation(F.batch_norm(x, m, v, weight, bias), act, 0.2)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
        return batch_norm_act(x, mean, var, weight, bias, act=act, training=False)

    for act in ACTS:
        exact = gradients(theirs, x.double(), weight.double(), bias.double(), grad.double(), act)
        baseline, made = (gradients(f, x, weight, bias, grad, act) for f in (theirs, ours))
        for result, his, truth, bound in zip(made, baseline, exact, (1e-5, 1e-5, 1e-4, 1e-4), strict=True):
            assert_accurate(result, his, truth, bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("implementation")
def test_bias_and_activation(dtype: torch.dtype, device: torch.device) -> None:
    for case in ("odd sizes", "three channels, channels-last", "vectors"):
        x, grad = of_case(case, device, dtype), of_case(case, device, dtype, 1)
        bias = random((x.shape[1],), device, dtype, 2)

        def theirs(x: Tensor, bias: Tensor, _: Tensor, act: str) -> Tensor:
            return activation(x + bias.view(-1, *[1] * (x.dim() - 2)), act, 0.2) + 0 * _

        def ours(x: Tensor, bias: Tensor, _: Tensor, act: str) -> Tensor:
            return bias_act(x, bias, act) + 0 * _

        zero = torch.zeros((), device=device, dtype=dtype)
        for act in ACTS:
            exact = gradients(theirs, x.double(), bias.double(), zero.double(), grad.double(), act)
            baseline, made = (gradients(f, x, bias, zero, grad, act) for f in (theirs, ours))
            for result, his, truth, bound in zip(made[:3], baseline, exact, (1e-5, 1e-5, 1e-4), strict=False):
                assert_accurate(result, his, truth, bound)
            assert torch.equal(bias_act(x, None, act), bias_act(x, torch.zeros_like(bias), act))


@pytest.mark.usefixtures("implementation")
def test_special_values(device: torch.device) -> None:
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, -0.0, 2.0]], device=device)
    for act in ACTS:
        if act == "gelu":  # of inf, PyTorch's is NaN in float32, but inf in float64
            x = x.where(x != math.inf, 3.0)
        ours, theirs = bias_act(x, None, act), activation(x, act, 0.2)
        assert torch.equal(ours.isnan(), theirs.isnan()), act
        assert torch.allclose(ours.nan_to_num(9), theirs.nan_to_num(9), rtol=1e-6, atol=torch.finfo(x.dtype).tiny), act


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
@pytest.mark.usefixtures("implementation")
def test_kinks_are_those_of_torch(act: str, device: torch.device) -> None:
    x = torch.tensor([[-1.0, 0.0, -0.0, 1.0]], device=device, requires_grad=True)
    (ours,) = torch.autograd.grad(bias_act(x, None, act).sum(), x)
    (theirs,) = torch.autograd.grad(activation(x, act, 0.2).sum(), x)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", ["dcgan-64 at 8x8, channels-last", "odd sizes", "one sample, channels-last"])
@pytest.mark.usefixtures("implementation")
def test_both_passes_in_one_op_are_the_two_ops(case: str, device: torch.device) -> None:
    x, grad = of_case(case, device, torch.float32), of_case(case, device, torch.float32, 1)
    weight, bias = (random((x.shape[1],), device, torch.float32, seed) for seed in (2, 3))
    together = gradients(lambda x, w, b, act: train_batch_norm_act(x, w, b, act=act)[0], x, weight, bias, grad, "relu")
    assert all(map(torch.equal, together, gradients(ours, x, weight, bias, grad, "relu")))
    _, *stats = train_batch_norm_act(x, weight, bias)
    assert all(map(torch.equal, stats, batch_norm_stats(x)))


@pytest.mark.usefixtures("implementation")
def test_views_without_a_layout_of_their_own(device: torch.device) -> None:
    x = random((5, 12, 8, 7), device, torch.float32)[::2, 1::3, :, 1:6]
    weight, bias = (random((4,), device, torch.float32, seed) for seed in (2, 3))
    grad = random((3, 5, 8, 4), device, torch.float32, 1).permute(0, 3, 2, 1)
    exact = gradients(eager, x.double(), weight.double(), bias.double(), grad.double(), "silu")
    for result, truth in zip(gradients(ours, x, weight, bias, grad, "silu"), exact, strict=True):
        assert relative(result, truth) < 1e-5


@pytest.mark.usefixtures("implementation")
def test_the_same_twice_and_with_more_threads(device: torch.device) -> None:
    x, grad = (of_case("dcgan-64 at 8x8, channels-last", device, torch.float32, seed) for seed in (0, 1))
    weight, bias = (random((256,), device, torch.float32, seed) for seed in (2, 3))
    first = gradients(ours, x, weight, bias, grad, "gelu")
    again = gradients(ours, x, weight, bias, grad, "gelu")
    assert all(map(torch.equal, first, again))


@pytest.mark.usefixtures("implementation")
def test_no_samples(device: torch.device) -> None:
    x = torch.empty((0, 3, 4, 4), device=device, requires_grad=True)
    out = bias_act(x, torch.zeros(3, device=device), "tanh")
    out.sum().backward()
    assert out.shape == x.shape
    assert x.grad is not None


@pytest.mark.parametrize("act", ACTS)
def test_derivatives_of_both_orders(act: str) -> None:
    x, weight, bias = (
        random(s, CPU, torch.float64, i).requires_grad_() for i, s in enumerate([(2, 3, 1, 3), (3,), (3,)])
    )
    mean, var = batch_norm_stats(random((2, 3, 1, 3), CPU, torch.float64, 9))
    functions = [
        lambda x, w, b: ours(x, w, b, act),
        lambda x, w, b: train_batch_norm_act(x, w, b, act=act)[0],
        lambda x, w, b: batch_norm_act(x, mean, var, w, b, act=act, training=False),
        lambda x, w, b: bias_act(x * w[:, None, None], b, act),
        lambda x, w, b: ours(x, None, b, act) + ours(x, w, None, act),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, (x, weight, bias))
        assert torch.autograd.gradgradcheck(function, (x, weight, bias))


def by_hand(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
    """Without F.batch_norm, whose second derivative takes mean and variance for constants."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean((0, 2, 3), keepdim=True) + 1e-5)
    return activation(normal * weight[:, None, None] + bias[:, None, None], act, 0.2)


def test_third_order() -> None:
    x, weight, bias = (
        random(s, CPU, torch.float64, i).requires_grad_() for i, s in enumerate([(3, 4, 2, 3), (4,), (4,)])
    )
    results = []
    for function in (ours, by_hand):
        total = function(x, weight, bias, "gelu").square().sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(total, x, create_graph=True)
            total = grad.square().sum()
        results.append(total)
    assert math.isclose(results[0].item(), results[1].item(), rel_tol=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_the_ops_are_what_torch_expects(training: bool) -> None:
    x = random((3, 4, 2, 3), CPU, torch.float32).contiguous(memory_format=torch.channels_last)
    mean, var = batch_norm_stats(x)
    weight, bias = (random((4,), CPU, torch.float32, seed).requires_grad_() for seed in (2, 3))
    arguments = (x.requires_grad_(), mean, var, weight, bias, 1e-5, 3, 0.2, training)
    torch.library.opcheck(torch.ops.fastgan.batch_norm_stats, (x.detach(),))
    torch.library.opcheck(torch.ops.fastgan.batch_norm_act, arguments)
    torch.library.opcheck(torch.ops.fastgan.batch_norm_act, (x, None, None, None, bias, 0.0, 3, 0.2, False))
    torch.library.opcheck(
        torch.ops.fastgan.batch_norm_act_backward, (random((3, 4, 2, 3), CPU, x.dtype, 4), *arguments)
    )


X = torch.zeros(2, 3, 4, 4)
V = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bias_act(X, act="rleu"), "bias_act: activation 'rleu' is not known; did you mean 'relu'?"),
        (lambda: bias_act(X.int()), "expected x in float32, float64, bfloat16 or float16, got int32"),
        (lambda: bias_act(X[0, 0, 0]), r"expected x \[N, C, ...\], got \(4,\)"),
        (
            lambda: bias_act(X, torch.zeros(4)),
            r"expected bias of shape \(3,\), one value per channel of x \(2, 3, 4, 4\)",
        ),
        (lambda: bias_act(X, V), "expected bias in float32 for x in float32, got float64"),
        (lambda: bias_act(X.half(), V), "expected bias in float16 or float32 for x in float16, got float64"),
        (lambda: batch_norm_act(X, V.float(), V), "expected mean in float64 for x in float32, got float32"),
        (lambda: batch_norm_stats(X.bool()), "batch_norm_stats: expected x in float32"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(FastganError, match=message):
        call()
