"""Every wrong input is one line that names it and says what to do. What the room imports stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastgan.data import DataOptions, open_images
from fastgan.errors import FastganError


def image(path: Path, side: int = 16) -> None:
    Image.new("RGB", (side, side)).save(path)


def no_path(folder: Path) -> Path:
    return folder / "missing"


def empty(folder: Path) -> Path:
    return folder


def others_only(folder: Path) -> Path:
    (folder / "a.gif").write_bytes(b"GIF")
    (folder / "b.txt").write_bytes(b"text")
    return folder


def one(folder: Path) -> Path:
    image(folder / "only.png")
    return folder


def single_file(folder: Path) -> Path:
    image(folder / "only.png")
    return folder / "only.png"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def tiny(folder: Path) -> Path:
    image(folder / "a.png")
    image(folder / "b.png", 1)
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            no_path,
            [
                "missing'",
                "No such file or directory",
                "give a folder of images, a .zip or .tar of one, a pack, 'digits' or 'photos'",
            ],
        ),
        (empty, ["no PNG, JPEG or WebP images", "at least 2 images"]),
        (others_only, ["no PNG, JPEG or WebP images (and 2 files of other kinds)", "at least 2"]),
        (one, ["only one image, only.png", "at least 2"]),
        (single_file, ["only.png: expected a folder or a zip archive"]),
        (pipe, ["is neither a folder nor a file", "give a folder"]),
        (tiny, ["b.png is too small (1x1; data.min_side is 8)", "replace or remove it"]),
    ],
)
def test_wrong_paths(tmp_path: Path, make, words: list[str]) -> None:
    path = make(tmp_path)
    with pytest.raises(FastganError) as raised:
        open_images(DataOptions(path=str(path), size=16))
    message = str(raised.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(FastganError, match=r"data\.path is empty; give a folder"):
        open_images(DataOptions(path=""))


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    image(tmp_path / "set" / "1.png")
    image(tmp_path / "set" / "2.png")
    assert len(open_images(DataOptions(path="~/set", size=16))) == 2


def test_a_folder_called_digits_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    image(tmp_path / "digits" / "1.png")
    image(tmp_path / "digits" / "2.png")
    assert len(open_images(DataOptions(path="./digits", size=16))) == 2


def test_reading_images_imports_nothing_of_the_trainer() -> None:
    code = """
import sys
import fastgan.data.feeder
unwanted = {"train", "step", "gans", "models", "nn", "run", "config", "cli", "optim"}
found = unwanted & {name.split(".")[1] for name in sys.modules if name.startswith("fastgan.")}
assert not found, found
assert not {"sklearn", "tyro", "rich", "tensorboard"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
