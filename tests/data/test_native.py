"""Images at their own size: order, content, hash, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data.native import open_native
from fastgan.errors import FastganError


def write(folder: Path, count: int = 5, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return pixels


def test_folder_and_zip_hold_the_same(tmp_path: Path) -> None:
    pixels = write(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").iterdir()):
            archive.write(path, path.name)
    found = [open_native(tmp_path / name) for name in ("set", "set.zip")]
    for images in found:
        assert (images.count, images.width, images.height) == (5, 9, 7)
        batches = list(images.batches(2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert np.array_equal(np.concatenate(batches), pixels)
    assert found[0].sha256 == found[1].sha256


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    pixels = write(tmp_path / "set")
    before = open_native(tmp_path / "set").sha256
    pixels[3, 0, 0, 0] ^= 1
    Image.fromarray(pixels[3]).save(tmp_path / "set" / "003.png")
    assert open_native(tmp_path / "set").sha256 != before


def test_modes_become_rgb(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    Image.new("L", (4, 4), 100).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    pixels = next(open_native(tmp_path).batches(8))
    assert (pixels[0] == 100).all()
    assert (pixels[1] == 255).all()  # transparent: on white


def test_what_is_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(FastganError) as caught:
            list(open_native(path).batches(4))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file or folder" in refused(tmp_path / "nothing")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    assert "no PNG, JPEG or WebP images (and 1 files of other kinds)" in refused(tmp_path / "texts")
    write(tmp_path / "mixed", 2)
    Image.new("RGB", (9, 8)).save(tmp_path / "mixed" / "z.png")
    assert "000.png is 9x7, but z.png is 9x8; bring them to one size" in refused(tmp_path / "mixed")
    write(tmp_path / "empty", 2)
    (tmp_path / "empty" / "001.png").write_bytes(b"")
    assert "001.png is empty; replace or remove it" in refused(tmp_path / "empty")
    write(tmp_path / "damaged", 2, (64, 64))
    whole = (tmp_path / "damaged" / "001.png").read_bytes()
    (tmp_path / "damaged" / "001.png").write_bytes(whole[: len(whole) // 2])
    assert "001.png is damaged" in refused(tmp_path / "damaged")
    (tmp_path / "damaged" / "001.png").write_bytes(b"GIF89a no image")
    assert "001.png is not recognised as a PNG, JPEG or WebP image" in refused(tmp_path / "damaged")
