"""Sets from files: both memory paths agree, labels fit, and what is unusable is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data import DataOptions, ImageSet, open_images
from fastgan.data.files import Files, list_folder
from fastgan.data.folder import load
from fastgan.errors import FastganError

SIZE = 8


def write_images(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """A random SIZE x SIZE image per name, as lossless files; name -> pixels."""
    rng = np.random.default_rng(len(names))
    written = {}
    for name in names:
        written[name] = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(written[name]).save(folder / name, lossless=True)
    return written


def zipped(folder: Path, archive: Path, under: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                target.write(file, f"{under}{file.relative_to(folder)}")
    return archive


def opened(path: Path, **options: object) -> ImageSet:
    return open_images(DataOptions(path=str(path), **{"size": SIZE, **options}))


def everything(images: ImageSet) -> np.ndarray:
    return images.read(np.arange(len(images)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """70 images in two classes, PNG and WebP."""
    write_images(tmp_path / "set", [f"{'cat' if i % 3 else 'dog'}/{i}.{'png' if i % 2 else 'webp'}" for i in range(70)])
    return tmp_path / "set"


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_images_come_in_the_order_of_their_names(folder: Path, memory_gb: float) -> None:
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    expected = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
    images = opened(folder, memory_gb=memory_gb)
    assert (len(images), images.size, images.channels) == (70, SIZE, 3)
    assert (everything(images) == expected).all()
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [int(name.startswith("dog")) for name in names]
    some = np.array([3, 3, 69, 0])
    out = np.empty((4, SIZE, SIZE, 3), np.uint8)
    assert images.read(some, out) is out
    assert (out == expected[some]).all()
    assert images.read(some[:0]).shape == (0, SIZE, SIZE, 3)
    assert images.summary.startswith(f"{folder}: 70 images in 2 classes, 8x8x3, ")
    assert ("in memory" if memory_gb else "decoded on demand") in images.summary


def test_the_limit_of_memory_is_exact(folder: Path) -> None:
    exactly = 70 * SIZE * SIZE * 3 / 1e9
    assert "in memory" in opened(folder, memory_gb=exactly).summary
    assert "on demand" in opened(folder, memory_gb=exactly * 0.999).summary


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
@pytest.mark.parametrize("under", ["", "wrapped/"])
def test_an_archive_equals_its_folder(folder: Path, tmp_path: Path, memory_gb: float, under: str) -> None:
    there = opened(folder)
    here = opened(zipped(folder, tmp_path / "set.zip", under), memory_gb=memory_gb, workers=4)
    assert (everything(here) == everything(there)).all()
    assert here.classes == there.classes
    assert (here.labels == there.labels).all()


def test_other_sizes_channels_and_crops_agree_between_the_memory_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        noise = Image.fromarray(rng.integers(0, 256, (20 + 9 * i, 60 - 7 * i, 3), dtype=np.uint8))
        noise.save(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
    for crop in ("center", "none"):
        for channels in (1, 3):
            both = [
                everything(opened(tmp_path, size=12, channels=channels, crop=crop, memory_gb=memory_gb))
                for memory_gb in (4.0, 0.0)
            ]
            assert both[0].shape == (6, 12, 12, channels)
            assert (both[0] == both[1]).all()


def test_the_number_of_threads_changes_nothing(folder: Path) -> None:
    assert (everything(opened(folder, workers=1)) == everything(opened(folder, workers=7))).all()


def test_progress_is_reported(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_images(DataOptions(path=str(folder), size=SIZE), lambda done, total: seen.append((done, total)))
    assert seen == [(32, 70), (64, 70), (70, 70)]


def test_an_interrupt_does_not_wait_for_the_rest(folder: Path) -> None:
    looked_at = []
    files = list_folder(folder)
    slow = Files(files.name, files.names * 40, lambda i: looked_at.append(i) or files.open(i % 70), 0)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(slow, DataOptions(size=SIZE, workers=1), interrupt)
    assert len(looked_at) < 2800


def test_enlarged_and_ignored_files_are_in_the_summary(folder: Path) -> None:
    (folder / "notes.txt").write_text("?")
    summary = opened(folder, size=16).summary
    assert summary.endswith("; 70 smaller than 16 pixels were enlarged; 1 files of other kinds ignored")


# ---- what can be wrong -----------------------------------------------------------------------------------


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("this is not an image")


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_the_first_unusable_image_and_the_number_of_others_are_named(folder: Path, memory_gb: float) -> None:
    spoil(folder, "dog/zz.png")
    with pytest.raises(FastganError) as raised:
        opened(folder, memory_gb=memory_gb)
    assert str(raised.value) == (
        f"{folder}: dog/zz.png is not recognised as a PNG, JPEG or WebP image; replace or remove it, "
        "or leave out unusable images with data.max_bad=0.0141"
    )
    spoil(folder, "cat/a.png", "cat/b.png")
    with pytest.raises(FastganError) as raised:
        opened(folder, memory_gb=memory_gb)
    assert str(raised.value) == (
        f"{folder}: cat/a.png is not recognised as a PNG, JPEG or WebP image (and 2 more of the 73 images "
        "are unusable); replace or remove them, or leave out unusable images with data.max_bad=0.0411"
    )


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_unusable_images_are_left_out_where_that_is_allowed(folder: Path, memory_gb: float) -> None:
    expected = opened(folder)
    spoil(folder, "dog/0.jpg", "bird/1.png", "cat/zz.png")
    images = opened(folder, memory_gb=memory_gb, max_bad=0.0411)  # as the message says
    assert (everything(images) == everything(expected)).all()
    assert (images.labels == expected.labels).all()
    assert images.classes == ("cat", "dog")  # no class without images
    reason = "is not recognised as a PNG, JPEG or WebP image"
    assert images.left_out == (f"bird/1.png {reason}", f"cat/zz.png {reason}", f"dog/0.jpg {reason}")
    assert "3 unusable images left out" in images.summary
    with pytest.raises(FastganError, match=r"bird/1\.png .*and 2 more"):
        opened(folder, memory_gb=memory_gb, max_bad=0.04)


def test_the_fraction_that_the_message_names_is_enough(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    spoil(tmp_path, "c.png")
    with pytest.raises(FastganError) as raised:
        opened(tmp_path)
    named = float(str(raised.value).rpartition("=")[2])
    assert named < 0.334
    assert len(opened(tmp_path, max_bad=named)) == 2


def test_leaving_out_must_leave_two(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    spoil(tmp_path, "b.png", "c.png")
    with pytest.raises(FastganError, match=r"b\.png is not recognised .*\(and 1 more.*replace or remove them$"):
        opened(tmp_path, max_bad=0.9)


def test_damage_that_the_header_does_not_show_is_named_when_it_is_read(folder: Path) -> None:
    noise = Image.effect_noise((64, 64), 50)
    noise.save(folder / "cat" / "zz.jpg")
    data = (folder / "cat" / "zz.jpg").read_bytes()
    (folder / "cat" / "zz.jpg").write_bytes(data[:-200])
    with pytest.raises(FastganError, match=r"cat/zz\.jpg is damaged \(image file is truncated"):
        opened(folder)
    images = opened(folder, memory_gb=0.0)
    with pytest.raises(FastganError, match=r"cat/zz\.jpg is damaged .*raise data\.memory_gb") as raised:
        everything(images)
    assert "\n" not in str(raised.value)
