"""The ways to the device give the same batches to the bit; a second set comes aligned, or in an order of its own."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from data.pictures import SIZE, files, write_folder

from fastgan.contract import Batch
from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.feeder import Feeder
from fastgan.data.image_set import fetch_from
from fastgan.data.lanes import KEPT, NativeLane
from fastgan.data.order import BLOCK, Order
from fastgan.data.pack import pack
from fastgan.data.pack_format import shard_path
from fastgan.data.pack_source import PackOptions
from fastgan.data.rows import native
from fastgan.data.sampler import flips, image_order, second_seed
from fastgan.errors import FastganError


def made(count: int, seed: int = 0, channels: int = 3, **more: object) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, channels), dtype=np.uint8)
    return ImageSet(
        name=f"set {seed}", size=6, channels=channels, count=count, fetch=fetch_from(pixels), summary="", **more
    )


def take(number: int, images: ImageSet, **options: object) -> list[Batch]:
    with Feeder(images, **{"seed": 3, "batch": 8, "mirror": True, **options}) as feeder:
        return list(islice(feeder, number))


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [t for t in (batch.images, batch.labels, batch.index, batch.source) if t is not None]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = [(tensors(a), tensors(b)) for a, b in zip(first, second, strict=True)]
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    write_folder(folder / "files", files())
    for name, options in (("jpeg", {"format": "jpeg"}), ("raw", {}), ("shards", {"shard_mb": 0.006}), ("png", {})):
        source = folder / ("files" if name == "jpeg" else "jpeg")  # all have the pixels of the JPEGs
        pack(
            PackOptions(str(source), str(folder / name), size=SIZE, **({"format": "png"} if name == "png" else options))
        )
    return folder


def opened(path: Path) -> ImageSet:
    return open_images(DataOptions(path=str(path), size=SIZE, workers=2))


def in_memory(images: ImageSet) -> ImageSet:
    return replace(images, fetch=fetch_from(images.read(np.arange(len(images)))), kind="memory")


@pytest.mark.parametrize("name", ["raw", "shards", "jpeg", "png"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_every_way_gives_the_same_batches(packs: Path, name: str, dtype: torch.dtype) -> None:
    images = opened(packs / name)
    ways = [
        take(12, images, dtype=dtype, kind="host"),
        take(12, images, dtype=dtype, kind="resident"),
        take(12, in_memory(images), dtype=dtype),
        take(12, replace(images, kind="stream"), dtype=dtype),
    ]
    assert all(equal(ways[0], way) for way in ways[1:])
    for batch in ways[0]:
        assert batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert not equal(ways[0], take(12, images, dtype=dtype, mirror=False))


def test_raw_and_compressed_packs_of_the_same_pixels_agree(packs: Path) -> None:
    one, several, png = (take(9, opened(packs / name)) for name in ("raw", "shards", "png"))
    assert equal(one, several)
    assert equal(one, png)


@pytest.mark.parametrize("name", ["raw", "shards"])
@pytest.mark.parametrize(("constant", "value"), [("pack_reader.COLD", 0.0), ("lanes.SHARE_BYTES", 1000)])
def test_several_threads_gather_the_same(
    packs: Path, monkeypatch: pytest.MonkeyPatch, name: str, constant: str, value: float
) -> None:
    """As packs are read that are larger than the memory, and large batches."""
    expected = take(12, opened(packs / "raw"))
    monkeypatch.setattr(f"fastgan.data.{constant}", value)
    assert equal(take(12, opened(packs / name)), expected)


@pytest.mark.skipif(native() is None, reason="without the native part the process ends")
@pytest.mark.parametrize("name", ["raw", "shards", "jpeg"])
def test_a_shard_that_becomes_shorter_while_it_is_read(packs: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(packs / name, tmp_path / name)
    with Feeder(opened(tmp_path / name), seed=3, batch=8) as feeder:
        next(feeder)
        for path in (tmp_path / name).glob("shard-*.bin"):
            os.truncate(path, 0)
        changed, shorter = (
            r"image \d+ in shard-\d+.bin: does not match its checksum",
            r"shard-\d+.bin has become shorter",
        )
        with pytest.raises(FastganError, match=f"({changed}|{shorter}); copy it again"):
            list(islice(feeder, 200))


def test_the_way_is_named(packs: Path) -> None:
    words = {
        "raw": "memory-mapped, gathered by one thread",
        "jpeg": "decoded by a pool of threads",
    }
    for name, text in words.items():
        with Feeder(opened(packs / name), seed=0, batch=4) as feeder:
            assert feeder.description == text
            for _ in range(4):
                next(feeder)
            assert feeder.images_per_second > 0
    with Feeder(opened(packs / "raw"), seed=0, batch=4, kind="resident") as feeder:
        assert feeder.description == "resident on the device (0.0 MB)"
        assert feeder.kind == "resident"
    with pytest.raises(FastganError, match=r"data\.feeder: unknown way 'gpu'; expected one of auto, host, resident"):
        Feeder(opened(packs / "raw"), seed=0, batch=4, kind="gpu")


def test_a_changed_pixel_of_a_raw_pack_is_found_where_it_is_first_shown(packs: Path, tmp_path: Path) -> None:
    shutil.copytree(packs / "raw", tmp_path / "raw")
    shard = shard_path(tmp_path / "raw", 0)
    data = bytearray(shard.read_bytes())
    data[SIZE * SIZE * 3 * 7 + 5] ^= 4
    shard.write_bytes(data)
    at = int(np.flatnonzero(image_order(3, len(opened(packs / "raw")), np.arange(24)) == 7)[0]) // 8
    for kind in ("host", "resident"):
        with pytest.raises(FastganError, match=r"image 7 in shard-00000\.bin: does not match its checksum; copy it"):
            take(at + 1, opened(tmp_path / "raw"), kind=kind)
    assert equal(take(at, opened(tmp_path / "raw")), take(at, opened(packs / "raw")))


@pytest.mark.parametrize("source", [False, True])
def test_both_lanes_give_the_same_batches(monkeypatch: pytest.MonkeyPatch, source: bool) -> None:
    """Two native threads, one, and the thread of Python; with labels, a second set, and blocks of the order."""
    if native() is None:
        pytest.skip("no native part")
    labelled = made(50, labels=np.arange(50) % 7, classes=tuple("abcdefg"), block=16)
    more = {"source": made(41, seed=1, channels=1)} if source else {}
    found = {}
    for name, share in (("two", 1), ("one", 1 << 40)):
        monkeypatch.setattr("fastgan.data.lanes.SHARE_BYTES", share)
        found[name] = take(30, labelled, dtype=torch.bfloat16, first_sample=16, **more)
        with Feeder(labelled, seed=3, batch=8) as feeder:
            assert isinstance(feeder._lane, NativeLane)
            assert feeder._lane.threads == {"two": min(2, DataOptions().threads), "one": 1}[name]
    monkeypatch.setattr("fastgan.data.lanes.native", lambda: None)
    found["Python"] = take(30, labelled, dtype=torch.bfloat16, first_sample=16, **more)
    assert equal(found["one"], found["Python"])
    assert equal(found["two"], found["Python"])


def test_a_label_that_is_no_class_is_said() -> None:
    bad = made(20, labels=np.where(np.arange(20) == 13, 7, 0), classes=("a", "b"))
    with pytest.raises(FastganError, match=r"set 0: damaged labels: expected 0 to 1, got 7 to 7"):
        take(3, bad)


@pytest.mark.parametrize("kind", ["host", "resident"])
def test_pairs_share_their_number_and_their_flip(kind: str) -> None:
    images, source = made(20), made(20, seed=1, channels=1)
    for number, batch in enumerate(take(7, images, source=source, aligned=True, kind=kind)):
        samples = np.arange(8 * number, 8 * number + 8)
        order, flipped = image_order(3, 20, samples), flips(3, samples)
        for given, found in ((images, batch.images), (source, batch.source)):
            pixels = given.read(order)
            pixels[flipped] = pixels[flipped][:, :, ::-1]
            assert torch.equal(found, (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5)
        assert batch.source.shape == (8, 1, 6, 6)


@pytest.mark.parametrize("kind", ["host", "resident"])
def test_independent_sets_have_orders_of_their_own(kind: str) -> None:
    images, source = made(20), made(13, seed=1)
    batches = take(7, images, source=source, kind=kind)
    alone = take(7, images)
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, alone, strict=True))
    samples, second = np.arange(56), second_seed(3)
    pixels = source.read(image_order(second, 13, samples))
    flipped = flips(second, samples)
    pixels[flipped] = pixels[flipped][:, :, ::-1]
    found = torch.cat([batch.source for batch in batches])
    assert torch.equal(found, (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5)
    assert (flipped != flips(3, samples)).any()


def test_a_set_may_bring_its_second_set_along() -> None:
    source = made(20, seed=1)
    for aligned in (False, True):
        paired = replace(made(20), source=source, aligned=aligned)
        assert equal(take(5, paired), take(5, made(20), source=source, aligned=aligned))


@pytest.mark.parametrize("aligned", [False, True])
def test_ranks_and_resumes_see_the_same_pairs(aligned: bool) -> None:
    images, source = made(20), made(20, seed=1)
    whole = take(8, images, source=source, aligned=aligned)
    assert equal(whole[3:], take(5, images, source=source, aligned=aligned, first_sample=24))
    ranks = [take(8, images, source=source, aligned=aligned, batch=4, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.source, torch.cat([part.source for part in parts]))


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(FastganError, match="pairs: set 0 has 20 images, but set 1 has 19"):
        Feeder(made(20), seed=0, batch=4, source=made(19, seed=1), aligned=True)
    first, second = made(20, names_sha256="a" * 64), made(20, seed=1, names_sha256="b" * 64)
    with pytest.raises(FastganError, match="pairs: images in set 0 and in set 1 have different names"):
        Feeder(first, seed=0, batch=4, source=second, aligned=True)
    with pytest.raises(FastganError, match="batch 16 is larger than the 13 images in set 1: use --batch 13"):
        Feeder(first, seed=0, batch=16, source=made(13, seed=1))


def test_pairs_of_folders_and_of_packs(tmp_path: Path) -> None:
    photos, sketches = write_folder(tmp_path / "a", files()), write_folder(tmp_path / "b", files())
    (sketches / "cat" / "001.jpg").rename(sketches / "cat" / "001.jpeg")  # endings do not matter
    both = opened(photos), opened(sketches)
    assert both[0].names_sha256 == both[1].names_sha256
    (sketches / "cat" / "001.jpeg").rename(sketches / "cat" / "900.jpg")
    assert opened(sketches).names_sha256 != both[0].names_sha256
    for name in ("a", "b"):
        pack(PackOptions(str(tmp_path / name), str(tmp_path / f"{name}-pack"), size=SIZE))
    with pytest.raises(FastganError, match="pack both or none, with the same seed"):
        Feeder(opened(tmp_path / "a-pack"), seed=0, batch=4, source=opened(tmp_path / "b-pack"), aligned=True)


def test_memory_is_used_again_but_never_while_somebody_has_it() -> None:
    with Feeder(made(40), seed=3, batch=8) as feeder:
        kept = [next(feeder) for _ in range(15)]  # more than there are buffers
        copies = [batch.images.clone() for batch in kept]
        views = [batch.images[2:3, :, ::2] for batch in kept[:4]]
        del kept[:4]
        for _ in range(40):
            next(feeder)
        assert all(map(torch.equal, views, [copy[2:3, :, ::2] for copy in copies[:4]]))
        assert all(map(torch.equal, [batch.images for batch in kept], copies[4:]))
        del kept, views, copies
        places = {next(feeder).images.data_ptr() for _ in range(60)}
        assert len(places) <= KEPT


def test_blocks_of_the_order_do_not_show() -> None:
    for batch in (1, 3, 64, BLOCK + 1):
        order = Order(seed=5, count=10_007, batch=batch, stride=2 * batch, mirror=True, source=50)
        picks = list(islice(order.picks(batch), 2 * BLOCK // batch + 3))
        steps = batch + 2 * batch * np.arange(len(picks))
        samples = (steps[:, None] + np.arange(batch)).reshape(-1)
        assert (np.concatenate([pick.images for pick in picks]) == image_order(5, 10_007, samples)).all()
        assert (np.concatenate([pick.flipped for pick in picks]) == flips(5, samples)).all()
        second = image_order(second_seed(5), 50, samples)
        assert (np.concatenate([pick.source for pick in picks]) == second).all()


@pytest.mark.gpu
def test_every_way_on_a_gpu_gives_what_the_cpu_gives(packs: Path) -> None:
    for name in ("raw", "jpeg"):
        images, source = opened(packs / name), opened(packs / "raw")
        here = take(40, images, source=source)
        for kind in ("host", "resident", "auto"):
            there = take(40, images, source=source, kind=kind, device="cuda")
            on_host = [Batch(b.images.cpu(), b.labels.cpu(), b.index.cpu(), b.source.cpu()) for b in there]
            assert equal(on_host, here)
