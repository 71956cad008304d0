"""A run folder: whose it is, what to resume from, and what to do with it next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fastgan.errors import FastganError
from fastgan.run import checkpoint as checkpoints
from fastgan.run.files import write_atomic

# What may differ between two commands that go on with the same run.
FREE = (
    "preset",
    "out",
    "device",
    "kimg",
    "resume",
    "init",
    "max_skipped",
    "threads",
    "output.",
    "evaluation.",
    "data.path",
    "data.workers",
    "data.memory_gb",
)


NEWER = ("data.classes", "data.source_channels", "data.pairs", "data.direction")


def find_checkpoint(out: Path, resume: str, warn: Callable[[str], None]) -> checkpoints.Checkpoint | None:
    """What a run starts from, by `--resume auto|never|PATH`; None for a fresh start.

    FastganError where `out` is not a run folder, or holds a run that must not be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise FastganError(f"--out {out} is a file; name a folder")
    branch = None if resume in ("auto", "never") else Path(resume)
    if branch is not None and out.resolve() in branch.resolve().parents:
        return load(branch, warn)  # back to an earlier checkpoint of the same run
    own = checkpoints.load_latest(out / "checkpoints", warn) if resume != "never" else None
    if own is not None:
        if branch is not None:
            warn(f"{out} holds a run already: going on with it, not with {branch}")
        return own
    # Hidden names are not looked at: a kill while config.toml was written leaves only its temporary file.
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.exists() else []
    if resume == "never" and "checkpoints" in names:
        raise FastganError(f"--out {out} holds a run already; choose a new --out, or let --resume auto go on with it")
    if names and "config.toml" not in names:
        raise FastganError(f"--out {out} holds {names[0]!r} and is not a run folder; choose a new or empty --out")
    return None if branch is None else load(branch, warn)


def load(path: Path, warn: Callable[[str], None]) -> checkpoints.Checkpoint:
    """The checkpoint at `path`: a run folder (its newest), or a checkpoint directory."""
    if not path.exists():
        raise FastganError(f"{path} does not exist; name a run folder or a checkpoint in it")
    if not path.is_dir():
        raise FastganError(f"{path} is a file; name a run folder or a checkpoint in it")
    if (path / "state.json").exists():
        return checkpoints.load(path)
    found = checkpoints.load_latest(path / "checkpoints", warn)
    if found is None:
        raise FastganError(f"{path} has no checkpoint; name a run folder that has trained, such as runs/digits")
    return found


def check_same_run(saved: checkpoints.Checkpoint, mapping: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise FastganError unless the checkpoint was made by a run of these options on this data.

    data: what tells one set from another, {"images": count, "sha256": of some of them}; the path may change
    """
    theirs, mine = flatten(saved.state["config"]), flatten(mapping)
    for key in NEWER:  # a checkpoint without it was made before there was a choice
        theirs.setdefault(key, mine.get(key))
    for key in sorted(theirs.keys() | mine.keys()):
        if not key.startswith(FREE) and theirs.get(key) != mine.get(key):
            raise FastganError(
                f"{saved.path.parent.parent} holds another run: {key} was {theirs.get(key)!r} there and is "
                f"{mine.get(key)!r} here; use the options that it was made with, or another --out"
            )
    if saved.state["data"] != data:
        raise FastganError(
            f"{saved.path.parent.parent} holds another run: it was trained on other images ({data['images']} images "
            f"now, {saved.state['data']['images']} then); restore them, or use another --out with --init {saved.path}"
        )


def flatten(mapping: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A nested mapping as {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = value
    return flat


class Initialisable(Protocol):
    """What `initialise` needs of a training state."""

    def load_weights(self, tensors: Mapping[str, Mapping[str, Tensor]], source: str) -> None: ...


def initialise(state: Initialisable, source: str) -> None:
    """First weights from a run folder, a checkpoint, or one .safetensors file of a checkpoint (or like one)."""
    path = Path(source)
    if path.is_file():
        stem = path.name.removesuffix(".safetensors")
        if stem == path.name:
            raise FastganError(f"--init {source} is not a .safetensors file; name one, a run folder or a checkpoint")
        state.load_weights({stem: checkpoints.read_tensors(path)}, source)
    else:
        state.load_weights(load(path, lambda line: None).tensors, source)


def prepare(out: Path, toml: str) -> None:
    """Make the run folder and write its config.toml."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.toml", toml)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a reader sees the old text or the new one."""
    write_atomic(path, text.encode())


def next_commands(out: Path, kimg: float) -> list[str]:
    """Commands to try with a run that has trained for `kimg`."""
    run = shlex.quote(str(out))
    return [
        f"fastgan sample {run} --seeds 0-99",
        f"fastgan interpolate {run} --seeds 0-7",
        f"fastgan train --config {shlex.quote(str(out / 'config.toml'))} --kimg {2 * kimg:g}",
        "fastgan train --data YOUR_FOLDER --out runs/mine",
    ]
