"""A finite set of square images in a fixed order: what every data format turns into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastgan.data.rows import Rows
from fastgan.errors import FastganError

Pixels: TypeAlias = NDArray[np.uint8]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images number 0 to count - 1, each [size, size, channels] uint8.

    name: what messages call the set (the path as it was given)
    fetch: (indices [N], out [N, size, size, channels]) -> None, fills `out`
    labels: [count] class numbers, or None where the set has no classes; of a stream they are known once an image was
        read, and -1 before
    classes: names of the classes, in the order of their numbers; () without labels
    summary: one line for the log
    left_out: one line for each unusable image that was left out
    rejected: how many were left out before, when the set was packed; `left_out` then names the first of them
    kind: where `fetch` has the pixels from, which decides how they reach the device:
        "memory", "mapped" (raw in files that are mapped), "decoded" (whenever they are asked for) or "stream"
    block: images that are near each other in the storage, and are shuffled among themselves; 0: any are as near
    unpacked: whether these are files that `fastgan pack` would take
    names_sha256: hash of the images' names without endings, in order; sets that share it are aligned; "" if unknown
    source: the second set of a translation, None where there is none
    aligned: image number i of `source` is the partner of image number i; else the two are independent
    """

    name: str
    size: int
    channels: int
    count: int
    fetch: Callable[[Indices, Pixels], None]
    summary: str
    labels: NDArray[np.integer[Any]] | None = None
    classes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    rejected: int = 0
    kind: Literal["memory", "mapped", "decoded", "stream"] = "memory"
    block: int = 0
    unpacked: bool = False
    names_sha256: str = ""
    source: ImageSet | None = None
    aligned: bool = False

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Indices, out: Pixels | None = None) -> Pixels:
        """Images `indices` [N] as [N, size, size, channels] uint8, written into `out` if that is given.

        Raises FastganError for an image that turns out to be unusable only now.
        """
        assert indices.ndim == 1
        assert len(indices) == 0 or (indices.min() >= 0 and indices.max() < self.count)
        if out is None:
            out = np.empty((len(indices), self.size, self.size, self.channels), np.uint8)
        self.fetch(indices, out)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return self.count * self.size * self.size * self.channels

    def labels_of(self, indices: Indices, out: Indices) -> None:
        """Writes the class numbers of images `indices` [N] into `out` [N]; the set has labels.

        Raises FastganError for a label that is no class: labels that are mapped from a file are not read before.
        """
        assert self.labels is not None
        out[:] = self.labels[indices]
        if len(out) and not (out.min() >= 0 and out.max() < len(self.classes)):
            raise FastganError(
                f"{self.name}: damaged labels: expected 0 to {len(self.classes) - 1}, got {out.min()} to {out.max()}; "
                "fastgan pack --verify says more"
            )


@dataclass(frozen=True, eq=False)
class FromRows:
    """The `fetch` of images that lie in memory or in a mapped file, from where the feeder can take them itself."""

    rows: Rows

    def __call__(self, indices: Indices, out: Pixels) -> None:
        self.rows.copy(indices, out)


def fetch_from(pixels: Pixels) -> FromRows:
    """The `fetch` of images that lie in memory, `pixels`: [count, size, size, channels]."""
    return FromRows(Rows(np.ascontiguousarray(pixels)))


def hash_names(names: Iterable[str]) -> str:
    """SHA-256 of names without their endings: `a/1.png` and `a/1.jpg` are a pair."""
    total = hashlib.sha256()
    for name in names:
        total.update(name.rpartition(".")[0].encode(errors="surrogateescape") + b"\0")
    return total.hexdigest()


def describe(
    name: str, count: int, shape: tuple[int, int, int], classes: int, where: str, notes: tuple[str, ...] = ()
) -> str:
    """The summary line of a set: what, how many, of which shape [H, W, C], kept where, what was peculiar."""
    labelled = f" in {classes} classes" if classes else ""
    facts = f"{name}: {count:,} images{labelled}, {'x'.join(map(str, shape))}, {where}"
    return "; ".join((facts, *notes))


def fingerprint(images: ImageSet) -> dict[str, object]:
    """What tells one set of images from another: their number, and a hash of 16 spread over the set; of a set with a
    source, that of both."""
    chosen = np.linspace(0, len(images) - 1, num=min(16, len(images))).astype(np.int64)
    mark: dict[str, object] = {
        "images": len(images),
        "sha256": hashlib.sha256(images.read(chosen).tobytes()).hexdigest(),
    }
    return mark | ({} if images.source is None else {"source": fingerprint(images.source)})
