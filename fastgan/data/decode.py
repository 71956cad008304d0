"""One image file to [size, size, channels] uint8: the limits, the modes, the crop and the resize."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastgan.data.image_set import Pixels
from fastgan.data.jpeg import decode_jpeg, is_upright, jpeg_header, read_jpeg
from fastgan.data.options import DataOptions

FORMATS = ("PNG", "JPEG", "WEBP")  # the only parsers that untrusted bytes reach
MOST_COPIED = 1 << 17  # pixels
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class BadImage(Exception):
    """Why an image file is unusable, as the end of a sentence that begins with the file's name."""


def open_image(stream: BinaryIO, options: DataOptions) -> Image.Image:
    """Reads the header and nothing else, and checks what it declares. Raises BadImage."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(_too_large(options)) from error
    except UnidentifiedImageError as error:
        raise BadImage("is not recognised as a PNG, JPEG or WebP image") from error
    except MemoryError:
        raise
    except Exception as error:  # the parsers raise nearly anything on damaged bytes; all of it is reported
        raise _damaged(error) from error
    _check_size(*image.size, options)
    return image


def _check_size(width: int, height: int, options: DataOptions) -> None:
    if width * height > options.max_megapixels * 1e6:
        raise BadImage(f"({width}x{height}) {_too_large(options)}")
    if min(width, height) < options.min_side:
        raise BadImage(f"is too small ({width}x{height}; data.min_side is {options.min_side})")


def _too_large(options: DataOptions) -> str:
    return f"is larger than {options.max_megapixels:g} megapixels (data.max_megapixels)"


def decode(
    stream: BinaryIO, options: DataOptions, *, place: float | None = None, full: bool = False, half: str = ""
) -> tuple[Pixels, bool]:
    """The image as [size, size, channels] uint8, and whether it had to be enlarged. Raises BadImage.

    half:  "left" or "right" of the file's picture, whose width must be even; "": all of it
    place: where the largest square lies, from 0 (left or top) to below 1; None: as `options.crop` says
    full:  decode every pixel of a large JPEG (see `_by_pillow`)
    """
    full = full or bool(half)  # the border between two halves has to stay between two pixels
    data = read_jpeg(stream)
    pixels = None if data is None else _by_turbo(data, options, full)
    if pixels is None:
        stream.seek(0)
        image = _by_pillow(stream, options, full)
    elif pixels.shape == options.shape and not half:
        return pixels, False
    else:
        image = flatten(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), options.channels)
    if half:
        image = half_of(image, half)
    enlarged = min(image.size) < options.size
    return fit(image, options, place), enlarged


def fit(image: Image.Image, options: DataOptions, place: float | None = None) -> Pixels:
    """[size, size, channels] of an image in the right mode: cropped and resized."""
    if options.crop == "center" or place is not None:
        image = _square(image, place)
    if image.size != (options.size, options.size):
        image = image.resize((options.size, options.size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(options.shape)


def _by_turbo(data: bytes, options: DataOptions, full: bool) -> Pixels | None:
    """A JPEG by simplejpeg, [H, W, 1 or 3]; None where Pillow should decode it."""
    header = jpeg_header(data)
    if header is None:
        return None
    width, height, space = header
    _check_size(width, height, options)
    halved = not full and min(width, height) >= 4 * options.size
    # What is resized goes through Pillow anyway, to which a large array would have to be copied first.
    large = (height, width) != options.shape[:2] and width * height > MOST_COPIED
    if halved or large or not is_upright(data):
        return None
    return decode_jpeg(data, grey=space == "Gray" and options.channels == 1)


def _by_pillow(stream: BinaryIO, options: DataOptions, full: bool) -> Image.Image:
    """Unless `full`, a JPEG of at least four times the wanted size is halved (up to three times) while decoding,
    which is several times faster; at least twice the size remains for the Lanczos filter."""
    image = open_image(stream, options)
    try:
        if not full:
            image.draft(None, (2 * options.size, 2 * options.size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # the parsers raise nearly anything on damaged bytes; all of it is reported
        raise _damaged(error) from error
    return flatten(image, options.channels)


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Any mode to RGB (3 channels) or greyscale (1), transparent parts on white."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale to 8 bits: scaled, where Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 65535
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def decode_whole(stream: BinaryIO, options: DataOptions) -> Pixels:
    """The image as large as it is, [H, W, channels] uint8, upright. Raises BadImage."""
    pixels = np.asarray(_by_pillow(stream, options, full=True))
    return pixels.reshape(*pixels.shape[:2], options.channels)


def half_of(image: Image.Image, half: str) -> Image.Image:
    """The "left" or "right" half. Raises BadImage for an odd width."""
    if image.width % 2:
        raise BadImage(f"is {image.width} pixels wide; two images side by side need an even width")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height) if half == "left" else (middle, 0, image.width, image.height))


def _square(image: Image.Image, place: float | None) -> Image.Image:
    """The largest square: centred, or at `place`, from 0 (left or top) to below 1 (right or bottom)."""
    side = min(image.size)
    slack = [length - side for length in image.size]
    left, top = (room // 2 if place is None else int(place * (room + 1)) for room in slack)
    return image.crop((left, top, left + side, top + side))


def _damaged(error: Exception) -> BadImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadImage(f"is damaged ({reason})")
