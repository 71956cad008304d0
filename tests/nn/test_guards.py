"""A fused model does what the original does also after it has been changed, and runs its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn import generators
from nn.compare import assert_close, error
from nn.guarded import Two, assert_same, inputs, make
from torch import nn
from torch.nn import functional as F

from fastgan.nn import fuse

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


SLOPE = 0.3


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
