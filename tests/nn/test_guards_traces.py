"""Forwards, calls and values of which a trace would be wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn.compare import assert_close, error, fused_calls, twins
from nn.guarded import assert_same, inputs, make, up
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastgan.nn import fuse, fused

# ---- forwards of which a trace would be wrong


def counted(m: Any, y: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return y * m.calls


def listed(m: Any, y: Tensor) -> Tensor:
    m.seen.append(y.detach())
    return y


def without_gradient(m: Any, y: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.second[0].weight.square().mean()
    return y * scale


def in_half(m: Any, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        weight = m.first[0].weight[:, :, :1, :1].float().mean(0, keepdim=True)
        return F.conv2d(y.float(), weight.expand(4, 4, 1, 1)).double()


def by_type(m: Any, y: Tensor) -> Tensor:
    return y.tanh() if isinstance(y, Tensor) else y


def by_size(m: Any, y: Tensor) -> Tensor:
    return y.tanh() if y.shape[0] == 3 else y


def by_value(m: Any, y: Tensor) -> Tensor:
    return y.tanh() if y.sum() > 0 else y.sigmoid()


def printed(m: Any, y: Tensor) -> Tensor:
    print("here")
    return y


WRONG = [counted, listed, without_gradient, in_half, by_type, by_size, by_value, printed]


CHANCE: list[Callable[..., Any]] = [
    lambda m, y: y + torch.randn(4, 10, 8, dtype=y.dtype),
    lambda m, y: y + torch.randn_like(y),
    lambda m, y: y * random.random(),
    lambda m, y: y * random.uniform(0.5, 2),
    lambda m, y: F.dropout(y, 0.5, m.training),
]


@pytest.mark.parametrize("extra", WRONG)
def test_forwards_that_cannot_be_traced(extra: Callable[..., Any], native: None, capsys: pytest.CaptureFixture[str]):
    plain, other = make(extra)
    assert_same(plain, other)
    for attribute in ("calls", "seen"):
        assert len(str(getattr(plain, attribute, ""))) == len(str(getattr(other, attribute, "")))
    if extra is printed:
        assert capsys.readouterr().out.count("here") == 4
    if extra is not by_size and extra is not by_value:
        assert any("Two" in record.where for record in fused(other)), "the reason is to be said"


@pytest.mark.parametrize("extra", CHANCE)
def test_noise_is_new_at_each_call_and_the_same_for_a_seed(extra: Callable[..., Any], native: None):
    plain, other = make(extra)
    outputs = []
    for model in (plain, other, plain, other):
        torch.manual_seed(11)
        random.seed(11)
        outputs += [model(inputs()), model(inputs())]
    assert error(outputs[0], outputs[1]) > 1e-6
    for mine, theirs in zip(outputs[2:4], outputs[:2], strict=True):
        assert error(mine, theirs) < 1e-12


def test_checkpoints_stay(native: None):
    plain, other = make(lambda m, y: checkpoint(torch.tanh, y, use_reentrant=False))
    assert_same(plain, other)
    assert "uses a checkpoint" in " ".join(map(str, fused(other)))


# ---- calls


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = up(3, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, bias: Tensor | None = None, power: int = 1, *, gain: float = 1.0) -> Tensor:
        y = self.norm(self.up(x))
        if bias is not None:
            y = y + bias
        return y.relu() ** power * gain


def test_optional_arguments(native: None):
    torch.manual_seed(0)
    state = Optional().state_dict()

    def model() -> nn.Module:
        made = Optional()
        made.load_state_dict(state)
        return made.double()

    plain, other = twins(model)
    bias = torch.randn(1, 4, 1, 1, dtype=torch.float64)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}),
        ((bias,), {}),
        ((None, 2), {}),
        ((), {"bias": bias, "gain": 3.0}),
        ((), {"gain": 2.0}),
        ((bias, 2), {"gain": bias}),
    ]
    for args, kwargs in calls * 2:
        with fused_calls() as names:
            got = other(inputs(), *args, **kwargs)
        assert "conv_transpose_bn_act" in names
        assert error(got, plain(inputs(), *args, **kwargs)) < 1e-12


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Sequential(up(3, 2), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(2))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [up(x) for up, x in zip(self.ups, xs, strict=True)]


def test_lists_of_tensors(native: None):
    model = Listed().double()
    other = Listed().double()
    other.load_state_dict(model.state_dict())
    fuse(other)
    with fused_calls() as names:
        got = other([inputs(), inputs() + 1])
    assert names.count("conv_transpose_bn_act") == 2
    assert_close(got, model([inputs(), inputs() + 1]))


# ---- values that others see


class Shared(nn.Module):
    """kind: what becomes of the values around the block."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.act = kind, nn.ReLU(inplace=True)
        self.up, self.norm, self.conv = up(3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "input in place":
            return self.norm(self.up(self.act(x)))
        if self.kind == "in place and used":
            y = self.conv(x)
            return self.up(F.relu_(y)), y
        if self.kind == "view in place":
            y = self.conv(x)
            return self.up(torch.relu_(y.view(y.shape))), y
        if self.kind == "convolution used":
            y = self.up(x)
            return self.norm(y).relu(), y
        if self.kind == "norm used":
            y = self.norm(self.up(x))
            return y.relu(), y.mean()
        if self.kind == "changed meanwhile":
            y = self.conv(x)
            z = self.up(y.tanh())
            y.add_(1)
            return self.norm(z).relu(), y
        if self.kind == "changed later":
            y = self.conv(x)
            z = self.up(y.tanh())
            y.add_(1)
            return z, y
        if self.kind == "result changed":
            y = F.leaky_relu(self.up(x), 0.1)
            y += 1
            return y
        if self.kind == "called twice":
            return self.norm(self.up(self.norm(self.up(x)).relu())).relu()
        assert self.kind == "two branches"
        y, z = self.up(x), self.conv(x)
        z = self.act(z)
        return self.norm(y).relu(), z


@pytest.mark.parametrize(
    "kind",
    [
        "input in place",
        "in place and used",
        "view in place",
        "convolution used",
        "norm used",
        "changed meanwhile",
        "changed later",
        "result changed",
        "called twice",
        "two branches",
    ],
)
def test_values_that_are_used_elsewhere(kind: str, native: None):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return Shared(kind).double()

    results = []
    for one in twins(model):
        x = inputs().requires_grad_()
        given = x.clone()
        out = one(given)
        out = out if isinstance(out, tuple) else (out,)
        results.append([*out, given, *torch.autograd.grad(sum(o.square().sum() for o in out), x), *one.buffers()])
    assert_close(results[1], results[0])
