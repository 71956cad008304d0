"""fastgan pack: every image decoded, cropped and resized once, into shards that training reads at the speed of memory.

The work is cut into shards beforehand: shard number k gets the images at places k·shard_images and on of a keyed
permutation of the source. What a shard holds is a function of the source and the options alone, so that a run which
was killed goes on: shards that are finished stay, after every image in them was compared with its checksum.

    DST.tmp/parts/plan.json         what is being packed; the same command goes on, another one is refused
    DST.tmp/shard-00000.bin
    DST.tmp/parts/shard-00000.json  that the shard is finished (Part), written after it
    DST.tmp/index.json              written last; then parts/ goes, and DST.tmp is renamed to DST
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgan._version import __version__
from fastgan.data.files import printable
from fastgan.data.image_set import Indices, hash_names
from fastgan.data.pack_format import (
    CHECKSUMS,
    INDEX,
    LABELS,
    OFFSETS,
    REJECTED,
    TABLES,
    VERSION,
    PackIndex,
    Shard,
    is_pack,
    read_index,
    shard_path,
)
from fastgan.data.pack_reader import sha256_of
from fastgan.data.pack_source import Buffer, PackOptions, Source, open_source
from fastgan.data.rows import crc32
from fastgan.data.sampler import image_order
from fastgan.errors import FastganError
from fastgan.run.files import explained, replace_durable, sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 64  # images that one task decodes
ADVICE = "free some space or make the folder writable, then run the same command again: it goes on"
ORDER_KEY = 0x5ACC  # keeps the order of a pack apart from that in which training goes through it
Progress = Callable[["Packed"], None]


@dataclass(frozen=True)
class Packed:
    """How far packing is, or how it ended. fresh: images that this call looked at, in `seconds`; found: all images."""

    found: int
    done: int
    fresh: int
    rejected: int
    bytes: int
    shards: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.fresh / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        return (self.found - self.done) / self.images_per_second if self.fresh else float("inf")


@dataclass(frozen=True)
class Part:
    """A finished shard. rejected: (number of the file, reason); lengths, checksums: [images] uint32, in order."""

    enlarged: int
    rejected: list[tuple[int, str]]
    lengths: NDArray[np.uint32]
    checksums: NDArray[np.uint32]

    @property
    def size(self) -> int:
        """Bytes of the shard."""
        return int(self.lengths.sum(dtype=np.int64))

    def to_json(self) -> bytes:
        fields = asdict(self) | {"lengths": self.lengths.tolist(), "checksums": self.checksums.tolist()}
        return json.dumps(fields).encode()

    @staticmethod
    def from_json(data: bytes) -> Part:
        """Raises ValueError, TypeError or KeyError for what `to_json` did not write."""
        fields = json.loads(data)
        return Part(
            enlarged=int(fields["enlarged"]),
            rejected=[(int(number), str(reason)) for number, reason in fields["rejected"]],
            lengths=np.array(fields["lengths"], np.uint32),
            checksums=np.array(fields["checksums"], np.uint32),
        )


@dataclass(frozen=True)
class _Chunk:
    """What one task made of some images: their bytes, and what Part says of them."""

    images: list[Buffer]
    enlarged: int
    rejected: list[tuple[int, str]]
    checksums: list[int]


def pack(options: PackOptions, progress: Progress | None = None) -> tuple[Packed, PackIndex]:
    """Packs as `options` say, from the start or from where an earlier call was stopped.

    progress: called now and then, from this thread
    Raises FastganError for what a user can mend; finished shards stay.
    """
    target = Path(os.path.abspath(os.path.expanduser(options.target)))
    with explained(f"pack into {printable(str(target))}", ADVICE):
        if is_pack(target):
            return _already_there(options, target)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FastganError(f"{printable(str(target))} exists and is no pack: give another folder, or remove it")
        source = open_source(options)
        work = target.with_name(target.name + ".tmp")
        (work / "parts").mkdir(parents=True, exist_ok=True)
        with _alone(work):
            if (work / INDEX).exists():  # killed between the last two lines of run()
                _put_in_place(work, target)
                return _already_there(options, target)
            return _Packer(options, source, target, work, progress).run()


class _Packer:
    """One call of `pack`, once source and target are known to be good."""

    def __init__(
        self, options: PackOptions, source: Source, target: Path, work: Path, progress: Progress | None
    ) -> None:
        self.options, self.source, self.target, self.work, self.progress = options, source, target, work, progress
        self.name = printable(str(target))
        self.shard_images = min(options.shard_images(source.encoding), source.count)
        self.shards = ceil(source.count / self.shard_images)
        self.parts: dict[int, Part] = {}
        self.began, self.done, self.fresh, self.bytes = monotonic(), 0, 0, 0
        self.rejected: list[tuple[int, str]] = []
        self.last_said = 0.0

    def run(self) -> tuple[Packed, PackIndex]:
        self._agree_on_plan()
        with ThreadPoolExecutor(self.options.threads, thread_name_prefix="fastgan-pack") as pool:
            try:
                self._keep_finished(pool)
                for number in range(self.shards):
                    if number not in self.parts:
                        self.parts[number] = self._write_shard(number, pool)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        index = self._write_tables()
        _put_in_place(self.work, self.target)
        return self._state(), index

    # ------------------------------------------------------------------------------------------ going on

    def _agree_on_plan(self) -> None:
        """Writes what is being packed, or compares it with what an earlier call began."""
        plan = {"version": VERSION, **self.source.plan(self.options), "shard_images": self.shard_images}
        path = self.work / "parts" / "plan.json"
        try:
            begun = json.loads(path.read_bytes()) if path.exists() else None
        except (ValueError, RecursionError):
            begun = {}
        if begun is None or not any(path.parent.glob("shard-*.json")):  # nothing that would be lost
            replace_durable(path, json.dumps(plan, indent=1).encode())
            return
        for key, value in plan.items():
            old = begun.get(key) if isinstance(begun, dict) else None
            if old != value:
                raise FastganError(
                    f"{self.name}.tmp is an unfinished pack with {key} {str(old)[:60]!r}, but now it is "
                    f"{str(value)[:60]!r}: run the earlier command to go on, or remove {self.name}.tmp to start again"
                )

    def _keep_finished(self, pool: ThreadPoolExecutor) -> None:
        """Takes over shards of an earlier call whose every image matches its checksum; others are packed again."""
        for number, part in enumerate(pool.map(self._finished, range(self.shards))):
            if part is not None:
                self.parts[number] = part
                self._count(len(part.lengths), part.rejected, part.size)
        self.fresh, self.began = 0, monotonic()

    def _finished(self, number: int) -> Part | None:
        try:
            part = Part.from_json((self.work / "parts" / f"shard-{number:05}.json").read_bytes())
            with shard_path(self.work, number).open("rb") as file:
                for length, checksum in zip(part.lengths.tolist(), part.checksums.tolist(), strict=True):
                    if crc32(file.read(length)) != checksum:
                        return None
                return None if file.read(1) else part
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):  # damaged: it is packed again
            return None

    # ------------------------------------------------------------------------------------------ a shard

    def _places(self, number: int) -> Indices:
        """Numbers of the files that shard `number` is made from, in its order."""
        start = number * self.shard_images
        places = np.arange(start, min(start + self.shard_images, self.source.count), dtype=np.int64)
        return image_order(self.options.seed ^ ORDER_KEY, self.source.count, places)

    def _write_shard(self, number: int, pool: ThreadPoolExecutor) -> Part:
        """Decodes, in parallel, and writes, in order, the images of a shard; only then says that it is finished."""
        enlarged, rejected, lengths, checksums = 0, list[tuple[int, str]](), array("I"), array("I")
        with shard_path(self.work, number).open("wb") as file:
            for chunk in self._chunks(self._places(number), pool):
                file.writelines(chunk.images)
                enlarged += chunk.enlarged
                rejected += chunk.rejected
                lengths.extend(map(len, chunk.images))
                checksums.extend(chunk.checksums)
                self._count(len(chunk.images), chunk.rejected, sum(map(len, chunk.images)))
                self._check_rejects()
                self._say()
            _sync(file)
        part = Part(enlarged, rejected, np.array(lengths, np.uint32), np.array(checksums, np.uint32))
        replace_durable(self.work / "parts" / f"shard-{number:05}.json", part.to_json())
        return part

    def _chunks(self, numbers: Indices, pool: ThreadPoolExecutor) -> Iterator[_Chunk]:
        """Decoded chunks in order; at most a few for every thread are in memory."""
        waiting: deque[Future[_Chunk]] = deque()
        for start in range(0, len(numbers), CHUNK):
            waiting.append(pool.submit(self._decode, numbers[start : start + CHUNK]))
            if len(waiting) > 2 * self.options.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _decode(self, numbers: Indices) -> _Chunk:
        images, rejected, enlarged = self.source.load(numbers)
        return _Chunk(images, enlarged, rejected, [crc32(image) for image in images])

    def _count(self, kept: int, rejected: list[tuple[int, str]], size: int) -> None:
        self.done += kept + len(rejected)
        self.fresh += kept + len(rejected)
        self.rejected += rejected
        self.bytes += size

    def _check_rejects(self) -> None:
        most = self.options.max_bad * self.source.count
        if len(self.rejected) <= most and self.source.count - len(self.rejected) >= 2:
            return
        number, reason = self.rejected[-1]
        bad, found = len(self.rejected), self.source.count
        needed = ceil(bad / found * 1e4) / 1e4
        raise FastganError(
            f"{self.source.name}: {self.source.label_of(number)} {reason}; that makes {bad:,} unusable of "
            f"{self.done:,} looked at, more than --max-bad {self.options.max_bad:g} of {found:,}: replace or "
            f"remove them, or allow more (--max-bad {needed:g} or above); finished shards are kept"
        )

    # ------------------------------------------------------------------------------------------ the end

    def _write_tables(self) -> PackIndex:
        """The tables, rejected.jsonl, and index.json as the last."""
        kept = _without_empty(self.work, [self.parts[number] for number in range(self.shards)])
        bad = {number for number, _ in self.rejected}
        order = np.concatenate([self._places(number) for number in range(self.shards)])
        order = order[~np.isin(order, np.array(sorted(bad), np.int64))]
        labels, classes = self.source.labels(order)
        tables: dict[str, Any] = {CHECKSUMS: np.concatenate([part.checksums for part in kept])}
        if self.source.encoding != "raw":
            lengths = np.concatenate([np.zeros(1, np.uint32), *(part.lengths for part in kept)])
            tables[OFFSETS] = np.cumsum(lengths, dtype=np.uint64)
        if labels is not None:
            tables[LABELS] = labels
        for name, values in tables.items():
            with (self.work / name).open("wb") as file:
                np.save(file, values.astype(TABLES[name]), allow_pickle=False)
                _sync(file)
        with (self.work / REJECTED).open("w", encoding="utf-8") as text:
            for number, reason in sorted(self.rejected):
                entry = {"name": self.source.label_of(number), "number": number, "reason": reason}
                text.write(json.dumps(entry) + "\n")
            _sync(text)
        index = PackIndex(
            count=len(order),
            size=self.options.size,
            channels=self.options.channels,
            encoding=self.source.encoding,
            shards=tuple(Shard(len(part.lengths), part.size) for part in kept),
            classes=classes,
            tables={name: sha256_of(self.work / name) for name in tables},
            order=hash_names(self.source.names[i] for i in order) if self.source.names else self.source.order,
            about={
                "source": self.source.name,
                "fastgan": __version__,
                "crop": self.options.crop,
                "seed": self.options.seed,
                "rejected": len(self.rejected),
                "enlarged": sum(part.enlarged for part in kept),
            },
        )
        replace_durable(self.work / INDEX, index.to_json())
        return index

    def _state(self) -> Packed:
        return Packed(
            found=self.source.count,
            done=self.done,
            fresh=self.fresh,
            rejected=len(self.rejected),
            bytes=self.bytes,
            shards=self.shards,
            seconds=monotonic() - self.began,
        )

    def _say(self) -> None:
        if self.progress is not None and monotonic() - self.last_said >= 0.5:
            self.last_said = monotonic()
            self.progress(self._state())


def _without_empty(work: Path, parts: list[Part]) -> list[Part]:
    """The parts that have images, their shards numbered without a gap."""
    kept = 0
    for number, part in enumerate(parts):
        if len(part.lengths):
            if kept != number:
                os.replace(shard_path(work, number), shard_path(work, kept))
            kept += 1
        else:
            shard_path(work, number).unlink()
    return [part for part in parts if len(part.lengths)]


def _put_in_place(work: Path, target: Path) -> None:
    shutil.rmtree(work / "parts")
    os.replace(work, target)  # also onto an empty folder
    sync_folder(target.parent)


def _already_there(options: PackOptions, target: Path) -> tuple[Packed, PackIndex]:
    """For the same command once more: nothing to do. Another size or kind of pack is not replaced."""
    index = read_index(target)
    wanted = options.size, options.channels, options.crop, options.seed
    there = index.size, index.channels, index.about.get("crop"), index.about.get("seed")
    if wanted != there or options.format not in ("auto", index.encoding):
        raise FastganError(
            f"{printable(str(target))} is a pack already, of other settings "
            f"({'x'.join(map(str, index.shape))} {index.encoding}, crop {there[2]}, seed {there[3]}): give another "
            "folder, or remove it"
        )
    size = sum(shard.bytes for shard in index.shards)
    rejected = int(index.about.get("rejected", 0))
    return Packed(index.count + rejected, index.count + rejected, 0, rejected, size, len(index.shards), 0.0), index


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keeps a second packer out for as long as this one lives."""
    with (work / "parts" / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FastganError(f"another fastgan pack is writing {printable(str(work))}: wait for it") from error
        yield


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
