"""What a user can get wrong: one clear line, status 2, and nothing lost. A table."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli

SMALL = [
    "--preset",
    "dcgan-64",
    "--batch",
    "4",
    "--kimg",
    "0.008",
    "--device",
    "cpu",
    "--set",
    "data.size=16",
    "--set",
    "system.networks.generator_width=4",
    "--set",
    "system.networks.critic_width=4",
    "--set",
    "system.latent=4",
]


def photos(where: Path, count: int = 8) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(where / f"{i:02}.png")
    return where


def huge_header(path: Path) -> None:
    """A PNG of 100 bytes that declares 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and a finished run in run/."""
    base = tmp_path_factory.mktemp("finished")
    assert cli.main(["train", "--data", str(photos(base / "photos")), "--out", str(base / "run"), *SMALL]) == 0
    return base


def train(base: Path, *flags: str) -> list[str]:
    given = " ".join(flags)
    data = [] if "--data" in given else ["--data", str(base / "photos")]
    out = [] if "--out" in given else ["--out", str(base / "new")]
    return ["train", *data, *out, *SMALL, *flags]


def with_file(name: str, make: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """Training on good photos and one bad file."""

    def case(base: Path) -> list[str]:
        folder = photos(base / "mixed")
        make(folder / name)
        return train(base, "--data", str(folder))

    return case


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:600])


def cut(base: Path) -> list[str]:
    """Every checkpoint of the run is cut short."""
    for file in (base / "run" / "checkpoints").glob("*/generator.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    return train(base, "--out", str(base / "run"))


def empty(base: Path) -> list[str]:
    (base / "empty").mkdir()
    return train(base, "--data", str(base / "empty"))


CASES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "no data": (lambda b: ["train", "--preset", "dcgan-64", "--out", str(b / "new")], ["--data"]),
    "missing folder": (lambda b: train(b, "--data", str(b / "nowhere")), ["nowhere", "give a folder"]),
    "empty folder": (empty, ["empty"]),
    "one image": (lambda b: train(b, "--data", str(photos(b / "single", 1))), ["single", "only one image"]),
    "a text file": (lambda b: train(b, "--data", str(b / "photos" / "00.png")), ["00.png"]),
    "text named png": (with_file("x.png", lambda p: p.write_text("hello")), ["x.png"]),
    "truncated jpeg": (with_file("x.jpg", truncated), ["x.jpg"]),
    "1x1 image": (with_file("x.png", lambda p: Image.new("RGB", (1, 1)).save(p)), ["x.png", "1x1"]),
    "30000x30000 header": (with_file("x.png", huge_header), ["x.png", "30000x30000"]),
    "unknown preset": (lambda b: train(b, "--preset", "dcgan-63"), ["'dcgan-63'", "'dcgan-64'"]),
    "unknown key": (lambda b: train(b, "--set", "system.laten=3"), ["system.laten", "'latent'"]),
    "unknown flag": (lambda b: train(b, "--bacth", "3"), ["--bacth", "--batch"]),
    "unknown command": (lambda b: ["trian"], ["trian", "train"]),
    "no command": (lambda b: [], ["train"]),
    "a word for a number": (lambda b: train(b, "--batch", "many"), ["--batch", "many"]),
    "negative batch": (lambda b: train(b, "--batch", "-3"), ["batch", "-3"]),
    "negative kimg": (lambda b: train(b, "--kimg", "-1"), ["kimg", "-1"]),
    "negative seed": (lambda b: train(b, "--seed", "-1"), ["seed", "-1"]),
    "negative lr": (lambda b: train(b, "--set", "optim.critic.lr=-1"), ["lr", "-1"]),
    "negative penalty": (lambda b: train(b, "--set", "system.r1=-1"), ["r1", "-1"]),
    "negative workers": (lambda b: train(b, "--workers", "-1"), ["workers", "-1"]),
    "batch above the set": (lambda b: train(b, "--batch", "9"), ["batch 9", "8 images", "--batch 8"]),
    "odd size": (lambda b: train(b, "--set", "data.size=20"), ["20"]),
    "unknown device": (lambda b: train(b, "--device", "gpu"), ["'gpu'", "--device"]),
    "an infinite rate": (lambda b: train(b, "--set", "optim.critic.lr=inf"), ["optim.critic.lr", "inf"]),
    "a trillion kimg": (lambda b: train(b, "--kimg", "1e306"), ["kimg", "1e9"]),
    "too many threads": (lambda b: train(b, "--set", "threads=2147483648"), ["threads", "1024"]),
    "a network beyond memory": (lambda b: train(b, "--set", "system.latent=100000000000"), ["out of memory"]),
    "a device without numbers": (lambda b: train(b, "--device", "meta"), ["'meta'", "--device"]),
    "a name too long": (lambda b: train(b, "--out", str(b / ("x" * 300))), ["File name too long"]),
    "sample onto a folder": (
        lambda b: ["sample", str(b / "run"), "--out", str(b / "photos")],
        ["photos", "not a regular file"],
    ),
    "missing config": (lambda b: train(b, "--config", str(b / "no.toml")), ["no.toml", "does not exist"]),
    "config without preset keys": (
        lambda b: [
            (b / "c.toml").write_text("[optim.critc]\nlr = 1"),
            train(b, "--config", str(b / "c.toml")),
        ][1],
        ["optim.critc", "'critic'"],
    ),
    "out is a file": (lambda b: train(b, "--out", str(b / "photos" / "00.png")), ["00.png", "is a file"]),
    "out is another folder": (lambda b: train(b, "--out", str(b / "photos")), ["photos", "not a run folder"]),
    "out below a file": (lambda b: train(b, "--out", str(b / "photos" / "00.png" / "run")), ["00.png"]),
    "out of another run": (
        lambda b: train(b, "--out", str(b / "run"), "--set", "system.latent=5"),
        ["holds another run", "system.latent", "4", "5", "another --out"],
    ),
    "out of a run on other data": (
        lambda b: train(b, "--out", str(b / "run"), "--data", str(photos(b / "more", 9))),
        ["holds another run", "other images", "9 images now"],
    ),
    "data that grew": (
        lambda b: [photos(b / "photos", 9), train(b, "--out", str(b / "run"))][1],
        ["other images", "9 images now, 8 then"],
    ),
    "resume never into a run": (
        lambda b: train(b, "--out", str(b / "run"), "--resume", "never"),
        ["holds a run already"],
    ),
    "checkpoint cut short": (cut, ["checkpoints"]),
    "init of another network": (
        lambda b: train(b, "--init", str(b / "run"), "--set", "system.networks.critic_width=8"),
        ["another network"],
    ),
    "init from nowhere": (lambda b: train(b, "--init", str(b / "nowhere")), ["nowhere", "does not exist"]),
    "init from a picture": (
        lambda b: train(b, "--init", str(b / "photos" / "00.png")),
        ["00.png", ".safetensors"],
    ),
    "sample without a run": (lambda b: ["sample", str(b / "nowhere")], ["nowhere", "does not exist"]),
    "sample an empty run": (lambda b: ["sample", str(b / "photos")], ["photos", "no checkpoint"]),
    "sample bad seeds": (lambda b: ["sample", str(b / "run"), "--seeds", "1-x"], ["1-x", "0-63"]),
    "interpolate one seed": (lambda b: ["interpolate", str(b / "run"), "--seeds", "4"], ["two or more"]),
    "interpolate no frames": (lambda b: ["interpolate", str(b / "run"), "--frames", "0"], ["--frames", "0"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(finished, base)
    config = base / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(finished), str(base)))
    make, words = CASES[name]
    args = [a.replace(str(finished), str(base)) for a in make(base)]
    before = digest(base)
    capsys.readouterr()
    status = cli.main(args)
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.startswith("fastgan: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for word in words:
        assert word in error
    assert digest(base) == before, "a refused command changes no file"


@pytest.mark.parametrize("written", ["log", "picture", "checkpoint"])
def test_no_space_left(
    written: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full while the run goes on: one line, and the checkpoint from before still loads."""
    import errno

    from fastgan.run import checkpoint, folder
    from fastgan.run.log import RunLog

    base = tmp_path / "base"
    shutil.copytree(finished, base)
    full = OSError(errno.ENOSPC, "No space left on device", "somewhere")

    def refuse(*args: object, **kwargs: object) -> None:
        raise full

    if written == "log":
        monkeypatch.setattr(RunLog, "stats", refuse)
    elif written == "picture":
        monkeypatch.setattr("fastgan.train.save_png", refuse)
    else:
        monkeypatch.setattr(checkpoint, "_write", refuse)
    args = [
        "train",
        "--config",
        str(base / "run" / "config.toml"),
        "--data",
        str(finished / "photos"),
        "--out",
        str(base / "run"),
        "--kimg",
        "0.032",
    ]
    capsys.readouterr()
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "space" in error.lower()
    monkeypatch.undo()
    assert folder.load(base / "run", print).state["counters"]["samples"] in (8, 32)
    assert cli.main(args) == 0, "with room again, the same command goes on"
