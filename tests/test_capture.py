"""Captured steps leave the same weights as uncaptured ones: on tapes here, as CUDA graphs where there is a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import Pictures, game
from tape import TapeGraphs
from torch import Tensor

from fastgan.capture import AHEAD, SHAPES, WARMUP, CapturedStep, CudaGraphs
from fastgan.contract import Batch
from fastgan.gans import UnconditionalGAN
from fastgan.schedule import Schedule
from fastgan.step import TrainState

LAZY = {"loss": "relativistic", "r1": Schedule(1, 0.1), "r2": 0.3, "penalty_every": 3}
SYSTEMS = {
    "plain": {"loss": "non_saturating"},
    "lazy r1 and r2": LAZY,
    "wgan-gp": {"loss": "wasserstein", "wgan_gp": 10.0, "critic_steps": 2},
}

GAMES = [*((system, "adam") for system in SYSTEMS), ("plain", "sgd"), ("plain", "rmsprop")]


class Made:
    """Batch number n of made-up pictures: now and then one with an infinite pixel, or of another size."""

    def __init__(self, *, broken: tuple[int, ...] = (), larger: tuple[int, ...] = (), device: str = "cpu") -> None:
        self.number, self.broken, self.larger, self.device = 0, broken, larger, device

    def __call__(self) -> Batch:
        count = 12 if self.number in self.larger else 8
        pixels = torch.rand(count, 8, 8, 1, generator=torch.Generator().manual_seed(self.number)) * 2 - 1
        if self.number in self.broken:
            pixels[3, 2, 1] = math.inf
        index = torch.arange(count) + 100 * self.number
        self.number += 1
        return Batch(pixels.to(self.device).permute(0, 3, 1, 2), None, index.to(self.device))


def snapshot(state: TrainState) -> dict[str, Tensor]:
    return {f"{f}/{k}": t.detach().clone() for f, tensors in state.tensors().items() for k, t in tensors.items()}


def both(
    options: dict[str, Any],
    graphs: Any,
    steps: int,
    batches: Callable[[], Made],
    device: str = "cpu",
    say: Callable[[str], None] = pytest.fail,
    **optimizer: Any,
) -> tuple[CapturedStep, dict[str, Tensor], dict[str, Tensor]]:
    """A captured step after `steps` steps; its state, and that of the uncaptured one."""
    system = UnconditionalGAN(Pictures(), latent=3, **options)
    optimizer = {"lr": Schedule(1e-2, 1e-3), "total": 400} | optimizer
    (plain_state, plain), (state, step) = (game(system, device=device, **optimizer) for _ in range(2))
    captured = CapturedStep(step, graphs, say)
    mine, theirs = batches(), batches()
    for _ in range(steps):
        plain(theirs)
        captured(mine)
    assert captured.step.state.counters() == plain.state.counters()
    a, b = captured.read_statistics(), plain.read_statistics()
    assert a == pytest.approx(b, nan_ok=True)
    return captured, snapshot(state), snapshot(plain_state)


@pytest.mark.parametrize(("system", "kind"), GAMES)
def test_the_same_weights_from_a_tape(system: str, kind: str) -> None:
    """20 steps with lazy penalties, a batch of another size, and one that is skipped."""
    graphs = TapeGraphs()
    made = lambda: Made(broken=(13,), larger=(15,) if SYSTEMS[system].get("critic_steps", 1) == 1 else (30, 31))  # noqa: E731
    captured, mine, theirs = both(SYSTEMS[system], graphs, 20, made, kind=kind, clip_norm=1.0)
    for key, value in theirs.items():
        assert torch.equal(mine[key], value), key
    assert int(mine["counters/skipped"].max()) > 0
    phases = 2 if "penalty_every" in SYSTEMS[system] else 1
    assert graphs.calls.count("capture") == captured.captured == phases
    assert graphs.calls.count("replay") == 20 - WARMUP * phases - 1


def test_a_tape_does_not_know_what_python_computes() -> None:
    """The tape can fail: a number that Python computes stays what it was."""
    system = UnconditionalGAN(Pictures(), latent=3)
    (_, plain), (_, step) = (game(system, lr=1e-3) for _ in range(2))
    for each in (plain, step):  # a host number that grows from step to step
        run = each.run

        def counting(batches: list[Batch], run: Any = run, each: Any = each) -> None:
            run([Batch(b.images * (1 + 0.1 * each.state.step), b.labels, b.index) for b in batches])

        each.run = counting  # type: ignore[method-assign]
    captured, mine, theirs = CapturedStep(step, TapeGraphs()), Made(), Made()
    for _ in range(WARMUP + 2):
        plain(theirs)
        captured(mine)
    a, b = snapshot(step.state), snapshot(plain.state)
    assert not all(torch.equal(a[key], b[key]) for key in b)


def test_what_is_done_when() -> None:
    graphs = TapeGraphs()
    both(SYSTEMS["plain"], graphs, WARMUP + 2, Made)
    around = [["arrive", "fill", *middle, "throttle"] for middle in [["warm_up"]] * WARMUP]
    around += [["arrive", "fill", "capture", "replay", "throttle"], ["arrive", "fill", "replay", "throttle"]]
    assert graphs.calls == [call for step in around for call in step]


def test_another_shape_is_captured_again_and_the_first_one_kept() -> None:
    graphs = TapeGraphs()
    larger = tuple(range(5, 5 + WARMUP + 2))
    captured, mine, theirs = both(SYSTEMS["plain"], graphs, 12, lambda: Made(larger=larger))
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert graphs.calls.count("capture") == captured.captured == 2
    captured.forget()
    assert captured.captured == 0


def test_graphs_of_old_shapes_go() -> None:
    system = UnconditionalGAN(Pictures(), latent=3)
    _, step = game(system, lr=1e-3)
    captured = CapturedStep(step, TapeGraphs())
    for count in range(2, 2 + SHAPES + 3):
        for _ in range(WARMUP + 1):
            captured(lambda count=count: Batch(torch.zeros(count, 1, 8, 8), None, torch.arange(count)))
        assert captured.captured <= SHAPES


def test_memory_layout_and_labels_are_part_of_the_shape() -> None:
    _, step = game(UnconditionalGAN(Pictures(), latent=3), lr=1e-3)
    graphs = TapeGraphs()
    captured = CapturedStep(step, graphs)
    images, index = torch.rand(8, 1, 8, 8), torch.arange(8)
    for batch in (
        Batch(images, None, index),
        Batch(images, torch.zeros(8, dtype=torch.int64), index),
        Batch(images.mT.contiguous().mT, None, index),
    ):
        for _ in range(WARMUP + 1):
            captured(lambda batch=batch: batch)
    assert graphs.calls.count("capture") == 3


def test_where_capturing_fails_training_goes_on_and_one_line_says_why() -> None:
    said: list[str] = []
    graphs = TapeGraphs(RuntimeError("operation not permitted when stream is capturing\nmore"))
    captured, mine, theirs = both(LAZY, graphs, 10, lambda: Made(broken=(4,)), say=said.append)
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert len(said) == 1
    assert "not permitted when stream is capturing" in said[0]
    assert "\n" not in said[0]
    assert captured.reason
    assert captured.captured == 0
    assert graphs.calls.count("capture") == 1


def test_a_batch_that_cannot_be_read_changes_nothing() -> None:
    _, step = game(UnconditionalGAN(Pictures(), latent=3, critic_steps=2), lr=1e-3)
    captured, made = CapturedStep(step, TapeGraphs()), Made()
    for _ in range(WARMUP + 2):
        captured(made)
    before, counters = snapshot(step.state), step.state.counters()

    def second_fails() -> Batch:
        if made.number % 2:
            raise OSError("gone")
        return made()

    with pytest.raises(OSError, match="gone"):
        captured(second_fails)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(step.state).items())
    assert step.state.counters() == counters
    captured(made)


@pytest.mark.gpu
@pytest.mark.parametrize(("system", "kind"), GAMES)
def test_the_same_weights_from_cuda_graphs(system: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on tapes. The library's sums are to be added up in one order: Adam makes much of the last bit of a zero."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    graphs = CudaGraphs(torch.device("cuda"))
    pair = SYSTEMS[system].get("critic_steps", 1) == 2
    made = lambda: Made(broken=(13,), larger=(30, 31) if pair else (15,), device="cuda")  # noqa: E731
    captured, mine, theirs = both(SYSTEMS[system], graphs, 20, made, device="cuda", kind=kind, clip_norm=1.0)
    for key, value in theirs.items():
        assert torch.allclose(mine[key], value, rtol=1e-6, atol=1e-6), key
    assert not captured.reason
    assert captured.captured == (2 if "penalty_every" in SYSTEMS[system] else 1)


@pytest.mark.gpu
def test_no_synchronisation_and_constant_memory_in_replayed_steps() -> None:
    device = torch.device("cuda")
    _, step = game(UnconditionalGAN(Pictures(), latent=3, **LAZY), device="cuda", lr=1e-3)
    captured, made = CapturedStep(step, CudaGraphs(device), pytest.fail), Made(device="cuda")
    prepared = [made() for _ in range(60)]
    for _ in range(15):
        captured(lambda: prepared.pop())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(min(20, 2 * AHEAD)):
            captured(lambda: prepared[-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


class ReadsTheDevice(torch.nn.Module):
    """Where it is told to, it asks the device for a number, which a graph cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0 * x.sum().item()) if self.reads else x * 1.5


@pytest.mark.gpu
def test_a_capture_that_fails_says_why_and_leaves_the_device_as_it_was() -> None:
    network, x = ReadsTheDevice(), torch.ones(4, device="cuda")
    graphs = CudaGraphs(torch.device("cuda"))
    stream = torch.cuda.current_stream()
    graphs.warm_up(lambda: network(x))
    network.reads = True
    with pytest.raises(RuntimeError, match="captur") as error:
        graphs.capture(lambda: network(x))
    assert "previous error" not in str(error.value)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert torch.rand(3, device="cuda").isfinite().all()
    network.reads, made = False, []
    replay = CudaGraphs(torch.device("cuda")).capture(lambda: made.append(network(x)))
    x.fill_(2.0)
    replay()
    assert made[0].tolist() == [3.0] * 4
