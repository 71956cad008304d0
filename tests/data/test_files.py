"""Folders and archives list the same files in the same order, and refuse what they should."""

from __future__ import annotations

import os
import random
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastgan.data.decode import BadImage
from fastgan.data.files import classes_of, list_folder, list_zip, printable
from fastgan.errors import FastganError

NAMES = ["b/2.png", "a/10.JPG", "a/9.jpeg", "a/deep/er/1.webp", "B/x.PNG"]


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def pack(archive: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in names:
            target.writestr(name, name.encode())
    return archive


def test_names_are_sorted_and_bytes_belong_to_them(tmp_path: Path) -> None:
    names = list(NAMES)
    random.Random(0).shuffle(names)
    for files in (
        list_folder(write(tmp_path / "folder", names)),
        list_zip(pack(tmp_path / "archive.zip", names), max_bytes=1e6),
    ):
        assert files.names == tuple(sorted(NAMES))
        for index, name in enumerate(files.names):
            with files.open(index) as stream:
                assert stream.read() == name.encode()


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, NAMES)
    before = list_folder(tmp_path).names
    listed = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with listed(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert list_folder(tmp_path).names == before


def test_hidden_files_are_passed_over_and_others_counted(tmp_path: Path) -> None:
    hidden = [".DS_Store", "a/._1.png", ".cache/3.png", "__MACOSX/a/._1.png", "__MACOSX/1.png"]
    names = ["a/1.png", "readme.txt", "a/labels.csv", "a/film.gif"]
    files = list_zip(pack(tmp_path / "a.zip", names + hidden), max_bytes=1e6)
    assert files.names == ("a/1.png",)
    assert files.ignored == 3
    files = list_folder(write(tmp_path / "folder", names + hidden[:3]))
    assert files.names == ("a/1.png",)
    assert files.ignored == 3


def test_links_are_followed_in_folders_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", ["2.png"])
    root = write(tmp_path / "root", ["a/1.png"])
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "c.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert list_folder(root).names == ("a/1.png", "b/2.png", "c.png")


def test_entries_that_are_no_files_give_a_reason(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    files = list_folder(tmp_path)
    with pytest.raises(BadImage, match=r"cannot be opened \(No such file"):
        files.open(0)
    with pytest.raises(BadImage, match="is not a regular file"):
        files.open(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permissions_are_named(tmp_path: Path) -> None:
    write(tmp_path, ["1.png", "locked/2.png"])
    (tmp_path / "1.png").chmod(0)
    with pytest.raises(BadImage, match="Permission denied"):
        list_folder(tmp_path).open(0)
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(FastganError, match=r"locked: cannot be listed \(Permission denied\)"):
            list_folder(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_refused_listings_and_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test above, for who runs as root."""
    write(tmp_path, ["1.png", "locked/2.png"])
    files = list_folder(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadImage, match=r"cannot be opened \(Permission denied\)"):
        files.open(0)
    listed = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: refuse() if Path(path).name == "locked" else listed(path))
    with pytest.raises(FastganError, match=r"locked: cannot be listed \(Permission denied\)"):
        list_folder(tmp_path)


@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png", "..\\1.png", "C:\\1.png", "C:1.png"])
def test_archive_members_outside_of_it_are_refused(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "a.zip", ["1.png", name])
    with pytest.raises(FastganError, match=r"is an absolute path or '\.\.'; pack the archive without it"):
        list_zip(tmp_path / "a.zip", max_bytes=1e6)


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(FastganError, match=r"'a/1\.png' is a link"):
        list_zip(tmp_path / "a.zip", max_bytes=1e6)


def test_harmless_names_with_dots_are_not_refused(tmp_path: Path) -> None:
    names = ("a..b/1..png", "a/...png.png")
    assert list_zip(pack(tmp_path / "a.zip", list(names)), max_bytes=1e6).names == names[:1]


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    path = pack(tmp_path / "a.zip", NAMES)
    data = path.read_bytes()
    path.write_bytes({"text": b"not an archive at all", "cut": data[: len(data) // 2], "empty": b""}[damage])
    with pytest.raises(
        FastganError, match=r"a\.zip: expected a folder or a zip archive.*copy or download it"
    ) as raised:
        list_zip(path, max_bytes=1e6)
    assert "\n" not in str(raised.value)


def test_damaged_encrypted_and_huge_members_give_a_reason(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", ["1.png"])
    data = bytearray(path.read_bytes())
    data[30 + len("1.png")] ^= 0xFF  # first byte of the member's data
    path.write_bytes(data)
    with pytest.raises(BadImage, match="cannot be read from the archive"):
        list_zip(path, max_bytes=1e6).open(0)

    path = pack(tmp_path / "b.zip", ["1.png"])
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the "encrypted" flag, here and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"cannot be read from the archive .*encrypted"):
        list_zip(path, max_bytes=1e6).open(0)

    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(3_000_000))
    with pytest.raises(BadImage, match=r"declares 0\.0 GB, more than any image"):
        list_zip(tmp_path / "c.zip", max_bytes=2e6).open(0)


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["a/1", "b/2", "a/x/3"], ("a", "b"), [0, 1, 0]),
        (["a/1", "b/2", "3"], (), None),
        (["1", "2"], (), None),
        (["photos/1", "photos/2"], (), None),  # one folder is no class
        (["photos/b/1", "photos/a/2"], ("a", "b"), [1, 0]),  # what all share is passed over
        (["photos/b/1", "photos/2"], (), None),
        (["a/z/1", "a b/2", "a/3"], ("a", "a b"), [0, 1, 0]),
    ],
)
def test_classes(names: list[str], classes: tuple[str, ...], labels: list[int] | None) -> None:
    found, found_classes = classes_of(names)
    assert found_classes == classes
    if labels is None:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == np.int64
        assert found.tolist() == labels


def test_printable_names_stay_on_one_line() -> None:
    assert printable("grün.png") == "grün.png"
    for name in ("a\nb.png", os.fsdecode(b"\xff.png"), "\x1b[31m.png"):
        assert printable(name).isprintable()
        printable(name).encode()


def test_members_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    content = {f"{i:03}.png": os.urandom(50) * (i + 1) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, (name, data) in enumerate(content.items()):
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
            archive.writestr(name, data, compress_type=kinds[i % 3])
    files = list_zip(tmp_path / "a.zip", max_bytes=1e6)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: files.open(i).read(), list(range(60)) * 5))
    assert read == list(content.values()) * 5


def test_members_that_lie_about_their_size_or_place(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2000))
        archive.writestr("b.png", bytes(2000))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry, refused = data.index(b"PK\x01\x02"), 0
    for place, value in ((20, 2**31), (20, 3), (24, 10), (24, 10**6), (42, 2**31), (42, 7)):  # packed, size, offset
        changed = bytearray(data)
        changed[entry + place : entry + place + 4] = value.to_bytes(4, "little")
        (tmp_path / "b.zip").write_bytes(changed)
        try:
            content = list_zip(tmp_path / "b.zip", max_bytes=1e7).open(0).read()
        except (BadImage, FastganError):
            refused += 1
        else:
            assert content == bytes(2000), (place, value)  # the checksum is right: nothing was lost
    assert refused >= 4
