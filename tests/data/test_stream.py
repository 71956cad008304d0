"""litdata streams by image number: the same batches again, resumed anywhere. A stand-in where litdata is not there."""

from __future__ import annotations

import io
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from data.pictures import SIZE, encoded, picture
from PIL import Image

from fastgan.data import DataOptions, open_images
from fastgan.data.feeder import Feeder
from fastgan.data.sampler import image_order
from fastgan.data.stream import is_stream
from fastgan.errors import FastganError
from fastgan.pictures import picture_batch

COUNT = 40
ITEMS = {
    "bytes in a dict": lambda i: {"label": i % 3, "image": memoryview(encoded(picture(i), "PNG"))},
    "arrays": lambda i: np.asarray(picture(i)),
    "tensors [C, H, W] in a tuple": lambda i: (torch.from_numpy(np.array(picture(i))).permute(2, 0, 1), i % 3),
    "Pillow images": lambda i: [i, picture(i)],
}


def stand_in(monkeypatch: pytest.MonkeyPatch, item: object) -> None:
    """A `litdata` with the one class that is used, of its documented interface."""

    class StreamingDataset:
        def __init__(self, input_dir: str, *, shuffle: bool, drop_last: bool) -> None:
            assert (input_dir, shuffle, drop_last) == ("s3://bucket/set", False, False)
            self.distributed_env = SimpleNamespace(world_size=4, global_rank=3, num_nodes=2)

        def __len__(self) -> int:
            return COUNT // self.distributed_env.world_size

        def __getitem__(self, index: int) -> object:
            assert type(index) is int
            return item(index)

    module = ModuleType("litdata")
    module.StreamingDataset = StreamingDataset
    monkeypatch.setitem(sys.modules, "litdata", module)


def options(path: object = "s3://bucket/set", **more: object) -> DataOptions:
    return DataOptions(path=str(path), size=SIZE, workers=2, **more)


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_every_kind(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stand_in(monkeypatch, ITEMS[kind])
    images = open_images(options())
    assert (len(images), images.kind) == (COUNT, "stream")
    expected = np.stack([np.asarray(picture(i)) for i in (7, 3, 39)])
    assert (images.read(np.array([7, 3, 39])) == expected).all()
    whole = take(images, 15)
    rest = take(images, 7, first_sample=64)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[8:], rest, strict=True))


def take(images: object, number: int, **more: object) -> list:
    with Feeder(images, **{"seed": 1, "batch": 8, **more}) as feeder:
        return list(islice(feeder, number))


@pytest.mark.parametrize("kind", ["bytes in a dict", "tensors [C, H, W] in a tuple"])
def test_labels_come_with_the_images(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stand_in(monkeypatch, ITEMS[kind])
    assert "its labels are not used: data.classes=N" in open_images(options()).summary
    images = open_images(options(classes=3))
    assert images.classes == ("0", "1", "2")
    assert "40 images in 3 classes" in images.summary
    for number, batch in enumerate(take(images, 7)):
        numbers = image_order(1, COUNT, np.arange(8 * number, 8 * number + 8), images.block)
        assert batch.labels.tolist() == (numbers % 3).tolist()
    pictures = picture_batch(images, range(4), torch.device("cpu"))
    assert pictures.labels.tolist() == [0, 1, 2, 0]
    few = open_images(options(classes=2))
    with pytest.raises(FastganError, match=r"image 2 has the label '2', not a number from 0 to 1 \(data.classes\)"):
        few.read(np.array([1, 2]))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (lambda i: {"picture": 1}, "has none of the keys image, img"),
        (lambda i: b"no picture", "is not recognised as"),
        (lambda i: np.zeros((4, 4, 3)), "is float64"),
        (lambda i: np.zeros((4, 4, 5), np.uint8), "not [H, W, C]"),
        (lambda i: {}[i], "cannot be read (0)"),
    ],
)
def test_items_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, item: object, words: str) -> None:
    stand_in(monkeypatch, item)
    with pytest.raises(FastganError) as raised:
        open_images(options()).read(np.array([0]))
    assert words in str(raised.value)
    assert "data s3://bucket/set: image 0" in str(raised.value)


def test_without_litdata_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(FastganError, match=r"streams need litdata; run: pip install 'fastgan\[stream\]'"):
        open_images(options())


def test_a_storage_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda i: i)
    with pytest.raises(FastganError, match=r"data gs://other: litdata cannot open it"):
        open_images(options("gs://other"))


def test_litdata_itself(tmp_path: Path) -> None:
    """On a dataset that litdata's own `optimize` would write; runs where litdata is installed."""
    writer = pytest.importorskip("litdata.streaming.writer")
    made = writer.BinaryWriter(str(tmp_path), chunk_size=7)
    for i in range(COUNT):
        made.add_item(i, {"image": encoded(picture(i), "JPEG"), "label": i % 3})
    made.done()
    made.merge()
    assert is_stream(str(tmp_path))
    images = open_images(options(tmp_path))
    assert len(images) == COUNT
    jpeg = Image.open(io.BytesIO(encoded(picture(11), "JPEG")))
    assert (images.read(np.array([11]))[0] == np.asarray(jpeg)).all()
    whole, rest = take(images, 12), take(images, 6, first_sample=48)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[6:], rest, strict=True))
