"""What one does with a run that makes images of images: translate, enlarge and fill pictures of one's own.

Pictures are read from a file, a folder, a zip or a built-in set, and written as one PNG each, with a sheet that shows
what went in beside what came out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.contract import Batch, Inpaints, Translates, Upscales, commands_of
from fastgan.data import BUILT_IN, DataOptions, open_images, read_images
from fastgan.errors import FastganError
from fastgan.gans.masks import draw_masks
from fastgan.models.srresnet import enlarged
from fastgan.pictures import evaluating, picture_draw
from fastgan.run.images import grid, save_png, to_uint8
from fastgan.trained import load_run, run_folder, writable

__all__ = ["inpaint_pictures", "tiled", "translate_pictures", "upscale_pictures"]

Say = Callable[[str], None]
SHOWN = 32  # pictures on a sheet
BUILT_IN_SHOWN = 64  # images of a built-in set
TILE = 128  # side of a tile, in pixels of what is enlarged


@dataclass(frozen=True)
class Named:
    """A picture [1, C, H, W] in [-1, 1] with the name, without ending, that its result gets."""

    name: str
    pixels: Tensor


def pictures_in(path: str, options: DataOptions, *, whole: bool, device: torch.device) -> Iterator[Named]:
    """The pictures at `path`: a file, a folder, a zip, or the first of a built-in set.

    whole: as large as they are; else cropped and resized as `options` says
    Raises FastganError for what cannot be read.
    """
    if path in BUILT_IN:
        images = open_images(replace(options, path=path, pairs="", direction="AtoB"))
        for number in range(min(len(images), BUILT_IN_SHOWN)):
            yield Named(f"{number:06}", _as_tensor(images.read(np.array([number]))[0], device))
        return
    taken: set[str] = set()
    for name, pixels in read_images(path, options, whole=whole):
        stem = name.rpartition(".")[0].replace("/", "-")
        if stem in taken:  # a.png and a.jpg
            stem = name.replace("/", "-")
        taken.add(stem)
        yield Named(stem, _as_tensor(pixels, device))


def _as_tensor(pixels: Any, device: torch.device) -> Tensor:
    """[H, W, C] uint8 as [1, C, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].to(torch.float32).sub(127.5).div(127.5)


@dataclass
class _Sheet:
    """Writes results as they come, and keeps the first of them for the sheet."""

    out: Path
    rows: list[tuple[Tensor, ...]]

    def add(self, name: str, result: Tensor, *shown: Tensor) -> None:
        """result: [1, C, H, W]; shown: pictures of one height for the sheet."""
        with writable(self.out / f"{name}.png"):
            save_png(grid(to_uint8(result), cell=0), self.out / f"{name}.png")
        self.rows.append(tuple(part.cpu() for part in shown) if len(self.rows) < SHOWN else ())

    def close(self, what: str, legend: str, say: Say) -> None:
        """Write the sheet and say what there is."""
        shown = [row for row in self.rows if row]
        first = shown[0][0].shape
        alike = [row for row in shown if row[0].shape == first]
        joined = [torch.cat([part.expand(-1, _channels(row), -1, -1) for part in row], 3) for row in alike]
        sheet = self.out / "sheet.png"
        columns = max(1, min(4, math.isqrt(len(joined))))
        with writable(sheet):
            save_png(grid(torch.cat(joined).clamp(-1, 1), columns=columns), sheet)
        say(f"{len(self.rows):,} {what}: {self.out}/; {sheet} shows {legend}")


def _channels(row: tuple[Tensor, ...]) -> int:
    return max(part.shape[1] for part in row)


def translate_pictures(
    run: Path, images: str, out: Path | None, back: bool, derive: bool, weights: str, device_name: str, say: Say
) -> None:
    """`fastgan translate`: each picture as one of the other domain, OUT/NAME.png, and OUT/sheet.png."""
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = config.system
    if not isinstance(system, Translates):
        raise _other_kind("translate", config)
    if back and derive:
        raise FastganError(
            "--back starts from images of the target domain, and --derive makes sources of them: give one"
        )
    channels = _source_channels(config)
    read = replace(config.data, channels=config.data.channels if back or derive else channels)
    sheet = _Sheet(out or run_folder(run) / "translated", [])
    with evaluating(players):
        for number, picture in enumerate(pictures_in(images, read, whole=False, device=device)):
            source = _derived(system, picture.pixels, number) if derive else picture.pixels
            result = system.translate(players, source, back=back).clamp(-1, 1)
            sheet.add(picture.name, result, source, result)
    sheet.close("pictures", "source | translated", say)


def _source_channels(config: Config) -> int:
    """Channels of what a run translates: as the network was made."""
    system: Any = config.system
    if system.source == "data":
        return config.data.source_channels
    return config.data.channels if system.source in ("noise", "inverted") else 1


def _derived(system: Any, pixels: Tensor, number: int) -> Tensor:
    """A source made of an image as training made it."""
    draw = picture_draw([number], pixels.device)
    batch = Batch(pixels, None, draw.index)
    if system.source == "data":
        raise FastganError("--derive: this run was trained on pairs, and has no way to make a source of an image")
    source: Tensor = system.sources(batch, draw)
    return source


def upscale_pictures(
    run: Path, images: str, out: Path | None, tile: int, weights: str, device_name: str, say: Say
) -> None:
    """`fastgan upscale`: each picture, of any size, enlarged by the run's scale: OUT/NAME.png, and OUT/sheet.png."""
    if tile < 8:
        raise FastganError(f"--tile must be 8 pixels or more, got {tile}")
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = config.system
    if not isinstance(system, Upscales):
        raise _other_kind("upscale", config)
    sheet = _Sheet(out or run_folder(run) / "upscaled", [])
    with evaluating(players):
        for picture in pictures_in(images, config.data, whole=True, device=device):
            large = tiled(system, players, picture.pixels, tile)
            sheet.add(picture.name, large, *_detail(picture.pixels, large, system.scale))
    sheet.close("pictures", "bicubic | upscaled, the middle of each", say)


def _detail(small: Tensor, large: Tensor, scale: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """The middle of a picture, at most `side` small pixels wide: enlarged bicubically, and by the network."""
    h, w = (min(side, length) for length in small.shape[2:])
    top, left = ((length - part) // 2 for length, part in zip(small.shape[2:], (h, w), strict=True))
    bicubic = enlarged(small, scale).clamp(-1, 1)
    place = (..., slice(top * scale, (top + h) * scale), slice(left * scale, (left + w) * scale))
    return bicubic[place], large[place]


def tiled(system: Upscales, players: dict[str, nn.Module], image: Tensor, tile: int = TILE) -> Tensor:
    """system.upscale of image [1, C, H, W], tile by tile, [1, C, scale H, scale W]: the same as of all at once.

    Tiles overlap by twice the network's reach, so that no output pixel sees the end of a tile: there are no seams, and
    memory depends on the tile's size alone.
    """
    scale, margin = system.scale, system.margin
    height, width = image.shape[2:]
    out = image.new_empty(1, image.shape[1], scale * height, scale * width)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(top - margin, 0), max(left - margin, 0)
            part = system.upscale(players, image[:, :, y : bottom + margin, x : right + margin])
            inner = part[..., scale * (top - y) : scale * (bottom - y), scale * (left - x) : scale * (right - x)]
            out[..., scale * top : scale * bottom, scale * left : scale * right] = inner
    return out


def inpaint_pictures(
    run: Path, images: str, mask: str, out: Path | None, seed: int, weights: str, device_name: str, say: Say
) -> None:
    """`fastgan inpaint`: each picture with its hole filled, OUT/NAME.png, and OUT/sheet.png.

    mask: "box" or "free", drawn for each picture, or a file whose white pixels are the hole
    """
    config, players, device = load_run(run, weights == "average", device_name, say)
    system = config.system
    if not isinstance(system, Inpaints):
        raise _other_kind("inpaint", config)
    size = config.data.size
    given = None if mask in ("box", "free") else read_mask(Path(mask), size).to(device)
    sheet = _Sheet(out or run_folder(run) / "inpainted", [])
    with evaluating(players):
        for number, picture in enumerate(pictures_in(images, config.data, whole=False, device=device)):
            draw = picture_draw([seed + number], device)
            hole = draw_masks(mask, size, *system.box, draw) if given is None else given
            result = system.inpaint(players, picture.pixels, hole, draw).clamp(-1, 1)
            holed = torch.where(hole > 0, torch.zeros_like(picture.pixels), picture.pixels)
            sheet.add(picture.name, result, holed, result, picture.pixels)
    sheet.close("pictures", "hole | filled | as it was", say)


def read_mask(path: Path, size: int) -> Tensor:
    """A mask [1, 1, size, size] from an image file: 1 where it is at least half white.

    Raises FastganError for a file that cannot be read, for another size, and for a mask without a hole.
    """
    try:
        with Image.open(path) as image:
            found = np.asarray(image.convert("L"))
    except OSError as error:
        reason = error.strerror or "is no image"
        raise FastganError(
            f"--mask {path}: {reason}; give box, free or an image file whose white is the hole"
        ) from None
    if found.shape != (size, size):
        larger = "larger than" if max(found.shape) > size else "of another size than"
        raise FastganError(
            f"--mask {path} is {larger} the run's images: {found.shape[1]}x{found.shape[0]} instead of {size}x{size}; "
            "resize it"
        )
    mask = torch.from_numpy((found >= 128).astype(np.float32))[None, None]
    if not mask.any():
        raise FastganError(f"--mask {path} has no hole: its white pixels are what is to be filled")
    return mask


def _other_kind(command: str, config: Config) -> FastganError:
    others = [name for name in commands_of(config.system) if name != "encode"]
    hint = f"; use fastgan {others[0]}" if others else ""
    return FastganError(f"{command}: preset {config.preset} does something else{hint}")
