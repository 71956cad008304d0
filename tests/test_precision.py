"""Mixed precision: bfloat16 inside, float32 weights, moments and averages, gradients near those of float32."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from host_reads import LayoutCopies, tensors
from small_presets import batch_of, narrow, step_of
from tape import TapeGraphs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import penalty
from fastgan.capture import WARMUP, CapturedStep, CudaGraphs
from fastgan.contract import Batch, Draw
from fastgan.errors import FastganError
from fastgan.kernels._runtime import plain_layers
from fastgan.options import Config
from fastgan.presets import PRESETS
from fastgan.step import autocast_of

# wgan-gp-64 differs from dcgan-64 by its penalty alone, of which r3gan-32 has two.
NAMES = ["digits", "dcgan-64", "sngan-32", "r3gan-32"]


class Convolutions(TorchDispatchMode):
    """Counts the types that convolutions work in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.types.update(t.dtype for t in tensors(args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", NAMES)
def test_convolutions_in_bfloat16_all_state_in_float32(preset: str) -> None:
    config = narrow(preset)
    state, step = step_of(config, autocast=torch.bfloat16)
    ready = [batch_of(config, n) for n in range(3 * step.batches)]
    before = {key: t.clone() for key, t in state.players["generator"].module.state_dict().items()}
    for _ in range(2):
        step(lambda: ready.pop())
    with Convolutions() as seen, LayoutCopies() as copies:
        step(lambda: ready.pop())
    assert seen.types[torch.bfloat16] > 0
    assert seen.types[torch.float32] == 0
    if config.channels_last:
        assert not copies.found
    for file in state.tensors().values():
        assert all(t.dtype in (torch.float32, torch.float64, torch.int64) and t.isfinite().all() for t in file.values())
    moved = [
        key for key, t in state.players["generator"].module.state_dict().items() if not torch.equal(t, before[key])
    ]
    assert moved
    assert step.read_statistics()["skipped"] == 0


def first_gradients(config: Config, *, bfloat16: bool) -> dict[str, Tensor]:
    """Gradients of the first turns, before Adam turns every small difference into a step of full length."""
    state, step = step_of(config)
    step._schedule()
    batch, made = batch_of(config, 0), {}
    for number in step.phase:
        turn = step.turns[number]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            turn.gradients(batch, Draw(0, batch.index, number))
        for name in turn.players:
            made[name] = torch.cat([p.grad.flatten() for p in state.players[name].params if p.grad is not None])
    return made


@pytest.mark.parametrize("preset", [*NAMES[:-1], pytest.param(NAMES[-1], marks=pytest.mark.long)])
def test_gradients_are_as_near_to_those_of_float32_as_plain_pytorch_comes(preset: str) -> None:
    """At most twice the error of autocast over PyTorch's own layers and double backward (DESIGN 9)."""
    config = narrow(preset, batch=8)
    exact, ours = (first_gradients(config, bfloat16=bfloat16) for bfloat16 in (False, True))
    with plain_layers(), mock.patch.object(penalty, "_by_sweep", side_effect=penalty.sweep.NoFaster):
        plain = first_gradients(config, bfloat16=True)
    for name in exact:
        error, allowed = ((g[name] - exact[name]).norm() / exact[name].norm() for g in (ours, plain))
        assert 1e-5 < error <= 2 * allowed, f"{name}: {error:.3f}, plain PyTorch {allowed:.3f}"


def test_captured_in_bfloat16() -> None:
    """Autocast keeps copies of weights within a turn; a replay must make them anew."""
    config = narrow("dcgan-64")
    (plain_state, plain), (state, step) = (step_of(config, autocast=torch.bfloat16) for _ in range(2))
    captured = CapturedStep(step, TapeGraphs(), pytest.fail)
    for number in range(6):
        plain(lambda number=number: batch_of(config, number))
        captured(lambda number=number: batch_of(config, number))
    assert captured.captured == 1
    for file, kept in state.tensors().items():
        for key, tensor in kept.items():
            assert torch.equal(tensor, plain_state.tensors()[file][key]), f"{file}/{key}"


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_captured_in_bfloat16_on_a_gpu(preset: str, recwarn: pytest.WarningsRecorder) -> None:
    """As the trainer runs them there: every phase from a graph, penalties by the sweep."""
    config = narrow(preset)
    _, step = step_of(config, device="cuda", autocast=torch.bfloat16)
    captured = CapturedStep(step, CudaGraphs(torch.device("cuda")), pytest.fail)

    def batch(number: int) -> Batch:
        made = batch_of(config, number)
        return Batch(made.images.cuda(), None, made.index.cuda())

    numbers = itertools.count()
    for _ in range((WARMUP + 2) * step.cycle):
        captured(lambda: batch(next(numbers)))
    assert captured.captured >= 1
    assert not captured.reason
    assert not int(step.read_statistics()["skipped"])
    assert not [str(w.message) for w in recwarn if "by autograd" in str(w.message)]


def test_which_precision_is_used_where() -> None:
    from dataclasses import replace

    config, cpu = PRESETS["dcgan-64"], torch.device("cpu")
    assert autocast_of(config.precision, cpu) is None
    assert autocast_of("float32", cpu) is None
    assert autocast_of("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(FastganError, match="precision 'bfloat' is unknown"):
        replace(config, precision="bfloat")
