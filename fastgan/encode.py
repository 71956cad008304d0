"""Latents of images, by the encoder of a trained run: as .npz, with a picture of what they keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.contract import Encodes
from fastgan.data import ImageSet, open_images
from fastgan.errors import FastganError
from fastgan.pictures import evaluating
from fastgan.run.images import grid, save_png
from fastgan.trained import load_run, run_folder, writable

COLUMNS, ROWS = 16, 4
BATCH = 64


@dataclass(frozen=True)
class Encoded:
    """codes: [N, latent] float32;  labels: [N] int64 or None;  error: mean squared error of a pixel in [-1, 1], [N]"""

    codes: Tensor
    labels: Tensor | None
    error: Tensor


def encode_images(
    run: Path, data: str, out: Path | None, weights: str, device_name: str, say: Callable[[str], None]
) -> Encoded:
    """Encode the images at `data` (a folder, a zip, or a set that is here) as they would be read in training.

    Writes `out` with codes, error and labels where there are any, and beside it a PNG: originals above what the
    generator makes of their codes. Raises FastganError for a run without an encoder, and for what cannot be read.
    """
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = config.system
    if not isinstance(system, Encodes):
        raise FastganError(
            f"fastgan encode: preset {config.preset} has no encoder; train one that has, such as digits-bigan"
        )
    images = open_images(replace(config.data, path=data, classes=0, source_channels=0))
    out = out or run_folder(run) / "codes.npz"
    if out.suffix != ".npz":
        raise FastganError(f"--out {out}: codes are written as .npz; give it a name that ends in .npz")
    encoded, shown = _encode(config, system, players, images, device)
    arrays = {"codes": encoded.codes.numpy(), "error": encoded.error.numpy()}
    if encoded.labels is not None:
        arrays["labels"] = encoded.labels.numpy()
    picture = out.with_suffix(".png")
    with writable(out):
        np.savez(out, **arrays)  # type: ignore[arg-type]
        save_png(grid(shown, columns=COLUMNS), picture)
    mean = float(encoded.error.mean())
    say(f"{len(images):,} images: {out} (codes of length {encoded.codes.shape[1]})")
    say(f"mean squared error of a pixel in [-1, 1]: {mean:.4f}; {picture} (originals above reconstructions)")
    return encoded


def _encode(
    config: Config, system: Encodes, players: dict[str, nn.Module], images: ImageSet, device: torch.device
) -> tuple[Encoded, Tensor]:
    """The codes of all images, and a few images with their reconstructions, row by row."""
    codes, errors, originals, copies = [], [], [], []
    chosen = np.linspace(0, len(images) - 1, min(COLUMNS * ROWS, len(images))).astype(np.int64)
    with evaluating(players) as dtype:

        def run(numbers: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
            pixels = torch.from_numpy(images.read(numbers)).to(device, dtype).permute(0, 3, 1, 2)
            given = pixels.sub(127.5).div(127.5)
            found = system.encode(players, given)
            return given, found, system.sample(players, found).clamp(-1, 1)

        for start in range(0, len(images), BATCH):
            given, found, again = run(np.arange(start, min(start + BATCH, len(images))))
            codes.append(found.float().cpu())
            errors.append((given - again).float().square().flatten(1).mean(1).cpu())
        for part in np.split(chosen, range(COLUMNS, len(chosen), COLUMNS)):
            given, _, again = run(part)
            blank = given.new_full((COLUMNS - len(part), *given.shape[1:]), -1.0)  # the last row may be short
            originals.append(torch.cat([given, blank]))
            copies.append(torch.cat([again, blank]))
    labels = None if images.labels is None else torch.from_numpy(images.labels).long()
    rows = [row for pair in zip(originals, copies, strict=True) for row in pair]
    return Encoded(torch.cat(codes), labels, torch.cat(errors)), torch.cat(rows)
