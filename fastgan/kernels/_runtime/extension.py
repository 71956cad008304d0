"""The native extension, fastgan._C: loaded once, if it is there and fits this version of the Python side."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Loading torch first decides which OpenMP runtime the process has: its own. The extension then binds to that one, so
# that torch.set_num_threads governs both and there is one pool of threads.
import torch  # noqa: F401

ABI = 11  # of csrc/bind.cpp
PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Extension:
    """`module` is fastgan._C or None; `cpu` and `cuda` say what each part was built with, or why it is not there."""

    module: Any
    has_cuda: bool
    cpu: str
    cuda: str
    rebuild: str


def load() -> Extension:
    """Loads the extension and reads the record that the build left. Raises nothing: what is missing has its reason."""
    record = _record()
    rebuild = _rebuild_command(record)
    missing = record.get("cpu", {}).get("reason") or "no native part was built"
    if importlib.util.find_spec("fastgan._C") is None:
        return Extension(None, False, missing, record.get("cuda", {}).get("reason") or missing, rebuild)
    try:
        module: Any = importlib.import_module("fastgan._C")
    except ImportError as error:
        reason = f"built, but does not load: {error}"
        return Extension(None, False, reason, reason, rebuild)
    if module.ABI != ABI:
        reason = f"built for interface {module.ABI}, but this fastgan has {ABI}"
        return Extension(None, False, reason, reason, rebuild)
    has_cuda = hasattr(module, "cuda_status")
    return Extension(module, has_cuda, _describe(record, "cpu"), _describe(record, "cuda"), rebuild)


def _record() -> dict[str, Any]:
    path = PACKAGE / "_build.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return record


def _describe(record: dict[str, Any], part: str) -> str:
    made = record.get(part, {})
    if not made.get("built"):
        return made.get("reason") or "no record of the build"
    details = [made["compiler"]]
    details += ["OpenMP" if made["openmp"] else "no OpenMP"] if part == "cpu" else []
    details += ["sm_" + " ".join(made["archs"])] if made["archs"] else []
    details += [f"PTX {made['ptx']}"] if made["ptx"] else []
    return ", ".join(details)


def _rebuild_command(record: dict[str, Any]) -> str:
    source = Path(record.get("source", PACKAGE.parent))
    if not (source / "setup.py").exists():
        return "FASTGAN_BUILD=require pip install --force-reinstall --no-deps SOURCE_OF_FASTGAN"
    quoted = shlex.quote(str(source))
    if record.get("inplace", source == PACKAGE.parent):
        return f"cd {quoted} && FASTGAN_BUILD=require python setup.py build_ext --inplace"
    return f"FASTGAN_BUILD=require pip install --force-reinstall --no-deps {quoted}"


EXTENSION = load()
