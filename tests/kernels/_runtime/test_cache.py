"""The cache file: where it lies, and that no state of it is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgan.kernels._runtime import cache


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.path() == tmp_path / "cache/kernels.json"
    monkeypatch.delenv("FASTGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.path() == Path("/xdg/fastgan/kernels.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.path() == Path("/home/someone/.cache/fastgan/kernels.json")


def test_what_is_remembered_is_read(folder: Path) -> None:
    assert cache.read("choices") == {}
    assert cache.remember("choices", {"a": "1", "b": "2"})
    assert cache.remember("verified", {"a": "3"})
    assert cache.remember("choices", {"b": "4"})
    assert cache.read("choices") == {"a": "1", "b": "4"}
    assert cache.read("verified") == {"a": "3"}
    assert [path.name for path in folder.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"choices": [1]}', '{"choices": {"a": 1}}', "\x00\xff"])
def test_a_file_that_makes_no_sense_counts_as_empty(text: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "kernels.json").write_bytes(text.encode("latin-1"))
    assert cache.read("choices") == {}
    assert cache.remember("choices", {"b": "2"})
    assert cache.read("choices") == {"b": "2"}
    assert json.loads((folder / "kernels.json").read_text())["choices"] == {"b": "2"}


def test_a_folder_that_cannot_be_written_is_left_alone(folder: Path, tmp_path: Path) -> None:
    folder.write_text("a file where the folder would be")
    assert cache.read("choices") == {}
    assert not cache.remember("choices", {"a": "1"})
    folder.unlink()
    (folder / "kernels.json").mkdir(parents=True)  # cannot be replaced by a file
    assert not cache.remember("choices", {"a": "1"})
    assert [path.name for path in folder.iterdir()] == ["kernels.json"]
