"""Feeding: a memory-mapped pack, JPEG files and packing, each against what a careful user of PyTorch and Pillow writes.

A call of a candidate takes 512 or 64 batches (of 256 images of 64x64) from an endless iterator, as a training loop
does. All give uint8 unless the case says otherwise; none does anything with the batch. Ours compares
each image with its checksum when it first comes; the loaders compare nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.feeding import (
    BATCH,
    FEW,
    SIDE,
    TAKEN,
    Files,
    Mapped,
    MappedBatches,
    Prepare,
    decode_all,
    endless,
    loader,
    memory_copy,
    raw_pack,
    taking,
    write_pictures,
)
from fastgan.config import resolve
from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.feeder import Feeder
from fastgan.data.image_set import describe, fetch_from
from fastgan.data.pack import pack
from fastgan.data.pack_format import Shard
from fastgan.data.pack_source import PackOptions
from fastgan.data.rows import Rows
from fastgan.data.sampler import flips, image_order
from fastgan.errors import FastganError
from fastgan.kernels.ingest import ingest
from fastgan.options import Config, with_data
from fastgan.presets import PRESETS
from fastgan.train import build_state, new_step

IMAGES, FILES = 40_000, 4000  # of the raw pack (490 MB); JPEG files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feed")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    return raw_pack(folder, IMAGES)


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[str]:
    return sorted(map(str, write_pictures(folder / "jpegs", FILES, SIDE).glob("*.jpg")))


def loaders_of(shard: Path) -> dict[str, DataLoader]:
    """Every arrangement that gives uint8 batches of a raw shard."""
    return {
        "DataLoader, 2 workers": loader(Mapped(shard), 2),
        "DataLoader, 2 workers, whole batches": loader(MappedBatches(shard), 2),
        "DataLoader, 0 workers": loader(Mapped(shard), 0),
        "DataLoader, 0 workers, whole batches": loader(MappedBatches(shard), 0),
    }


def test_memory_mapped(packed: Path, ratio, device):
    """Batches as they are stored: the copy and nothing else."""
    images = open_images(DataOptions(path=str(packed), size=SIDE))
    with Feeder(images, seed=0, batch=BATCH, dtype=torch.uint8, kind="host") as feeder:
        batch = next(feeder)
        assert torch.equal(batch.images.permute(0, 2, 3, 1), read_as(images, 0))
        batches = {name: endless(each) for name, each in loaders_of(packed / "shard-00000.bin").items()}
        batches["memcpy of the bytes"] = memory_copy(images)
        candidates = {name: taking(it) for name, it in {"fastgan": feeder, **batches}.items()}
        size = TAKEN * BATCH * SIDE * SIDE * 3
        ratio(
            "feed", f"memory-mapped pack, {BATCH} of {SIDE}x{SIDE}, uint8", candidates, ours="fastgan", bytes=2 * size
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_mapped_as_training_takes_it(packed: Path, ratio, device, dtype):
    """Normalised, half of them mirrored, channels-last: in one pass by ours, by PyTorch's operations after a loader."""
    images, shard = open_images(DataOptions(path=str(packed), size=SIDE)), packed / "shard-00000.bin"
    prepare = Prepare(dtype)
    with Feeder(images, seed=0, batch=BATCH, dtype=dtype, kind="host", mirror=True) as feeder:
        batch = next(feeder)
        chosen = torch.from_numpy(flips(0, np.arange(BATCH)))
        assert torch.equal(batch.images, ingest(read_as(images, 0), chosen, dtype))
        plain = prepare(read_as(images, 0)).float()  # mirrored at random: compared as it was, and mirrored
        either = torch.minimum((plain - batch.images).abs(), (plain.flip(3) - batch.images).abs()).amax((1, 2, 3))
        assert (either < 0.02).all()
        batches = {name: map(prepare, endless(each)) for name, each in loaders_of(shard).items()}
        in_workers = loader(MappedBatches(shard, prepare), 2)
        batches["DataLoader, 2 workers, whole batches, ready"] = endless(in_workers)
        candidates = {name: taking(it, FEW) for name, it in {"fastgan": feeder, **batches}.items()}
        size = FEW * BATCH * SIDE * SIDE * 3
        ratio(
            "feed",
            f"memory-mapped pack, {BATCH} of {SIDE}x{SIDE}, {str(dtype).removeprefix('torch.')}, as training takes it",
            candidates,
            ours="fastgan",
            bytes=size * (1 + dtype.itemsize),
        )


def read_as(images: ImageSet, first: int) -> torch.Tensor:
    """A batch from sample number `first` on, [N, H, W, C] uint8."""
    return torch.from_numpy(images.read(image_order(0, len(images), first + np.arange(BATCH))))


def test_checksums(packed: Path, ratio, device):
    """What comparing every image with its checksum costs, in the first epoch; later ones compare nothing."""
    images = open_images(DataOptions(path=str(packed), size=SIDE))
    rows = images.fetch.rows
    free, bound = Rows(rows.pixels), Rows(rows.pixels, rows.sums, once=False)
    order, out = np.random.default_rng(0).permutation(len(images)), np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    numbers = cycle(order[: len(order) // BATCH * BATCH].reshape(-1, BATCH))
    ratio(
        "feed",
        f"gathering {BATCH} of {SIDE}x{SIDE} on one thread",
        {
            "without checksums": lambda: free.copy(next(numbers), out),
            "every image compared": lambda: bound.copy(next(numbers), out),
            "compared by zlib": lambda: [zlib.crc32(image) for image in rows.pixels[next(numbers)]],
        },
        ours="every image compared",
        bytes=2 * out.nbytes,
    )


def test_jpeg(pictures: list[str], folder: Path, ratio, device):
    target = folder / "jpeg"
    pack(PackOptions(str(Path(pictures[0]).parent), str(target), size=SIDE, format="jpeg"))
    images = open_images(DataOptions(path=str(target), size=SIDE))
    with Feeder(images, seed=0, batch=BATCH, dtype=torch.uint8) as feeder:
        assert next(feeder).images.shape == (BATCH, 3, SIDE, SIDE)
        loaders = {f"DataLoader, Pillow, {n} workers": endless(loader(Files(pictures), n)) for n in (0, 2)}
        candidates = {name: taking(it, FEW) for name, it in {"fastgan": feeder, **loaders}.items()}
        ratio("feed", f"JPEG decoded, {BATCH} of {SIDE}x{SIDE}", candidates, ours="fastgan", rounds=10)


def test_packing(pictures: list[str], folder: Path, ratio, device):
    """One thread of each: how much a core packs."""
    number = count()

    def ours() -> None:
        target = folder / f"packed-{next(number)}"
        pack(PackOptions(str(Path(pictures[0]).parent), str(target), size=SIDE, workers=1))
        shutil.rmtree(target)

    ours()
    ratio(
        "feed",
        f"packing {FILES} JPEG files of {SIDE}x{SIDE}, one core",
        {"fastgan": ours, "a loop with Pillow": lambda: decode_all(pictures, folder / "by-hand.bin")},
        ours="fastgan",
        rounds=5,
    )


OPENING = """
import os, sys, time
from pathlib import Path
from fastgan.config import resolve
from fastgan.data import DataOptions, ImageSet, open_images
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = memory()
began = time.perf_counter()
images = open_images(DataOptions(path=sys.argv[1], size=4))
seconds = time.perf_counter() - began
print(len(images), seconds, (memory() - before) / 1e6)
"""


def test_opening_ten_million(folder: Path):
    """Opening a pack of 10^7 entries: under 0.2 s and 50 MB."""
    from fastgan.data.pack_format import CHECKSUMS, INDEX, LABELS, OFFSETS, PackIndex, shard_path

    target, number, shards = folder / "huge", 10**7, 40
    target.mkdir()
    each = number // shards
    for shard in range(shards):  # sparse files: nothing of them is read
        with shard_path(target, shard).open("wb") as file:
            file.truncate(each * 100)
    np.save(target / CHECKSUMS, np.zeros(number, "<u4"))
    np.save(target / OFFSETS, np.arange(number + 1, dtype="<u8") * 100)
    np.save(target / LABELS, np.zeros(number, "<i8"))
    tables = dict.fromkeys((CHECKSUMS, OFFSETS, LABELS), "0" * 64)
    parts = tuple(Shard(each, each * 100) for _ in range(shards))
    (target / INDEX).write_bytes(PackIndex(number, 4, 3, "jpeg", parts, ("a",), tables, "", {}).to_json())
    runs = [
        subprocess.run([sys.executable, "-c", OPENING, str(target)], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    for found, seconds, megabytes in (map(float, run.split()) for run in runs):
        assert found == number
        print(f"{describe('10^7 entries', number, (4, 4, 3), 1, '')}: {seconds:.4f} s, {megabytes:.1f} MB")
    assert min(float(run.split()[1]) for run in runs) < 0.2
    assert max(float(run.split()[2]) for run in runs) < 50


def pictures_for(config: Config, count: int = 256) -> ImageSet:
    """Random images that the system of a preset can be trained on: with classes, with a second set, or alone."""

    def made(seed: int, channels: int, **more: object) -> ImageSet:
        shape = (count, config.data.size, config.data.size, channels)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        return ImageSet(f"set {seed}", shape[1], channels, count, fetch_from(pixels), "", **more)

    labels = {"labels": np.arange(count) % 10, "classes": tuple("abcdefghij")}
    channels = config.data.channels
    for images in (
        made(0, channels),
        made(0, channels, **labels),
        made(0, channels, source=made(1, channels), aligned=True),
        made(0, channels, source=made(1, channels)),
    ):
        try:
            complete = with_data(config, images)
            build_state(complete, torch.device("cpu"))
        except FastganError:
            continue
        return images
    raise AssertionError(f"{config.preset} can be trained on none of the sets")


@pytest.mark.parametrize("preset", PRESETS)
def test_waiting_for_data(preset: str, device: str):
    """The loop waits for data less than 1% of a step, in every preset. On a CPU with small batches."""
    config = resolve(preset)
    config = replace(config, batch=config.batch if device == "cuda" else 4, threads=0)
    images = pictures_for(config)
    config = with_data(config, images)
    step = new_step(config, build_state(config, torch.device(device)))
    steps = 50 if device == "cuda" else 3
    with Feeder(images, seed=0, batch=config.batch, device=device, mirror=True) as feeder:
        for _ in range(5 if device == "cuda" else 1):  # warm-up and capture
            step(feeder.__next__)
        step.read_statistics()
        waited, began = feeder.wait_seconds, time.perf_counter()
        for _ in range(steps):
            step(feeder.__next__)
        step.read_statistics()  # waits for the device
        seconds = time.perf_counter() - began
        share = (feeder.wait_seconds - waited) / seconds
    print(f"{preset}: {1000 * seconds / steps:.1f} ms a step, of which {share:.3%} waiting for data ({feeder.kind})")
    assert share < 0.01
