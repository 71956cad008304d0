"""Cost does not grow: with the images in the set (a thousand to a million), nor with the steps that were done.

Sets and steps are timed in turn; their ratio must be 1 within 5%, or within the noise of the run. Memory: nothing is
kept from step to step (tests/test_growth.py counts it).
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import steps
from benchmarks.feeding import TAKEN, taking
from fastgan.data import ImageSet
from fastgan.data.feeder import Feeder

LATE = 10**5


def made_images(count: int, size: int = 64) -> ImageSet:
    """Images made from their number: all that differs between the sets is how many there are."""

    def fetch(indices, out):
        out[...] = (indices % 251).astype(np.uint8)[:, None, None, None]

    return ImageSet(f"{count:,} made images", size, 3, count, fetch, "")


def flat(case, name: str) -> None:
    ratio = case.ratio(name)
    assert ratio.low <= 1.05 and ratio.high >= 0.95, f"{name}: {ratio}"  # noqa: PT018


@pytest.mark.timeout(900)
def test_images(ratio):
    """A batch of 64 images of 64x64 from sets of a thousand to a million."""
    feeders = {f"{count:,} images": Feeder(made_images(count), seed=0, batch=64) for count in (1000, 30_000, 1_000_000)}
    candidates = {name: taking(feeder) for name, feeder in feeders.items()}
    case = ratio("growth", f"{TAKEN} batches of 64", candidates, "1,000,000 images")
    for feeder in feeders.values():
        feeder.close()
    for name in candidates:
        flat(case, name)


@pytest.mark.timeout(900)
def test_steps(ratio, device):
    """A lazy cycle of the digits preset, as the first ones, and as number 100,000."""
    config = steps.config_of("digits", None, device)
    candidates = {}
    for name, number in (("first steps", 0), (f"step {LATE:,}", LATE)):
        engine = steps.Engine.of(config, device)
        engine.state.step, engine.state.samples = number, number * config.batch
        engine.state.seen.fill_(number * config.batch)
        batch = steps.random_batch(
            config, 0, device, engine.state.players["critic"].params[0].dtype, steps.LAYOUTS["NCHW"]
        )

        def cycle(engine=engine, batch=batch):
            for _ in range(config.system.penalty_every):
                engine.step(lambda: batch)

        candidates[name] = cycle
    flat(ratio("growth", "digits, 4 steps", candidates, f"step {LATE:,}"), "first steps")
