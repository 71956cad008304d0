"""Augmentation: what each transformation does, that it can be differentiated twice, that p is steered and saved."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from host_reads import NoHostReads
from small_presets import batch_of, narrow, step_of
from torch import Tensor

from fastgan import augment
from fastgan.augment import Augment, Augmenter, adaptive, diffaugment, horizontal_flip
from fastgan.contract import Batch, Draw
from fastgan.errors import FastganError
from fastgan.gans import UnconditionalGAN
from fastgan.schedule import Schedule

F64 = torch.float64
ALL = Augment("adaptive", cutout=1.0)
KINDS = {"diffaugment": Augment("diffaugment"), "adaptive": replace(ALL, p=0.7, target=0.0)}


def pictures(n: int, channels: int = 3, size: int = 16, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, channels, size, size, generator=generator, dtype=F64).mul(2).sub(1).to(dtype)


def draws(n: int, first: int = 0) -> Draw:
    return Draw(3, torch.arange(first, first + n), 1)


def augmenter(options: Augment) -> Augmenter:
    p = torch.tensor(0.7, dtype=F64)
    return Augmenter(options, {"augment_p": p} | options.memory(torch.device("cpu")))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_a_transformation_of_its_own(kind: str, channels: int, layout: torch.memory_format) -> None:
    """Whatever batch it is in; the type stays, and every value is finite."""
    images = pictures(6, channels, dtype=torch.float32).contiguous(memory_format=layout)
    apply = augmenter(KINDS[kind])
    made = apply(images, draws(6))
    assert made.shape == images.shape
    assert made.isfinite().all()
    assert (made != images).flatten(1).any(1).all()
    torch.testing.assert_close(apply(images[2:4], draws(2, first=2)), made[2:4], rtol=1e-5, atol=1e-5)
    same = apply(images[:1].expand(6, -1, -1, -1), draws(6))
    assert len({tuple(image.flatten().tolist()) for image in same}) == 6
    assert apply(images.bfloat16(), draws(6)).dtype == torch.bfloat16


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_happens_with_probability_0_and_without_augmentation(channels: int) -> None:
    images = pictures(4, channels)
    assert torch.equal(adaptive(images, draws(4), torch.zeros(()), ALL), images)
    assert augmenter(Augment())(images, draws(4)) is images
    assert torch.equal(diffaugment(images, draws(4), ()), images)


@pytest.mark.parametrize("kind", KINDS)
def test_two_derivatives_and_a_constant(kind: str) -> None:
    images = pictures(3, size=8).requires_grad_()
    apply = augmenter(KINDS[kind])

    def squared(x: Tensor) -> Tensor:
        return apply(x, draws(3)).square()

    assert torch.autograd.gradcheck(squared, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(squared, images, fast_mode=True)
    zero, other = torch.zeros_like(images), pictures(4, size=8)[:3]
    a, b, c = (apply(x, draws(3)) for x in (images + 2 * other, images, zero))
    torch.testing.assert_close(a - b, 2 * (apply(other, draws(3)) - c))


# ---- each transformation


def test_horizontal_flip() -> None:
    images = pictures(3)
    made = horizontal_flip(images, torch.tensor([True, False, True]))
    assert torch.equal(made[0], images[0].flip(2))
    assert torch.equal(made[1], images[1])


def test_diffaugment_color_is_the_papers() -> None:
    images, u = pictures(5), draws(5).uniform(7).double()
    made = diffaugment(images, draws(5), ("color",))
    for x, out, (brightness, saturation, contrast) in zip(images, made, u[:, :3].tolist(), strict=True):
        x = x + brightness - 0.5
        x = (x - x.mean(0)) * 2 * saturation + x.mean(0)
        torch.testing.assert_close(out, (x - x.mean()) * (contrast + 0.5) + x.mean())


def test_diffaugment_shifts_by_whole_pixels_and_cuts_a_hole() -> None:
    images = pictures(200, 1) + 3  # nothing in them is 0
    made = diffaugment(images, draws(200), ("translation",))
    seen = set()
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for n in range(200):
        fits = {(i, j) for i in range(5) for j in range(5)
                if np.array_equal(padded[n, :, i : i + 16, j : j + 16], made[n].numpy())}  # fmt: skip
        assert len(fits) == 1
        seen |= fits
    assert len(seen) == 25
    made = diffaugment(images, draws(200), ("cutout",))
    holes = made == 0
    assert torch.equal(made[~holes], images[~holes])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes.sum((1, 2, 3)), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == 8
    assert rows.min() == columns.min() == 4  # its middle is never outside


def test_blitting_copies_pixels() -> None:
    """Flips, quarter turns and reflecting shifts of up to an eighth: each outcome is one that NumPy makes."""
    images = pictures(300, 2)
    options = Augment("adaptive", geometry=0.0, color=0.0)
    made = adaptive(images, draws(300), torch.ones(()), options).numpy()
    seen = set()
    for image, out in zip(images.numpy(), made, strict=True):
        fits = set()
        for flip, turns in itertools.product((0, 1), range(4)):
            turned = np.rot90(image[:, :, ::-1] if flip else image, turns, (1, 2))
            wide = np.pad(turned, ((0, 0), (2, 2), (2, 2)), "reflect")
            fits |= {((flip, turns), i, j) for i, j in itertools.product(range(5), range(5))
                     if np.array_equal(wide[:, i : i + 16, j : j + 16], out)}  # fmt: skip
        assert len(fits) == 1
        seen |= fits
    assert {how for how, _, _ in seen} == {(f, k) for f in (0, 1) for k in range(4)}
    assert {(i, j) for _, i, j in seen} == {(i, j) for i in range(5) for j in range(5)}


def wave(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(0.3 * x + 0.2 * y) + torch.cos(0.25 * y)


@pytest.mark.parametrize(
    ("angle", "scale", "stretch", "after", "shift"),
    [(0, 0, 0, 0, (0, 0)), (0.6, 0, 0, 0, (0, 0)), (0, 1, 0, 0, (0, 0)), (0, 0, -1, 0, (0, 0)),
     (0, 0, 0, 0, (0.4, -0.3)), (0.3, -0.5, 0.7, -0.9, (0.2, 0.1))],
)  # fmt: skip
def test_geometry_samples_where_it_should(
    angle: float, scale: float, stretch: float, after: float, shift: tuple[float, float]
) -> None:
    """A smooth picture, given as a function, at the places that the transformation moves each pixel from."""
    size = 32
    place = torch.arange(size, dtype=F64) - (size - 1) / 2
    x, y = place.expand(size, size), place[:, None].expand(size, size)
    u = [0.0, 0.0, angle / 2 / math.pi + 0.5, 0.0, 0.0, after / 2 / math.pi + 0.5, 0.0]
    z = [scale, stretch, *shift]
    made = augment._warp(wave(x, y)[None, None], torch.ones((), dtype=F64),
                         *(tuple(torch.tensor([v], dtype=F64) for v in values) for values in (u, z)))[0, 0]  # fmt: skip

    def turn(a: float) -> np.ndarray[Any, Any]:
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    s = 2.0 ** (0.2 * stretch)
    forward = turn(after) @ np.diag([s, 1 / s]) @ turn(angle) * 2.0 ** (0.2 * scale)
    centred = np.stack([x - 0.125 * size * shift[0], y - 0.125 * size * shift[1]]).reshape(2, -1)
    source = torch.from_numpy(np.linalg.inv(forward) @ centred).reshape(2, size, size)
    inside = (source.abs() < size / 2 - 6).all(0)
    assert inside.sum() > 80
    assert (made - wave(*source))[inside].abs().max() < 6e-3


def test_color_keeps_what_it_should() -> None:
    images = pictures(64)
    n, one = 64, torch.ones((), dtype=F64)
    never, zero = torch.ones(n, dtype=F64), torch.zeros(n, dtype=F64)  # a chance of 1 is not below p = 1

    def made(*happens: int, u: dict[int, float] | None = None, z: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Tensor:
        chances = [zero if i in happens else never for i in range(7)]
        for i, value in (u or {}).items():
            chances[i] = zero + value
        return augment._recolor(images, one, tuple(chances), tuple(zero + v for v in z))

    torch.testing.assert_close(made(0, z=(2.0, 0, 0)), images + 0.4)
    torch.testing.assert_close(made(1, z=(0, 2.0, 0)), images * 2)
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(made(2, 3), images - 2 * grey)
    torch.testing.assert_close(made(4, z=(0, 0, 1.0)), grey + 2 * (images - grey))
    third = made(5, u={6: 0.5 + 1 / 3})  # a third of a turn exchanges the channels
    assert torch.allclose(third, images.roll(1, 1)) or torch.allclose(third, images.roll(-1, 1))
    torch.testing.assert_close(made(5, u={6: 0.1}).mean(1), images.mean(1))


@pytest.mark.parametrize(
    ("options", "untouched"),
    [
        (Augment("adaptive", blit=0, color=0), 0.7**4),
        (Augment("adaptive", blit=0, geometry=0), 0.7**4 * 0.85),
        (Augment("adaptive", blit=0, geometry=0, color=0, cutout=1.0), 0.7),
        (Augment("adaptive", blit=0, geometry=0, color=0, cutout=0.5), 0.85),
    ],
    ids=["geometry", "color", "cutout", "half of p"],
)
def test_each_happens_with_its_probability(options: Augment, untouched: float) -> None:
    images = pictures(1, size=8).expand(4000, -1, -1, -1) + 3
    made = adaptive(images, draws(4000), torch.tensor(0.3), options)
    share = ((made - images).abs() < 1e-9).flatten(1).all(1).double().mean()
    assert abs(share - untouched) < 4 * math.sqrt(untouched * (1 - untouched) / 4000)


# ---- the controller


def test_p_goes_where_the_signs_of_the_reals_send_it() -> None:
    options = Augment("adaptive", p=0.1, target=0.6, kimg=1.0, interval=2)
    memory = options.memory(torch.device("cpu"))
    apply = Augmenter(options, memory)
    sure, unsure = torch.ones(5), torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])

    def p_after(*logits: Tensor) -> float:
        for each in logits:
            apply.observe(each)
        return float(apply.p)  # type: ignore[arg-type]

    assert p_after(sure) == 0.1  # every other turn
    assert p_after(sure) == pytest.approx(0.11)
    assert p_after(sure, unsure) == pytest.approx(0.12)  # 0.8
    assert p_after(unsure, unsure) == pytest.approx(0.12)  # exactly at the target
    assert p_after(-sure, sure) == pytest.approx(0.11)
    assert p_after(sure * torch.nan, sure * torch.nan) == pytest.approx(0.11)
    assert p_after(*[-sure] * 100) == 0
    assert p_after(*[sure] * 400) == 1


def test_p_is_saved_and_the_run_goes_on_as_if_nothing_had_been() -> None:
    options = Augment("adaptive", p=0.5, kimg=0.1, interval=2)
    config = narrow("dcgan-64", loss="non_saturating", augment=options, r1=1.0)
    state, step = step_of(config)
    batches = [batch_of(config, n) for n in range(6)]
    for batch in batches[:3]:
        step(lambda batch=batch: batch)
    saved = {file: {k: t.clone() for k, t in group.items()} for file, group in state.tensors().items()}
    counters = state.counters()
    for batch in batches[3:]:
        step(lambda batch=batch: batch)
    again, other = step_of(config)
    again.restore(saved, counters)
    for batch in batches[3:]:
        other(lambda batch=batch: batch)
    assert saved["memory"]["augment"][0] != 0.5
    assert state.memory["augment"][0] != saved["memory"]["augment"][0]
    for file, group in state.tensors().items():
        for key, tensor in group.items():
            assert torch.equal(tensor, again.tensors()[file][key]), (file, key)
    assert step.read_statistics()["critic.augment_p"] > 0


# ---- in the system


@pytest.mark.parametrize(
    ("kind", "penalty"),
    [
        pytest.param("diffaugment", "raw", marks=pytest.mark.long),
        ("adaptive", "augmented"),
        pytest.param("steered", "raw", marks=pytest.mark.long),
    ],
)
def test_a_step_reads_nothing_on_the_host(kind: str, penalty: str) -> None:
    options = replace(KINDS.get(kind, Augment("adaptive", p=0.5)), penalty=penalty)
    config = narrow("r3gan-32", loss="hinge", penalty_every=2, augment=options)
    _, step = step_of(config)
    ready = [batch_of(config, n) for n in range(6)]
    for number in range(6):
        with NoHostReads() if number > 1 else nullcontext():
            step(lambda: ready.pop())
    statistics = step.read_statistics()
    assert statistics["skipped"] == 0
    assert ("critic.augment_p" in statistics) == (kind != "diffaugment")
    if penalty == "raw":  # with no numbers, on a device that is not there
        _, step = step_of(config, device="meta")
        batch = batch_of(config, 0)
        batch = Batch(batch.images.to("meta"), None, batch.index.to("meta"))
        for _ in range(2):
            with NoHostReads():
                step(lambda: batch)


@pytest.mark.parametrize("penalty", augment.PENALTIES)
def test_the_penalty_is_on_the_image_that_the_option_names(penalty: str) -> None:
    options = replace(KINDS["adaptive"], penalty=penalty)
    config = narrow("r3gan-32", r1=2.0, r2=0.0, augment=options)
    state, step = step_of(config, F64)
    turn, batch = step.turns[0], batch_of(config, 0, F64)
    statistics = turn.gradients(batch, Draw(0, batch.index, stream=0))
    critic, draw = state.modules["critic"], Draw(0, batch.index, stream=0)
    latents = config.system.latents(draw).double()
    apply, raw = augmenter(options), batch.images.clone().requires_grad_()
    seen = apply(raw, draw)
    by = raw if penalty == "raw" else seen
    (gradient,) = torch.autograd.grad(critic(seen).sum(), by)
    assert latents.shape == (config.batch, 64)
    # The schedule of p is at 0.7 in `augmenter` and at its start in the step: the same number.
    torch.testing.assert_close(statistics["r1"], gradient.square().sum((1, 2, 3)).mean())


def test_the_option_of_the_r3gan_presets() -> None:
    config = narrow("r3gan-64")
    options = config.system.augment
    assert options.kind == "none"
    assert options.p == Schedule(0.0, 0.3, finish=0.2)
    _, step = step_of(narrow("r3gan-64", augment=replace(options, kind="adaptive")))
    step.progress.advance(torch.tensor(0.2, dtype=F64))
    assert step.scalars["augment_p"] == 0.3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: Augment("ada"), r"augment.kind 'ada' is unknown"),
        (lambda: Augment(policy=("colour",)), "augment.policy 'colour' is unknown"),
        (lambda: Augment(p=1.5), "augment.p must be from 0 to 1"),
        (lambda: Augment(p=Schedule(0.0, 0.3)), "set augment.target=0"),
        (lambda: Augment(penalty="both"), "augment.penalty 'both' is unknown"),
        (lambda: Augment(color=2.0), "augment.color must be from 0 to 1"),
        (lambda: Augment(interval=0), "augment.interval 1 or more"),
        (lambda: Augment(target=1.0), "augment.target must be between"),
        (lambda: UnconditionalGAN(loss="relativistic", augment=ALL), "has no meaning with the loss 'relativistic'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bad: Any, message: str) -> None:
    with pytest.raises(FastganError, match=message) as error:
        bad()
    assert "\n" not in str(error.value)
