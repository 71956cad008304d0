"""Whole runs: what they leave behind, and that stopping and going on changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastgan.config import resolve
from fastgan.errors import FastganError
from fastgan.options import Config
from fastgan.run import folder
from fastgan.ticker import Tick
from fastgan.train import DONE, Outcome, train

ROOT = Path(__file__).parent.parent
TINY = [
    "data.path=digits",
    "data.channels=1",
    "system.networks.critic_norm=none",
    "system.loss=relativistic",
    "system.r1={start=1, end=0.1}",
    "system.r2=0.5",
    "threads=1",
    "optim.generator.lr={start=2e-3, end=0}",
    "optim.critic.lr={start=2e-3, end=0}",
    "data.size=16",
    "system.networks.generator_width=4",
    "system.networks.critic_width=4",
    "system.latent=8",
    "batch=16",
    "kimg=0.32",
    "output.grid_kimg=0.16",
    "output.checkpoint_kimg=0.08",
    "output.grid_images=9",
    "output.tick_seconds=0",
    "device=cpu",
]
STEPS = 20  # of the runs above


def config(out: Path, *sets: str) -> Config:
    return resolve("dcgan-64", sets=[*TINY, f'out="{out}"', *sets])


def run(out: Path, *sets: str) -> Outcome:
    c = config(out, *sets)
    return train(c, echo=lambda line: None)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by file and name."""
    saved = folder.load(out, print)
    return {f"{f}/{k}": t for f, tensors in saved.tensors.items() for k, t in tensors.items()}


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    outcome = run(out)
    assert outcome.status == DONE
    assert outcome.samples == 16 * STEPS
    return out


def test_a_run_leaves_what_is_promised(whole: Path) -> None:
    for name in (
        "config.toml",
        "stats.jsonl",
        "log.txt",
        "reals.png",
        "report.html",
        "checkpoints",
        "next.txt",
    ):
        assert (whole / name).exists(), name
    fakes = sorted(p.name for p in whole.glob("fakes-*.png"))
    assert fakes == ["fakes-000000000.png", "fakes-000000160.png", "fakes-000000320.png"]
    for name in ("reals.png", fakes[-1]):
        with Image.open(whole / name) as picture:
            assert picture.width == picture.height
            assert len(picture.getcolors(1 << 24) or []) > 5
    stats = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert [s["images"] for s in stats] == [16 * i for i in range(1, STEPS + 1)]
    assert {"critic.loss", "generator.loss", "critic.r1", "critic.gradient_norm", "skipped"} <= set(stats[-1])
    assert stats[-1]["images_per_second"] > 0
    assert 0 <= stats[-1]["wait_share"] < 1
    assert len(list((whole / "checkpoints").glob("step-*"))) == 3
    names = {p.name for p in (whole / "checkpoints" / "step-000000020").iterdir()}
    assert {
        "generator.safetensors",
        "generator.ema.safetensors",
        "generator.optimizer.safetensors",
        "critic.safetensors",
        "critic.optimizer.safetensors",
        "state.json",
    } <= names
    assert resolve(file=whole / "config.toml") == config(whole)


def test_same_command_twice_gives_the_same_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert same(whole, tmp_path / "again")
    other = tmp_path / "other-seed"
    run(other, "seed=1")
    assert not same(whole, other)


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    before = weights(whole)
    outcome = run(whole)
    assert outcome.status == DONE
    after = weights(whole)
    assert all(torch.equal(t, after[k]) for k, t in before.items())


def test_resume_after_a_stop_is_bitwise(whole: Path, tmp_path: Path) -> None:
    """Stops at a checkpoint (kimg is free to change), throws away one more, and goes on."""
    out = tmp_path / "run"
    c = config(out)

    class Enough(Exception):
        pass

    def stop(tick: object) -> None:
        if tick.samples >= 16 * 13:  # type: ignore[attr-defined]
            raise Enough

    with pytest.raises(Enough):
        train(c, echo=lambda line: None, on_tick=stop)
    assert folder.load(out, print).state["counters"] == {"step": 10, "samples": 160}
    run(out)
    assert same(whole, out)
    stats = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert [s["images"] for s in stats] == [16 * i for i in range(1, STEPS + 1)], "no tick twice after the resume"


def command(out: Path, *sets: str) -> list[str]:
    flags = [flag for s in (*TINY, *sets) for flag in ("--set", s)]
    return [sys.executable, "-m", "fastgan", "train", "--preset", "dcgan-64", "--out", str(out), *flags]


def start(out: Path, *sets: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(out, *sets),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if list(path.glob(pattern)) or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not appear")


LONG = ("kimg=0.96", "output.checkpoint_kimg=0.16")  # 60 steps


@pytest.mark.long
@pytest.mark.timeout(240)
def test_killed_and_terminated_runs_go_on_bitwise(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process = start(straight, *LONG)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "images/s" in out
    assert "fastgan sample" in out

    process = start(broken, *LONG)  # kill -9 after the first checkpoint
    wait_for(broken / "checkpoints", "step-*", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    process = start(broken, *LONG)  # SIGTERM a little later: saved, status 3
    before = {p.name for p in (broken / "checkpoints").glob("step-*")}
    for _ in range(6000):
        if {p.name for p in (broken / "checkpoints").glob("step-*")} != before or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=100)
    assert process.returncode in (3, 0), error
    if process.returncode == 3:
        assert "the same command goes on" in out

    process = start(broken, *LONG)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert same(straight, broken)


def test_init_takes_weights_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    newest = folder.load(whole, print).path
    for source in (whole, newest, newest / "generator.ema.safetensors"):
        c = config(
            out,
            f'init="{source}"',
            "optim.generator.lr=0.0",
            "optim.critic.lr=0.0",
            "kimg=0.016",
            f'out="{out}-{source.name}"',
        )
        train(c, echo=lambda line: None)
        mine = load_file(folder.load(Path(c.out), print).path / "generator.safetensors")
        name = "generator.ema" if source.suffix else "generator"
        theirs = load_file(newest / f"{name}.safetensors")
        weight = next(key for key in theirs if key.endswith("weight"))
        assert torch.equal(mine[weight], theirs[weight])
        assert folder.load(Path(c.out), print).state["counters"]["step"] == 1


def test_resume_from_a_path_and_never(whole: Path, tmp_path: Path) -> None:
    branch = tmp_path / "branch"
    run(branch, f'resume="{whole / "checkpoints" / "step-000000015"}"')
    assert same(whole, branch)
    with pytest.raises(FastganError, match="holds a run already"):
        run(branch, 'resume="never"')
    with pytest.raises(FastganError, match="does not exist"):
        run(tmp_path / "x", 'resume="nowhere"')
    assert not (tmp_path / "x").exists()


def test_non_finite_losses_stop_the_run_and_keep_the_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(FastganError, match="in a row had a loss or gradient that is not finite"):
        run(out, "optim.critic.lr=1e30", "max_skipped=4")
    assert all(t.isfinite().all() for t in weights(out).values())


def test_a_run_may_grow(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, "kimg=0.16")
    run(out, "kimg=0.32")
    assert folder.load(out, print).state["counters"]["samples"] == 320


def test_an_image_that_breaks_while_training_stops_it_and_keeps_what_was_trained(tmp_path: Path) -> None:
    """The set is larger than memory_gb, so images are decoded when their turn comes; one is damaged by then."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(64):
        Image.effect_noise((32, 32), 60).convert("RGB").save(photos / f"{i:02}.jpg")
    out = tmp_path / "run"
    sets = (f'data.path="{photos}"', "data.channels=3", "data.memory_gb=0", "output.checkpoint_kimg=0")

    def damage(tick: Tick) -> None:
        if tick.step == 3:
            for path in photos.iterdir():
                path.write_bytes(path.read_bytes()[:300])

    c = config(out, *sets)
    with pytest.raises(FastganError, match=r"\.jpg"):
        train(c, echo=lambda line: None, on_tick=damage)
    assert folder.load(out, print).state["counters"]["step"] >= 3


def test_a_kill_while_the_folder_was_made_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.toml.tmp").write_text("half")
    assert run(out, "kimg=0.016").status == DONE
