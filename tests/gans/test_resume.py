"""Every system goes on from a checkpoint as if it had not stopped: weights, averages, buffers, optimisers, the log."""

from __future__ import annotations

import pytest
import torch
from small_presets import batch_of, smallest, step_of

from fastgan.gans import UnconditionalGAN
from fastgan.presets import PRESETS

# Larger ones of a family that is there: with FASTGAN_TESTS=all.
ALIKE = ("projection-32", "conditional-64", "cyclegan-128", "inpaint-64", "digits-bigan", "pix2pix-256")
NAMES = [
    pytest.param(name, marks=pytest.mark.long if name in ALIKE else ())
    for name, config in PRESETS.items()
    if not isinstance(config.system, UnconditionalGAN)
]


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(name: str) -> None:
    config = smallest(name, batch=4)

    def run(step, first: int, last: int) -> dict[str, float]:
        numbers = iter(range(first * step.batches, last * step.batches))
        for _ in range(last - first):
            step(lambda: batch_of(config, next(numbers)))
        return step.read_statistics()

    state, step = step_of(config)
    run(step, 0, 3)
    saved = {file: {key: t.clone() for key, t in part.items()} for file, part in state.tensors().items()}
    counters = state.counters()
    expected = run(step, 3, 6)

    other, again = step_of(config)
    other.restore(saved, counters)
    assert run(again, 3, 6) == expected
    for file, part in state.tensors().items():
        for key, tensor in part.items():
            assert torch.equal(other.tensors()[file][key], tensor), f"{file}: {key}"
    if name == "digits-began":
        assert saved["critic"]["balance"] > 0
