"""Kills `fastgan train` and `fastgan pack` (SIGKILL) again and again, and compares the end with an undisturbed run.

    python tests/soak.py [--kills 50] [--seed 0] [--what train pack]

Kills come at random moments of a life, and inside every stage of a checkpoint: before each change that a save makes to
the file system (a file opened for writing, an fsync, a rename, a removal), one life per change, in random order. Each
life is a fork of this process, so that PyTorch is loaded once. What is compared is every bit of the last checkpoint,
and of every file of a pack.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import sklearn.datasets  # noqa: F401  (loaded once, not in every life)
import torch
from killed import die_at_change
from PIL import Image

import fastgan.train  # noqa: F401  (the same)
from fastgan.cli import actions, main  # noqa: F401
from fastgan.run import behind, checkpoint

RUN = {
    "data.path": "digits", "data.channels": 1, "data.size": 16, "data.memory_gb": 1,
    "system.networks.critic_norm": "none", "system.networks.generator_width": 4, "system.networks.critic_width": 4,
    "system.latent": 8, "system.r1": 1.0, "system.augment.kind": "adaptive", "system.augment.kimg": 0.5,
    "batch": 16, "threads": 1, "device": "cpu",
    "output.checkpoint_kimg": 0.032, "output.keep": 2, "output.grid_kimg": 0, "output.grid_images": 4,
    "output.tick_seconds": 0,
}  # fmt: skip
IMAGES, BAD = 240, 3  # of the folder that is packed


# ---- how a life ends


def die_in_save(number: int) -> None:
    """Before change `number` of the first save that makes so many."""
    saving = threading.local()
    save = checkpoint.save

    def watched(*args: Any, **kwargs: Any) -> Path:
        saving.now = True
        try:
            return save(*args, **kwargs)
        finally:
            saving.now = False

    behind.checkpoint.save = watched
    die_at_change(number, lambda: getattr(saving, "now", False))


def die_after(seconds: float) -> None:
    def wait() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def live(command: list[str], end: Callable[[], None] | None, log: Path) -> bool:
    """One life of `command`; whether it was killed. AssertionError where it ends in any other way but well."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if end is not None:
                end()
            status = main(command)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"status {status}: {log.read_text()[-2000:]}"
    return killed


# ---- what is killed


def soak_train(folder: Path, kills: int, chance: random.Random, say: Callable[[str], None]) -> None:
    """AssertionError where the weights differ at the end."""
    # Lives do about 1.5 saves each, of 2 steps: a run that is longer than they get.
    steps = 16 + 4 * kills
    sets = [f"{key}={value}" for key, value in {**RUN, "kimg": steps * 0.016}.items()]

    def command(out: Path) -> list[str]:
        return ["train", "--preset", "dcgan-64", "--out", str(out), *(f for s in sets for f in ("--set", s))]

    log = folder / "log"
    began = time.monotonic()
    assert not live(command(folder / "straight"), None, log)
    say(f"train: {steps} steps undisturbed in {time.monotonic() - began:.1f} s")
    stages = _changes_of_a_save(folder / "straight")
    ends: list[Callable[[], None]] = [partial(die_in_save, stage) for stage in stages]
    chance.shuffle(ends)
    ends = ends[: kills * 2 // 3]
    while len(ends) < kills:
        soon = (
            partial(die_at_change, chance.randrange(90))
            if chance.random() < 0.5
            else partial(die_after, 1.5 * chance.random())
        )
        ends.insert(chance.randrange(len(ends) + 1), soon)
    done = 0
    for end in ends:
        done += live(command(folder / "killed"), end, log)
    assert not live(command(folder / "killed"), None, log)
    assert done >= kills * 2 // 3, f"only {done} of {kills} lives were ended"
    one, other = (
        checkpoint.load_latest(folder / name / "checkpoints", lambda line: None) for name in ("straight", "killed")
    )
    assert one is not None
    assert other is not None
    assert one.state == {**other.state, "config": {**other.state["config"], "out": one.state["config"]["out"]}}
    for file, group in one.tensors.items():
        for name, tensor in group.items():
            assert torch.equal(tensor, other.tensors[file][name]), f"{file}: {name} differs after {done} kills"
    say(f"train: {done} kills, {len(stages)} stages of a save; the same bits in {time.monotonic() - began:.1f} s")


def _changes_of_a_save(run: Path) -> range:
    """Numbers of the changes that one save makes: two for each file, and those of folders, names and what goes."""
    newest = checkpoint.load_latest(run / "checkpoints", lambda line: None)
    assert newest is not None
    files = len(list(newest.path.iterdir()))
    return range(2 * files + 7 + files + 2)


def soak_pack(folder: Path, kills: int, chance: random.Random, say: Callable[[str], None]) -> None:
    """AssertionError where a file of the pack differs at the end."""
    source = folder / "images"
    for number in range(IMAGES):
        path = source / f"class{number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if number < BAD:
            path.write_bytes(path.read_bytes()[:300])

    def command(target: Path) -> list[str]:
        flags = ["--size", "32", "--max-bad", "0.05", "--workers", "2", "--shard-mb", "0.1"]
        return ["pack", str(source), str(target), *flags]

    log = folder / "log"
    began = time.monotonic()
    assert not live(command(folder / "straight"), None, log)
    done = lives = packs = 0
    while done < kills or packs == 0:
        # Later and later, or a pack would never get far: what is finished is compared, not made again.
        lives += 1
        end = partial(die_at_change, chance.randrange(2 + lives))
        if chance.random() < 0.3:
            end = partial(die_after, 0.3 * chance.random())
        if live(command(folder / "killed"), end if done < kills else None, log):
            done += 1
        else:
            _compare_packs(folder)
            shutil.rmtree(folder / "killed")
            packs, lives = packs + 1, 0
    say(f"pack: {done} kills of {packs} packs; the same bytes in {time.monotonic() - began:.1f} s")


def _compare_packs(folder: Path) -> None:
    one, other = ({p.name: p.read_bytes() for p in (folder / name).iterdir()} for name in ("straight", "killed"))
    assert one.keys() == other.keys()
    assert len([name for name in one if name.startswith("shard-")]) > 5
    for name, data in one.items():
        assert data == other[name], f"{name} differs"
    assert not list(folder.glob("*.tmp"))


def soak(what: list[str], kills: int, seed: int, say: Callable[[str], None] = print) -> None:
    for name in what:
        with tempfile.TemporaryDirectory() as folder:
            run = soak_train if name == "train" else soak_pack
            run(Path(folder), kills, random.Random(seed), say)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", nargs="+", choices=["train", "pack"], default=["train", "pack"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    soak(options.what, options.kills, options.seed)
