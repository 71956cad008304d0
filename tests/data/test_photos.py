"""The photographs: patches of them, and none that the training set shares a pixel with."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sklearn import datasets

from fastgan.data import DataOptions, open_images, photographs
from fastgan.errors import FastganError

NAMES = ("china", "flower", "astronaut", "chelsea", "coffee", "motorcycle", "rocket")


def test_the_photographs_are_those_of_the_packages() -> None:
    photos = photographs()
    assert tuple(photos) == NAMES
    china, flower = datasets.load_sample_images().images
    assert (photos["china"] == china).all()
    assert (photos["flower"] == flower).all()
    assert {name: photo.shape[2] for name, photo in photographs(1).items()} == dict.fromkeys(NAMES, 1)


def places(patch: np.ndarray, photo: np.ndarray) -> list[int]:
    """The columns where `patch` lies in `photo`."""
    size = patch.shape[0]
    inner = photo[: photo.shape[0] - size + 1, : photo.shape[1] - size + 1]
    starts = np.argwhere((inner == patch[0, 0]).all(2))
    return [left for top, left in starts if (photo[top : top + size, left : left + size] == patch).all()]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_every_class_is_in_both_sets_and_they_share_no_pixel(size: int) -> None:
    photos = list(photographs().values())
    for path in ("photos", "photos:held-out"):
        images = open_images(DataOptions(path=path, size=size))
        assert images.classes == NAMES
        assert images.labels is not None
        ends = np.flatnonzero(np.diff(images.labels, append=-1))  # the last patch of each photograph
        assert images.labels[ends].tolist() == list(range(7))
        starts = np.concatenate([[0], ends[:-1] + 1])
        middle = np.random.default_rng(0).integers(len(images), size=20)
        chosen = np.concatenate([starts, ends, middle])
        for patch, label in zip(images.read(chosen), images.labels[chosen], strict=True):
            width = photos[label].shape[1]
            cut = width - max(width // 5, size)
            found = places(patch, photos[label])
            assert any(left + size <= cut if path == "photos" else left >= cut for left in found)


def test_the_set_says_what_it_is() -> None:
    images = open_images(DataOptions(path="photos", size=64))
    assert images.summary == "photos: 17,478 images in 7 classes, 64x64x3, cut from 4.4 MB in memory"
    gray = open_images(DataOptions(path="photos:held-out", size=64, channels=1))
    assert gray.read(np.arange(2)).shape == (2, 64, 64, 1)
    with pytest.raises(FastganError, match="no photograph has room for patches of 1024 pixels"):
        open_images(DataOptions(path="photos", size=1024))


def test_without_the_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FastganError, match=r"photos: neither .* pip install 'fastgan\[demo\]'"):
        open_images(DataOptions(path="photos"))
