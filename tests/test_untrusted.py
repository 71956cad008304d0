"""What comes from elsewhere and lies: archives, headers, and random bytes in packs and checkpoints.

Nothing crashes: a FastganError or a good result. Nothing is written outside of the target, and memory stays small.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import resource
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data import DataOptions
from fastgan.data.pack import pack
from fastgan.data.pack_reader import open_pack, verify_pack
from fastgan.data.pack_source import PackOptions
from fastgan.errors import FastganError
from fastgan.run import checkpoint
from fastgan.run.checkpoint import load, load_latest, seal, unseal

MOST_MB = 300  # that all of this may add to the peak memory of the process


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB


def png(size: int = 16, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def lying_png(width: int, height: int) -> bytes:
    """A PNG whose header says another size, with a good checksum."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def deflated_bomb() -> bytes:
    """A PNG of 5000 x 5000, all black: 75 MB of pixels in a few kB."""
    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "png")
    return file.getvalue()


# ---- archives


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "9.png"), (tarfile.LNKTYPE, "8.png")):
            if link:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, link
                archive.addfile(info)
    return path


GOOD = {f"{number}.png": png(seed=number) for number in range(4)}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../escaped.png", "/escaped.png", "a/../../escaped.png"])
def test_members_that_point_outside_are_refused(name: str, make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(tmp_path / f"source.{make.__name__[-3:]}", {**GOOD, name: png()})
    with pytest.raises(FastganError, match="escaped"):
        pack(PackOptions(str(source), str(tmp_path / "in" / "pack"), size=16, workers=1))
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/escaped.png").exists()


def test_links_in_tars_are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(seed=99))
    source = make_tar(tmp_path / "source.tar", GOOD, link=str(secret))
    with pytest.raises(FastganError, match=r"is a link"):
        pack(PackOptions(str(source), str(tmp_path / "pack"), size=16, workers=1))


def test_bombs_and_lying_headers_are_rejected_before_they_are_decoded(tmp_path: Path) -> None:
    bad = {
        "bomb.png": deflated_bomb(),
        "lies.png": lying_png(60000, 60000),
        "half.png": lying_png(32, 32),
        "negative.png": lying_png(2**31 + 5, 16),
        "text.png": b"not an image",
        "long.png": bytes(3 << 20),
    }
    good = {f"{number:03}.png": png(seed=number) for number in range(60)}
    for make in (make_zip, make_tar):
        source = make(tmp_path / f"source.{make.__name__[-3:]}", {**good, **bad})
        target = tmp_path / make.__name__
        options = {"size": 16, "max_bad": 0.2, "workers": 1, "max_megapixels": 16.0}
        packed, index = pack(PackOptions(str(source), str(target), **options))  # type: ignore[arg-type]
        rejected = {json.loads(line)["name"] for line in (target / "rejected.jsonl").read_text().splitlines()}
        assert {Path(name).name for name in rejected} == set(bad)
        assert (packed.rejected, index.count) == (len(bad), len(good))


# ---- random bytes


def mutate(data: bytes, chance: random.Random, most: int = 600) -> bytes:
    """Random bytes in random places; sometimes pieces cut out, doubled or put in front."""
    changed = bytearray(data)
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(changed[: chance.randrange(len(changed) + 1)])
    if kind == 1:
        at = chance.randrange(len(changed) + 1)
        changed[at:at] = chance.randbytes(chance.randrange(most))
    for _ in range(chance.choice((1, 4, most)) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """Another value at a random place of a JSON text: so that more than the parser sees it."""
    value = json.loads(data)
    strange = [
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e308,
        "",
        "../../x",
        "\0",
        [],
        {},
        [[]],
        {"a": 1},
        "1" * 5000,
        float("nan"),
    ]

    def change(node: object, depth: int = 0) -> object:
        if isinstance(node, dict) and node and chance.random() < 0.9:
            key = chance.choice(list(node))
            return {**node, key: change(node[key], depth + 1)}
        if isinstance(node, list) and node and chance.random() < 0.9:
            at = chance.randrange(len(node))
            return [*node[:at], change(node[at], depth + 1), *node[at + 1 :]]
        return chance.choice(strange)

    return json.dumps(change(value)).encode()


def one_line(error: FastganError) -> int:
    """1, for an error that is a line."""
    assert "\n" not in str(error)
    return 1


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("packs")
    for number in range(6):
        (base / f"files/{number % 2}").mkdir(parents=True, exist_ok=True)
        (base / f"files/{number % 2}/{number}.png").write_bytes(png(8, number))
    for kind in ("raw", "jpeg", "png"):
        pack(PackOptions(str(base / "files"), str(base / kind), size=8, format=kind, shard_mb=0.0005, workers=1))
    return {kind: base / kind for kind in ("raw", "jpeg", "png")}


def fuzz_packs(packs: dict[str, Path], folder: Path, seed: int, examples: int) -> tuple[int, int]:
    """How many of the packs could be read, and how many could not; every image of each is asked for.

    One in ten stays as it is: hardly any change is harmless, and how many are depends on the paths in the index.
    """
    chance, good, refused = random.Random(seed), 0, 0
    for number in range(examples):
        kind = chance.choice(list(packs))
        target = folder / "pack"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(packs[kind], target)
        path = chance.choice([p for p in sorted(target.iterdir()) if p.stat().st_size])
        data = path.read_bytes()
        if number % 10:
            of_json = path.suffix == ".json" and chance.random() < 0.7
            path.write_bytes(mutate_json(data, chance) if of_json else mutate(data, chance))
        try:
            images = open_pack(target, DataOptions(path=str(target), size=8, workers=1))
            made = images.read(np.arange(len(images)))
            assert made.shape == (len(images), 8, 8, 3)
            assert images.labels is None or len(images.labels) == len(images)
            verify_pack(target, threads=1)
            good += 1
        except FastganError as error:
            refused += one_line(error)
    return good, refused


def saved(folder: Path) -> Path:
    import torch

    tensors = {
        "generator": {"a": torch.arange(60.0).reshape(3, 20), "b": torch.tensor(3)},
        "counters": {"c": torch.ones(2)},
    }
    return checkpoint.save(folder, "step-1", tensors, {"counters": {"step": 1}, "config": {"system": {}}}, keep=1)


def fuzz_checkpoints(folder: Path, seed: int, examples: int) -> tuple[int, int]:
    """As fuzz_packs. Half of the files are sealed again, so that what reads them sees the random bytes."""
    chance, good, refused = random.Random(seed), 0, 0
    path = saved(folder)
    originals = {p.name: p.read_bytes() for p in path.iterdir()}
    latest = (folder / "latest.json").read_bytes()
    for _ in range(examples):
        for name, data in originals.items():
            (path / name).write_bytes(data)
        (folder / "latest.json").write_bytes(latest)
        name = chance.choice([*originals, "latest.json", "sealed"])
        if name == "latest.json":
            (folder / name).write_bytes(mutate(latest, chance))
        elif name == "sealed":
            head = json.dumps(unseal(path / "state.json")).encode()
            changed = mutate_json(head, chance) if chance.random() < 0.8 else mutate(head, chance)
            (path / "state.json").write_bytes(seal(changed.decode(errors="replace")))
        else:
            data = mutate(originals[name], chance)
            (path / name).write_bytes(data)
            if name != "state.json" and chance.random() < 0.7:
                head = unseal(path / "state.json")
                head["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                (path / "state.json").write_bytes(seal(json.dumps(head)))
        for read in (lambda: load(path), lambda: load_latest(folder, lambda line: None)):
            try:
                read()
                good += 1
            except FastganError as error:
                refused += one_line(error)
        with contextlib.suppress(FastganError):
            checkpoint.read_tensors(path / "generator.safetensors")
    return good, refused


def test_random_bytes_in_a_pack(packs: dict[str, Path], tmp_path: Path) -> None:
    good, refused = fuzz_packs(packs, tmp_path, seed=0, examples=120)
    assert refused > 60
    assert good >= 12
    assert {p.name for p in tmp_path.iterdir()} == {"pack"}


def test_random_bytes_in_a_checkpoint(tmp_path: Path) -> None:
    good, refused = fuzz_checkpoints(tmp_path / "run", seed=0, examples=150)
    assert refused > 100
    assert good > 0
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_million_random_bytes(seed: int, packs: dict[str, Path], tmp_path: Path) -> None:
    """Each example changes about 150 bytes on average: a million in each reader, over all seeds."""
    before = tree(next(iter(packs.values())).parent)
    good, refused = fuzz_packs(packs, tmp_path, seed, examples=1800)
    assert good + refused == 1800
    good, refused = fuzz_checkpoints(tmp_path / "run", seed, examples=1800)
    assert good + refused == 3600
    assert tree(next(iter(packs.values())).parent) == before
