"""Packing that is stopped anywhere ends in the same pack, and nobody else's work is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data.packs import contents, packed
from data.pictures import SIZE, encoded, picture, write_folder

from fastgan.cli import main
from fastgan.data import DataOptions, open_images
from fastgan.data import pack as packing
from fastgan.data.pack import pack
from fastgan.data.pack_format import INDEX, shard_path
from fastgan.data.pack_source import PackOptions
from fastgan.errors import FastganError


class Killed(BaseException):
    """Stands for kill -9: nothing between it and the test may clean up."""


def stages(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Raises Killed at call number `at` of everything that changes the disk; returns what was called."""
    calls: list[str] = []

    def hook(module: object, name: str) -> None:
        original = getattr(module, name)

        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) - 1 == at:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("replace_durable", "_sync", "_put_in_place", "_without_empty"):
        hook(packing, name)
    hook(packing.shutil, "rmtree")
    hook(packing.os, "replace")
    return calls


def test_a_stop_at_any_stage_ends_in_the_same_pack(source: Path, tmp_path: Path) -> None:
    options = {"shard_mb": 0.006, "format": "jpeg"}
    packed(source, tmp_path / "whole", **options)
    whole = contents(tmp_path / "whole")
    for at in range(100):
        target = tmp_path / f"out{at}"
        with pytest.MonkeyPatch.context() as patch:
            stages(patch, at)
            try:
                packed(source, target, **options)
            except Killed:
                assert not target.exists()
            else:
                break
        packed(source, target, **options)
        assert contents(target) == whole
        assert not target.with_name(target.name + ".tmp").exists()
    assert at > 12


def test_finished_shards_are_kept_and_damaged_ones_packed_again(source: Path, tmp_path: Path) -> None:
    options, target = {"shard_mb": 0.006}, tmp_path / "out"
    packed(source, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._Packer, "_write_tables", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            packed(source, target, **options)
    work = tmp_path / "out.tmp"
    first, second = shard_path(work, 0), shard_path(work, 1)
    data = bytearray(second.read_bytes())
    data[100] ^= 1
    second.write_bytes(data)
    kept = first.stat().st_ino, first.stat().st_mtime_ns
    done, _ = pack(PackOptions(str(source), str(target), size=SIZE, workers=1, **options))
    assert 0 < done.fresh < done.found
    assert (shard_path(target, 0).stat().st_ino, shard_path(target, 0).stat().st_mtime_ns) == kept
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"), [({"size": 8}, "size '16', but now it is '8'"), ({"seed": 1}, "seed '0', but now it is '1'")]
)
def test_going_on_with_other_settings_is_refused(source: Path, tmp_path: Path, change: dict, words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._Packer, "_write_tables", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            packed(source, tmp_path / "out")
    with pytest.raises(FastganError, match=f"unfinished pack with {words}"):
        packed(source, tmp_path / "out", **change)
    with pytest.raises(FastganError, match="packing it was not finished; run the same fastgan pack"):
        open_images(DataOptions(path=str(tmp_path / "out")))


def test_a_finished_pack_is_not_touched(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert pack(PackOptions(str(source), str(tmp_path / "out"), size=SIZE))[0].fresh == 0
    with pytest.raises(FastganError, match="is a pack already, of other settings"):
        pack(PackOptions(str(source), str(tmp_path / "out"), size=8))
    assert contents(tmp_path / "out") == before
    with pytest.raises(FastganError, match="exists and is no pack"):
        pack(PackOptions(str(tmp_path / "out"), str(source), size=SIZE))


def test_two_packers_do_not_share_a_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.tmp" / "parts").mkdir(parents=True)
    with packing._alone(tmp_path / "out.tmp"), pytest.raises(FastganError, match="another fastgan pack is writing"):
        packed(source, tmp_path / "out")


@pytest.mark.long
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    content = {f"{i:04}.jpg": encoded(picture(i, 100, 100), "JPEG") for i in range(600)}
    source = write_folder(tmp_path / "source", content)
    options = ["--size", "32", "--shard-mb", "0.1", "--workers", "2"]
    assert main(["pack", str(source), str(tmp_path / "whole"), *options]) == 0
    generator, target = np.random.default_rng(0), tmp_path / "out"
    for _ in range(40):
        child = subprocess.Popen([sys.executable, "-m", "fastgan", "pack", str(source), str(target), *options])
        time.sleep(generator.uniform(0.2, 1.2))
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:
            break
    assert main(["pack", str(source), str(target), *options]) == 0
    assert contents(target) == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(FastganError, match=r"cannot pack into .*: no space left on device; free some space"):
        packed(source, tmp_path / "out")
    monkeypatch.undo()
    assert os.path.exists(tmp_path / "out.tmp" / "parts")
    packed(source, tmp_path / "out")
    assert (tmp_path / "out" / INDEX).exists()
