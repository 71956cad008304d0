"""Small sets of pictures that the tests of packs and feeders share."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16


def picture(number: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def files(count: int = 24) -> dict[str, bytes]:
    """Names and bytes: JPEG and PNG, of the wanted size and others, in two class folders."""
    made = {}
    for i in range(count):
        width, height = [(SIZE, SIZE), (SIZE, SIZE), (40, 30), (21, 64)][i % 4]
        kind, ending = ("PNG", "png") if i % 3 == 2 else ("JPEG", "jpg")
        made[f"{'cat' if i % 2 else 'dog'}/{i:03}.{ending}"] = encoded(picture(i, width, height), kind)
    return made


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
