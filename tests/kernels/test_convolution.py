"""Convolutions whose gradients are products on a CPU: against float64, to second order, and in nn.Conv2d's place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.kernels import convolution as ours
from fastgan.kernels import winograd
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.conv_transpose_bn_act.columns import COLUMNS, Plan
from fastgan.nn import Conv2d

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason=f"no native part: {EXTENSION.cpu}")


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


@pytest.mark.parametrize("how", [None, COLUMNS], ids=["by rule", "all as products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ours.CASES, ids=str)
def test_numbers(case: Any, dtype: torch.dtype, how: Plan | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x_shape, weight_shape, *geometry = case
    if how is not None:
        monkeypatch.setattr(ours, "plan", lambda *_: how)
    leaves = [random(s, dtype, i).requires_grad_() for i, s in enumerate((x_shape, weight_shape, weight_shape[:1]))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y, wanted = ours.convolution(*leaves, *geometry), ours.reference(*exact, *map(list, geometry))
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = random(tuple(y.shape), dtype, 9)
    made = torch.autograd.grad(y, leaves, grad)
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    for mine, theirs in zip((y, *made), (wanted, *torch.autograd.grad(wanted, exact, grad.double())), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).norm() < bound * theirs.norm()


def test_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directions for which a product is faster: the image's gradient, a kernel as large as the map, and weights on
    small maps, but for what minimal filtering does."""

    def planned(number: int) -> Plan:
        x, weight, *geometry = ours.CASES[number]
        return ours.plan(x, weight, *geometry, torch.float32)

    assert planned(0) == Plan(forward=False, input=True, weight=False)
    here = EXTENSION.module.winograd_here()
    assert planned(1) == Plan(forward=False, input=False, weight=not here)
    x, weight, *geometry = ours.CASES[1]
    assert ours.is_faster(x, weight, *geometry, torch.float32, with_gradients=True)
    assert not ours.is_faster(x, weight, *geometry, torch.float32, with_gradients=False)
    assert ours.is_faster((64, *x[1:]), weight, *geometry, torch.float32, with_gradients=False) == here
    assert planned(2) == COLUMNS
    monkeypatch.setattr(winograd, "filtering", lambda *_: None)
    assert planned(1) == Plan(forward=False, input=False, weight=True)
    assert ours.plan((4, 3, 8, 8), (8, 3, 4, 4), (2, 2), (1, 1), (1, 1), torch.bfloat16) == Plan(False, False, False)


@pytest.mark.parametrize("size", [4, 6])
def test_second_order(size: int) -> None:
    leaves = [random((2, 3, size, size), torch.float64), random((4, 3, 4, 4), torch.float64, 1)]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, random((4,), torch.float64, 2))]

    def run(*inputs: Tensor) -> Tensor:
        pads = 0 if size == 4 else 1
        return ours.convolution(*inputs, (2, 2), (pads, pads), (1, 1))

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
    geometry = [[2, 2], [1, 1], [1, 1]]
    torch.library.opcheck(torch.ops.fastgan.convolution.default, (*(v.detach() for v in leaves), *geometry))


def test_the_module_is_a_convolution_of_pytorch() -> None:
    """The same outputs and gradients for whatever is given to it, and the same state."""
    torch.manual_seed(0)
    for options in ({}, {"padding_mode": "reflect"}, {"groups": 3}, {"padding": "same", "stride": 1}):
        plain = nn.Conv2d(3, 6, 4, **{"stride": 2, "padding": 1} | options)
        mine = Conv2d(3, 6, 4, **{"stride": 2, "padding": 1} | options)
        mine.load_state_dict(copy.deepcopy(plain.state_dict()))
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 3, 16, 16).contiguous(memory_format=layout).requires_grad_()
            found = [torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()]) for m in (mine, plain)]
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other)
    spectral = [torch.nn.utils.parametrizations.spectral_norm(m) for m in (Conv2d(3, 4, 4), nn.Conv2d(3, 4, 4))]
    spectral[0].load_state_dict(spectral[1].state_dict())
    for layer in spectral:
        layer(random((2, 3, 4, 4), torch.float32)).sum().backward()
    for one, other in zip(*(m.state_dict().values() for m in spectral), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="channels"):
        mine(torch.zeros(1, 4, 8, 8))


def test_the_module_goes_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("fastgan.nn.convolution.convolution", lambda *given: called.append(given) or given[0])
    x = random((2, 3, 16, 16), torch.float32)
    layer = Conv2d(3, 6, 4, 2, 1)
    layer(x)
    assert len(called) == 1
    with torch.no_grad():
        layer(x)
    layer(x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert len(called) == 1, "nothing to gain, or not for us"


@pytest.mark.parametrize("case", [0, 2, 4], ids=["library", "as products", "minimal filtering"])
def test_the_output_can_be_changed_in_place(case: int) -> None:
    cases = [*ours.CASES, ((16, 32, 16, 16), (64, 32, 4, 4), (2, 2), (1, 1), (1, 1))]
    x_shape, weight_shape, stride, padding, _ = cases[case]
    layer = Conv2d(weight_shape[1], weight_shape[0], weight_shape[2:], stride, padding)
    x = random(x_shape, torch.float32).requires_grad_()
    y = nn.functional.leaky_relu(layer(x), 0.2, inplace=True)
    wanted = nn.functional.leaky_relu(nn.functional.conv2d(x, layer.weight, layer.bias, stride, padding), 0.2)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(y)
    made, other = (torch.autograd.grad(each, (x, layer.weight), grad) for each in (y, wanted))
    for a, b in zip(made, other, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()
