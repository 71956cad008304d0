"""Transposed convolutions as products of columns, against float64, and the sums of columns for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.activations import ACTS, activate
from fastgan.kernels.conv_transpose_bn_act import columns
from fastgan.kernels.conv_transpose_bn_act.columns import COLUMNS, LIBRARY, Plan, plan
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason=f"no native part: {EXTENSION.cpu}")

K4S2P1 = Geometry()
MIXED = Plan(forward=True, input=True, weight=False)
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-13, 1e-13)}  # of numbers, and of sums per summed size
INVERTIBLE = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New memory is NaN, so that what is not written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # only for what it does to new memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def relative(ours: Tensor, exact: Tensor) -> float:
    norm = exact.norm().item()
    return (ours.double() - exact).norm().item() / (norm or 1)


def is_channels_last(x: Tensor) -> bool:
    return x.permute(0, 2, 3, 1).is_contiguous()


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, act: str = "none", how: Plan = COLUMNS) -> None:
    """Output, statistics and gradients against float64."""
    code, slope, (bound, sums) = ACTS[act], 0.2, BOUNDS[x.dtype]
    leaves = [v.double().clone().requires_grad_() for v in (x, weight, bias) if v is not None]
    exact = activate(convolution(*leaves[:2], leaves[2] if bias is not None else None, g), code, slope)
    a, mean, var = columns.forward(x, weight, bias, g, code, slope, want_stats=True, how=how)
    assert a.dtype == x.dtype
    assert a.shape == exact.shape
    assert is_channels_last(a)
    assert relative(a, exact) < bound
    assert mean is not None
    assert var is not None
    stored = a.double()
    over = (0, 2, 3)
    assert (mean - stored.mean(over)).norm() <= sums * stored.abs().mean(over).norm()
    assert (var - stored.var(over, unbiased=False)).norm() <= sums * stored.square().mean(over).norm()
    grad = random(tuple(a.shape), x.dtype, 5)
    theirs = torch.autograd.grad(exact, leaves, grad.double())
    needs = (True, True, bias is not None)
    ours = columns.backward(grad, x, weight, a, g, code, slope, needs, how)
    assert (ours[2] is None) == (bias is None)
    for made, expected in zip(ours[:2], theirs, strict=False):
        assert made is not None
        assert made.dtype == x.dtype
        assert relative(made, expected) < bound
    if ours[2] is not None:
        without = columns.backward(grad, x, weight, a, g, code, slope, (True, True, False), how)
        assert all(relative(v, e) < bound for v, e in zip(without[:2], theirs[:2], strict=True) if v is not None)
        assert (ours[2].double() - theirs[2]).norm() <= sums * grad.double().abs().sum(over).norm()
    assert all(is_channels_last(made) for made in ours[:2] if made is not None)


# ---- the numbers


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], Geometry]:
    """Size of x, size of the kernel, geometry; y has pixels."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    size, kernel, stride, dilation, padding = pair(1, 6), pair(1, 5), pair(1, 4), pair(1, 3), pair(0, 3)
    largest = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    output_padding = tuple(draw(st.integers(0, most)) for most in largest)
    geometry = Geometry(stride, padding, output_padding, dilation)
    if min(geometry.output_size(size, kernel)) < 1:
        geometry = Geometry(stride, (0, 0), output_padding, dilation)
    return size, kernel, geometry


@settings(max_examples=120, deadline=None)
@given(
    where=geometries(),
    samples=st.integers(1, 3),
    channels=st.tuples(st.sampled_from([1, 3, 8]), st.sampled_from([1, 2, 3, 4, 5, 8, 17])),
    act=st.sampled_from(INVERTIBLE),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    with_bias=st.booleans(),
    how=st.sampled_from([COLUMNS, COLUMNS, MIXED, LIBRARY]),
)
def test_any_geometry(
    where: Any, samples: int, channels: Any, act: str, dtype: torch.dtype, with_bias: bool, how: Plan
) -> None:
    size, kernel, geometry = where
    x, weight = random((samples, channels[0], *size), dtype, 1), random((*channels, *kernel), dtype, 2)
    check(x, weight, random(channels[1:], dtype, 3) if with_bias else None, geometry, act, how)


@pytest.mark.parametrize("cout", [1, 2, 3, 4, 8, 17, 64, 96])
@pytest.mark.parametrize(("samples", "size"), [(1, (7, 5)), (3, (4, 9)), (2, (32, 32))])
def test_any_number_of_channels(cout: int, samples: int, size: tuple[int, int]) -> None:
    check(random((samples, 24, *size)), random((24, cout, 4, 4), seed=1), random((cout,), seed=2), K4S2P1, "tanh")


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(16, 8, 4), (4, 2, 1), (11, 5, 3)])
def test_sequences_are_images_of_one_row(kernel: int, stride: int, padding: int) -> None:
    x, weight = random((2, 12, 1, 37)), random((12, 6, 1, kernel), seed=1)
    check(x, weight, None, Geometry((1, stride), (0, padding)), "leaky_relu")


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_of_one_pixel_the_product_is_the_image(stride: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_chunks", columns._chunks if stride == (2, 2) else None)
    x, weight, g = random((5, 12, 1, 1)), random((12, 7, 4, 4), seed=1), Geometry(stride, (0, 0))
    exact = convolution(x.double(), weight.double(), None, g)
    assert relative(columns.forward(x, weight, None, g, how=COLUMNS)[0], exact) < 1e-5
    monkeypatch.undo()
    check(x, weight, random((7,), seed=2), g, "relu")


@pytest.mark.parametrize("chunk", [1, 3000, 20000])
def test_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGEST_CHUNK", chunk)
    monkeypatch.setattr(columns, "LEAST_CHUNK", 1)
    x, weight = random((7, 8, 5, 5)), random((8, 6, 4, 4), seed=1)
    assert len(list(columns._chunks(fold_of(7, 6, (5, 5)), columns._rows(x), columns._matrix(weight)))) > 1 + (
        chunk < 9
    )
    check(x, weight, random((6,), seed=2), K4S2P1, "sigmoid")


def test_input_that_is_not_contiguous() -> None:
    x = random((3, 10, 9, 8))[:, ::2, 1:-1].transpose(2, 3)
    check(x, random((3, 4, 5, 4), seed=1).permute(2, 0, 3, 1)[:, :2], None, K4S2P1, "relu")
    channels_last = random((3, 5, 7, 8)).contiguous(memory_format=torch.channels_last)
    check(channels_last, random((5, 2, 4, 4)).contiguous(memory_format=torch.channels_last), None, K4S2P1)


def test_gradient_that_is_expanded() -> None:
    x, weight = random((2, 5, 4, 4)), random((5, 3, 4, 4), seed=1)
    grad = torch.ones(()).expand(2, 3, 8, 8)
    ours = columns.backward(grad, x, weight, None, K4S2P1, how=COLUMNS)
    theirs = columns.backward(grad.clone(), x, weight, None, K4S2P1, how=COLUMNS)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True) if pair[0] is not None)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("how", [COLUMNS, LIBRARY, MIXED])
def test_what_is_not_needed_is_not_there(needs: tuple[bool, bool, bool], how: Plan) -> None:
    x, weight = random((2, 5, 4, 4)), random((5, 3, 4, 4), seed=1)
    a = columns.forward(x, weight, None, K4S2P1, ACTS["tanh"], how=how)[0]
    grad = random((2, 3, 8, 8), seed=3)
    every = columns.backward(grad, x, weight, a, K4S2P1, ACTS["tanh"], how=how)
    some = columns.backward(grad, x, weight, a, K4S2P1, ACTS["tanh"], needs=needs, how=how)
    assert tuple(v is not None for v in some) == needs
    assert all(relative(v, e.double()) < 1e-6 for v, e in zip(some, every, strict=True) if v is not None)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_activations(act: str, dtype: torch.dtype) -> None:
    """Of numbers large and small, of NaN and, where all agree on what that is, of infinities."""
    x = 10 ** random((2, 4, 5, 5), dtype).clamp(-4, 2) * random((2, 4, 5, 5), dtype, 1)
    weight = torch.eye(4, dtype=dtype)[:, :, None, None]
    one = Geometry((1, 1), (0, 0))
    a = columns.forward(x, weight, None, one, ACTS[act], -0.5, how=COLUMNS)[0]
    exact = activate(x.double(), ACTS[act], -0.5)
    relative_bound, absolute_bound = (4e-7, 1e-7) if dtype == torch.float32 else (1e-15, 1e-15)
    assert ((a.double() - exact).abs() - relative_bound * exact.abs()).max() < absolute_bound
    special = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype).view(1, 1, 1, 3)
    expected = activate(special, ACTS[act], -0.5)
    columns._finish(special, columns._After(None, ACTS[act], -0.5), False)
    assert special[..., 0].isnan().all()
    if act in ("none", "relu", "leaky_relu", "tanh"):
        assert torch.equal(special[..., 1:], expected[..., 1:])


# ---- the sums of columns


def fold_of(samples: int, channels: int, size: tuple[int, int], kernel: tuple[int, int] = (4, 4)) -> columns._Fold:
    return columns._Fold.between((samples, 1, *size), (1, channels, *kernel), K4S2P1)


def folded(fold: columns._Fold, made: Tensor) -> tuple[Tensor, Tensor]:
    y = columns.new_map(made, len(made), fold.channels, *fold.sizes[1])[: fold.samples]
    parts = fold.new_parts(y)
    fold.run(made, y, columns._After(None, ACTS["tanh"], 0.0), parts)
    return y, parts


@pytest.mark.parametrize("channels", [1, 3, 64, 200])
def test_bits_depend_on_no_number_of_threads(channels: int) -> None:
    fold = fold_of(3, channels, (9, 13))
    made, grad = random((3 * 9 * 13, 16 * channels)), random((3, 18, 26, channels)).permute(0, 3, 1, 2)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            back = torch.empty_like(made)
            y, parts = folded(fold, made)
            fold.unfold(grad, y, columns._After(None, ACTS["tanh"], 0.0), back)
            results.append((y, parts, back, *fold.statistics(parts)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_nothing_is_written_past_the_end(channels: int) -> None:
    fold = fold_of(2, channels, (5, 6))
    image = columns.new_map(torch.empty(3), 3, channels, *fold.sizes[1])
    made, image[2:] = random((2 * 30, 16 * channels)), 7
    after = columns._After(None, 0, 0.0)
    fold.run(made, image[:2], after, None)
    assert (image[2:] == 7).all()
    assert not image.isnan().any()
    more = torch.full((3 * 30, 16 * channels), 7.0)
    fold.unfold(image[:2], None, after, more[:60])
    assert (more[60:] == 7).all()


@settings(max_examples=60, deadline=None)
@given(where=geometries(), channels=st.sampled_from([1, 3, 4, 9]))
def test_unfold_is_the_transpose_of_fold(where: Any, channels: int) -> None:
    """In whole numbers, hence without a rounding: <fold c, y> = <c, unfold y>."""
    size, kernel, geometry = where
    fold = columns._Fold.between((2, 1, *size), (1, channels, *kernel), geometry)
    made = random((2 * size[0] * size[1], kernel[0] * kernel[1] * channels), torch.float64).mul(9).round()
    y = random((2, channels, *fold.sizes[1]), torch.float64, 1).mul(9).round()
    y = columns.channels_last(y)
    summed, back = torch.empty_like(y), torch.empty_like(made)
    fold.run(made, summed, columns._After(None, 0, 0.0), None)
    fold.unfold(y, None, columns._After(None, 0, 0.0), back)
    assert (summed * y).sum() == (made * back).sum()


def test_same_result_twice() -> None:
    x, weight, g = random((4, 32, 8, 8)), random((32, 16, 4, 4), seed=1), K4S2P1
    first, second = (columns.forward(x, weight, None, g, want_stats=True, how=COLUMNS) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True) if pair[0] is not None)
    grad = torch.ones_like(first[0])
    first, second = (columns.backward(grad, x, weight, None, g, how=COLUMNS) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True) if pair[0] is not None)


@pytest.mark.parametrize("shape", [(4, 8, 6, 6), (2, 3, 40, 40), (1, 1, 3, 5), (2, 600, 4, 4)])
@pytest.mark.parametrize("how", [COLUMNS, LIBRARY])
def test_statistics_where_the_mean_is_large(shape: tuple[int, ...], how: Plan) -> None:
    x, g = random(shape), Geometry((1, 1), (0, 0))
    weight, bias = 0.01 * torch.eye(shape[1])[:, :, None, None], torch.full(shape[1:2], 1e4)
    a, mean, var = columns.forward(x, weight, bias, g, want_stats=True, how=how)
    assert mean is not None
    assert var is not None
    assert relative(mean - 1e4, a.double().mean((0, 2, 3)) - 1e4) < 1e-4
    assert relative(var, a.double().var((0, 2, 3), unbiased=False)) < 1e-4


# ---- what is faster, and what is refused


@pytest.mark.parametrize(
    ("x", "weight", "expected"),
    [
        ((64, 100, 1, 1), (100, 512, 4, 4), COLUMNS),
        ((64, 512, 4, 4), (512, 256, 4, 4), COLUMNS),
        ((64, 256, 8, 8), (256, 128, 4, 4), Plan(True, False, True)),
        ((64, 128, 16, 16), (128, 64, 4, 4), LIBRARY),
        ((64, 64, 32, 32), (64, 3, 4, 4), Plan(True, False, False)),
        ((0, 512, 4, 4), (512, 256, 4, 4), LIBRARY),
    ],
)
def test_plan(x: tuple[int, ...], weight: tuple[int, ...], expected: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the library alone; where minimal filtering is faster than both, columns leave it to that."""
    if EXTENSION.module.winograd_here() and x[0] and weight[0] >= 256:
        assert plan(x, weight, K4S2P1, torch.float32) == LIBRARY
    monkeypatch.setattr(columns.winograd, "filtering", lambda *_: None)
    geometry = Geometry((1, 1), (0, 0)) if x[2] == 1 else K4S2P1
    assert plan(x, weight, geometry, torch.float32) == expected
    assert plan(x, weight, geometry, torch.bfloat16) == LIBRARY
    assert plan(x, weight, Geometry(groups=2), torch.float32) == LIBRARY
    assert columns.worth_it(x, weight, geometry, torch.float32) == (expected != LIBRARY)


def test_no_samples() -> None:
    a, mean, var = columns.forward(random((0, 4, 3, 3)), random((4, 2, 4, 4)), None, K4S2P1, want_stats=True)
    assert a.shape == (0, 2, 6, 6)
    assert mean is not None
    assert var is not None
    assert mean.isnan().all()
    assert var.isnan().all()


@pytest.mark.parametrize(("act", "slope"), [("silu", 0.0), ("gelu", 0.0), ("leaky_relu", -0.1)])
def test_an_output_that_does_not_tell_the_slope_is_refused(act: str, slope: float) -> None:
    x, weight, a = random((1, 2, 3, 3)), random((2, 2, 4, 4)), random((1, 2, 6, 6))
    with pytest.raises(FastganError, match="expected an activation whose output tells its slope"):
        columns.backward(a, x, weight, a, K4S2P1, ACTS[act], slope)
    with pytest.raises(FastganError, match=r"expected the output a .* got None"):
        columns.backward(a, x, weight, None, K4S2P1, ACTS["tanh"])
