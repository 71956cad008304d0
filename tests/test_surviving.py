"""What may happen to a run and to its data, other than a kill: each ends in a resume to the same bits, or in one line.

Kills: tests/test_soak.py. Single files of a checkpoint: tests/run/test_checkpoint*.py. Ranks: tests/test_launch.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pty
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.config import resolve
from fastgan.data.pack import pack
from fastgan.data.pack_source import PackOptions
from fastgan.errors import FastganError
from fastgan.run import folder
from fastgan.train import train

RUN = [
    "data.size=16", "system.networks.critic_norm=none", "system.networks.generator_width=2",
    "system.networks.critic_width=2", "system.latent=4", "batch=4", "kimg=0.016", "threads=1", "device=cpu",
    "output.checkpoint_kimg=0.004", "output.grid_kimg=0", "output.grid_images=4", "output.tick_seconds=0",
]  # fmt: skip
STEPS = 4


def pictures(where: Path, suffix: str) -> Path:
    for number in range(12):
        where.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(where / f"{number}.{suffix}", quality=100)
    return where


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs "raw" and "jpeg" of several shards."""
    base = tmp_path_factory.mktemp("packs")
    for kind, suffix in (("raw", "png"), ("jpeg", "jpg")):
        source = pictures(base / f"{kind}-files", suffix)
        options = PackOptions(str(source), str(base / kind), size=16, format=kind, shard_mb=0.001, workers=1)
        pack(options)
        assert len(list((base / kind).glob("shard-*.bin"))) > 2
    return base


def run(out: Path, data: Path, *sets: str) -> tuple[int, list[str]]:
    """Status and the log's lines."""
    said: list[str] = []
    config = resolve("dcgan-64", sets=[*RUN, f'data.path="{data}"', f'out="{out}"', *sets])
    return train(config, echo=said.append).status, said


def weights(out: Path) -> dict[str, torch.Tensor]:
    saved = folder.load(out, print)
    assert saved.state["counters"]["step"] == STEPS
    return {f"{f}/{k}": t for f, tensors in saved.tensors.items() for k, t in tensors.items()}


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())


@pytest.fixture(scope="module")
def whole(packs: Path) -> Path:
    """A run that nothing happened to, with checkpoints of its last three steps."""
    out = packs / "whole"
    assert run(out, packs / "raw")[0] == 0
    return out


# ---- checkpoints


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def cut(out: Path) -> None:
    with (newest(out) / "critic.safetensors").open("r+b") as file:
        file.truncate(100)


def flip(out: Path) -> None:
    path = newest(out) / "generator.ema.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def older_is_younger(out: Path) -> None:
    """As after the clock was set back: names say which is newer, times do not."""
    cut(out)
    for number, path in enumerate(sorted((out / "checkpoints").iterdir())):
        os.utime(path, (1e9 - 1e6 * number,) * 2)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, r"critic.safetensors is damaged.*falling back to step-000000003"),
    "a flipped bit": (flip, r"generator.ema.safetensors is damaged.*falling back to step-000000003"),
    "newest gone": (lambda out: shutil.rmtree(newest(out)), "step-000000004 is missing.*falling back"),
    "latest.json gone": (lambda out: (out / "checkpoints" / "latest.json").unlink(), "latest.json is missing"),
    "clock set back": (older_is_younger, "falling back to step-000000003"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_it_would_have(
    kind: str, whole: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = DAMAGE[kind]
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    damage(out)
    if kind == "clock set back":
        monkeypatch.setattr(time, "time", lambda: 1e6)
    status, said = run(out, packs / "raw")
    assert status == 0
    lines = "".join(line for line in said if "checkpoints" in line and not line.startswith("resumed"))
    assert re.search(message, lines), said
    assert same(whole, out)


def test_no_checkpoint_is_whole_any_more(whole: Path, packs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").glob("step-*/state.json"):
        path.write_bytes(b"{")
    with pytest.raises(FastganError, match=r"no checkpoint in .* can be read"):
        run(out, packs / "raw")


# ---- folders


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("where", ["new", "old"])
def test_a_folder_that_cannot_be_written(
    where: str, code: int, whole: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening for writing, making folders and renaming fail in it, as on a read-only disk, from the start."""
    out = tmp_path / "run"
    if where == "old":
        shutil.copytree(whole, out)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))

    def refusing(real: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(str(tmp_path)) and writes(*args, **kwargs):
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *args, **kwargs)

        return call

    def writes(mode: str = "r", *args: Any, **kwargs: Any) -> bool:
        return any(letter in mode for letter in "wax+")

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", refusing(io.open, writes))
        for name in ("mkdir", "rename", "replace", "unlink"):
            patched.setattr(os, name, refusing(getattr(os, name), lambda *args, **kwargs: True))
        with pytest.raises(FastganError, match=os.strerror(code)[1:]):
            run(out, packs / "raw", "kimg=0.02")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


# ---- packs


def damaged_pack(packs: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packs / kind, tmp_path / "pack"))


def test_a_shard_that_is_missing(packs: Path, tmp_path: Path) -> None:
    data = damaged_pack(packs, "raw", tmp_path)
    (data / "shard-00001.bin").unlink()
    with pytest.raises(FastganError, match=r"shard-00001.bin: No such file.*copy it again, or pack again"):
        run(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [pytest.param("raw", marks=pytest.mark.long), "jpeg"])
def test_a_corrupt_image_in_a_pack_stops_training_and_keeps_what_was_trained(
    kind: str, packs: Path, tmp_path: Path
) -> None:
    """And with the image restored, the run goes on to the same bits."""
    data, out, straight = damaged_pack(packs, kind, tmp_path), tmp_path / "run", tmp_path / "straight"
    assert run(straight, data)[0] == 0
    path = max(data.glob("shard-*.bin"))
    good = path.read_bytes()
    path.write_bytes(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    with pytest.raises(FastganError, match=r"image \d+ in shard-\d+.bin: does not match its checksum"):
        run(out, data, "data.feeder=auto")
    path.write_bytes(good)
    assert run(out, data)[0] == 0
    assert same(straight, out)


# ---- terminals


@pytest.mark.timeout(240)
def test_a_run_whose_terminal_is_closed_is_saved(packs: Path, tmp_path: Path) -> None:
    """As when a connection breaks: SIGHUP, and from then on every write to the terminal fails."""
    out = tmp_path / "run"
    sets = [*RUN, "output.checkpoint_kimg=0.04", "kimg=400", f'data.path="{packs / "raw"}"', f'out="{out}"']
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started by has made of it
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        flags = [flag for s in sets for flag in ("--set", s)]
        os.execv(sys.executable, [sys.executable, "-m", "fastgan", "train", "--preset", "dcgan-64", *flags])
    os.set_blocking(terminal, False)
    shown = b""
    try:
        while not list((out / "checkpoints").glob("step-*")):
            with contextlib.suppress(BlockingIOError):
                shown += os.read(terminal, 1 << 16)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), shown.decode(errors="replace")[-2000:]
            time.sleep(0.05)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    os.close(terminal)
    for _ in range(2000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3, (out / "log.txt").read_text()[-2000:]
    assert "stopped by SIGHUP" in (out / "log.txt").read_text()
    saved = folder.load(out, print)
    assert saved.state["counters"]["step"] > 10
    assert saved.state["counters"]["samples"] < 400_000
