"""What can be packed: a folder, a zip, tars, or another pack; each image as the bytes that go into a shard."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd, prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from fastgan.data import BUILT_IN
from fastgan.data.decode import BadImage, decode
from fastgan.data.files import Files, printable
from fastgan.data.image_set import ImageSet, Indices, Pixels
from fastgan.data.jpeg import START, decode_exact, decode_jpeg, encode_jpeg, is_upright, jpeg_header
from fastgan.data.labels import labels_of, parse_labels, read_labels
from fastgan.data.options import DataOptions
from fastgan.data.pack_format import ENCODINGS, is_pack
from fastgan.data.pack_reader import open_pack, open_pack_files
from fastgan.data.sampler import uniform
from fastgan.data.sources import list_files
from fastgan.errors import FastganError, suggest

FORMATS = ("auto", *ENCODINGS)
CROPS = ("center", "random", "none")
Buffer: TypeAlias = bytes | memoryview  # of an image, as it goes into a shard
# Bytes of a pixel channel, roughly: only to cut the work into shards of about the wanted size.
COMPRESSED = {"raw": 1.0, "jpeg": 0.3, "png": 0.7}
MOST_LABEL_BYTES = 4 << 30
PAGE = 4096


@dataclass(frozen=True)
class PackOptions:
    """What is packed into what. Raises FastganError for values that make no sense.

    source:    folder, .zip, .tar (or a brace pattern of them, or a folder of them), or a pack
    target:    folder that becomes the pack
    size, channels: of the images, as in DataOptions
    format:    "raw", "jpeg", "png", or "auto": raw up to `raw_limit`, above it JPEG where the files are JPEG, else PNG
    crop:      "center", "random" (a largest square, at a place that is a function of seed and image number) or "none"
    labels:    "folder" (as in training: sub-folders, or the labels of tars and packs), or a file (labels.read_labels)
    max_bad:   fraction of the images that may be unusable
    raw_limit: GB up to which "auto" packs raw
    quality:   of JPEGs that have to be made anew; those of the right size are copied as they are
    seed:      of the order and of random crops
    shard_mb:  size of a shard, about
    workers:   threads that decode; 0 for one per core
    """

    source: str
    target: str
    size: int = 64
    channels: int = 3
    format: str = "auto"
    crop: str = "center"
    labels: str = "folder"
    max_bad: float = 0.001
    raw_limit: float = 64.0
    quality: int = 95
    seed: int = 0
    shard_mb: float = 1000.0
    workers: int = 0
    min_side: int = 8
    max_megapixels: float = 64.0

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, FORMATS), ("crop", self.crop, CROPS)):
            if value not in choices:
                raise FastganError(f"--{name}: unknown {name} {value!r}{suggest(value, choices)}")
        for name, valid, expected in (
            ("size", 4 <= self.size <= 4096, "pixels from 4 to 4096"),
            ("channels", self.channels in (1, 3), "1 or 3"),
            ("max-bad", 0 <= self.max_bad < 1, "a fraction from 0 to below 1"),
            ("raw-limit", self.raw_limit >= 0, "GB, 0 or more"),
            ("quality", 1 <= self.quality <= 100, "1 to 100"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
            ("shard-mb", self.shard_mb > 0, "more than 0"),
            ("workers", self.workers >= 0, "0 or more"),
        ):
            if not valid:
                raise FastganError(f"--{name}: expected {expected}, got {getattr(self, name.replace('-', '_'))!r}")

    @property
    def decoding(self) -> DataOptions:
        """How an image is read."""
        crop = "none" if self.crop == "none" else "center"
        return DataOptions(
            size=self.size,
            channels=self.channels,
            crop=crop,
            min_side=self.min_side,
            max_megapixels=self.max_megapixels,
            workers=self.workers,
        )

    @property
    def threads(self) -> int:
        return self.decoding.threads

    def shard_images(self, encoding: str) -> int:
        """Images that go into one shard."""
        size = self.size * self.size * self.channels
        images = max(1, int(self.shard_mb * 1e6 / (size * COMPRESSED[encoding])))
        pages = PAGE // gcd(PAGE, size)  # so many images are whole pages: then shards can be mapped as one
        return images // pages * pages if encoding == "raw" and images >= 2 * pages else images


class Source(Protocol):
    """Images of anything that can be packed.

    names: of the files; () for a pack, which has none    order: ImageSet.names_sha256 where there are no names
    encoding: of the shards
    """

    name: str
    names: Sequence[str]
    count: int
    encoding: str
    order: str

    def plan(self, options: PackOptions) -> dict[str, Any]:
        """What decides the contents of the shards; the same for the same source."""

    def load(self, numbers: Indices) -> tuple[list[Buffer], list[tuple[int, str]], int]:
        """Bytes of the images of these numbers, in order; (number, reason) of those left out; how many are enlarged."""

    def labels(self, kept: Indices) -> tuple[Indices | None, tuple[str, ...]]:
        """Labels [len(kept)] of the images `kept`, and the names of classes."""

    def label_of(self, number: int) -> str:
        """What messages call an image."""


def open_source(options: PackOptions) -> Source:
    """Finds the images. Raises FastganError for a path that is not there or holds nothing to pack."""
    path = Path(os.path.expanduser(options.source))
    if path.is_dir() and is_pack(path):
        return _PackSource.open(path, options)
    if options.source in BUILT_IN and not path.exists():
        raise FastganError(
            f"pack: {options.source} comes with fastgan and needs no pack: fastgan train --data {options.source}; "
            "SRC is a folder of images, a .zip or .tar of one, or a pack"
        )
    files = list_files(options.source, max_megapixels=options.max_megapixels)
    if len(files.names) < 2:
        others = f" (and {files.ignored:,} files of other kinds)" if files.ignored else ""
        found = f"only one image, {printable(files.names[0])}" if files.names else "no PNG, JPEG or WebP images"
        raise FastganError(f"{files.name}: {found}{others}; a pack needs at least 2")
    encoding = options.format
    if encoding == "auto":
        jpegs = sum(name.lower().endswith((".jpg", ".jpeg")) for name in files.names)
        encoding = automatic(options, len(files.names), "jpeg" if 2 * jpegs > len(files.names) else "png")
    return _FileSource(files.name, files.names, len(files.names), encoding, "", files, options)


def automatic(options: PackOptions, count: int, compressed: str) -> str:
    """What "auto" means for so many images."""
    return "raw" if count * options.size**2 * options.channels <= options.raw_limit * 1e9 else compressed


def _plan(options: PackOptions, encoding: str, **source: object) -> dict[str, Any]:
    return {
        **source,
        "size": options.size,
        "channels": options.channels,
        "format": encoding,
        "crop": options.crop,
        "labels": options.labels,
        "quality": options.quality if encoding == "jpeg" else 0,
        "seed": options.seed,
        "min_side": options.min_side,
        "max_megapixels": options.max_megapixels,
    }


def encode(pixels: Pixels, encoding: str, quality: int) -> bytes:
    """[size, size, channels] as the bytes of a shard."""
    if encoding == "raw":
        return pixels.tobytes()
    if encoding == "jpeg":
        return encode_jpeg(pixels, quality)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass(eq=False)
class _FileSource:
    """A folder, a zip or tars."""

    name: str
    names: Sequence[str]
    count: int
    encoding: str
    order: str
    files: Files
    options: PackOptions
    decoding: DataOptions = field(init=False)

    def __post_init__(self) -> None:
        self.decoding = self.options.decoding
        self.labels(np.arange(self.count))  # labels that cannot be used are found before the work, not after it

    def plan(self, options: PackOptions) -> dict[str, Any]:
        total = hashlib.sha256()
        for name in self.names:
            total.update(name.encode(errors="surrogateescape") + b"\0")
        return _plan(
            options,
            self.encoding,
            source=os.path.abspath(options.source),
            images=self.count,
            names=total.hexdigest(),
            changed=self.files.stamp,
        )

    def load(self, numbers: Indices) -> tuple[list[Buffer], list[tuple[int, str]], int]:
        places = uniform(self.options.seed, numbers) if self.options.crop == "random" else None
        images, rejected, enlargements = list[Buffer](), list[tuple[int, str]](), 0
        shape = self.decoding.shape
        raw = np.empty((len(numbers) if self.encoding == "raw" else 0, prod(shape)), np.uint8)
        quick = self.encoding == "raw" and self.options.min_side <= self.options.size
        for i, number in enumerate(numbers.tolist()):
            try:
                file = self.files.read(number)
                if quick and decode_exact(file, raw[i], shape):
                    images.append(memoryview(raw[i]))
                    continue
                data, enlarged = self._load(file, None if places is None else float(places[i]))
                images.append(data)
                enlargements += enlarged
            except BadImage as error:
                rejected.append((number, str(error)))
        return images, rejected, enlargements

    def _load(self, file: bytes, place: float | None) -> tuple[bytes, bool]:
        if self.encoding == "jpeg" and self._is_right_already(file):
            return file, False
        pixels, enlarged = decode(io.BytesIO(file), self.decoding, place=place, full=True)
        return encode(pixels, self.encoding, self.options.quality), enlarged

    def _is_right_already(self, file: bytes) -> bool:
        """Whether this is a JPEG of the right size and colours, and whole: coding it again would lose detail."""
        space = "Gray" if self.options.channels == 1 else "YCbCr"
        return (
            file.startswith(START)
            and jpeg_header(file) == (self.options.size, self.options.size, space)
            and is_upright(file)
            and decode_jpeg(file, grey=space == "Gray") is not None
        )

    def labels(self, kept: Indices) -> tuple[Indices | None, tuple[str, ...]]:
        if self.options.labels == "folder":
            return self.files.keep(kept).classified()
        names = [self.names[i] for i in kept]
        path = Path(os.path.expanduser(self.options.labels))
        inside = _inside(self.options.source, self.options.labels)
        if not path.exists() and isinstance(inside, bytes):
            where = f"labels {printable(self.options.labels)} in {self.name}"
            try:
                text = inside.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise FastganError(f"{where}: is not text in UTF-8") from error
            return labels_of(parse_labels(text, path.suffix.lower(), where), names, where)
        return read_labels(path, names)

    def label_of(self, number: int) -> str:
        return printable(self.names[number])


def _inside(source: str, name: str) -> bytes | None:
    """A file of labels that lies in the source itself, as StyleGAN's dataset.json does."""
    path = Path(os.path.expanduser(source))
    if ".." in Path(name).parts or Path(name).is_absolute():
        return None
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = archive.getinfo(name)
                return archive.read(member) if member.file_size < MOST_LABEL_BYTES else None
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    return None


@dataclass(eq=False)
class _PackSource:
    """Another pack, whose images are resized where the size differs."""

    name: str
    names: Sequence[str]
    count: int
    encoding: str
    order: str
    images: ImageSet
    options: PackOptions
    sha256: str

    @staticmethod
    def open(path: Path, options: PackOptions) -> _PackSource:
        index = open_pack_files(path).index
        images = open_pack(path, DataOptions(size=index.size, channels=index.channels, workers=1))
        if index.channels != options.channels:
            raise FastganError(
                f"pack {images.name} has {index.channels} channels, but {options.channels} are wanted: pack the images "
                f"themselves, or give --channels {index.channels}"
            )
        if options.labels != "folder":
            raise FastganError(
                f"--labels {options.labels}: a pack keeps its labels but no names; pack the images themselves"
            )
        encoding = options.format
        if encoding == "auto":
            encoding = automatic(options, index.count, "png" if index.encoding == "png" else "jpeg")
        tables = hashlib.sha256("".join(index.tables[name] for name in sorted(index.tables)).encode()).hexdigest()
        return _PackSource(images.name, (), index.count, encoding, "", images, options, tables)

    def plan(self, options: PackOptions) -> dict[str, Any]:
        return _plan(
            options, self.encoding, source=os.path.abspath(options.source), images=self.count, names=self.sha256
        )

    def load(self, numbers: Indices) -> tuple[list[Buffer], list[tuple[int, str]], int]:
        pixels, size = self.images.read(numbers), self.options.size
        if size != self.images.size:
            pictures = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels]
            resized = [np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)) for picture in pictures]
            pixels = np.stack(resized).reshape(len(numbers), *self.options.decoding.shape)
        enlarged = len(numbers) if size > self.images.size else 0
        return [encode(image, self.encoding, self.options.quality) for image in pixels], [], enlarged

    def labels(self, kept: Indices) -> tuple[Indices | None, tuple[str, ...]]:
        if self.images.labels is None:
            return None, ()
        labels = np.empty(len(kept), np.int64)
        self.images.labels_of(kept, labels)
        return labels, self.images.classes

    def label_of(self, number: int) -> str:
        return f"image {number}"
