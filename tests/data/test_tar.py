"""Tar archives are read in place, as WebDataset writes them or as folders, and untrusted ones end in one line."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.pictures import SIZE, encoded, files, picture, write_folder, write_tar
from PIL import Image

from fastgan.data import DataOptions, open_images
from fastgan.data.decode import BadImage
from fastgan.data.tar import expand, list_tars
from fastgan.errors import FastganError

OPTIONS = {"size": SIZE, "workers": 1}


def samples(first: int, number: int, label: Callable[[int], tuple[str, bytes]]) -> dict[str, bytes]:
    """A WebDataset shard: `000003.jpg` and its label."""
    made = {}
    for i in range(first, first + number):
        made[f"{i:06}.jpg"] = encoded(picture(i), "JPEG")
        ending, data = label(i)
        made[f"{i:06}.{ending}"] = data
    return made


def read(path: str | Path) -> np.ndarray:
    images = open_images(DataOptions(path=str(path), **OPTIONS))
    return images.read(np.arange(len(images)))


def test_a_tar_of_a_folder_gives_what_the_folder_gives(tmp_path: Path) -> None:
    folder, archive = write_folder(tmp_path / "set", files()), write_tar(tmp_path / "set.tar", files())
    theirs, mine = (open_images(DataOptions(path=str(p), **OPTIONS)) for p in (folder, archive))
    assert (read(folder) == read(archive)).all()
    assert (theirs.labels == mine.labels).all()
    assert (theirs.classes, theirs.names_sha256) == (mine.classes, mine.names_sha256)


@pytest.mark.parametrize(
    "label",
    [
        lambda i: ("cls", str(i % 3).encode()),
        lambda i: ("json", f'{{"label": {i % 3}, "caption": "a"}}'.encode()),
        lambda i: ("json", f'{{"class": "{"abc"[i % 3]}"}}'.encode()),
    ],
)
def test_webdataset(tmp_path: Path, label: Callable[[int], tuple[str, bytes]]) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard:03}.tar", samples(4 * shard, 4, label))
    for path in (tmp_path, tmp_path / "train-{000..002}.tar", tmp_path / "train-{000,001,002}.tar"):
        images = open_images(DataOptions(path=str(path), **OPTIONS))
        assert len(images) == 12
        assert images.labels.tolist() == [i % 3 for i in range(12)]
        assert len(images.classes) == 3
    assert (read(tmp_path)[7] == np.asarray(Image.open(io.BytesIO(encoded(picture(7), "JPEG"))))).all()
    one = open_images(DataOptions(path=str(tmp_path / "train-001.tar"), **OPTIONS))
    assert (one.read(np.arange(4)) == read(tmp_path)[4:8]).all()


def test_other_json_is_no_label(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4, lambda i: ("json", b'{"caption": "a cat", "label": [0.1]}')))
    assert open_images(DataOptions(path=str(path), **OPTIONS)).labels is None


def test_patterns() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    for pattern in ("{5..1}.tar", "{0..99999999}.tar"):
        with pytest.raises(FastganError, match="no ascending range"):
            expand(pattern)


def with_member(path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            member, data = tarfile.TarInfo(f"{i}.png"), encoded(picture(i), "PNG")
            member.size = len(data)
            if i == 1:
                change(member)
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return path


def attributes(**values: object) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(member, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (attributes(name="../1.png"), "'../1.png' is an absolute path or '..'"),
        (attributes(name="/tmp/1.png"), "'/tmp/1.png' is an absolute path or '..'"),
        (attributes(name="a/../../1.png"), "is an absolute path or '..'"),
        (attributes(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0), "'1.png' is a link"),
        (attributes(type=tarfile.LNKTYPE, linkname="0.png", size=0), "'1.png' is a link"),
        (attributes(type=tarfile.FIFOTYPE, size=0), "'1.png' is neither a file nor a folder"),
        (attributes(type=tarfile.CHRTYPE, size=0), "'1.png' is neither a file nor a folder"),
    ],
)
def test_members_that_no_honest_archive_has(tmp_path: Path, change: Callable, words: str) -> None:
    with pytest.raises(FastganError) as raised:
        read(with_member(tmp_path / "bad.tar", change))
    assert words in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["bad.tar"]


def test_archives_that_are_damaged_or_compressed(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", files()).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar").write_bytes(b"no archive" * 1000)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "compressed.tar", "w:gz") as archive:
        archive.add(tmp_path / "text.tar", "a.png")
    for name in ("cut.tar", "text.tar", "compressed.tar", "empty.tar"):
        with pytest.raises(FastganError) as raised:
            read(tmp_path / name)
        assert name in str(raised.value)
        assert "uncompressed tar archive" in str(raised.value) or "no PNG, JPEG" in str(raised.value)


def test_a_header_that_declares_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x" * 200 + ".png")
    long = member.tobuf(tarfile.GNU_FORMAT)
    lying = bytearray(long[:512])
    lying[124:136] = b"77777777777\0"  # 8 GiB of a name
    lying[148:156] = b"        "
    lying[148:156] = f"{sum(lying):06o}\0 ".encode()
    (tmp_path / "bomb.tar").write_bytes(bytes(lying) + b"\0" * 4096)
    with (tmp_path / "bomb.tar").open("r+b") as file:
        file.truncate(9 << 30)  # sparse
    with pytest.raises(FastganError, match="a header of 8589934592 bytes"):
        read(tmp_path / "bomb.tar")


def test_an_archive_that_shrinks_gives_a_reason(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", files())
    listed = list_tars([path], "a", max_bytes=1e9)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadImage, match="is cut off"):
        listed.open(5)
    assert list_tars([write_tar(path, files())], "a", max_bytes=10).names
    with pytest.raises(BadImage, match="more than any image that is allowed"):
        list_tars([path], "a", max_bytes=10).open(0)


def test_samples_without_a_label_are_named(tmp_path: Path) -> None:
    content = samples(0, 4, lambda i: ("cls", b"1"))
    del content["000002.cls"]
    with pytest.raises(FastganError, match=r"1 of 4 images have no label .*first: 000002.jpg"):
        read(write_tar(tmp_path / "a.tar", content))
    content["000002.cls"] = b"-5"
    with pytest.raises(FastganError, match="expected a class number below 1,000,000 or a name, got '-5'"):
        read(write_tar(tmp_path / "a.tar", content))
