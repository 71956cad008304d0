"""The log says how the data comes and what packing would bring; the report shows where the time goes."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.pictures import files, write_folder

from fastgan.cli import main
from fastgan.config import resolve
from fastgan.data import DataOptions, open_images
from fastgan.feeding import command, packing_at_start, packing_while_training
from fastgan.train import train

TINY = [
    "data.size=16",
    "system.networks.generator_width=4",
    "system.networks.critic_width=4",
    "system.latent=8",
    "batch=8",
    "kimg=0.064",
    "threads=1",
    "output.grid_images=4",
    "output.checkpoint_kimg=0.032",
    "output.tick_seconds=0",
    "device=cpu",
]


def log_of(out: Path, data: Path, *sets: str) -> str:
    train(resolve("dcgan-64", sets=[*TINY, f'out="{out}"', f'data.path="{data}"', *sets]), echo=lambda line: None)
    return (out / "log.txt").read_text()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "two words", files())


def test_a_folder_that_is_not_packed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_of(tmp_path / "memory", source)
    hints = [line for line in log.splitlines() if "not packed" in line]
    assert len(hints) == 1
    assert re.search(r"decoding took \d+\.\d s \([\d,]+ images/s\) and will at every start", hints[0])
    assert "data: from memory by one thread" in log
    log = log_of(tmp_path / "demand", source, "data.memory_gb=0")
    hints = [line for line in log.splitlines() if "not packed" in line]
    assert len(hints) == 1
    assert re.search(r"every epoch decodes again, [\d,]+ images/s on \d+ threads?, and training waits \d+%", hints[0])
    # What it says works as it stands.
    words = shlex.split(hints[0].partition("fastgan ")[2])
    assert main(words) == 0
    capsys.readouterr()
    log = log_of(tmp_path / "packed", Path(words[2]))
    assert "not packed" not in log
    assert "data: memory-mapped, gathered by one thread" in log
    assert re.search(r"one thread, [\d,]+ images/s when asked; training waits for it \d+\.\d% of the time", log)
    lines = [json.loads(line) for line in (tmp_path / "packed" / "stats.jsonl").read_text().splitlines()]
    assert all(line["feeder_images_per_second"] > 0 for line in lines)
    parts = {key for line in lines for key in line if key.startswith("part.")}
    assert {"part.waiting for data", "part.critic's turn", "part.generator's turn", "part.checkpoints"} <= parts
    report = (tmp_path / "packed" / "report.html").read_text()
    for text in ("Where the time goes", "critic&#x27;s turn", "memory-mapped, gathered by one thread"):
        assert text in report


def test_the_command_that_is_suggested() -> None:
    options = DataOptions(path="some set.zip", size=32, channels=1, crop="none")
    assert command(options) == "fastgan pack 'some set.zip' 'some set-32' --size 32 --channels 1 --crop none"
    assert command(DataOptions(path="photos/", size=64)) == "fastgan pack photos/ photos-64 --size 64"


def test_what_is_packed_or_shipped_gets_no_advice(source: Path) -> None:
    options = DataOptions(path=str(source), size=16)
    images = open_images(options)
    assert packing_at_start(images, options, 1.0) is not None
    assert packing_at_start(replace(images, unpacked=False), options, 1.0) is None

    class Decoding:
        kind, images_per_second = "decoded", 1234.5

    busy = packing_while_training(images, options, Decoding(), 0.5)  # type: ignore[arg-type]
    assert "1,234 images/s" in busy
    assert "training is up to 2.00x as fast" in busy
    assert "cores are free" in packing_while_training(images, options, Decoding(), 0.0)  # type: ignore[arg-type]
    Decoding.kind = "resident"
    assert packing_while_training(images, options, Decoding(), 0.5) is None  # type: ignore[arg-type]


def test_resident_and_host_train_alike(source: Path, tmp_path: Path) -> None:
    for name, kind in (("a", "resident"), ("b", "host")):
        log = log_of(tmp_path / name, source, f"data.feeder={kind}")
        assert ("resident on the device" in log) == (kind == "resident")
    first, second = (
        [json.loads(line)["critic.loss"] for line in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        for name in "ab"
    )
    assert np.isfinite(first).all()
    assert first == second
