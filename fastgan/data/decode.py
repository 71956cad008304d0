"""One image file to [size, size, channels] uint8: the limits, the modes, the crop and the resize."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastgan.data.image_set import Pixels
from fastgan.data.options import DataOptions

FORMATS = ("PNG", "JPEG", "WEBP")  # the only parsers that untrusted bytes reach
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class BadImage(Exception):
    """Why an image file is unusable, as the end of a sentence that begins with the file's name."""


def open_image(stream: BinaryIO, options: DataOptions) -> Image.Image:
    """Reads the header and nothing else, and checks what it declares. Raises BadImage."""
    too_large = f"is larger than {options.max_megapixels:g} megapixels (data.max_megapixels)"
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(too_large) from error
    except UnidentifiedImageError as error:
        raise BadImage("is not recognised as a PNG, JPEG or WebP image") from error
    except MemoryError:
        raise
    except Exception as error:  # the parsers raise nearly anything on damaged bytes; all of it is reported
        raise _damaged(error) from error
    width, height = image.size
    if width * height > options.max_megapixels * 1e6:
        raise BadImage(f"({width}x{height}) {too_large}")
    if min(width, height) < options.min_side:
        raise BadImage(f"is too small ({width}x{height}; data.min_side is {options.min_side})")
    return image


def decode(stream: BinaryIO, options: DataOptions, *, half: str = "") -> tuple[Pixels, bool]:
    """The image as [size, size, channels] uint8, and whether it had to be enlarged. Raises BadImage.

    half: "left" or "right" of the file's picture, whose width must be even; "": all of it
    """
    image = open_image(stream, options)
    try:
        # A JPEG of at least four times the wanted size is halved (up to three times) while decoding, which
        # is several times faster; at least twice the size remains for the Lanczos filter. Not of two side by side:
        # their border has to stay between two pixels.
        if not half:
            image.draft(None, (2 * options.size, 2 * options.size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from error
    image = flatten(image, options.channels)
    if half:
        image = half_of(image, half)
    enlarged = min(image.size) < options.size
    if options.crop == "center":
        image = _center(image)
    if image.size != (options.size, options.size):
        image = image.resize((options.size, options.size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(options.shape), enlarged


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
    image = open_image(stream, options)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from error
    pixels = np.asarray(flatten(image, options.channels))
    return pixels.reshape(*pixels.shape[:2], options.channels)


def half_of(image: Image.Image, half: str) -> Image.Image:
    """The "left" or "right" half. Raises BadImage for an odd width."""
    if image.width % 2:
        raise BadImage(f"is {image.width} pixels wide; two images side by side need an even width")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height) if half == "left" else (middle, 0, image.width, image.height))


def _center(image: Image.Image) -> Image.Image:
    """The largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _damaged(error: Exception) -> BadImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadImage(f"is damaged ({reason})")
