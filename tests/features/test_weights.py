"""Weights: verified, never unpickled, downloaded only when asked for, and never half there."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import urllib.error
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastgan.errors import FastganError
from fastgan.features import weights
from fastgan.features.weights import ALEXNET, INCEPTION, VGG16, Published, obtain, read_tensors


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


DATA = saved({"fc.weight": torch.arange(6.0)})
SHA256 = hashlib.sha256(DATA).hexdigest()
PUBLISHED = Published("net-x.pth", "https://example.org/net-x.pth", SHA256)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


class Answer(io.BytesIO):
    def __init__(self, data: bytes, length: int) -> None:
        super().__init__(data)
        self.headers = Message()
        self.headers["Content-Length"] = str(length)


def serve(monkeypatch: pytest.MonkeyPatch, data: bytes, length: int | None = None) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(data, len(data) if length is None else length)

    monkeypatch.setattr(weights.urllib.request, "urlopen", urlopen)
    return asked


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, DATA)
    with pytest.raises(FastganError, match=r"net-x.pth are not here.*--download.*https://example.org.*--weights FILE"):
        obtain(PUBLISHED)
    assert not asked


def test_download_verifies_keeps_and_is_asked_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked = serve(monkeypatch, DATA)
    seen: list[tuple[int, int]] = []
    found = obtain(PUBLISHED, download=True, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(found.tensors["fc.weight"], torch.arange(6.0))
    assert (found.sha256, found.note) == (SHA256, "SHA-256 verified")
    assert seen == [(len(DATA), len(DATA))]
    assert [path.name for path in cache.iterdir()] == ["net-x.pth"]
    assert obtain(PUBLISHED).sha256 == SHA256
    assert asked == [PUBLISHED.url]


@pytest.mark.parametrize(
    ("data", "length"), [(DATA[:-9], len(DATA)), (DATA + b"x", None), (b"<html>Not found</html>", None), (b"", 0)]
)
def test_a_bad_download_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, cache: Path, data: bytes, length: int | None
) -> None:
    serve(monkeypatch, data, length)
    with pytest.raises(FastganError, match=r"net-x.pth: got .* bytes with SHA-256 .*, expected"):
        obtain(PUBLISHED, download=True)
    assert list(cache.iterdir()) == []


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def urlopen(url: str, timeout: float) -> Answer:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(weights.urllib.request, "urlopen", urlopen)
    with pytest.raises(FastganError, match=r"cannot download https.*Name or service not known; get the file"):
        obtain(PUBLISHED, download=True)
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_or_published_name_is_refused(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "net-x.pth").write_bytes(DATA[:-1])
    with pytest.raises(FastganError, match=r"expected SHA-256 .*truncated or not what https.* holds"):
        obtain(PUBLISHED)
    mine = tmp_path / "net-x.pth"
    mine.write_bytes(saved({"fc.weight": torch.zeros(6)}))
    with pytest.raises(FastganError, match=r"expected SHA-256"):
        obtain(PUBLISHED, mine)


def test_another_file_is_taken_and_said_to_be_another(tmp_path: Path) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_bytes(saved({"state_dict": {"fc.weight": torch.zeros(6)}, "epoch": 3}))
    found = obtain(PUBLISHED, mine)
    assert list(found.tensors) == ["fc.weight"]
    assert found.note.startswith("not the published net-x.pth: SHA-256 ")
    assert found.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()


@pytest.mark.parametrize("published", [INCEPTION, VGG16, ALEXNET])
def test_the_whole_hash_begins_with_the_digits_that_the_publisher_put_into_the_name(published: Published) -> None:
    assert re.fullmatch("[0-9a-f]{64}", published.sha256)
    assert published.sha256[:8] == published.name.removesuffix(".pth").rpartition("-")[2]
    assert published.url.endswith(f"/{published.name}")


@pytest.mark.parametrize("place", ["its first digit", "its ninth digit", "its last digit"])
def test_every_digit_counts(tmp_path: Path, place: str) -> None:
    mine = tmp_path / "net-x.pth"
    mine.write_bytes(DATA)
    assert obtain(PUBLISHED, mine).note == "SHA-256 verified"
    at = {"its first digit": 0, "its ninth digit": 8, "its last digit": 63}[place]
    other = SHA256[:at] + f"{int(SHA256[at], 16) ^ 1:x}" + SHA256[at + 1 :]
    with pytest.raises(FastganError, match="truncated or not what"):
        obtain(replace(PUBLISHED, sha256=other), mine)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_no_pickle_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in (("a.pth", saved({"x": Evil()})), ("b.pkl", pickle.dumps(Evil()))):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(FastganError, match="objects other than tensors"):
            read_tensors(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.pth", DATA[: len(DATA) // 2]), ("a.pth", b""), ("a.safetensors", b"\0" * 20), ("a.safetensors", b"")],
)
def test_truncated_files_are_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FastganError, match=r"a\.(pth|safetensors): (truncated or damaged|holds objects)") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_safetensors_and_wrong_contents(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["x"], torch.ones(2))
    (tmp_path / "list.pth").write_bytes(saved([1, 2]))
    with pytest.raises(FastganError, match="expected a state_dict of tensors, got list"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(FastganError, match=r"nowhere.pth: No such file"):
        obtain(PUBLISHED, tmp_path / "nowhere.pth")
