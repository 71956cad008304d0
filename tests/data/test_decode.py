"""Each kind of image file gives the pixels that a person would expect, and damaged ones a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fastgan.data.decode import BadImage, decode, open_image
from fastgan.data.options import DataOptions

SIZE = 16
RGB = DataOptions(size=SIZE)
GREY = DataOptions(size=SIZE, channels=1)


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def pixels(image: Image.Image, kind: str = "PNG", to: DataOptions = RGB, **options: object) -> np.ndarray:
    return decode(encoded(image, kind, **options), to)[0]


def png(width: int, height: int, body: bytes = b"") -> io.BytesIO:
    """A PNG file with this header (8-bit RGB) and `body` as its only image data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.fixture
def colours() -> np.ndarray:
    """Random [SIZE, SIZE, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def photo() -> Image.Image:
    """Something smooth with edges, 256x192, as photographs are."""
    y, x = np.mgrid[0:192, 0:256]
    waves = np.stack([np.sin(x / 17 + y / 29), np.cos(x / 31 - y / 13), np.sin(x * y / 4000)], -1)
    waves[60:120, 80:200] *= -1
    return Image.fromarray((waves * 100 + 128).astype(np.uint8))


def test_rgb_png_is_exact(colours: np.ndarray) -> None:
    result, enlarged = decode(encoded(Image.fromarray(colours), "PNG"), RGB)
    assert result.dtype == np.uint8
    assert (result == colours).all()
    assert not enlarged


def test_lossless_webp_is_exact(colours: np.ndarray) -> None:
    assert (pixels(Image.fromarray(colours), "WEBP", lossless=True) == colours).all()


def test_greyscale_to_rgb_and_back(colours: np.ndarray) -> None:
    grey = Image.fromarray(colours[:, :, 0])
    assert (pixels(grey) == colours[:, :, :1]).all()
    assert pixels(grey, to=GREY).shape == (SIZE, SIZE, 1)
    assert (pixels(grey, to=GREY) == colours[:, :, :1]).all()


def test_rgb_to_greyscale_is_luma(colours: np.ndarray) -> None:
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(Image.fromarray(colours), to=GREY)[:, :, 0] - luma).max() <= 1


def test_bilevel() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (SIZE, SIZE)).astype(bool)
    assert (pixels(Image.fromarray(bits)) == bits[:, :, None] * 255).all()


def test_alpha_lies_on_white(colours: np.ndarray) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    rgba = Image.fromarray(np.concatenate([colours, alpha], -1))
    expected = colours * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(pixels(rgba) - expected).max() <= 1
    assert (pixels(rgba)[0] == 255).all()
    assert (pixels(rgba)[1] == colours[1]).all()
    assert np.abs(pixels(rgba, "WEBP", lossless=True, exact=True) - expected).max() <= 1


def test_grey_alpha_lies_on_white(colours: np.ndarray) -> None:
    image = Image.merge("LA", [Image.fromarray(colours[:, :, 0]), Image.fromarray(colours[:, :, 1])])
    value, alpha = colours[:, :, 0].astype(float), colours[:, :, 1] / 255
    expected = value * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(image)[:, :, 0] - expected).max() <= 1
    assert np.abs(pixels(image, to=GREY)[:, :, 0] - expected).max() <= 1


def test_palettes(colours: np.ndarray) -> None:
    image = Image.fromarray(colours).quantize(16)
    plain = np.asarray(image.convert("RGB"))
    index = np.asarray(image)
    assert (pixels(image) == plain).all()
    for transparency in (3, bytes([255, 255, 255, 0])):  # a single index, a table
        result = pixels(image, transparency=transparency)
        assert (result[index == 3] == 255).all()
        assert (result[index != 3] == plain[index != 3]).all()


def test_colour_keys(colours: np.ndarray) -> None:
    key = tuple(int(v) for v in colours[5, 5])
    result = pixels(Image.fromarray(colours), transparency=key)
    assert (result[5, 5] == 255).all()
    assert (result[5, 6] == colours[5, 6]).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
    values[0, 0], values[0, 1] = 65535, 0
    expected = np.round(values / 257)
    assert (pixels(Image.fromarray(values))[:, :, 1] == expected).all()
    assert (pixels(Image.fromarray(values), to=GREY)[:, :, 0] == expected).all()
    keyed = pixels(Image.fromarray(values), transparency=int(values[4, 4]))
    assert (keyed[4, 4] == 255).all()
    assert (keyed[4, 5] == expected[4, 5]).all()


def test_cmyk() -> None:
    ink = np.zeros((SIZE, SIZE, 4), np.uint8)
    ink[:, :, 0], ink[:, :, 3] = 200, 30  # cyan and some black
    result = pixels(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = np.array([(255 - 200) * (255 - 30) / 255, 225, 225])
    assert np.abs(result - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation: int, colours: np.ndarray) -> None:
    stored = {  # what a camera that notes `orientation` stores for an upright `colours`
        1: colours,
        2: colours[:, ::-1],
        3: colours[::-1, ::-1],
        4: colours[::-1],
        5: colours.transpose(1, 0, 2),
        6: np.rot90(colours),
        7: colours[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(colours, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    assert (pixels(image, "PNG", exif=exif) == colours).all()
    assert (pixels(image, "WEBP", lossless=True, exif=exif) == colours).all()
    grey16 = Image.fromarray(np.ascontiguousarray(stored[:, :, 0]).astype(np.uint16) * 257)
    assert (pixels(grey16, "PNG", exif=exif)[:, :, 0] == colours[:, :, 0]).all()


@pytest.mark.parametrize(("width", "height"), [(40, SIZE), (SIZE, 41)])
def test_center_crop_takes_the_largest_centred_square(width: int, height: int) -> None:
    image = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    assert (pixels(Image.fromarray(image)) == image[top : top + SIZE, left : left + SIZE]).all()


def test_no_crop_squeezes(photo: Image.Image) -> None:
    options = DataOptions(size=SIZE, crop="none")
    expected = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    assert (pixels(photo, to=options) == expected).all()


def test_resize_is_lanczos_of_the_crop(photo: Image.Image) -> None:
    expected = photo.crop((32, 0, 224, 192)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    assert (pixels(photo) == np.asarray(expected)).all()


def test_jpeg_decoding_at_reduced_size_hardly_changes_the_result(photo: Image.Image) -> None:
    stream = encoded(photo, "JPEG", quality=95)
    full = Image.open(stream).crop((32, 0, 224, 192)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    stream.seek(0)
    reduced = decode(stream, RGB)[0]
    assert np.abs(reduced.astype(int) - np.asarray(full)).mean() < 1.5


def test_enlarging_is_reported(colours: np.ndarray) -> None:
    small = Image.fromarray(colours[:10])
    result, enlarged = decode(encoded(small, "PNG"), RGB)
    assert result.shape == (SIZE, SIZE, 3)
    assert enlarged


def test_first_frame_of_an_animation(colours: np.ndarray) -> None:
    first, second = Image.fromarray(colours), Image.fromarray(255 - colours)
    for kind in ("PNG", "WEBP"):
        stream = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        assert (decode(stream, RGB)[0] == colours).all()


def jpeg(image: Image.Image) -> bytes:
    return encoded(image, "JPEG").getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, this is text\n" * 10, "is not recognised as a PNG, JPEG or WebP image"),
        (b"", "is not recognised"),
        (encoded(Image.new("RGB", (32, 32)), "GIF").getvalue(), "is not recognised"),
        (encoded(Image.new("RGB", (32, 32)), "BMP").getvalue(), "is not recognised"),
        (jpeg(Image.effect_noise((64, 64), 50))[:-300], "is damaged (image file is truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG").getvalue()[:-900], "is damaged"),
        (encoded(Image.effect_noise((64, 64), 50), "WEBP").getvalue()[:-400], "is damaged"),
        (png(16, 16, b"no deflate stream").getvalue(), "is damaged"),
        (encoded(Image.new("RGB", (1, 1)), "PNG").getvalue(), "is too small (1x1; data.min_side is 8)"),
        (encoded(Image.new("RGB", (300, 7)), "JPEG").getvalue(), "is too small (300x7"),
        (png(9000, 9000).getvalue(), "(9000x9000) is larger than 64 megapixels (data.max_megapixels)"),
        (png(30000, 30000).getvalue(), "is larger than 64 megapixels (data.max_megapixels)"),
    ],
)
def test_unusable_files_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as raised:
        decode(io.BytesIO(data), RGB)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_of_a_too_large_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for side in (9000, 30000):
        with pytest.raises(BadImage, match="megapixels"):
            decode(png(side, side), RGB)


def test_the_limits_are_options() -> None:
    open_image(png(9000, 9000), DataOptions(max_megapixels=81.0))
    open_image(png(2, 5), DataOptions(min_side=2))
    with pytest.raises(BadImage, match=r"larger than 0\.01 megapixels"):
        open_image(png(200, 100), DataOptions(max_megapixels=0.01))


def test_a_failure_of_our_own_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch, colours: np.ndarray) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    with pytest.raises(MemoryError):
        decode(encoded(Image.fromarray(colours), "PNG"), RGB)
