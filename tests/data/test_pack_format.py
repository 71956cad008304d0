"""A pack from outside is believed in nothing: whatever is wrong with it ends in one line, not in a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.pictures import SIZE, files, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.data import DataOptions, open_images
from fastgan.data.pack import pack
from fastgan.data.pack_format import CHECKSUMS, INDEX, LABELS, OFFSETS, PackIndex, Shard, is_pack, shard_path
from fastgan.data.pack_reader import verify_pack
from fastgan.data.pack_source import PackOptions
from fastgan.errors import FastganError

OPTIONS = {"size": SIZE, "workers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    source = write_folder(folder / "source", files(8))
    for kind in ("raw", "jpeg"):
        pack(PackOptions(str(source), str(folder / kind), format=kind, shard_mb=0.004, **OPTIONS))
    return folder


@pytest.fixture(params=["raw", "jpeg"])
def target(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return Path(shutil.copytree(made / request.param, tmp_path / "pack"))


def use(folder: Path) -> str:
    """Opens a pack and reads all of it; returns the one line that it ends in, or ""."""
    try:
        images = open_images(DataOptions(path=str(folder), **OPTIONS))
        pixels = images.read(np.arange(len(images)))
        assert pixels.shape == (len(images), SIZE, SIZE, 3)
        if images.labels is not None:
            images.labels_of(np.arange(len(images)), np.empty(len(images), np.int64))
    except FastganError as error:
        line = str(error)
    else:
        return ""
    assert "\n" not in line
    assert str(folder) in line
    return line


def change(folder: Path, **fields: object) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    (folder / INDEX).write_text(json.dumps(index | fields))


def test_a_good_pack_is_read(target: Path) -> None:
    assert is_pack(target)
    assert use(target) == ""
    assert not is_pack(target / "nowhere")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 2}, "format version 2, but this fastgan reads version 1"),
        ({"count": 9}, "shards: expected 9 images in all, got '8'"),
        ({"count": 10**13}, "count: expected a number from 2 to"),
        ({"count": True}, "count: expected a number"),
        ({"size": -1}, "size: expected a number from 4 to 4,096, got '-1'"),
        ({"size": "16"}, "size: expected a number"),
        ({"channels": 2}, "channels: expected 1 or 3"),
        ({"encoding": "pickle"}, "encoding: expected"),
        ({"shards": []}, "shards: expected 8 images"),
        ({"shards": [{"images": 8, "bytes": -4}]}, "bytes: expected a number"),
        ({"shards": "many"}, "shards: expected a list"),
        ({"classes": [1, 2]}, "classes: expected names"),
        ({"classes": []}, "tables: expected the SHA-256"),
        ({"tables": {"../../etc/passwd": "0" * 64}}, "tables: expected the SHA-256"),
        ({"tables": None}, "tables: expected an object"),
        ({"order": "x"}, "order: expected text"),
        ({"about": []}, "about: expected an object"),
    ],
)
def test_fields_that_make_no_sense(target: Path, fields: dict, words: str) -> None:
    change(target, **fields)
    assert words in use(target)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncated, empty, missing, a_folder])
@pytest.mark.parametrize("name", ["shard-00000.bin", LABELS, CHECKSUMS, OFFSETS, INDEX])
def test_files_that_are_damaged(target: Path, name: str, damage: Callable[[Path], None]) -> None:
    if not (target / name).exists():
        return
    damage(target / name)
    if name == INDEX:
        with pytest.raises(FastganError, match=r"index\.json"):
            verify_pack(target, 1)
        return
    assert name in use(target)


def test_tables_of_another_kind(target: Path) -> None:
    labels = np.load(target / LABELS)
    for table in (labels.astype(np.int32), labels[:-1], labels[None], labels.astype(float), labels.astype(">i8")):
        np.save(target / LABELS, table)
        assert "labels.npy is damaged: expected int64 (8,)" in use(target)
    np.save(target / LABELS, np.array([print] * 8, object), allow_pickle=True)
    assert "labels.npy is damaged" in use(target)
    (target / LABELS).write_bytes(b"\x93NUMPY\x01\x00" + b"\xff\x1f" + b"(" * 8191)
    assert "labels.npy is damaged" in use(target)


@pytest.mark.parametrize("place", [1, 5, 8])
@pytest.mark.parametrize("value", [0, 3, 10**6, 2**63, 2**64 - 1])
def test_offsets_that_point_elsewhere(made: Path, tmp_path: Path, place: int, value: int) -> None:
    target = Path(shutil.copytree(made / "jpeg", tmp_path / "pack"))
    offsets = np.load(target / OFFSETS)
    offsets[place] = value
    np.save(target / OFFSETS, offsets)
    assert "damaged offsets.npy" in use(target) or "does not match its checksum" in use(target)
    assert any("offsets.npy" in line for line in verify_pack(target, 1)[0])


def test_an_image_that_does_not_match_its_checksum_is_named(made: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(made / "jpeg", tmp_path / "pack"))
    data = bytearray(shard_path(target, 0).read_bytes())
    data[len(data) // 2] ^= 1
    shard_path(target, 0).write_bytes(data)
    assert "in shard-00000.bin: does not match its checksum; copy it again, or pack again" in use(target)
    assert len(verify_pack(target, 2)[0]) == 1


def test_another_size_than_wanted(target: Path) -> None:
    for options in ({"size": 32}, {"size": SIZE, "channels": 1}):
        with pytest.raises(FastganError, match=r"holds images of 16x16x3, but .* is wanted: pack again with --size"):
            open_images(DataOptions(path=str(target), **options))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes_never_crash_the_reader(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["raw", "jpeg"]))
    target = tmp_path / "fuzzed"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(made / kind, target)
    path = target / data.draw(st.sampled_from(sorted(p.name for p in target.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    if is_pack(target):
        use(target)


def test_ten_million_entries_open_without_being_read(tmp_path: Path) -> None:
    import subprocess
    import sys

    count, shards = 10**7, 20
    for number in range(shards):  # sparse: no blocks on the disk
        with shard_path(tmp_path, number).open("wb") as file:
            file.truncate(count // shards * 100)
    sizes = {CHECKSUMS: ("<u4", count), OFFSETS: ("<u8", count + 1), LABELS: ("<i8", count)}
    for name, (kind, length) in sizes.items():
        np.lib.format.open_memmap(tmp_path / name, "w+", kind, (length,))
    parts = tuple(Shard(count // shards, count // shards * 100) for _ in range(shards))
    index = PackIndex(count, SIZE, 3, "jpeg", parts, ("a",), dict.fromkeys(sizes, "0" * 64), "", {})
    (tmp_path / INDEX).write_bytes(index.to_json())
    code = f"""
import os, time
from fastgan.data import DataOptions, open_images
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, began = memory(), time.process_time()
images = open_images(DataOptions(path={str(tmp_path)!r}, size={SIZE}))
assert len(images) == 10**7
assert time.process_time() - began < 0.2
assert memory() - before < 50e6
"""
    subprocess.run([sys.executable, "-c", code], check=True)
