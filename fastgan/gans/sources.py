"""Images to translate from: those of the data, or made on the device from the images that are to come out.

data    Batch.source: pairs, or a second domain
edges   strength of the edges (Sobel 1968), white on black, [N, 1, S, S]
noise   the image with Gaussian noise, [N, C, S, S]
gray    the brightness of a colour image (ITU-R BT.601), [N, 1, S, S]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastgan.contract import Batch, Draw, ImageShape
from fastgan.errors import FastganError, suggest

SOURCES = ("data", "edges", "noise", "gray")
LUMA = (0.299, 0.587, 0.114)
NO_SOURCE = (
    "translation needs images to translate from: set data.pairs to side_by_side, folders or unpaired, or let them be "
    "made of the images themselves with system.source=edges, noise or gray"
)


def check_source(name: str) -> None:
    """FastganError unless `name` is one of SOURCES."""
    if name not in SOURCES:
        raise FastganError(f"source {name!r} is unknown{suggest(name, SOURCES)}")


def channels_of(name: str, image: ImageShape) -> int:
    """Channels of the source. FastganError where the data has none, or has no colours for "gray"."""
    if name == "data":
        if not image.source_channels:
            raise FastganError(NO_SOURCE)
        return image.source_channels
    if name == "gray" and image.channels != 3:
        raise FastganError("source=gray needs images in colour; set data.channels=3, or another source")
    return image.channels if name == "noise" else 1


def source_of(name: str, batch: Batch, draw: Draw, noise_level: float) -> Tensor:
    """The images [N, C', S, S] to translate from. Draws once from `draw` for "noise", else never."""
    images = batch.images
    if name == "data":
        if batch.source is None:
            raise FastganError(NO_SOURCE)
        return batch.source
    if name == "noise":
        size = images.shape[2], images.shape[3], images.shape[1]  # drawn as the images lie in memory
        noise = draw.normal(*size).to(images.dtype).permute(0, 3, 1, 2)
        return (images + noise_level * noise).clamp(-1, 1)
    return gray(images) if name == "gray" else edges(images)


def gray(images: Tensor) -> Tensor:
    """Brightness [N, 1, H, W] of images [N, 1 or 3, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def edges(images: Tensor) -> Tensor:
    """Length of the brightness' gradient by Sobel's filters, [N, 1, H, W]: -1 where flat, 1 from a half step on."""
    x = pad(gray(images), (1, 1, 1, 1), mode="replicate")
    across = x[..., 2:] - x[..., :-2]
    across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    down = x[..., 2:, :] - x[..., :-2, :]
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    return (2 * (across.square() + down.square() + 1e-12).sqrt() - 1).clamp(max=1)


def smoothed(images: Tensor) -> Tensor:
    """Images halved and enlarged again, both bilinearly: a plain way to take noise away, for comparison."""
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
