"""Every preset's step could be captured: no host reads, no shapes from values, no copies between devices, no growth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from host_reads import LayoutCopies, Memory, NoHostReads
from small_presets import batch_of, narrow, step_of

from fastgan import penalty
from fastgan.contract import Batch
from fastgan.gans import StyleBasedGAN
from fastgan.options import Config
from fastgan.presets import PRESETS
from fastgan.step import Step

# The others of the families play the same turns as r3gan-64, stylegan2-digits, pix2pix-64, srgan-x4, cyclegan-128 and
# inpaint-64 (of which the last four keep a layout, too), digits-ali and digits-conditional.
ALIKE = ("r3gan-32", "r3gan-256", "stylegan2-64", "stylegan2-256", "pix2pix-256", "srgan-x2")
ALIKE += ("pix2pix-digits", "srgan-digits", "cyclegan-digits", "inpaint-digits", "digits-bigan", "projection-32")
NAMES = [name for name in PRESETS if name not in ALIKE]
# On a device that is not there the same operations as another preset.
COVERED = ("wgan-gp-64", "sngan-32", "conditional-64", "digits-auxiliary", "inpaint-64")
NOTHING_IS_DRAWN = ("srgan-x4",)


def warm(preset: str) -> tuple[Config, Step, Callable[[], Batch]]:
    """The step of a preset after a whole lazy cycle, and what gives it batches from memory."""
    config = narrow(preset)
    _, step = step_of(config)
    ready = [batch_of(config, n) for n in range(4 * step.cycle * step.batches)]
    for _ in range(step.cycle):
        step(lambda: ready.pop())
    return config, step, lambda: ready.pop()


@pytest.mark.parametrize("preset", NAMES)
def test_a_step_reads_nothing_takes_the_same_memory_and_keeps_its_layout(preset: str) -> None:
    config, step, next_batch = warm(preset)
    cycles = []
    with LayoutCopies() as copies:
        for _ in range(2):
            with Memory() as memory:
                for _ in range(step.cycle):
                    step(next_batch)
            cycles.append((memory.bytes, memory.made))
    with NoHostReads():
        for _ in range(step.cycle):
            step(next_batch)
    assert cycles[0] == cycles[1]
    if config.channels_last:
        assert not [copy for copy in copies.found if not excepted(copy, config, step)]


def excepted(copy: str, config: Config, step: Step) -> bool:
    """Where autograd differentiates a convolution twice, as StyleGAN2's lazy turns do, the gradient of its weight comes
    out transposed. It is copied into the weight's layout; of images and feature maps nothing is."""
    weights = [p for player in step.state.players.values() for p in player.params]
    return isinstance(config.system, StyleBasedGAN) and any(f" {list(p.shape)} from neither" in copy for p in weights)


@pytest.mark.parametrize("preset", [name for name in NAMES if name not in COVERED])
def test_a_step_on_a_device_that_is_not_there(preset: str) -> None:
    """On tensors without data a step that makes something on the CPU, or moves it, is found without a GPU.

    Penalties by autograd: the sweep compares numbers when it meets a critic, and here there are none.
    """
    config = narrow(preset)
    with mock.patch.object(penalty, "_by_sweep", side_effect=penalty.sweep.NoFaster), Memory() as memory:
        _, step = step_of(config, device="meta")
        batch = batch_of(config, 0)
        labels, source = (None if t is None else t.to("meta") for t in (batch.labels, batch.source))
        batch = Batch(batch.images.to("meta"), labels, batch.index.to("meta"), source)
        for number in range(2 * step.cycle):
            with NoHostReads() if number >= step.cycle else nullcontext():
                step(lambda: batch)
    drawn = 0 if preset in NOTHING_IS_DRAWN else 2 * step.cycle
    assert memory.made["fastgan.counter_noise.default"] >= drawn
    assert step.state.step == 2 * step.cycle


def test_what_is_forbidden_is_found() -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    reads: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: bool(mask.any()),
        lambda: x[mask],
        lambda: x.masked_select(mask),
        lambda: mask.nonzero(),
        lambda: x.unique(),
        lambda: torch.equal(x, x),
        lambda: x.clone().index_put_((mask,), torch.zeros(())),
    ]
    for read in reads:
        with pytest.raises(AssertionError, match="reads on the host"), NoHostReads():
            read()
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    for copy in (lambda: here.to("meta"), lambda: there.copy_(here), lambda: there + torch.zeros(())):
        with pytest.raises(AssertionError, match="a copy in each step"), NoHostReads():
            copy()
    images = torch.zeros(2, 3, 4, 4)
    with LayoutCopies() as copies:
        images.contiguous(memory_format=torch.channels_last)
    assert len(copies.found) == 1
