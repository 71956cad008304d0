"""A critic's step with gradient penalties: the shared sweep against double backward, eager and compiled.

Real and fake images of 64x64, fp32, channels-last, where every candidate is fastest. "no penalty" is the step of the
loss alone: what the penalties cost.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from benchmarks import critics, memory

COUNTS = {"cpu": 16, "cuda": 64}
CRITICS = ("R3GAN-64", "DCGAN-64")
# Goals: (at least this much faster than eager double backward, at most this many times the step without penalty)
GOALS = {"R1 + R2": (2.1, 1.4), "R1": (1.5, 1.25), "WGAN-GP": (1.35, None)}


def check(name: str, device: str, penalties: dict[str, float]) -> None:
    """All candidates but the one without penalty leave the same gradients in float64."""
    critic = critics.critic_of(name).to(device, torch.float64)
    real, fake = (x.double() for x in critics.batches(3, device, torch.contiguous_format))
    gradients = []
    for make in (critics.sweep, critics.double_backward):
        twin = copy.deepcopy(critic)
        make(twin, real, fake, penalties)()
        gradients.append([p.grad for p in twin.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-6)
        assert error < 1e-10, f"gradients differ by {error:.1e}"


def compiled(critic: nn.Module, real: torch.Tensor, fake: torch.Tensor, penalties: dict[str, float]) -> object:
    """The compiled step after two steps, or why it does not work here."""
    try:
        step = critics.compiled_double_backward(critic, real, fake, penalties)
        step()
        step()
    except Exception as error:  # whatever the compiler raises: the reason is part of the result
        return f"does not work here: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return step


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "penalty"), itertools.product(CRITICS, critics.PENALTIES))
def test_sweep(name, penalty, ratio, device):
    penalties, count = critics.PENALTIES[penalty], COUNTS[device]
    check(name, device, penalties)
    critic = critics.critic_of(name).to(device, memory_format=torch.channels_last)
    real, fake = critics.batches(count, device, torch.channels_last)
    candidates = {
        candidate: critics.CANDIDATES[candidate](critic, real, fake, penalties)
        for candidate in ("sweep", "double backward", "no penalty")
    }
    notes = {}
    step = compiled(critic, real, fake, penalties)
    if isinstance(step, str):
        notes["double backward, compiled"] = step
    else:
        candidates["double backward, compiled"] = step
    peaks = {}
    if penalty == "R1 + R2":
        names = ("sweep", "double backward", "no penalty")
        peaks = {n: memory.in_new_process("benchmarks.critics", [name, penalty, n, str(count)], device) for n in names}
    what = f"{name}, {penalty}, {count} + {count} images"
    case = ratio("sweep", what, candidates, "sweep", memory=peaks, notes=notes)

    faster, most = GOALS[penalty]
    assert case.ratio("double backward").high >= faster, f"not {faster}x as fast as double backward"
    if most:
        assert case.ratio("no penalty").high >= 1 / most, f"more than {most}x of a step without penalty"
    if peaks:
        assert peaks["sweep"] < peaks["double backward"], peaks
        assert peaks["sweep"] <= 1.2 * peaks["no penalty"], peaks
