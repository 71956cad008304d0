"""A run folder: whose it is, what to resume from, and what to do with it next."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fastgan.errors import FastganError
from fastgan.run import checkpoint as checkpoints
from fastgan.run.files import reason, write_atomic
from fastgan.run.mirror import Mirror, is_url

# A file in the run folder where training was stopped early, was saved and can go on: what status 3 says, for scripts
# that only see the status of a launcher.
RESUMABLE = "resumable"

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
    "data.feeder",
)

ABOUT = "about.json"  # of a run folder: the data and the device in words, and the names of the classes
FOUND = ("data.classes", "data.source_channels")  # what a run fills in from its images: no choice, and no default


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """No other process trains in the folder `out` as long as this lasts; FastganError where one does already.

    The lock is the system's own on the folder itself: it leaves no file, and a process that dies gives it back.
    """
    if out.exists() and not out.is_dir():
        raise FastganError(f"--out {out} is a file; name a folder")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        os.close(descriptor)
        if new:
            with contextlib.suppress(OSError):  # it holds a run by now
                out.rmdir()


def _lock(descriptor: int, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FastganError(
            f"--out {out} is being trained in by another process; wait for it, stop it, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems have no locks
        warnings.warn(f"{out} cannot be locked ({reason(error)}): start one command at a time in it", stacklevel=4)


def fetch_copy(out: Path, resume: str, copy_to: str, warn: Callable[[str], None]) -> None:
    """Brings a checkpoint into a new or empty `out`: from the URL that `resume` is, or from where copies of this run
    go. For one rank, before all of them call `find_checkpoint`. Raises FastganError."""
    source = resume if is_url(resume) else copy_to if resume == "auto" else ""
    if not source or (out.exists() and not out.is_dir()):
        return
    if _names_in(out):
        if source == resume:
            warn(f"{out} holds a run already: going on with it, not with {resume}")
        return
    Mirror(source).fetch(out / "checkpoints", warn)


def find_checkpoint(out: Path, resume: str, warn: Callable[[str], None]) -> checkpoints.Checkpoint | None:
    """What a run starts from, by `--resume auto|never|PATH|URL`; None for a fresh start.

    FastganError where `out` is not a run folder, or holds a run that must not be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise FastganError(f"--out {out} is a file; name a folder")
    branch = None if resume in ("auto", "never") or is_url(resume) else Path(resume)
    if branch is not None and out.resolve() in branch.resolve().parents:
        return load(branch, warn)  # back to an earlier checkpoint of the same run
    own = checkpoints.load_latest(out / "checkpoints", warn) if resume != "never" else None
    if own is not None:
        if branch is not None:
            warn(f"{out} holds a run already: going on with it, not with {branch}")
        return own
    if is_url(resume):
        raise FastganError(f"{resume} has no checkpoint; name what output.copy_to was for a run")
    names = _names_in(out)
    if resume == "never" and "checkpoints" in names:
        raise FastganError(f"--out {out} holds a run already; choose a new --out, or let --resume auto go on with it")
    if names and "config.toml" not in names:
        raise FastganError(f"--out {out} holds {names[0]!r} and is not a run folder; choose a new or empty --out")
    return None if branch is None else load(branch, warn)


def _names_in(out: Path) -> list[str]:
    """What is in a run folder, but for what a kill leaves before there is anything: hidden files, such as the temporary
    one of config.toml, and a folder for checkpoints without any."""
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.exists() else []
    if names == ["checkpoints"] and not any(not p.name.startswith(".") for p in (out / "checkpoints").iterdir()):
        return []
    return names


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


def check_same_run(
    saved: checkpoints.Checkpoint, mapping: Mapping[str, Any], data: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Raise FastganError unless the checkpoint was made by a run of these options on this data.

    defaults: {"a.b": value} of options: an option that the checkpoint does not know came later, and is at its default
    data: what tells one set from another, {"images": count, "sha256": of some of them}; the path may change
    """
    theirs, mine = flatten(saved.state["config"]), flatten(mapping)
    for key in FOUND:  # a checkpoint without it was made before it was written down
        theirs.setdefault(key, mine.get(key))
    for key in mine.keys() & defaults.keys() - theirs.keys():
        if not any(other.startswith(f"{key}.") for other in theirs):
            theirs[key] = defaults[key]
    for group in (key.removesuffix("kind") for key, value in mine.items() if key.endswith(".kind") and value == "none"):
        if theirs.get(f"{group}kind") == "none":  # what is switched off has no options that matter
            theirs = {key: value for key, value in theirs.items() if not key.startswith(group)}
            mine = {key: value for key, value in mine.items() if not key.startswith(group)}
    for key in sorted(theirs.keys() | mine.keys(), key=lambda key: (not key.endswith(".kind"), key)):
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


def class_names(out: Path) -> tuple[str, ...]:
    """Names of the classes that the run was trained on, in the order of their numbers; () where that is not known."""
    try:
        names = json.loads((out / ABOUT).read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError):  # a checkpoint that was moved away from its run
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def prepare(out: Path, toml: str) -> None:
    """Make the run folder and write its config.toml."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.toml", toml)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a reader sees the old text or the new one."""
    write_atomic(path, text.encode())


# What one tries first with a run, by the command that its system is for.
TRY = {
    "sample": ("fastgan sample {run} --seeds 0-99", "fastgan interpolate {run} --seeds 0-7"),
    "translate": ("fastgan translate {run} YOUR_IMAGES",),
    "upscale": ("fastgan upscale {run} YOUR_IMAGES",),
    "inpaint": ("fastgan inpaint {run} YOUR_IMAGES --mask free",),
}


def next_commands(out: Path, kimg: float, can: Sequence[str] = ("sample",)) -> list[str]:
    """Commands to try with a run that has trained for `kimg`. can: keys of TRY; others are left out"""
    run = shlex.quote(str(out))
    return [
        *(command.format(run=run) for name in can for command in TRY.get(name, ())),
        f"fastgan train --config {shlex.quote(str(out / 'config.toml'))} --kimg {2 * kimg:g}",
        "fastgan train --data YOUR_FOLDER --out runs/mine",
    ]
