"""Which implementation of an op runs on a device: ours, or the library's (the reference in PyTorch).

`FASTGAN_KERNELS`, read at the first call of each op on a device, decides:

    auto      (default) our C++ on the CPU; our GPU kernel on architectures on which its tests have passed
    library   PyTorch everywhere
    all       ours wherever there is one, tested or not
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan.errors import FastganError
from fastgan.kernels._runtime.extension import EXTENSION

# Op -> what its GPU kernel is written in
GPU_KERNELS = {
    "adam_ema": "CUDA C++",
    "batch_norm_act": "CUDA C++",
    "conv_transpose_bn_act": "Triton",
    "counter_noise": "CUDA C++",
    "masked_act": "Triton",
}
OPS = tuple(GPU_KERNELS)
MODES = ("auto", "library", "all")

_disabled: dict[tuple[str, torch.device], str] = {}


@dataclass(frozen=True)
class Choice:
    """What runs ("C++", "CUDA C++", "Triton" or "PyTorch"), and why."""

    implementation: str
    reason: str

    @property
    def native(self) -> bool:
        return self.implementation != "PyTorch"


@functools.cache
def choose(op: str, device: torch.device) -> Choice:
    """The implementation of `op` for tensors on `device`. Decided once, without waiting for the device."""
    mode = os.environ.get("FASTGAN_KERNELS", "auto")
    if mode not in MODES:
        raise FastganError(f"FASTGAN_KERNELS={mode!r}: expected one of {', '.join(MODES)}")
    if mode == "library":
        return Choice("PyTorch", "FASTGAN_KERNELS=library")
    if (op, device) in _disabled:
        return Choice("PyTorch", _disabled[op, device])
    if device.type == "cpu":
        return Choice("C++" if EXTENSION.module else "PyTorch", EXTENSION.cpu)
    if device.type == "cuda":
        return _choose_cuda(op, device, mode)
    return Choice("PyTorch", f"no native kernel for {device.type}")


def _choose_cuda(op: str, device: torch.device, mode: str) -> Choice:
    kernel = GPU_KERNELS[op]
    if problem := _no_triton() if kernel == "Triton" else _no_cuda_part(device):
        return Choice("PyTorch", problem)
    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    if architecture in verified()[op]:
        return Choice(kernel, f"verified on {architecture}")
    if mode == "all":
        return Choice(kernel, f"FASTGAN_KERNELS=all; not verified on {architecture} yet")
    return Choice("PyTorch", f"our kernel is not verified on {architecture} yet; FASTGAN_KERNELS=all runs it")


def _no_cuda_part(device: torch.device) -> str:
    """Why the CUDA part of the extension does not run on `device`, or "" where it does."""
    if not EXTENSION.has_cuda:
        return f"no CUDA part: {EXTENSION.cuda}"
    status = EXTENSION.module.cuda_status(device.index or 0)
    return f"the CUDA part does not run here: {EXTENSION.module.cuda_error(status)}" if status else ""


def _no_triton() -> str:
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


@functools.cache
def verified() -> dict[str, list[str]]:
    """Op -> the GPU architectures on which its tests have passed."""
    table: dict[str, list[str]] = json.loads(Path(__file__).with_name("verified.json").read_text())
    return table


def disable(op: str, device: torch.device, failure: int | Exception) -> None:
    """After a launch that failed, with a cudaError_t or an exception: warns once, and from now on PyTorch does it."""
    why = EXTENSION.module.cuda_error(failure) if isinstance(failure, int) else _first_line(failure)
    reason = f"its launch failed ({why})"
    _disabled[op, device] = reason
    choose.cache_clear()
    warnings.warn(
        f"fastgan: {op} runs in PyTorch on {device} from now on, because {reason}. Please report this with what "
        "`fastgan doctor` says.",
        RuntimeWarning,
        stacklevel=3,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
