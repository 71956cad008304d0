"""Sets that fit on no machine: litdata's chunked datasets, from a folder or from object storage, by image number.

A litdata dataset gives any of its items by number, so the order stays the keyed permutation of (seed, sample number)
and a resumed run sees exactly the rest. What lies together in a chunk is downloaded together, so the order is shuffled
in blocks: the blocks are permuted, and the images inside of each (sampler.image_order). A dataset should be shuffled
when it is made, as packs are. litdata is loaded only when a stream is opened; `pip install 'fastgan[stream]'`.
"""

from __future__ import annotations

import io
import operator
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastgan.data.decode import BadImage, decode, fit, flatten
from fastgan.data.files import printable
from fastgan.data.folder import shares
from fastgan.data.image_set import ImageSet, Indices, Pixels, describe
from fastgan.data.options import DataOptions
from fastgan.errors import FastganError

SCHEMES = ("s3://", "gs://", "r2://", "azure://", "hf://", "http://", "https://", "local:")
KEYS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels")
LABEL_KEYS = ("label", "cls", "class", "target", "y")
UNKNOWN = -1  # the label of an image that was not read yet
UNUSED = "its labels are not used: data.classes=N says how many classes there are"
BLOCK = 65536  # images that are shuffled together: a few chunks, which stay in litdata's cache meanwhile


def is_stream(path: str) -> bool:
    """Whether `path` is a URL, or a folder that litdata's `optimize` wrote."""
    if path.startswith(SCHEMES):
        return True
    try:
        with (Path(path).expanduser() / "index.json").open("rb") as file:
            return b'"chunks"' in file.read(200)
    except OSError:
        return False


def open_stream(options: DataOptions) -> ImageSet:
    """The images of a litdata dataset. Each is checked when it is read.

    An item is the image, or a dict or a tuple with it: the bytes of a PNG, JPEG or WebP file, [H, W, C] or [C, H, W]
    uint8, or a Pillow image. Its label, a number, is used where `options.classes` says how many there are: it is known
    once the image was read. Raises FastganError without litdata, and where it cannot open it.
    """
    name = printable(options.path)
    try:
        from litdata import StreamingDataset
    except ImportError as error:
        raise FastganError(f"data {name}: streams need litdata; run: pip install 'fastgan[stream]'") from error
    try:
        dataset = StreamingDataset(options.path, shuffle=False, drop_last=False)
        environment = dataset.distributed_env  # it would give every rank a part; here each asks for what it needs
        environment.world_size, environment.global_rank, environment.num_nodes = 1, 0, 1
        count = len(dataset)
    except Exception as error:  # storage, credentials, a damaged index: litdata raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FastganError(f"data {name}: litdata cannot open it ({reason}); see its path and credentials") from error
    if count < 2:
        raise FastganError(f"data {name}: {count} images; training needs at least 2")
    labels = np.full(count, UNKNOWN, np.int32) if options.classes else None
    notes = () if labels is not None or not _has_label(dataset) else (UNUSED,)
    return ImageSet(
        name=name,
        size=options.size,
        channels=options.channels,
        count=count,
        fetch=_fetcher(dataset, name, options, labels),
        labels=labels,
        classes=tuple(map(str, range(options.classes))),
        summary=describe(name, count, options.shape, options.classes, "streamed by litdata", notes),
        kind="stream",
        block=BLOCK,
    )


def _has_label(dataset: Any) -> bool:
    """Whether the first item has one. What is wrong with it is said when it is read as an image."""
    try:
        return label_of(dataset[0]) is not None
    except Exception:
        return False


def _fetcher(
    dataset: Any, name: str, options: DataOptions, labels: NDArray[np.int32] | None
) -> Callable[[Indices, Pixels], None]:
    pool = ThreadPoolExecutor(options.threads, thread_name_prefix="fastgan-decode")
    lock = threading.Lock()  # a dataset reads for one thread at a time

    def fetch(indices: Indices, out: Pixels) -> None:
        with lock:
            items = [_item(dataset, int(index), name) for index in indices]

        def piece(positions: range) -> None:
            for position in positions:
                try:
                    if labels is not None:
                        labels[indices[position]] = _class_of(items[position], options.classes)
                    out[position] = to_pixels(items[position], options)
                except BadImage as error:
                    raise FastganError(f"data {name}: image {indices[position]} {error}; replace it") from error

        for _ in pool.map(piece, shares(len(indices), options.threads)):
            pass

    return fetch


def _item(dataset: Any, index: int, name: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FastganError(
            f"data {name}: image {index} cannot be read ({reason}); run the same command again"
        ) from error


def to_pixels(item: Any, options: DataOptions) -> Pixels:
    """An item as [size, size, channels] uint8. Raises BadImage."""
    image = _image_of(item)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(io.BytesIO(image), options)[0]
    if isinstance(image, Image.Image):
        return fit(flatten(image, options.channels), options)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise BadImage(f"is {array.dtype} {array.shape}, not uint8 [H, W, C] or [C, H, W]")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[-1] != 3:
        raise BadImage(f"is uint8 {array.shape}, not [H, W, C] or [C, H, W] of 1 or 3 channels")
    return fit(flatten(Image.fromarray(np.ascontiguousarray(array)), options.channels), options)


def label_of(item: Any) -> Any:
    """The label in an item: by its key in a dict, else the first number beside the image; None where there is none."""
    if isinstance(item, dict):
        return next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        return next((part for part in item if isinstance(part, (int, np.integer))), None)
    return None


def _class_of(item: Any, classes: int) -> int:
    label = label_of(item)
    try:
        number = operator.index(label)
    except TypeError:
        number = UNKNOWN
    if not 0 <= number < classes:
        raise BadImage(f"has the label {str(label)[:40]!r}, not a number from 0 to {classes - 1} (data.classes)")
    return number


def _image_of(item: Any) -> Any:
    """The image in an item: by its key in a dict, else the first part that can be one."""
    if isinstance(item, dict):
        found = next((item[key] for key in KEYS if key in item), None)
        if found is None:
            raise BadImage(f"has none of the keys {', '.join(KEYS)}, but {', '.join(map(str, list(item)[:8]))}")
        return found
    if isinstance(item, (tuple, list)):
        return next((part for part in item if not isinstance(part, (int, float, str))), item)
    return item
