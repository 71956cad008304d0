"""The files of a pack, and what is checked before any of it is believed.

    index.json        what the pack holds (PackIndex), and the SHA-256 of each table; written last
    shard-00000.bin   images one after another: [size, size, channels] uint8 each, or JPEG or PNG files
    checksums.npy     [count] uint32: CRC-32 of each image's bytes
    offsets.npy       [count + 1] uint64, where images are JPEG or PNG: where each begins if the shards are put together
    labels.npy        [count] int64, where the images have classes
    rejected.jsonl    {"name", "number", "reason"} of every file that could not be used

Images are in the order of a permutation, so that a piece of a pack is a sample of all. Tables are mapped, not read:
opening costs the same for ten images and for ten million. So what a table says is checked when it is used, against
sizes that were checked at the opening; all of it at once is checked by `fastgan pack --verify`. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgan.data.files import printable
from fastgan.data.labels import MAX_CLASSES
from fastgan.data.sampler import MAX_COUNT
from fastgan.errors import FastganError

INDEX, CHECKSUMS, OFFSETS, LABELS, REJECTED = (
    "index.json",
    "checksums.npy",
    "offsets.npy",
    "labels.npy",
    "rejected.jsonl",
)
FORMAT, VERSION = "fastgan-pack", 1
ENCODINGS = ("raw", "jpeg", "png")
TABLES: dict[str, Any] = {CHECKSUMS: np.dtype("<u4"), OFFSETS: np.dtype("<u8"), LABELS: np.dtype("<i8")}
MOST_INDEX_BYTES = 64 << 20
MOST_SHARDS = 1_000_000
AGAIN = "copy it again, or pack again"


@dataclass(frozen=True)
class Shard:
    """How many images a shard has, and how many bytes."""

    images: int
    bytes: int


@dataclass(frozen=True)
class PackIndex:
    """index.json. tables: file name -> SHA-256; order: ImageSet.names_sha256; about: how it was made, for people."""

    count: int
    size: int
    channels: int
    encoding: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    tables: dict[str, str]
    order: str
    about: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.size, self.size, self.channels

    @property
    def image_bytes(self) -> int:
        """Bytes of one image, decoded."""
        return prod(self.shape)

    @property
    def most_bytes(self) -> int:
        """No image takes more in its shard, however badly it compresses."""
        return 2 * self.image_bytes + 65536

    def lengths(self) -> dict[str, int]:
        """Entries of each table that the pack has."""
        return {name: self.count + (name == OFFSETS) for name in self.tables}

    def to_json(self) -> bytes:
        """The bytes of index.json; the format comes first, where `is_pack` looks."""
        fields = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(fields, indent=1).encode()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.bin"


def is_pack(folder: Path) -> bool:
    """Whether `folder` says that it is a pack, good or not."""
    try:
        with (folder / INDEX).open("rb") as file:
            start = file.read(200)
    except OSError:
        return False
    return f'"{FORMAT}"'.encode() in start


def read_index(folder: Path) -> PackIndex:
    """index.json, every field checked, and the sizes of all files that it names.

    Raises FastganError that names the pack, the file, what was expected and what came.
    """
    name = printable(str(folder))
    try:
        with (folder / INDEX).open("rb") as file:
            data = file.read(MOST_INDEX_BYTES + 1)
    except OSError as error:
        raise FastganError(f"pack {name}: {INDEX}: {error.strerror}; {AGAIN}") from error
    try:
        if len(data) > MOST_INDEX_BYTES:
            raise ValueError("too long")
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise FastganError(f"pack {name}: {INDEX} is damaged ({type(error).__name__}); {AGAIN}") from error
    if fields.get("format") != FORMAT:
        raise FastganError(f"pack {name}: {INDEX} is not that of a pack; give a folder that fastgan pack made")
    if fields.get("version") != VERSION:
        raise FastganError(
            f"pack {name}: format version {str(fields.get('version'))[:20]}, but this fastgan reads version {VERSION}; "
            "pack again, or install the fastgan that made it"
        )
    index = _index(_Fields(name, fields))
    _check_files(folder, name, index)
    return index


@dataclass(frozen=True)
class _Fields:
    """A JSON object from outside: every value is checked on its way out."""

    pack: str
    values: dict[str, Any]

    def integer(self, key: str, least: int, most: int) -> int:
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(key, f"a number from {least:,} to {most:,}", value)
        return value

    def text(self, key: str, pattern: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.bad(key, f"text like {pattern}", value)
        return value

    def list(self, key: str, most: int) -> list[Any]:
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) > most:
            raise self.bad(key, f"a list of at most {most:,}", value)
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.bad(key, "an object", value)
        return value

    def bad(self, key: str, expected: str, value: object) -> FastganError:
        return FastganError(
            f"pack {self.pack}: {INDEX} is damaged: {key}: expected {expected}, got {str(value)[:60]!r}; {AGAIN}"
        )


def _index(fields: _Fields) -> PackIndex:
    count = fields.integer("count", 2, MAX_COUNT)
    channels = fields.integer("channels", 1, 3)
    if channels == 2:
        raise fields.bad("channels", "1 or 3", channels)
    classes = fields.list("classes", MAX_CLASSES)
    if not all(isinstance(name, str) and len(name) <= 1000 for name in classes):
        raise fields.bad("classes", "names", classes)
    index = PackIndex(
        count=count,
        size=fields.integer("size", 4, 4096),
        channels=channels,
        encoding=fields.text("encoding", "|".join(ENCODINGS)),
        shards=tuple(_shard(fields, shard) for shard in fields.list("shards", MOST_SHARDS)),
        classes=tuple(classes),
        tables=fields.table("tables"),
        order=fields.text("order", "[0-9a-f]{64}|"),
        about=fields.table("about"),
    )
    needed = {CHECKSUMS} | ({OFFSETS} if index.encoding != "raw" else set()) | ({LABELS} if classes else set())
    if index.tables.keys() != needed or not all(
        isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in index.tables.values()
    ):
        raise fields.bad("tables", f"the SHA-256 of {' and '.join(sorted(needed))}", index.tables)
    if sum(shard.images for shard in index.shards) != count:
        raise fields.bad("shards", f"{count:,} images in all", sum(shard.images for shard in index.shards))
    for number, shard in enumerate(index.shards):
        if index.encoding == "raw" and shard.bytes != shard.images * index.image_bytes:
            raise fields.bad(f"shards[{number}].bytes", f"{shard.images * index.image_bytes:,}", shard.bytes)
    return index


def _shard(fields: _Fields, value: Any) -> Shard:
    shard = _Fields(fields.pack, value if isinstance(value, dict) else {})
    return Shard(shard.integer("images", 1, MAX_COUNT), shard.integer("bytes", 1, 2**50))


def _check_files(folder: Path, name: str, index: PackIndex) -> None:
    """That every shard is there and as long as the index says."""
    for number, shard in enumerate(index.shards):
        path = shard_path(folder, number)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise FastganError(f"pack {name}: {path.name}: {error.strerror}; {AGAIN}") from error
        if size != shard.bytes:
            raise FastganError(
                f"pack {name}: {path.name} is damaged: expected {shard.bytes:,} bytes, got {size:,}; {AGAIN}"
            )


def map_table(folder: Path, index: PackIndex, table: str) -> NDArray[Any]:
    """A table of the pack, mapped: its type and length are as the index says, its values are not looked at."""
    dtype, length = TABLES[table], index.lengths()[table]
    try:
        mapped = np.load(folder / table, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "is damaged"
        raise FastganError(f"pack {printable(str(folder))}: {table}: {reason}; {AGAIN}") from error
    except Exception as error:  # NumPy evaluates a header with Python's parser, which raises nearly anything
        raise FastganError(f"pack {printable(str(folder))}: {table} is damaged; {AGAIN}") from error
    if not isinstance(mapped, np.memmap) or mapped.dtype != dtype or mapped.shape != (length,):
        got = f"{getattr(mapped, 'dtype', type(mapped).__name__)} {getattr(mapped, 'shape', '')}"
        raise FastganError(
            f"pack {printable(str(folder))}: {table} is damaged: expected {dtype} ({length},), got {got[:60]}; {AGAIN}"
        )
    return mapped.view(np.ndarray)
