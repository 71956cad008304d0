"""Packs hold what the files hold, in a keyed order, with the labels that belong to them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.packs import everything, packed
from data.pictures import SIZE, encoded, files, picture, write_folder, write_tar, write_zip
from PIL import Image

from fastgan.cli import main
from fastgan.data import DataOptions, open_images
from fastgan.data.files import list_folder
from fastgan.data.pack import ORDER_KEY, pack
from fastgan.data.pack_format import LABELS, REJECTED, shard_path
from fastgan.data.pack_reader import verify_pack
from fastgan.data.pack_source import PackOptions
from fastgan.data.sampler import image_order, uniform
from fastgan.errors import FastganError

MAKERS = {"folder": write_folder, "set.zip": write_zip, "set.tar": write_tar}


def by_hand(data: bytes) -> np.ndarray:
    """The whole file decoded by Pillow, the largest centred square, Lanczos."""
    import io

    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS) if side != SIZE else square)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_source_gives_the_pixels_and_classes_of_its_files(tmp_path: Path, kind: str) -> None:
    content = files()
    images = packed(MAKERS[kind](tmp_path / kind, content), tmp_path / "out", shard_mb=0.01)
    names = sorted(content)
    order = image_order(ORDER_KEY, len(names), np.arange(len(names)))
    assert not (order == np.arange(len(names))).all()
    for number, pixels, label in zip(order, everything(images), images.labels, strict=True):
        assert (pixels == by_hand(content[names[number]])).all()
        assert images.classes[label] == names[number].split("/")[0]
    assert images.kind == "mapped"
    assert len(list((tmp_path / "out").glob("shard-*"))) > 1


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_compressed_packs(source: Path, tmp_path: Path, format: str) -> None:
    raw, images = packed(source, tmp_path / "raw"), packed(source, tmp_path / format, format=format, shard_mb=0.003)
    assert images.kind == "decoded"
    assert (images.labels == raw.labels).all()
    difference = np.abs(everything(images).astype(int) - everything(raw))
    assert difference.max() == 0 if format == "png" else difference.mean() < 3
    picked = np.array([5, 0, 23, 5])
    assert (images.read(picked) == everything(images)[picked]).all()


def test_a_jpeg_of_the_right_size_is_copied_as_it_is(source: Path, tmp_path: Path) -> None:
    raw, images = packed(source, tmp_path / "raw"), packed(source, tmp_path / "jpeg", format="jpeg")
    names = sorted(files())
    order = image_order(ORDER_KEY, len(names), np.arange(len(names)))
    right = [i for i, n in enumerate(order) if names[n].endswith("jpg") and int(names[n][4:7]) % 4 < 2]
    assert len(right) > 5
    assert (everything(images)[right] == everything(raw)[right]).all()
    shard = shard_path(tmp_path / "jpeg", 0).read_bytes()
    assert all(files()[names[order[i]]] in shard for i in right)


def test_a_pack_can_be_packed_again(source: Path, tmp_path: Path) -> None:
    raw = packed(source, tmp_path / "raw")
    again = packed(tmp_path / "raw", tmp_path / "again", format="png", seed=5)
    order = image_order(5 ^ ORDER_KEY, len(raw), np.arange(len(raw)))
    assert (everything(again) == everything(raw)[order]).all()
    assert (again.labels == raw.labels[order]).all()
    assert again.classes == raw.classes
    pack(PackOptions(str(tmp_path / "raw"), str(tmp_path / "small"), size=8))
    small = open_images(DataOptions(path=str(tmp_path / "small"), size=8))
    order = image_order(ORDER_KEY, len(raw), np.arange(len(raw)))
    expected = [np.asarray(Image.fromarray(i).resize((8, 8), Image.Resampling.LANCZOS)) for i in everything(raw)[order]]
    assert (everything(small) == np.stack(expected)).all()


def test_greyscale(source: Path, tmp_path: Path) -> None:
    pack(PackOptions(str(source), str(tmp_path / "grey"), size=SIZE, channels=1, format="jpeg"))
    images = open_images(DataOptions(path=str(tmp_path / "grey"), size=SIZE, channels=1))
    assert everything(images).shape == (24, SIZE, SIZE, 1)


def test_auto_is_raw_up_to_the_limit(source: Path, tmp_path: Path) -> None:
    def encoding(**options: float) -> str:
        target = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return pack(PackOptions(str(source), str(target), size=SIZE, **options))[1].encoding

    size = 24 * SIZE * SIZE * 3 / 1e9
    assert encoding(raw_limit=size) == "raw"
    assert encoding(raw_limit=size * 0.99) == "jpeg"  # two thirds of the files are


def test_random_crops_are_functions_of_seed_and_number(tmp_path: Path) -> None:
    wide = {f"{i:02}.png": encoded(picture(i, 3 * SIZE, SIZE), "PNG") for i in range(30)}
    source = write_folder(tmp_path / "wide", wide)
    images = packed(source, tmp_path / "a", crop="random")
    places = (uniform(0, np.arange(30)) * (2 * SIZE + 1)).astype(int)
    assert places.min() < SIZE < places.max() <= 2 * SIZE
    order = image_order(ORDER_KEY, 30, np.arange(30))
    for number, pixels in zip(order, everything(images), strict=True):
        whole, left = np.asarray(picture(number, 3 * SIZE, SIZE)), places[number]
        assert (pixels == whole[:, left : left + SIZE]).all()
    again = packed(source, tmp_path / "b", crop="random", shard_mb=0.001, workers=1)
    assert (everything(again) == everything(images)).all()
    assert not (everything(packed(source, tmp_path / "c", crop="random", seed=1)) == everything(images)).all()


def test_bad_images_are_named_and_left_out(source: Path, tmp_path: Path) -> None:
    (source / "cat" / "bad.jpg").write_bytes(files()["cat/001.jpg"][:-200])
    (source / "dog" / "text.png").write_bytes(b"no picture")
    images = packed(source, tmp_path / "out", max_bad=0.1)
    assert len(images) == 24
    entries = [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    assert [entry["name"] for entry in entries] == ["cat/bad.jpg", "dog/text.png"]
    assert "is damaged" in entries[0]["reason"]
    assert "is not recognised" in entries[1]["reason"]
    assert images.rejected == 2
    assert images.left_out[1].startswith("dog/text.png is not recognised")
    assert "2 rejected" in images.summary


def test_too_many_bad_images_stop_with_one_line(source: Path, tmp_path: Path) -> None:
    for i in range(3):
        (source / f"bad{i}.png").write_bytes(b"no picture")
    with pytest.raises(FastganError) as raised:
        packed(source, tmp_path / "out", max_bad=0.05, workers=1)
    assert "3 unusable of 27 looked at" in str(raised.value)
    assert "more than --max-bad 0.05 of 27" in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert len(packed(source, tmp_path / "out", max_bad=0.2)) == 24  # the same command with more allowed goes on


def test_shards_of_which_nothing_is_left(tmp_path: Path) -> None:
    content = files(6) | {f"x/{i}.png": b"no picture" for i in range(4)}
    images = packed(write_folder(tmp_path / "source", content), tmp_path / "out", max_bad=0.5, shard_mb=0.0005)
    assert len(images) == len(list((tmp_path / "out").glob("shard-*"))) == 6
    assert everything(images).std() > 0


def test_labels_from_files(source: Path, tmp_path: Path) -> None:
    names = list_folder(source).names
    numbers = {name: i % 5 for i, name in enumerate(names)}
    tables = {
        "l.csv": "name,label\n" + "".join(f"{n},{i}\n" for n, i in numbers.items()),
        "l.tsv": "".join(f"{n}\t{i}\n" for n, i in numbers.items()),
        "l.jsonl": "".join(json.dumps({"name": n, "label": i}) + "\n" for n, i in numbers.items()),
        "dataset.json": json.dumps({"labels": [[n, i] for n, i in numbers.items()]}),
        "base.csv": "".join(f"{n.split('/')[1]},{i}\n" for n, i in numbers.items()),
    }
    order = image_order(ORDER_KEY, len(names), np.arange(len(names)))
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        images = packed(source, tmp_path / f"out-{name}", labels=str(tmp_path / name))
        assert images.labels.tolist() == [numbers[names[n]] for n in order], name
        assert images.classes == ("0", "1", "2", "3", "4")
    inside = write_zip(tmp_path / "in.zip", files() | {"dataset.json": tables["dataset.json"].encode()})
    assert packed(inside, tmp_path / "in", labels="dataset.json").labels.tolist() == images.labels.tolist()
    (tmp_path / "named.csv").write_text("".join(f"{n},{'ab'[i % 2]}\n" for n, i in numbers.items()))
    assert packed(source, tmp_path / "named", labels=str(tmp_path / "named.csv")).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat/001.jpg,1\n", "no label for 23 of 24 images"),
        ("cat/001.jpg\n", "line 1: expected name"),
        ("a,-1\n", "entry 1: expected a class number below 1,000,000 or a name, got '-1'"),
        ("a,1.5\nb,2\n", "entry 1: expected a class number below 1,000,000 or a name, got '1.5'"),
        ("a,99999999\n", "got '99999999'"),
    ],
)
def test_labels_that_cannot_be_used(source: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(FastganError) as raised:
        packed(source, tmp_path / "out", labels=str(tmp_path / "l.csv"))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "cat" / "bad.png").write_bytes(b"no picture")
    target = tmp_path / "out"
    assert main(["pack", str(source), str(target), "--size", str(SIZE), "--max-bad", "0.1"]) == 0
    line = capsys.readouterr().out
    for words in ("24 images in 2 classes, 16x16x3 raw, 0.0 MB in 1 shard; 1 rejected", "rejected.jsonl", "images/s"):
        assert words in line
    assert main(["pack", "--verify", str(target)]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    shard = shard_path(target, 0)
    data = bytearray(shard.read_bytes())
    data[SIZE * SIZE * 3 * 7 + 5] ^= 4
    shard.write_bytes(data)
    assert main(["pack", "--verify", str(target)]) == 2
    assert "image 7 in shard-00000.bin: does not match its checksum" in capsys.readouterr().err
    for args, words in (([], "expected SRC and DST"), (["a", "b", "--verify", "c"], "leave out SRC and DST")):
        assert main(["pack", *args]) == 2
        assert words in capsys.readouterr().err


def test_the_command_does_not_load_torch(source: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from fastgan.cli import main
assert main(["pack", {str(source)!r}, {str(tmp_path / "out")!r}, "--size", "16"]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_labels_are_checked_when_they_are_used(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "out")
    values = np.load(tmp_path / "out" / LABELS)
    values[3] = 7
    np.save(tmp_path / "out" / LABELS, values)
    images = open_images(DataOptions(path=str(tmp_path / "out"), size=SIZE))
    out = np.empty(2, np.int64)
    images.labels_of(np.array([0, 1]), out)
    with pytest.raises(FastganError, match=r"damaged labels: expected 0 to 1, got [01] to 7"):
        images.labels_of(np.array([0, 3]), out)
    assert verify_pack(tmp_path / "out", 1)[0]


def test_shards_that_are_whole_pages_are_one_array(source: Path, tmp_path: Path) -> None:
    from fastgan.data.mapping import can_be_joined
    from fastgan.data.pack_reader import open_pack_files

    many = write_folder(tmp_path / "many", {f"{i:03}.png": encoded(picture(i), "PNG") for i in range(200)})
    images = packed(many, tmp_path / "out", shard_mb=0.05)
    opened = open_pack_files(tmp_path / "out")
    sizes = [shard.bytes for shard in opened.index.shards]
    assert len(sizes) > 3
    assert can_be_joined(sizes)
    (rows,) = opened.rows()
    assert rows.pixels.shape == (200, SIZE, SIZE, 3)
    assert (rows.pixels == everything(packed(many, tmp_path / "one"))).all()
    assert (everything(images) == rows.pixels).all()
    with pytest.raises(ValueError, match="read-only"):
        rows.pixels[0] = 0
    shard_path(tmp_path / "out", 2).unlink()
    with pytest.raises(FastganError, match=r"pack .*: shard-00002\.bin: No such file"):
        opened.rows()
    assert not can_be_joined([100, 200])
