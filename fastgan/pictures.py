"""Pictures from trained players: from seeds, on the way from one seed to the next, and from real images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.contract import PICTURE_STREAM, Batch, Draw, ImageShape, Samples, Styles, System
from fastgan.data import ImageSet
from fastgan.data.image_set import Indices
from fastgan.data.sampler import image_order
from fastgan.step import check_tensors


def picture_draw(seeds: Sequence[int], device: torch.device) -> Draw:
    """The draw of the pictures number `seeds`: no turn of training has the same."""
    return Draw(0, torch.tensor(list(seeds), dtype=torch.int64, device=device), PICTURE_STREAM)


def picture_latents(system: Samples, seeds: Sequence[int], device: torch.device) -> Tensor:
    """Latents [N, latent] of the pictures number `seeds`: the same for every run of a system."""
    return system.latents(picture_draw(seeds, device))


def picture_labels(image: ImageShape, seeds: Sequence[int], device: torch.device) -> Tensor | None:
    """Labels [N] of the pictures number `seeds`, each class in turn; None where there are no classes."""
    return torch.tensor(list(seeds), dtype=torch.int64, device=device) % image.classes if image.classes else None


def pictured(images: ImageSet, numbers: Sequence[int]) -> Indices:
    """Which images show what a set is: of a set with classes each class in turn, in it in a random order; else those
    from the beginning on. After the last it begins again. numbers: of the pictures, any from 0 on."""
    index = np.asarray(numbers, np.int64)
    if images.labels is None or images.kind == "stream":  # whose labels come with the images
        return index % len(images)
    chosen = np.empty_like(index)
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        asked = index % len(images.classes) == label
        chosen[asked] = members[image_order(0, len(members), index[asked] // len(images.classes))]
    return chosen


def picture_batch(images: ImageSet, numbers: Sequence[int], device: torch.device) -> Batch:
    """The pictures number `numbers` of a set (see `pictured`) as a batch without augmentation."""
    chosen = pictured(images, numbers)

    def read(source: ImageSet) -> Tensor:
        pixels = torch.from_numpy(source.read(chosen % len(source))).to(device)
        return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).div_(127.5)

    pixels, labels = read(images), None
    if images.labels is not None:
        numbered = np.empty(len(chosen), np.int64)
        images.labels_of(chosen, numbered)
        labels = torch.from_numpy(numbered).to(device)
    source = None if images.source is None else read(images.source)
    return Batch(pixels, labels, torch.tensor(list(numbers), dtype=torch.int64, device=device), source)


def columns_of(count: int, classes: int = 0) -> int:
    """Columns of a grid of `count` pictures, near to a square; with `classes` that come in turn, such that a column is
    a class, where that is no wider than twice the square."""
    side = math.ceil(math.sqrt(count))
    return side if not 0 < classes <= 2 * side else max(classes, side - side % classes)


@contextmanager
def evaluating(players: Mapping[str, nn.Module]) -> Iterator[torch.dtype]:
    """Within it the players are in evaluation mode and no gradients are computed. Yields the type of their weights."""
    modes = {name: player.training for name, player in players.items()}
    try:
        for player in players.values():
            player.eval()
        with torch.no_grad():
            yield next(p.dtype for player in players.values() for p in player.parameters())
    finally:
        for name, player in players.items():
            player.train(modes[name])


def sample_images(
    system: Samples,
    players: Mapping[str, nn.Module],
    latents: Tensor,
    labels: Tensor | None = None,
    *,
    batch: int = 64,
) -> Tensor:
    """Images [N, C, S, S] in [-1, 1] for latents [N, latent] and labels [N], in evaluation mode, `batch` at a time."""
    with evaluating(players) as dtype:
        classes = [None] * len(latents) if labels is None else torch.split(labels, batch)
        parts = zip(torch.split(latents, batch), classes, strict=False)
        return torch.cat([system.sample(players, part.to(dtype), of) for part, of in parts]).clamp(-1, 1)


def draw_pictures(system: System, players: Mapping[str, nn.Module], batch: Batch) -> Tensor:
    """What the system shows of a batch, [N, 1 or 3, H, W] in [-1, 1], each with its parts side by side."""
    with evaluating(players) as dtype:
        source = None if batch.source is None else batch.source.to(dtype)
        batch = replace(batch, images=batch.images.to(dtype), source=source)
        parts = system.pictures(players, batch, picture_draw(batch.index.tolist(), batch.index.device))
    channels = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, channels, -1, -1) for part in parts], 3).clamp(-1, 1)


def latent_path(system: Samples, latents: Tensor, frames: int) -> Tensor:
    """Closed path through latents [K, D], `frames` points from each to the next: [K * frames, D]."""
    t = torch.arange(frames, dtype=torch.float64, device=latents.device) / frames
    points = [*latents.double(), latents[0].double()]
    return torch.cat([system.way(a, b, t) for a, b in pairwise(points)]).to(latents.dtype)


def style_path_images(
    system: Styles, players: Mapping[str, nn.Module], latents: Tensor, frames: int, *, batch: int = 64
) -> Tensor:
    """Images [K * frames, C, S, S] on the closed path of straight lines between the styles of K latents."""
    with evaluating(players) as dtype:
        styles = system.styles(players, latents.to(dtype))
        t = torch.arange(frames, dtype=dtype, device=styles.device)[None, :, None] / frames
        path = torch.lerp(styles[:, None], styles.roll(-1, 0)[:, None], t).flatten(0, 1)
        return torch.cat([system.from_styles(players, part) for part in torch.split(path, batch)]).clamp(-1, 1)


def load_players(
    system: System,
    image: ImageShape,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    averaged: bool,
    device: torch.device,
) -> dict[str, nn.Module]:
    """The players of a saved run, for inference: averaged weights where there are some, else the trained ones."""
    players = system.players(image)
    for name, player in players.items():
        file = f"{name}.ema" if averaged and f"{name}.ema" in tensors else name
        check_tensors(file, player.state_dict(), tensors.get(file))
        player.load_state_dict(tensors[file])
        player.to(device).eval().requires_grad_(False)
    return players
