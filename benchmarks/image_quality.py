"""What the systems from images to images reach in minutes on a CPU core, on images that they were not trained on.

    python -m benchmarks.image_quality [NAME ...] [--kimg FACTOR] [--pictures FOLDER]

Each row trains a small network, then scores it against the simplest way to do the same. "photos" are 64x64 patches of
the photographs that scikit-learn and scikit-image ship, held-out ones from their right ends; of the digits, the last
297 are held out. Translation and the game of super-resolution on photographs are in benchmarks.photographs, beside
plain loops. PSNR and SSIM are means over images in [-1, 1], of the averaged weights; seeds are fixed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from fastgan.assemble import build_state, new_step
from fastgan.config import override
from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError
from fastgan.gans.masks import smooth_fill
from fastgan.gans.sources import smoothed
from fastgan.metrics import psnr, ssim
from fastgan.models.srresnet import enlarged
from fastgan.options import Config, with_data
from fastgan.pictures import draw_pictures, evaluating, picture_batch, picture_draw
from fastgan.presets import PRESETS
from fastgan.run.images import grid, save_png

HELD_OUT_DIGITS, MOST_HELD_OUT = 297, 200


@dataclass(frozen=True)
class Row:
    """preset with changes; scores: (system, players, batch) -> name -> number"""

    preset: str
    changes: dict[str, Any]
    scores: Callable[[Any, dict[str, Any], Any], dict[str, float]]


def part(images: ImageSet, first: int, last: int) -> ImageSet:
    """Images number `first` to `last` - 1 as a set."""
    labels = None if images.labels is None else images.labels[first:last]
    return replace(
        images, count=last - first, fetch=lambda at, out: images.fetch(at + first, out), labels=labels, names_sha256=""
    )


def sets(data: DataOptions) -> tuple[ImageSet, ImageSet]:
    """To train on, and held out."""
    if data.path == "photos":
        held_out = open_images(replace(data, path="photos:held-out"))
        every = max(1, len(held_out) // MOST_HELD_OUT)
        count = len(held_out) // every
        return open_images(data), replace(
            held_out, count=count, fetch=lambda at, out: held_out.fetch(at * every, out), labels=None, classes=()
        )
    images = open_images(data)
    cut = len(images) - HELD_OUT_DIGITS
    return part(images, 0, cut), part(images, cut, len(images))


def trained(config: Config, images: ImageSet) -> tuple[dict[str, Any], float]:
    """Averaged players, and images per second."""
    state = build_state(config, torch.device("cpu"))
    step = new_step(config, state)
    with Feeder(images, seed=config.seed, batch=config.batch, mirror=config.data.mirror) as feeder:
        began = time.monotonic()
        while state.samples < config.images:
            step(feeder.__next__)
        seconds = time.monotonic() - began
    assert step.read_statistics()["skipped"] == 0
    return state.averages, state.samples / seconds


def compared(made: dict[str, Tensor], target: Tensor) -> dict[str, float]:
    numbers = {}
    for name, x in made.items():
        numbers[f"{name} PSNR"] = psnr(x.clamp(-1, 1), target, data_range=2.0).value
        numbers[f"{name} SSIM"] = ssim(x.clamp(-1, 1), target, data_range=2.0).value
    return numbers


def of_translation(system: Any, players: dict[str, Any], batch: Any) -> dict[str, float]:
    source, made, target = system.pictures(players, batch, picture_draw(batch.index.tolist(), batch.index.device))
    plain = source.expand_as(target)
    return compared({"source": plain, "smoothed source": smoothed(plain), "translated": made}, target)


def of_super_resolution(system: Any, players: dict[str, Any], batch: Any) -> dict[str, float]:
    small = system.reduce(batch.images)
    bicubic = enlarged(small, system.scale)
    return compared({"bicubic": bicubic, "upscaled": system.upscale(players, small)}, batch.images)


def of_cycle(system: Any, players: dict[str, Any], batch: Any) -> dict[str, float]:
    x, there, again, y, here, back_again = system.pictures(players, batch, None)
    off = {"untranslated": x - y, "translated": there - y, "translated back": here - x}
    cycles = {"there and back": again - x, "back and there": back_again - y}
    return {f"{name}, mean |error|": float(error.abs().mean()) for name, error in (off | cycles).items()}


def of_inpainting(system: Any, players: dict[str, Any], batch: Any) -> dict[str, float]:
    numbers = {}
    for kind in ("box", "free"):
        draw = picture_draw(batch.index.tolist(), batch.index.device)
        masks = replace(system, mask=kind).masks(batch, draw)
        filled = system.inpaint(players, batch.images, masks, draw)
        ways = {name: fill(batch.images, masks) for name, fill in FILLS.items()} | {"filled": filled}
        for name, made in ways.items():
            numbers[f"{kind}: {name}, PSNR in the hole"] = psnr_within(made, batch.images, masks)
    return numbers


def psnr_within(made: Tensor, target: Tensor, masks: Tensor) -> float:
    """dB within the holes, the mean over images."""
    error = ((made - target).square() * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3)) / made.shape[1]
    return float((10 * (4 / error.clamp(min=1e-6)).log10()).mean())


def mean_filled(images: Tensor, masks: Tensor) -> Tensor:
    """The hole in the mean colour of the rest."""
    known = 1 - masks
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    return torch.where(masks > 0, mean, images)


def laplace(images: Tensor, masks: Tensor) -> Tensor:
    """The hole as smooth as its border allows: Laplace's equation, solved."""
    return smooth_fill(images, masks, relaxations=400)


def biharmonic(images: Tensor, masks: Tensor) -> Tensor:
    """scikit-image's inpainting (Damelin and Hoang 2018): the biharmonic equation."""
    filled = [
        inpaint_biharmonic(image.permute(1, 2, 0).double().numpy(), mask[0].numpy() > 0, channel_axis=-1)
        for image, mask in zip(images, masks, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().clamp(-1, 1)


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean of the rest": mean_filled,
    "smooth fill": smooth_fill,
    "Laplace's equation": laplace,
    "biharmonic (scikit-image)": biharmonic,
}
"""Ways to fill holes that need no training: (images, masks) -> images."""


PHOTOS = {"data.path": "photos", "data.size": 64, "threads": 1, "channels_last": False, "output.grid_images": 24}
FAST = {"averaging.halflife_kimg": 1.0, "averaging.rampup": 0.1}
SMALL_SR = {"system.generator.width": 24, "system.generator.blocks": 4, "system.generator.kernel": 5, "batch": 8}
SMALL_SR |= {
    "system.critic.width": 8,
    "system.critic.hidden": 64,
    "system.critic.halvings": 3,
    "system.critic.norm": "none",
}
SMALL_SR |= {f"optim.{name}.lr": {"start": 1e-3, "end": 0.0, "begin": 0.5} for name in ("generator", "critic")}
FADING = {f"optim.{name}.lr": {"start": 1e-3, "end": 0.0, "begin": 0.3} for name in ("generator", "critic")}
SMALL_UNET = {f"optim.{name}.lr": 1e-3 for name in ("generator", "critic")}
SMALL_UNET |= {"system.generator.width": 16, "system.generator.dropout": 0.0, "system.critic.width": 16, "batch": 8}

ROWS = {
    "pix2pix-digits": Row("pix2pix-digits", {}, of_translation),
    "pix2pix-digits, edges": Row("pix2pix-digits", {"system.source": "edges"}, of_translation),
    "srresnet-digits-x4": Row("srgan-digits", {"system.adversarial": 0.0, "kimg": 15}, of_super_resolution),
    "srgan-digits-x4": Row("srgan-digits", {}, of_super_resolution),
    "srresnet-photos-x2": Row(
        "srgan-x2", PHOTOS | FAST | SMALL_SR | {"system.adversarial": 0.0, "kimg": 6}, of_super_resolution
    ),
    "srresnet-photos-x4": Row(
        "srgan-x4", PHOTOS | FAST | SMALL_SR | {"system.adversarial": 0.0, "kimg": 8}, of_super_resolution
    ),
    "cyclegan-digits": Row("cyclegan-digits", {}, of_cycle),
    "inpaint-digits": Row("inpaint-digits", {}, of_inpainting),
    "inpaint-photos": Row("inpaint-64", PHOTOS | FAST | SMALL_UNET | FADING | {"kimg": 5}, of_inpainting),
}


def measured(name: str, factor: float, pictures: Path | None) -> Iterator[str]:
    row = ROWS[name]
    config = PRESETS[row.preset]
    for key, value in row.changes.items():
        config = override(config, key, value)
    config = replace(config, kimg=config.kimg * factor)
    train, held_out = sets(config.data)
    config = with_data(config, train)
    players, speed = trained(config, train)
    batch = picture_batch(held_out, range(len(held_out)), torch.device("cpu"))
    with evaluating(players):
        numbers = row.scores(config.system, players, batch)
    size = f"{config.data.size}x{config.data.size}"
    yield f"{name}: {config.kimg:g} kimg of {size} at {speed:.0f} images/s; {len(held_out)} held-out images"
    yield from (f"  {key:45}{value:9.3f}" for key, value in numbers.items())
    if pictures is not None:
        shown = picture_batch(held_out, np.linspace(0, len(held_out) - 1, 24).astype(int).tolist(), torch.device("cpu"))
        sheet = grid(draw_pictures(config.system, players, shown), columns=4)
        file = name.replace(", ", "-") + ".png"
        yield f"  {save_png(sheet, pictures / file)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--kimg", type=float, default=1.0, help="times the length of each run")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for a sheet of each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        if name not in ROWS:
            raise FastganError(f"{name!r} is no row; expected some of {', '.join(ROWS)}")
        for line in measured(name, given.kimg, given.pictures):
            print(line, flush=True)


if __name__ == "__main__":
    main()
