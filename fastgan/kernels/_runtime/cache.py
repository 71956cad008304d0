"""What was found out on this machine and holds for the next process too: one small JSON file.

$FASTGAN_CACHE/kernels.json, else $XDG_CACHE_HOME/fastgan/kernels.json, else ~/.cache/fastgan/kernels.json. It is only
ever a shortcut: a file that cannot be read counts as empty, and one that cannot be written is left alone. It is
replaced as a whole, so that nobody reads half of it; of two processes that write at once one may lose its entry, which
is then found out again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastgan._version import __version__

Section = dict[str, str]


def path() -> Path:
    if folder := os.environ.get("FASTGAN_CACHE"):
        return Path(folder).expanduser() / "kernels.json"
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base).expanduser() / "fastgan" / "kernels.json" if base else Path.home() / ".cache/fastgan/kernels.json"


def read(section: str) -> Section:
    """The entries of `section`; none where there is no file that can be read."""
    entries = _read_all().get(section)
    if not isinstance(entries, dict):
        return {}
    return {key: value for key, value in entries.items() if isinstance(value, str)}


def remember(section: str, entries: Section) -> bool:
    """Adds `entries` to `section`. False where the file cannot be written: they hold for this process only."""
    everything = _read_all()
    everything[section] = read(section) | entries
    try:
        target = path()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=target.name, delete=False) as file:
            name = file.name
            json.dump(everything, file, indent=1, sort_keys=True)
        try:
            os.replace(name, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except (OSError, RuntimeError):
        return False
    return True


@functools.cache
def versions() -> str:
    """Of what makes the kernels; part of every key."""
    return f"fastgan {__version__}, torch {torch.__version__}, triton {_triton()}"


@functools.cache
def machine(device: torch.device) -> str:
    """The device and everything that a measurement on it depends on."""
    return f"{torch.cuda.get_device_name(device)}, driver {_driver()}, {versions()}"


def _read_all() -> dict[str, Any]:
    try:
        everything = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home directory
        return {}
    return everything if isinstance(everything, dict) else {}


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # perhaps built from source
        return "?" if importlib.util.find_spec("triton") else "none"


def _driver() -> str:
    """Such as "580.65.06"."""
    try:
        found = re.search(r"Module\s+(\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "?"
