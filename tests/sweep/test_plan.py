"""The straight-line code itself: it compiles as one graph, keeps bits instead of activations, and lets go of them."""

from __future__ import annotations

import copy

import pytest
import torch
from sweep.compare import F64, images
from sweep.critics import ZOO
from torch import Tensor, nn

from fastgan.contract import ImageShape
from fastgan.kernels._runtime import choose
from fastgan.losses import RELATIVISTIC
from fastgan.models import DCGAN
from fastgan.penalty import critic_backward
from fastgan.sweep.capture import Program, capture_of


class Keeping:
    """Does with a captured call what `critic_backward` asked for, and remembers the program and its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Program, list[Tensor]]] = []
        original = Program.__call__

        def call(program: Program, *args: Tensor) -> object:
            self.calls.append((program, list(args)))
            return original(program, *args)

        monkeypatch.setattr(Program, "__call__", call)

    def plan(self, kind: str):
        """The last plan of a kind, and the arguments of its call."""
        for program, args in reversed(self.calls):
            for key, plan in program.memory.items():
                if isinstance(key, tuple) and key[0] == kind:
                    return plan, args
        raise AssertionError(f"no plan {kind!r}")


@pytest.mark.parametrize(
    "name", ["dcgan", "r3gan", *(pytest.param(n, marks=pytest.mark.long) for n in ("sngan", "unet", "projection"))]
)
def test_both_halves_compile_as_one_graph_each(name: str, monkeypatch: pytest.MonkeyPatch):
    case, keeping = ZOO[name], Keeping(monkeypatch)
    critic = case.make()
    real, fake = case.samples()
    critic_backward(critic, real, fake, RELATIVISTIC.critic, r1=1.0, r2=1.0, method="sweep",
                    **case.options())  # fmt: skip
    plan, args = keeping.plan("both")
    copies = copy.deepcopy([a.detach() for a in args])

    def whole(args: list[Tensor], scale: Tensor, weight: Tensor) -> tuple[object, object]:
        _, squares, saved = plan.first(args)
        return squares, plan.second(saved, scale, weight)[1]

    count = len(plan.first(copy.deepcopy(copies))[1])
    scale, weight = torch.randn(count, dtype=F64), torch.rand(count, dtype=F64)
    wanted = whole(copy.deepcopy(copies), scale, weight)
    torch._dynamo.reset()
    given = torch.compile(whole, backend="aot_eager", fullgraph=True)(copy.deepcopy(copies), scale, weight)
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-14)


def activations_kept(plan, args: list[Tensor]) -> tuple[int, int]:
    """Bytes kept between the halves in masks, and in floating point beyond the arguments."""
    _, _, saved = plan.first(args)
    own = {a.untyped_storage().data_ptr() for a in args}
    kept = {t.untyped_storage().data_ptr(): t for t in saved if t.untyped_storage().data_ptr() not in own}
    masks = sum(t.nbytes for t in kept.values() if t.dtype == torch.uint8)
    return masks, sum(t.nbytes for t in kept.values() if t.is_floating_point())


def test_between_the_halves_are_masks_and_signals_and_no_activations(monkeypatch: pytest.MonkeyPatch):
    if not choose("masked_act", torch.device("cpu")).native:
        pytest.skip("without the native op activations are kept")
    keeping = Keeping(monkeypatch)
    last = torch.channels_last
    critic = DCGAN(critic_norm="none", critic_width=16).critic(ImageShape(3, 32)).to(memory_format=last)
    real, fake = (images(8, seed, (3, 32, 32)).float().to(memory_format=last) for seed in (1, 2))
    critic_backward(critic, real, fake, RELATIVISTIC.critic, r1=1.0, r2=1.0, method="sweep")
    plan, args = keeping.plan("both")
    masks, floats = activations_kept(plan, args)
    elements = 16 * sum(w * s * s for w, s in ((16, 16), (32, 8), (64, 4)))
    assert masks == elements // 8
    signals = 4 * elements + real.nbytes + fake.nbytes  # delta of every activation, and g
    assert signals <= floats < 1.05 * signals


def test_second_half_lets_go_of_what_was_kept(monkeypatch: pytest.MonkeyPatch):
    keeping = Keeping(monkeypatch)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1)).double()
    critic_backward(critic, images(4, 1), images(4, 2), RELATIVISTIC.critic, r1=1.0, r2=1.0, method="sweep")
    plan, args = keeping.plan("both")
    saved = plan.first(args)[2]
    assert saved
    plan.second(saved, torch.ones(8, dtype=F64), torch.ones(8, dtype=F64))
    assert saved == []


def test_source_is_readable(monkeypatch: pytest.MonkeyPatch):
    keeping = Keeping(monkeypatch)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    critic_backward(critic, images(4, 1), images(4, 2), RELATIVISTIC.critic, r1=1.0, method="sweep")
    plan, _ = keeping.plan("both")
    assert plan.source.startswith("def first(args):")
    assert "def second(saved, signal_0, signal_1):" in plan.source
    assert capture_of(critic).captures == 1
