"""JPEG by libjpeg-turbo without a detour: several times as fast as Pillow for small images, and the same pixels.

simplejpeg brings the same decoder that Pillow has inside. What it refuses, and what it is not asked for (CMYK, images
stored on their side), Pillow decodes: which images are good and what they look like does not depend on simplejpeg
being installed.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastgan.data.image_set import Pixels

try:
    import simplejpeg
except ImportError:  # platforms without its wheels
    simplejpeg = None

START = b"\xff\xd8\xff"
MOST_BYTES = 64 << 20  # larger files are left to Pillow, which does not read them whole
SPACES = ("YCbCr", "Gray")
ORIENTATION = 0x0112


def read_jpeg(stream: BinaryIO) -> bytes | None:
    """All bytes of a JPEG file; None, and the stream at its begin, where Pillow should read it."""
    if simplejpeg is not None:
        start = stream.read(len(START))
        if start == START:
            data = start + stream.read(MOST_BYTES)
            if len(data) < MOST_BYTES:
                return data
        stream.seek(0)
    return None


def jpeg_header(data: bytes | memoryview) -> tuple[int, int, str] | None:
    """(width, height, colour space) as declared; None where simplejpeg should not decode this."""
    if simplejpeg is None:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, RuntimeError):
        return None
    return (width, height, space) if space in SPACES else None


def decode_jpeg(data: bytes | memoryview, grey: bool, out: Pixels | None = None) -> Pixels | None:
    """[height, width, 1 or 3] uint8, into `out` if that is given; None where Pillow has to judge."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", buffer=out)
    except (ValueError, RuntimeError):  # also what libjpeg only warns of, and Pillow may accept
        return None
    return pixels


def decode_exact(data: bytes, out: NDArray[np.uint8], shape: tuple[int, int, int]) -> bool:
    """Writes an upright colour JPEG that is [height, width, 3] = `shape` into `out` [height·width·3].

    False for any other file, larger ones before they are decoded; `out` is undefined then.
    """
    if simplejpeg is None or shape[-1] != 3 or not data.startswith(START) or b"Exif\0" in data:
        return False
    try:
        return bool(simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == shape)
    except (ValueError, RuntimeError):  # does not fit into `out`, or damaged, or CMYK
        return False


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """[height, width, 1 or 3] uint8 as a JPEG file, colours at full resolution."""
    grey = pixels.shape[-1] == 1
    if simplejpeg is not None:
        space, subsampling = ("GRAY", "Gray") if grey else ("RGB", "444")
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, subsampling)
        return data
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def is_upright(data: bytes) -> bool:
    """Whether the EXIF part, if there is one, asks for no rotation."""
    if b"Exif\0" not in data:
        return True
    try:
        return bool(Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(ORIENTATION, 1) == 1)
    except MemoryError:
        raise
    except Exception:  # Pillow raises nearly anything on damaged bytes, and will say so when it decodes
        return False
