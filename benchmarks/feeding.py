"""What bench_feed.py measures: a pack of random pictures, and the same set through PyTorch's DataLoader.

The DataLoader is set up as a careful user would: shuffled, the whole batch in one call where that helps
(`__getitems__`), no copy that is not needed. It gives uint8 batches [N, H, W, C], as our feeder's thread does.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastgan.data.image_set import ImageSet
from fastgan.data.pack import pack
from fastgan.data.pack_format import CHECKSUMS, INDEX, Shard, read_index, shard_path
from fastgan.data.pack_source import PackOptions

BATCH, SIDE = 256, 64
TAKEN = 512  # batches in one call: an OpenMP thread of the call before keeps a core for some milliseconds
FEW = 64  # of batches that take longer


def write_pictures(folder: Path, count: int, side: int, quality: int = 90) -> Path:
    """JPEG files of smooth random pictures, which compress as photographs do."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:06}.jpg", quality=quality)
    return folder


def raw_pack(folder: Path, count: int) -> Path:
    """A raw pack of `count` images in one shard: 256 pictures, again and again, shifted so that no two are alike."""
    pictures = write_pictures(folder / "pictures", 256, SIDE)
    small, large = folder / "small", folder / "large"
    pack(PackOptions(str(pictures), str(small), size=SIDE))
    large.mkdir()
    pixels = np.fromfile(shard_path(small, 0), np.uint8).reshape(256, -1)
    sums = np.empty(count, "<u4")
    with shard_path(large, 0).open("wb") as file:
        for start in range(0, count, 256):
            images = np.roll(pixels, start, 1)[: min(256, count - start)]
            sums[start : start + len(images)] = [zlib.crc32(image) for image in images]
            file.write(images.tobytes())
    np.save(large / CHECKSUMS, sums)
    index = replace(read_index(small), count=count, shards=(Shard(count, count * pixels.shape[1]),))
    (large / INDEX).write_bytes(index.to_json())
    return large


class Mapped(Dataset):  # type: ignore[type-arg]
    """The images of a raw shard by number, for a DataLoader."""

    def __init__(self, shard: Path) -> None:
        self.pixels = np.memmap(shard, np.uint8, "r").reshape(-1, SIDE, SIDE, 3)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.pixels[index].copy())


class MappedBatches(Mapped):
    """The same, a batch in one call. ready: turns it into what training takes, in the process that reads it."""

    def __init__(self, shard: Path, ready: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(shard)
        self.ready = ready

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        batch = torch.from_numpy(np.take(self.pixels, indices, axis=0))
        return batch if self.ready is None else self.ready(batch)


@dataclass(frozen=True)
class Prepare:
    """[N, H, W, C] uint8 to what training takes, in PyTorch's operations as a careful user writes them: mirrored while
    a value is one byte, and only the images that are; no copy for the layout, which is channels-last already; one
    conversion, and the rest in place.

    In bfloat16 that rounds three times, where our feeder rounds once: the faster way, which is what counts here.
    """

    dtype: torch.dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        mirrored = torch.rand(len(pixels)) < 0.5
        pixels[mirrored] = pixels[mirrored].flip(2)
        return pixels.permute(0, 3, 1, 2).to(self.dtype).div_(127.5).sub_(1)


class Files(Dataset):  # type: ignore[type-arg]
    """JPEG files by number, decoded by Pillow."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def as_it_is(batch: Tensor) -> Tensor:
    return batch


def loader(dataset: Dataset, workers: int) -> DataLoader:  # type: ignore[type-arg]
    """A shuffled DataLoader of whole batches."""
    whole = hasattr(dataset, "__getitems__")
    return DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=as_it_is if whole else None,
    )


def endless(batches: DataLoader) -> Iterator[Tensor]:  # type: ignore[type-arg]
    while True:
        yield from batches


def taking(batches: Iterator[object], count: int = TAKEN) -> Callable[[], None]:
    """A call that takes so many batches: the few that were ready before it began count for little."""

    def call() -> None:
        for _ in range(count):
            next(batches)

    return call


def memory_copy(images: ImageSet) -> Iterator[Tensor]:
    """The bytes of a batch copied from one buffer that the cache does not hold, the limit of all feeding."""
    source = torch.zeros((32 * BATCH, images.size, images.size, images.channels), dtype=torch.uint8)
    at = 0
    while True:
        yield source[at : at + BATCH].clone()
        at = (at + BATCH) % len(source)


def decode_all(paths: Sequence[str], out: Path) -> None:
    """What a simple script for packing does: Pillow, one image after the other."""
    with out.open("wb") as file:
        for path in paths:
            with open(path, "rb") as stream:
                image = Image.open(io.BytesIO(stream.read())).convert("RGB")
            if image.size != (SIDE, SIDE):
                image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            file.write(image.tobytes())
