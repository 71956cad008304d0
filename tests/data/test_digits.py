"""The digits: all of them, faithful at every size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import datasets

from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError


def test_all_digits_with_their_labels() -> None:
    images = open_images(DataOptions(path="digits", size=32, channels=1))
    assert (len(images), images.size, images.channels) == (1797, 32, 1)
    assert images.classes == tuple("0123456789")
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert (images.labels == datasets.load_digits().target).all()
    assert images.summary == "digits: 1,797 images in 10 classes, 32x32x1, 1.8 MB in memory"


def test_the_original_size_is_the_original() -> None:
    pixels = open_images(DataOptions(path="digits", size=8, channels=3)).read(np.arange(1797))
    expected = np.round(datasets.load_digits().images * 255 / 16)
    assert (pixels == expected[..., None]).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_enlarged_digits_are_the_same_digits(size: int) -> None:
    pixels = open_images(DataOptions(path="digits", size=size, channels=1)).read(np.arange(1797))
    original = datasets.load_digits().images * 255 / 16
    blocks = pixels.reshape(1797, 8, size // 8, 8, size // 8).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.98
    assert pixels.max() == 255
    assert np.median(pixels) < 40  # mostly black
    # Smooth: no neighbours as far apart as a value that wrapped around would be.
    assert np.abs(np.diff(pixels[..., 0].astype(int), axis=2)).max() < (200 if size == 16 else 130)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(FastganError, match=r"scikit-learn.*pip install 'fastgan\[demo\]'"):
        open_images(DataOptions(path="digits"))
