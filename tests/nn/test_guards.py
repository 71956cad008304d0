"""A fused model does what the original does also after it has been changed, and where a trace would be wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nn import generators
from nn.compare import assert_close, error, fused_calls, gradients, twins
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastgan.nn import fuse, fused

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
SLOPE = 0.3


def up(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)


class Two(nn.Module):
    """Two blocks; `extra` runs between them and may be anything."""

    def __init__(self, extra: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(up(3, 4), nn.BatchNorm2d(4), nn.SiLU())
        self.second = nn.Sequential(up(4, 2), nn.BatchNorm2d(2), nn.LeakyReLU(0.2))
        self.slope, self.skip, self.config = 0.1, False, SimpleNamespace(gain=2.0)
        self.seen: list[Any] = []
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.extra is not None:
            y = self.extra(self, y)
        return self.second(y)


def inputs() -> Tensor:
    return torch.randn(3, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def make(extra: Callable[..., Any] | None = None) -> tuple[nn.Module, nn.Module]:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return Two(extra).double()

    return twins(model)


def assert_same(plain: nn.Module, other: nn.Module, *, ours: bool = True) -> None:
    """Outputs, gradients and buffers; `ours`: at least one of our operations ran."""
    x = inputs()
    upstream = torch.randn_like(plain(x).detach())
    other(x)
    with fused_calls() as names:
        got = gradients(other, x.clone().requires_grad_(), upstream)
    assert bool(names) == ours
    assert_close(got, gradients(plain, x.clone().requires_grad_(), upstream))
    assert_close(other.buffers(), plain.buffers())


def change_slope(model: Any) -> None:
    model.slope = 0.7


def change_config(model: Any) -> None:
    model.config.gain = 3.0


def change_flag(model: Any) -> None:
    model.skip = True


def change_list(model: Any) -> None:
    model.seen.append(1)


EXTRAS: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "number": (lambda m, y: F.leaky_relu(y, m.slope), change_slope),
    "flag": (lambda m, y: y if m.skip else y.tanh(), change_flag),
    "config": (lambda m, y: y * m.config.gain, change_config),
    "list": (lambda m, y: y * (1 + len(m.seen)), change_list),
    "mode": (lambda m, y: y.tanh() if m.training else y.sigmoid(), lambda m: m.eval()),
    "new attribute": (lambda m, y: y * getattr(m, "gain", 1.0), lambda m: setattr(m, "gain", 2.0)),
    "negative_slope": (lambda m, y: y, lambda m: setattr(m.second[2], "negative_slope", 0.5)),
    "momentum": (lambda m, y: y, lambda m: setattr(m.first[1], "momentum", 0.7)),
    "swapped activation": (lambda m, y: y, lambda m: m.first.__setitem__(2, nn.Tanh())),
    "unknown activation": (lambda m, y: y, lambda m: m.first.__setitem__(2, nn.Softplus())),
    "swapped norm": (lambda m, y: y, lambda m: m.first.__setitem__(1, nn.InstanceNorm2d(4))),
    "swapped convolution": (lambda m, y: y, lambda m: m.first.__setitem__(0, _seeded(lambda: nn.Conv2d(3, 4, 1)))),
    "layer more": (lambda m, y: y, lambda m: m.first.append(nn.Sigmoid())),
    "layer less": (lambda m, y: y, lambda m: m.first.__delitem__(2)),
    "frozen norm": (lambda m, y: y, lambda m: m.second[1].eval()),
    "frozen weights": (lambda m, y: y, lambda m: m.first.requires_grad_(False)),
    "forward replaced": (lambda m, y: y, lambda m: setattr(m.first, "forward", lambda x: m.first[0](x) * 2)),
    "activation's forward replaced": (lambda m, y: y, lambda m: setattr(m.first[2], "forward", lambda x: x * 2)),
    "norm's forward replaced": (lambda m, y: y, lambda m: setattr(m.first[1], "forward", lambda x: x * 2)),
    "weight_norm": (lambda m, y: y, lambda m: _quiet(nn.utils.weight_norm, m.first[0])),
    "new weight_norm": (lambda m, y: y, lambda m: nn.utils.parametrizations.weight_norm(m.first[0])),
    "spectral_norm": (lambda m, y: y, lambda m: _seeded(lambda: nn.utils.spectral_norm(m.first[0]))),
    "new spectral_norm": (lambda m, y: y, lambda m: _seeded(lambda: _new_spectral_norm(m.first[0]))),
}


def _quiet(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


def _seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(5)
    return function().double()


def _new_spectral_norm(module: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(module)


@pytest.mark.parametrize("what", EXTRAS)
def test_changes_after_fusing(what: str, native: None):
    extra, change = EXTRAS[what]
    plain, other = make(extra)
    assert_same(plain, other)
    change(plain)
    change(other)
    assert_same(plain, other)
    plain.eval()
    other.eval()
    assert_same(plain, other)


COMPILED = ["number", "flag", "mode", "new attribute", "swapped activation", "swapped norm", "new spectral_norm"]


@pytest.mark.parametrize("what", COMPILED)
def test_changes_after_compiling(what: str, native: None):
    extra, change = EXTRAS[what]
    plain, other = make(extra)
    compiled = torch.compile(other, backend="eager")
    for step in (lambda m: None, change, lambda m: m.eval()):
        step(plain)
        step(other)
        other(inputs())
        plain(inputs())
        assert error(compiled(inputs()), plain(inputs())) < 1e-12, what
    torch.compiler.reset()


def test_a_constant_of_the_module_changes(monkeypatch: pytest.MonkeyPatch, native: None):
    plain, other = make(lambda m, y: F.leaky_relu(y, SLOPE))
    assert_same(plain, other)
    monkeypatch.setattr("nn.test_guards.SLOPE", 0.6)
    monkeypatch.setitem(globals(), "SLOPE", 0.6)
    assert_same(plain, other)
    assert generators.SLOPE == 0.1


# ---- hooks

PLACES = ["", "first", "first.0", "first.1", "first.2", "second.1"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_hooks_see_and_change_what_they_would(place: str, when: str, native: None):
    seen: dict[str, list[Any]] = {"plain": [], "other": []}
    plain, other = make()
    if when == "before":
        other = Two().double()
        other.load_state_dict(plain.state_dict())
    else:
        assert_same(plain, other)
    handles = []
    for name, model in (("plain", plain), ("other", other)):
        module, log = model.get_submodule(place), seen[name]
        handles += [
            module.register_forward_hook(lambda m, a, out, log=log: (log.append(out.detach().clone()), out * 2)[1]),
            module.register_forward_pre_hook(lambda m, a, log=log: log.append(a[0].detach().clone())),
            module.register_full_backward_hook(lambda m, i, o, log=log: log.append(o[0].detach().clone())),
        ]
    if when == "before":
        fuse(other)
    assert_same(plain, other)
    assert len(seen["plain"]) == len(seen["other"]) == 5
    assert_close(seen["other"], seen["plain"])
    for handle in handles:
        handle.remove()
    assert_same(plain, other)
    assert len(seen["other"]) == 5


def test_global_hooks(native: None):
    plain, other = make()
    assert_same(plain, other)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, out: seen.append(type(m).__name__))
    try:
        plain(inputs())
        expected, seen[:] = list(seen), []
        other(inputs())
    finally:
        handle.remove()
    assert seen == expected


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
