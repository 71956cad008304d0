"""Images with images to translate from: layouts that data sets have, batches, and what is wrong with some."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data import DataOptions, fingerprint, open_images
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError

SIZE = 8


def picture(number: int, side: str, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    """One that says by its level which it is, and by its right half, 9 levels brighter, which way round."""
    pixels = np.full((height, width), 20 * number + (0 if side == "A" else 10), np.uint8)
    pixels[:, width // 2 :] += 9
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folders(path: Path, names: tuple[str, str] = ("A", "B"), counts: tuple[int, int] = (5, 5)) -> Path:
    for name, side, count in zip(names, "AB", counts, strict=True):
        for n in range(count):
            save(path / name / f"{n}.png", picture(n, side))
    return path


def side_by_side(path: Path, count: int = 5) -> Path:
    for n in range(count):
        save(path / "train" / f"{n}.png", np.concatenate([picture(n, "A"), picture(n, "B")], 1))
    return path


def options(path: Path, pairs: str, **more: object) -> DataOptions:
    return DataOptions(path=str(path), size=SIZE, channels=1, pairs=pairs, workers=1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("pairs", ["side_by_side", "folders"])
@pytest.mark.parametrize("memory_gb", [4.0, 0.0], ids=["in memory", "on demand"])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_partners_stay_together(tmp_path: Path, pairs: str, memory_gb: float, direction: str) -> None:
    (side_by_side if pairs == "side_by_side" else folders)(tmp_path)
    images = open_images(options(tmp_path, pairs, memory_gb=memory_gb, direction=direction))
    assert images.source is not None
    assert images.aligned
    assert images.labels is None
    assert "5 images" in images.summary
    assert direction in images.summary
    assert (f"of {SIZE}x{SIZE} each" in images.summary) == (pairs == "side_by_side")
    every = np.arange(5)
    targets, sources = images.read(every), images.source.read(every)
    first, second = (sources, targets) if direction == "AtoB" else (targets, sources)
    for n in every:
        assert np.array_equal(first[n, :, :, 0], picture(n, "A"))
        assert np.array_equal(second[n, :, :, 0], picture(n, "B"))


def test_batches_of_pairs_have_the_same_order_and_the_same_flips(tmp_path: Path) -> None:
    images = open_images(options(folders(tmp_path), "folders"))
    flipped = set()
    with Feeder(images, seed=3, batch=4, mirror=True) as feeder:
        for _ in range(6):
            batch = next(feeder)
            assert batch.source is not None
            levels = batch.images * 127.5 + 127.5, batch.source * 127.5 + 127.5
            assert (levels[0] - levels[1] - 10).abs().max() < 1e-3  # partners, mirrored alike
            flipped |= {bool(x) for x in levels[0][:, 0, 0, 0] > levels[0][:, 0, 0, -1]}
            assert batch.source.stride() == batch.images.stride()
    assert flipped == {True, False}


def test_domains_without_pairs_come_in_orders_of_their_own(tmp_path: Path) -> None:
    folders(tmp_path, ("trainA", "trainB"), (12, 7))
    images = open_images(options(tmp_path, "unpaired"))
    assert (len(images), images.source and len(images.source), images.aligned) == (7, 12, False)

    def numbers(first_sample: int, count: int) -> list[list[int]]:
        with Feeder(images, seed=0, batch=4, first_sample=first_sample) as feeder:
            batches = [next(feeder) for _ in range(count)]
        levels = [[(x[:, 0, 0, 0] * 127.5 + 127.5) // 20 for x in (b.source, b.images)] for b in batches]  # type: ignore[index]
        return [[int(v) for batch in levels for v in batch[side]] for side in (0, 1)]

    sources, targets = numbers(0, 12)
    assert sorted(sources[:12]) == list(range(12))
    assert sorted(targets[:7]) == list(range(7))
    assert sources[:7] != targets[:7]
    later = numbers(20, 2)
    assert later == [sources[20:28], targets[20:28]]  # a run that goes on sees what it would have seen


def test_a_zip_of_folders(tmp_path: Path) -> None:
    folders(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(file, f"set/{file.parent.name}/{file.name}")
    images = open_images(options(tmp_path / "set.zip", "folders"))
    assert np.array_equal(images.source.read(np.array([3]))[0, :, :, 0], picture(3, "A"))  # type: ignore[union-attr]


def test_another_source_is_another_set(tmp_path: Path) -> None:
    one = open_images(options(folders(tmp_path / "one"), "folders"))
    save(folders(tmp_path / "two") / "A" / "2.png", picture(7, "A"))
    other = open_images(options(tmp_path / "two", "folders"))
    assert fingerprint(one) != fingerprint(other)


def test_a_damaged_half_takes_its_partner_along(tmp_path: Path) -> None:
    path = folders(tmp_path)
    whole = (path / "B" / "2.png").read_bytes()
    (path / "B" / "2.png").write_bytes(whole[:45])
    with pytest.raises(FastganError, match=r"2\.png is damaged"):
        open_images(options(path, "folders"))
    images = open_images(options(path, "folders", max_bad=0.2))
    assert len(images) == 4
    for i, n in enumerate((0, 1, 3, 4)):
        assert np.array_equal(images.read(np.array([i]))[0, :, :, 0], picture(n, "B"))
        assert np.array_equal(images.source.read(np.array([i]))[0, :, :, 0], picture(n, "A"))  # type: ignore[union-attr]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    empty = folders(tmp_path / "empty", counts=(3, 0))
    (empty / "B").mkdir()
    lonely = folders(tmp_path / "lonely")
    (lonely / "B" / "3.png").unlink()
    other_size = folders(tmp_path / "size")
    save(other_size / "B" / "1.png", picture(1, "B", width=2 * SIZE))
    odd = side_by_side(tmp_path / "odd")
    save(odd / "train" / "9.png", picture(1, "A", width=2 * SIZE + 1))
    twice = folders(tmp_path / "twice")
    save(twice / "A" / "1.webp", picture(1, "A"))
    cases = [
        (empty, "folders", "no PNG, JPEG or WebP images in B/"),
        (empty, "unpaired", "no PNG, JPEG or WebP images in B/"),
        (lonely, "folders", "3.png has no partner"),
        (other_size, "folders", "1.png is 8x8, but its partner in .* is 16x8"),
        (odd, "side_by_side", "9.png is 17x8"),
        (twice, "folders", "same partner"),
        (odd, "folders", "no folders A/ and B/"),
    ]
    for path, pairs, message in cases:
        with pytest.raises(FastganError, match=message) as caught:
            open_images(options(path, pairs))
        assert "\n" not in str(caught.value)
    with pytest.raises(FastganError, match="digits holds no pairs"):
        open_images(DataOptions(path="digits", pairs="folders"))
    with pytest.raises(FastganError, match="expected '' or 'side_by_side'"):
        DataOptions(pairs="sidebyside")
