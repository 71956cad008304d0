"""A pack as an ImageSet: raw images straight from the mapped shards, JPEG and PNG by a pool of threads."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastgan.data.decode import BadImage, decode, open_image
from fastgan.data.files import printable
from fastgan.data.folder import shares
from fastgan.data.image_set import FromRows, ImageSet, Indices, Pixels, describe
from fastgan.data.jpeg import decode_jpeg, jpeg_header
from fastgan.data.mapping import can_be_joined, map_joined
from fastgan.data.options import DataOptions
from fastgan.data.pack_format import (
    AGAIN,
    CHECKSUMS,
    LABELS,
    OFFSETS,
    REJECTED,
    PackIndex,
    map_table,
    read_index,
    shard_path,
)
from fastgan.data.rows import Rows, crc32
from fastgan.errors import FastganError

VERIFIED_AT_ONCE = 4096  # images
MOST_REJECTED, MOST_REJECTED_BYTES = 100, 1 << 20
COLD = 0.5  # a pack larger than this part of the memory is read at random from the disk, not from the page cache
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Pack:
    """An open pack. first: [shards + 1] number of the first image of each shard; base: [shards + 1] its first byte.

    Shards are opened when they are first read: mapped for raw images; JPEG and PNG are read, so that a file which
    becomes shorter meanwhile is an error and not the end of the process.
    """

    folder: Path
    index: PackIndex
    first: Indices
    base: Indices
    checksums: NDArray[np.uint32]
    offsets: NDArray[np.uint64] | None
    labels: Indices | None
    files: dict[int, io.FileIO] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return printable(str(self.folder))

    def where(self, image: int) -> str:
        shard = int(np.searchsorted(self.first, image, side="right")) - 1
        return f"pack {self.name}: image {image} in {shard_path(self.folder, shard).name}"

    def file(self, shard: int) -> io.FileIO:
        """A shard, of the length that the index says. Raises FastganError."""
        if shard not in self.files:
            path = shard_path(self.folder, shard)
            try:
                file = io.FileIO(path)
                length = os.fstat(file.fileno()).st_size
            except OSError as error:
                raise FastganError(f"pack {self.name}: {path.name}: {error.strerror}; {AGAIN}") from error
            if length < self.index.shards[shard].bytes:
                raise FastganError(f"pack {self.name}: {path.name} has become shorter; {AGAIN}")
            if self.cold and hasattr(os, "posix_fadvise"):  # the neighbours of an image are not asked for
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self.files[shard] = file
        return self.files[shard]

    def map(self, shard: int) -> mmap.mmap:
        """The bytes of a shard. Raises FastganError."""
        mapped = mmap.mmap(self.file(shard).fileno(), self.index.shards[shard].bytes, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise") and self.cold:
            mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead
        return mapped

    def compared(self, image: int, shard: int, start: int, end: int) -> tuple[bytes, str]:
        """Bytes start to end - 1 of a shard, those of `image`, and what is wrong with them: "" for nothing."""
        try:
            data = os.pread(self.file(shard).fileno(), end - start, start)
        except OSError as error:
            return b"", error.strerror or str(error)
        return data, "" if crc32(data) == int(self.checksums[image]) else "does not match its checksum"

    @property
    def cold(self) -> bool:
        """Whether images come from the disk, since the pack is too large to stay in memory."""
        return bool(self.base[-1] > COLD * memory_bytes())

    def rows(self) -> list[Rows]:
        """The images of a raw pack: of all shards in one where they can be mapped so, else of each shard."""
        joined, shards = self._joined(), range(len(self.index.shards))
        parts = [np.frombuffer(self.map(i), np.uint8) for i in shards] if joined is None else [joined]
        made, start = [], 0
        for part in parts:
            pixels = part.reshape(-1, *self.index.shape)
            sums = self.checksums[start : start + len(pixels)]
            made.append(Rows(pixels, sums, once=not self.cold, name=functools.partial(self._where_after, start)))
            start += len(pixels)
        return made

    def _where_after(self, start: int, image: int) -> str:
        return self.where(start + image)

    def _joined(self) -> Pixels | None:
        """The bytes of all shards as one array, where that can be done."""
        sizes = [shard.bytes for shard in self.index.shards]
        if len(sizes) == 1:
            return np.frombuffer(self.map(0), np.uint8)
        if not can_be_joined(sizes):
            return None
        try:
            return map_joined([shard_path(self.folder, i) for i in range(len(sizes))], sizes, at_random=self.cold)
        except OSError as error:
            name = Path(error.filename or "").name
            raise FastganError(f"pack {self.name}: {name}: {error.strerror}; {AGAIN}") from error

    def encoded(self, image: int) -> bytes:
        """A JPEG or PNG image. Raises FastganError for a changed one, or where the table points anywhere else."""
        assert self.offsets is not None
        shard = int(np.searchsorted(self.first, image, side="right")) - 1
        start, end = int(self.offsets[image]), int(self.offsets[image + 1])
        least, most = int(self.base[shard]), int(self.base[shard + 1])
        if not least <= start < end <= most or end - start > self.index.most_bytes:
            raise FastganError(
                f"{self.where(image)}: damaged {OFFSETS}: expected a piece of bytes {least} to {most}, "
                f"got {start} to {end}; {AGAIN}"
            )
        data, wrong = self.compared(image, shard, start - least, end - least)
        if wrong:
            raise FastganError(f"{self.where(image)}: {wrong}; {AGAIN}")
        return data

    def decode_into(self, image: int, out: Pixels) -> None:
        """A JPEG or PNG image into `out` [size, size, channels]. Raises FastganError for a damaged one."""
        data = self.encoded(image)
        header = jpeg_header(data) if self.index.encoding == "jpeg" else None
        fits = header is not None and header[:2] == (self.index.size, self.index.size)
        if fits and decode_jpeg(data, grey=self.index.channels == 1, out=out) is not None:
            return
        try:
            out[:] = decode_exactly(data, self.index)
        except BadImage as error:
            raise FastganError(f"{self.where(image)}: {error}; {AGAIN}") from error


def decode_exactly(data: bytes, index: PackIndex) -> Pixels:
    """[size, size, channels] of a file that has this size already; raises BadImage for another."""
    limits = DataOptions(size=index.size, channels=index.channels, crop="none", min_side=1)
    width, height = open_image(io.BytesIO(data), limits).size
    if (width, height) != (index.size, index.size):
        raise BadImage(f"is {width}x{height}, not {index.size}x{index.size}")
    return decode(io.BytesIO(data), limits, full=True)[0]


def open_pack_files(folder: Path) -> Pack:
    """Checks index.json and the sizes of all files, and maps the tables."""
    index = read_index(folder)
    first = np.cumsum([0, *(shard.images for shard in index.shards)], dtype=np.int64)
    base = np.cumsum([0, *(shard.bytes for shard in index.shards)], dtype=np.int64)
    tables = {name: map_table(folder, index, name) for name in index.tables}
    return Pack(folder, index, first, base, tables[CHECKSUMS], tables.get(OFFSETS), tables.get(LABELS))


def open_pack(folder: Path, options: DataOptions) -> ImageSet:
    """The images of a pack. Raises FastganError for a damaged pack, and for another size than `options` want."""
    pack = open_pack_files(folder)
    index = pack.index
    if index.shape != options.shape:
        got, wanted = ("x".join(map(str, shape)) for shape in (index.shape, options.shape))
        raise FastganError(
            f"pack {pack.name} holds images of {got}, but {wanted} is wanted: pack again with "
            f"--size {options.size}, or set data.size={index.size} and data.channels={index.channels}"
        )
    raw, size = index.encoding == "raw", int(pack.base[-1])
    shards = f"{len(index.shards)} shard" + "s" * (len(index.shards) > 1)
    rejected = index.about.get("rejected", 0)
    rejected = rejected if isinstance(rejected, int) else 0
    return ImageSet(
        name=pack.name,
        size=index.size,
        channels=index.channels,
        count=index.count,
        fetch=_gatherer(pack, options.threads) if raw else _decoder(pack, options.threads),
        labels=pack.labels,
        classes=index.classes,
        summary=describe(
            pack.name,
            count=index.count,
            shape=index.shape,
            classes=len(index.classes),
            where=f"pack of {size / 1e6:,.1f} MB {'raw' if raw else index.encoding.upper()} in {shards}",
            notes=(f"{rejected:,} rejected when packing (rejected.jsonl)",) if rejected else (),
        ),
        left_out=_rejects(folder) if rejected else (),
        rejected=rejected,
        kind="mapped" if raw else "decoded",
        names_sha256=index.order,
    )


def _rejects(folder: Path) -> tuple[str, ...]:
    """The first lines of rejected.jsonl in words; what is no such line is passed over: nothing depends on it."""
    lines = []
    try:
        with (folder / REJECTED).open("rb") as file:
            for line in file.read(MOST_REJECTED_BYTES).splitlines()[:MOST_REJECTED]:
                entry = json.loads(line)
                lines.append(printable(f"{entry['name']} {entry['reason']}"))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return tuple(lines)


def _gatherer(pack: Pack, threads: int) -> Callable[[Indices, Pixels], None]:
    """At the speed of memory. From a disk by all threads: each waits for it."""
    rows = pack.rows()
    if len(rows) == 1 and not pack.cold:
        return FromRows(rows[0])
    first = np.cumsum([0, *(len(part.pixels) for part in rows)])
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastgan-gather")

    def piece(indices: Indices, out: Pixels) -> None:
        parts = np.searchsorted(first, indices, side="right") - 1
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            taken = np.empty((len(here), *pack.index.shape), np.uint8)
            rows[part].copy(indices[here] - first[part], taken)
            out[here] = taken

    def fetch(indices: Indices, out: Pixels) -> None:
        cuts = [len(indices) * i // threads for i in range(threads + 1)]
        for _ in pool.map(lambda a, b: piece(indices[a:b], out[a:b]), cuts[:-1], cuts[1:]):
            pass

    return fetch


def _decoder(pack: Pack, threads: int) -> Callable[[Indices, Pixels], None]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastgan-decode")

    def fetch(indices: Indices, out: Pixels) -> None:
        def piece(positions: range) -> None:
            for position in positions:
                pack.decode_into(int(indices[position]), out[position])

        for _ in pool.map(piece, shares(len(indices), threads)):
            pass

    return fetch


def verify_pack(folder: Path, threads: int, progress: Progress | None = None) -> tuple[list[str], PackIndex]:
    """What is wrong with a pack, a line each, and its index; [] for a good one.

    Every byte is read and compared with its checksum.

    Raises FastganError where so much is wrong that the pack cannot be opened.
    """
    pack = open_pack_files(folder)
    wrong = [*_wrong_tables(pack)]
    if wrong:  # what they say of images means nothing
        return wrong, pack.index
    pieces = [
        (shard, start, min(start + VERIFIED_AT_ONCE, int(pack.first[shard + 1])))
        for shard in range(len(pack.index.shards))
        for start in range(int(pack.first[shard]), int(pack.first[shard + 1]), VERIFIED_AT_ONCE)
    ]
    for shard in range(len(pack.index.shards)):
        pack.file(shard)
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="fastgan-verify") as pool:
        for (_, start, end), found in zip(
            pieces, pool.map(lambda piece: _wrong_images(pack, *piece), pieces), strict=True
        ):
            wrong += found
            done += end - start
            if progress is not None:
                progress(done, pack.index.count)
    return wrong, pack.index


def _wrong_tables(pack: Pack) -> Iterator[str]:
    index = pack.index
    for name, expected in index.tables.items():
        if sha256_of(pack.folder / name) != expected:
            yield f"{name} does not match its checksum"
    if pack.labels is not None and not (pack.labels.min() >= 0 and pack.labels.max() < len(index.classes)):
        yield f"{LABELS} has labels outside of 0 to {len(index.classes) - 1}"
    if pack.offsets is not None:
        steps = np.diff(pack.offsets.astype(np.int64))
        if not ((steps > 0).all() and (pack.offsets[pack.first] == pack.base.astype(np.uint64)).all()):
            yield f"{OFFSETS} does not ascend from the begin of every shard to its end"


def _wrong_images(pack: Pack, shard: int, start: int, end: int) -> list[str]:
    """Images start to end - 1, of one shard, that are not as they were written."""
    if pack.offsets is None:
        size = pack.index.image_bytes
        ends = np.arange(start, end + 1) * size - int(pack.first[shard]) * size
    else:
        ends = pack.offsets[start : end + 1].astype(np.int64) - pack.base[shard]
    images = zip(range(start, end), ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    found = [(image, pack.compared(image, shard, a, b)[1]) for image, a, b in images]
    return [f"image {image} in {shard_path(pack.folder, shard).name}: {wrong}" for image, wrong in found if wrong]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory_bytes() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
