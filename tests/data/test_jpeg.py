"""simplejpeg decodes to the very pixels of Pillow, and leaves to Pillow what it should not judge."""

from __future__ import annotations

import io

import numpy as np
import pytest
from data.pictures import encoded, picture
from PIL import Image

from fastgan.data import jpeg
from fastgan.data.decode import BadImage, decode
from fastgan.data.jpeg import decode_exact
from fastgan.data.options import DataOptions

pytestmark = pytest.mark.skipif(jpeg.simplejpeg is None, reason="needs simplejpeg")


def both(monkeypatch: pytest.MonkeyPatch, data: bytes, options: DataOptions, full: bool = False) -> list[object]:
    """What `decode` gives with and without simplejpeg: pixels, or the reason."""
    results: list[object] = []
    for module in (jpeg.simplejpeg, None):
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "simplejpeg", module)
            try:
                results.append(decode(io.BytesIO(data), options, full=full))
            except BadImage as error:
                results.append(str(error))
    return results


def same(a: object, b: object) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return bool((a[0] == b[0]).all()) and a[1] == b[1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_pixels_are_those_of_pillow(monkeypatch: pytest.MonkeyPatch, mode: str, channels: int) -> None:
    for width, height in ((16, 16), (17, 33), (90, 64), (400, 90)):
        for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True, "quality": 30}):
            data = encoded(picture(1, width, height).convert(mode), "JPEG", **options)
            for crop in ("center", "none"):
                for full in (False, True):
                    first, second = both(monkeypatch, data, DataOptions(size=16, channels=channels, crop=crop), full)
                    assert same(first, second), (width, height, options, crop, full)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_that_were_stored_on_their_side(monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(2), "JPEG", exif=exif)
    first, second = both(monkeypatch, data, DataOptions(size=16))
    assert same(first, second)
    assert not decode_exact(data, np.empty(768, np.uint8), (16, 16, 3))


def test_damaged_files_are_judged_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(3, 64, 64), "JPEG")
    rng = np.random.default_rng(0)
    variants = [data[:100], data[:-40], data + b"more", b"\xff\xd8\xff"]
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        variants.append(bytes(changed))
    results = [both(monkeypatch, variant, DataOptions(size=64)) for variant in variants]
    assert all(same(*pair) for pair in results)
    assert sum(isinstance(first, str) for first, _ in results) >= 3


def test_only_files_that_fit_exactly_are_decoded_in_place() -> None:
    out = np.empty(16 * 16 * 3, np.uint8)
    assert decode_exact(encoded(picture(4), "JPEG"), out, (16, 16, 3))
    assert (out.reshape(16, 16, 3) == np.asarray(Image.open(io.BytesIO(encoded(picture(4), "JPEG"))))).all()
    for image, kind in (
        (picture(4, 17, 16), "JPEG"),
        (picture(4, 12, 8), "JPEG"),
        (picture(4, 32, 8), "JPEG"),
        (picture(4), "PNG"),
        (picture(4, 3000, 3000), "JPEG"),
    ):
        assert not decode_exact(encoded(image, kind), out, (16, 16, 3))
