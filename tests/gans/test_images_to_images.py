"""The systems that turn images into images learn to, on 8x8 and 16x16 digits that they were not trained on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fastgan.augment import Augment
from fastgan.contract import Batch, Draw, ImageShape
from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError
from fastgan.features import VGG16Maps, vgg16
from fastgan.gans import CycleGAN, Inpainting, SuperResolution, Translation
from fastgan.gans.masks import centres, crops, draw_masks, neighbours, smooth_fill
from fastgan.gans.sources import edges, gray, smoothed
from fastgan.losses import LEAST_SQUARES
from fastgan.metrics import psnr
from fastgan.models import PatchCritic, ResNetTranslator, SRCritic, SRResNet, UNet
from fastgan.models.srresnet import enlarged
from fastgan.optim import Averaging, Optimizer
from fastgan.penalty import critic_backward
from fastgan.pictures import evaluating, picture_draw
from fastgan.schedule import Schedule
from fastgan.step import Step, new_state

BATCH, HELD_OUT = 32, 200


def digits(size: int) -> Tensor:
    """[1797, 1, size, size]"""
    images = open_images(DataOptions(path="digits", size=size, channels=1))
    return torch.from_numpy(images.read(np.arange(len(images)))).permute(0, 3, 1, 2).float() / 127.5 - 1


def trained(system: object, images: Tensor, steps: int, lr: float = 4e-3) -> dict[str, nn.Module]:
    """The averaged players after `steps` steps on all images but the last ones."""
    shape, averaging = ImageShape(1, images.shape[-1]), Averaging(halflife_kimg=1.0, rampup=0.1)
    optimizer = Optimizer(lr=Schedule(lr, 0.0, begin=0.4), beta1=0.5, beta2=0.99)
    optimizers = dict.fromkeys(system.players(shape), optimizer)  # type: ignore[attr-defined]
    state = new_state(system, shape, optimizers, averaging, seed=0, device=torch.device("cpu"))  # type: ignore[arg-type]
    step = Step(system, state, averaging, seed=0, batch=BATCH, total=steps * BATCH)  # type: ignore[arg-type]
    train = images[:-HELD_OUT]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for number in range(steps):
        index = torch.arange(number * BATCH, (number + 1) * BATCH)
        step(lambda: Batch(train[order[index % len(order)]], None, index))  # noqa: B023
    assert step.read_statistics()["skipped"] == 0
    return state.averages


def held_out(images: Tensor) -> tuple[Batch, Draw]:
    numbers = torch.arange(HELD_OUT)
    return Batch(images[-HELD_OUT:], None, numbers), picture_draw(range(HELD_OUT), torch.device("cpu"))


def decibel(made: Tensor, wanted: Tensor) -> float:
    return psnr(made.clamp(-1, 1), wanted, data_range=2.0).value


def test_pix2pix_takes_noise_away() -> None:
    images = digits(8)
    system = Translation(UNet(width=16, depth=2, dropout=0.0), PatchCritic(width=8, layers=1), source="noise")
    players = trained(system, images, 80)
    batch, draw = held_out(images)
    with evaluating(players):
        source, made, target = system.pictures(players, batch, draw)
    assert target is batch.images
    noisy, plain, ours = (decibel(x, target) for x in (source, smoothed(source), made))
    print(f"noisy {noisy:.2f} dB, smoothed {plain:.2f} dB, pix2pix {ours:.2f} dB")
    assert ours > max(noisy, plain) + 2


@pytest.mark.parametrize(
    "features", [0.0, pytest.param(0.1, marks=pytest.mark.long)], ids=["pixels", "pixels and features"]
)
def test_super_resolution_beats_bicubic(features: float) -> None:
    images = digits(16)
    generator = SRResNet(width=16, blocks=1, kernel=3, norm="none")
    system = SuperResolution(generator, SRCritic(width=4, halvings=2, hidden=8), adversarial=0.0, features=features)
    players = trained(system, images, 60)
    batch, draw = held_out(images)
    with evaluating(players):
        bicubic, made, target = system.pictures(players, batch, draw)
    plain, ours = decibel(bicubic, target), decibel(made, target)
    print(f"bicubic {plain:.2f} dB, ours {ours:.2f} dB")
    assert ours > plain + 0.5


def test_cycle_gan_finds_the_negative_and_the_way_back() -> None:
    images = digits(8)
    generator = ResNetTranslator(width=8, blocks=1, halvings=1, norm="batch")
    system = CycleGAN(generator, PatchCritic(width=8, layers=1, norm="none"), source="inverted", identity=0.0)
    players = trained(system, images, 120)
    batch, draw = held_out(images)
    with evaluating(players):
        x, there, again, y, here, back_again = system.pictures(players, batch, draw)
    error = (there - y).abs().mean()  # x is the negative of y, which training never saw side by side
    cycle = (again - x).abs().mean(), (back_again - y).abs().mean()
    print(f"translated {error:.3f}, cycle {cycle[0]:.3f} and {cycle[1]:.3f}, untranslated {(x - y).abs().mean():.3f}")
    assert error < 0.3
    assert max(cycle) < 0.25
    assert (here - x).abs().mean() < 0.3


@pytest.mark.parametrize("mask", ["box", pytest.param("free", marks=pytest.mark.long)])
def test_inpainting_fills_what_is_hidden_and_leaves_the_rest(mask: str) -> None:
    images = digits(16)
    system = Inpainting(
        UNet(width=12, depth=3, dropout=0.0), PatchCritic(width=8, layers=1, norm="none"), mask=mask, smallest=0.3
    )
    players = trained(system, images, 60)
    batch, draw = held_out(images)
    with evaluating(players):
        masks = system.masks(batch, draw)
        filled = system.inpaint(players, batch.images, masks, draw)
    hidden = masks > 0
    assert torch.equal(torch.where(hidden, 0.0, filled), torch.where(hidden, 0.0, batch.images))
    known = ~hidden.expand_as(images[:HELD_OUT])
    mean = torch.where(known, batch.images, 0.0).sum((1, 2, 3), keepdim=True) / known.sum((1, 2, 3), keepdim=True)
    errors = [((made - batch.images).square() * masks).sum() / masks.sum() for made in (mean, filled)]
    plain, ours = (float(10 * (4 / error).log10()) for error in errors)
    print(f"{mask}: within the hole: mean of the rest {plain:.2f} dB, filled {ours:.2f} dB")
    assert ours > plain + 2


# ---- parts


def test_a_patch_critic_goes_through_the_shared_sweep() -> None:
    """A map of logits of an image and its source, with R1: the gradients of differentiating twice."""
    torch.manual_seed(0)
    critic = PatchCritic(width=4, layers=1, norm="none").critic(ImageShape(1, 16), 1).double()
    real, fake, source = (torch.randn(3, 1, 16, 16, dtype=torch.float64) for _ in range(3))
    gradients = []
    for method in ("sweep", "autograd"):
        critic.zero_grad()
        result = critic_backward(critic, (real, source), (fake, source), LEAST_SQUARES.critic, r1=2.0, method=method)
        assert result.method == method
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-12 * gradients[1].norm()


def test_residual_translation_begins_at_the_source() -> None:
    system = Translation(UNet(width=4, depth=2, from_zero=True), PatchCritic(width=4, layers=1), residual=True)
    players = system.players(ImageShape(3, 16, source_channels=1))
    source = torch.rand(2, 1, 16, 16) * 2 - 1
    with evaluating(players):
        assert torch.equal(system.translate(players, source), source.expand(-1, 3, -1, -1))
        players["generator"].to_image.conv.bias.fill_(1.0)
        assert torch.equal(
            system.translate(players, source),
            (source + 2 * torch.tanh(torch.ones(()))).clamp(max=1).expand(-1, 3, -1, -1),
        )


@pytest.mark.parametrize(
    "system",
    [
        Translation(UNet(width=4, depth=2), PatchCritic(width=4, layers=1)),
        CycleGAN(ResNetTranslator(width=4, blocks=1), PatchCritic(width=4, layers=1, norm="none")),
        SuperResolution(SRResNet(width=4, blocks=1, kernel=3), SRCritic(width=4, hidden=8, halvings=2)),
        Inpainting(UNet(width=4, depth=2), PatchCritic(width=4, layers=1), local=False),
    ],
    ids=lambda system: type(system).__name__,
)
def test_critics_see_augmented_images(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cutout leaves a square of zeros in all that a critic gets: reals and fakes, images and sources or masks."""
    system = replace(system, augment=Augment("diffaugment", policy=("cutout",)))
    shape, numbers = ImageShape(3, 16, source_channels=3), torch.arange(4)
    players = system.players(shape)
    seen: list[tuple[Tensor, ...]] = []
    for name in players:
        if "critic" in name:
            parts = players[name].values() if isinstance(players[name], nn.ModuleDict) else [players[name]]
            for part in parts:
                part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    monkeypatch.setattr(
        sys.modules[type(system).__module__],
        "critic_backward",
        lambda critic, real, fake, loss, **_: (
            seen.extend(x if isinstance(x, tuple) else (x,) for x in (real, fake))
            or critic_backward(critic, real, fake, loss)
        ),
    )
    scalars = {name: torch.tensor(1.0, dtype=torch.float64) for name in system.schedules()}
    images, source = (torch.rand(4, 3, 16, 16) * 0.5 + 0.25 for _ in range(2))
    for number, turn in enumerate(system.turns(players, scalars)):
        turn.gradients(Batch(images, None, numbers, source), Draw(0, numbers, number))
    assert len(seen) >= 3
    for inputs in seen:
        hole = (torch.cat(inputs, 1) == 0).all(1).flatten(1).sum(1)
        assert (hole >= 16).all(), hole  # a square of 8x8, at the border a quarter of it


def test_features_of_a_trained_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With random weights in the place of the published ones: the distance is measured and reaches the generator."""
    system = SuperResolution(
        SRResNet(width=4, blocks=1, norm="none"),
        SRCritic(width=4, halvings=1, hidden=4),
        feature="vgg16",
        features=1.0,
        pixel=0.0,
        adversarial=0.0,
    )
    shape = ImageShape(1, 16)
    optimizers = dict.fromkeys(("generator", "critic"), Optimizer())
    state = new_state(system, shape, optimizers, Averaging(), seed=0, device=torch.device("cpu"))
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    with pytest.raises(FastganError, match="FILE names them"):
        system.turns(state.modules, {})
    monkeypatch.setattr(
        "fastgan.features.open_vgg16_maps", lambda file: VGG16Maps(SimpleNamespace(features=vgg16.trunk()))
    )
    step = Step(system, state, Averaging(), seed=0, batch=2, total=2)
    before = state.modules["generator"].to_image.weight.clone()
    step(lambda: Batch(digits(16)[:2], None, torch.arange(2)))
    assert 0 < step.read_statistics()["generator.features"] < 10
    assert not torch.equal(before, state.modules["generator"].to_image.weight)


def test_edges_and_gray() -> None:
    colour = torch.zeros(1, 3, 8, 8)
    colour[:, :, :, 4:] = torch.tensor([1.0, 0.5, -0.5]).view(1, 3, 1, 1)
    assert torch.allclose(gray(colour)[0, 0, 0, 4:], torch.tensor(0.299 + 0.5 * 0.587 - 0.5 * 0.114))
    found = edges(colour)
    assert torch.allclose(found[:, :, :, [0, 1, 2, 5, 6, 7]], torch.tensor(-1.0), atol=1e-4)
    assert float(found[:, :, :, 3:5].min()) > 0
    assert edges(images := digits(8)[:4]).shape == images.shape


def test_masks_are_what_they_are_called() -> None:
    draw = lambda: Draw(0, torch.arange(500), 0)  # noqa: E731
    boxes = draw_masks("box", 16, 0.25, 0.5, draw())
    assert set(boxes.unique().tolist()) == {0.0, 1.0}
    heights, widths = boxes.amax(3).sum((1, 2)), boxes.amax(2).sum((1, 2))
    assert torch.equal(heights * widths, boxes.sum((1, 2, 3)))  # filled rectangles
    assert (int(heights.min()), int(heights.max()), int(widths.min()), int(widths.max())) == (4, 8, 4, 8)
    strokes = draw_masks("free", 32, 0.25, 0.5, draw())
    shares = strokes.mean((1, 2, 3))
    assert float(shares.min()) > 0.02
    assert float(shares.max()) < 0.7
    both = draw_masks("both", 16, 0.25, 0.5, draw())
    same = (both == boxes).all((1, 2, 3)).float().mean()
    assert 0.4 < float(same) < 0.6
    again = draw_masks("both", 16, 0.25, 0.5, Draw(0, torch.arange(250, 500), 0))
    assert torch.equal(again, both[250:])


def test_crops_lie_around_the_hole_and_within_the_image() -> None:
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, :, 0:4, 12:16] = 1
    masks[1, :, 6:10, 5:9] = 1
    images = torch.arange(2 * 256, dtype=torch.float32).view(2, 1, 16, 16)
    middle = centres(masks)
    assert torch.equal(middle, torch.tensor([[1.5, 13.5], [7.5, 6.5]]))
    found = crops(images, middle, 8)
    assert torch.equal(found[0, 0], images[0, 0, 0:8, 8:16])
    assert torch.equal(found[1, 0], images[1, 0, 4:12, 2:10])


def test_reduced_images_are_levels_of_a_file() -> None:
    images = digits(16)[:8]
    system = SuperResolution(scale=4, kernel="box")
    small = system.reduce(images)
    assert torch.allclose(small, avg_pool2d(images, 4), atol=0.5 / 127.5)
    levels = small.mul(127.5).add(127.5)
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert torch.allclose(enlarged(small, 4).mean(), images.mean(), atol=0.05)


def test_what_does_not_fit_is_one_line() -> None:
    colour, plain = ImageShape(3, 32, source_channels=1), ImageShape(1, 30)
    cases = [
        (lambda: Translation().players(replace(colour, source_channels=0)), "data.pairs"),
        (lambda: Translation(source="gray").players(plain), "in colour"),
        (lambda: Translation(source="edge"), "did you mean 'edges'"),
        (lambda: SuperResolution(scale=4).players(plain), "scale 4 does not divide the images' 30 pixels"),
        (lambda: SuperResolution(scale=3), "2, 4 or 8"),
        (lambda: CycleGAN().players(colour), "1 and 3 channels"),
        (lambda: Inpainting(smallest=0.6, largest=0.5), "smallest"),
        (lambda: UNet(depth=6).translator(plain, 1), "multiple of 64"),
        (lambda: PatchCritic(layers=4).critic(plain), "48 pixels or more"),
        (lambda: Translation(residual=True).players(replace(colour, source_channels=2)), "2 channels where"),
        (lambda: CycleGAN(loss="wasserstein", augment=Augment("adaptive")), "steers by the sign"),
        (lambda: Translation().translate({}, torch.zeros(1), back=True), "one direction"),
    ]
    for make, message in cases:
        with pytest.raises(FastganError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_smooth_fill_keeps_what_is_known_and_continues_it() -> None:
    across = torch.linspace(-1, 1, 32).expand(20, 3, 32, 32).contiguous()
    masks = draw_masks("box", 32, 0.25, 0.5, Draw(0, torch.arange(20), 0))
    filled = smooth_fill(across, masks)
    assert torch.equal(torch.where(masks > 0, 0.0, filled), torch.where(masks > 0, 0.0, across))
    error, of_the_mean = (float(((made - across).abs() * masks).sum()) for made in (filled, 0.0))
    assert error < 0.5 * of_the_mean
    rough, usual, fine = (smooth_fill(across, masks, relaxations=number) for number in (0, 16, 200))
    uneven = [float(((neighbours(made) - made).abs() * masks).mean()) for made in (rough, usual, fine)]
    assert uneven[1] < 0.05 * uneven[0], uneven
    assert uneven[2] < 0.02 * uneven[0], uneven
    assert torch.allclose(smooth_fill(torch.full_like(across, 0.3), masks), torch.tensor(0.3), atol=1e-5)
