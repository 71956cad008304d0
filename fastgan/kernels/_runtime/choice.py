"""Which implementation of an op runs on a device: ours, or the library's (the reference in PyTorch).

`FASTGAN_KERNELS`, read at the first call of each op on a device, decides:

    auto      (default) our C++ on the CPU; our GPU kernel on architectures on which its tests have passed
    library   PyTorch everywhere
    all       ours wherever there is one, tested or not
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan.errors import FastganError
from fastgan.kernels._runtime.extension import EXTENSION

OPS = ("adam_ema", "counter_noise")
MODES = ("auto", "library", "all")

_disabled: dict[tuple[str, torch.device], str] = {}


@dataclass(frozen=True)
class Choice:
    """What runs ("C++", "CUDA C++" or "PyTorch"), and why."""

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
    if not EXTENSION.has_cuda:
        return Choice("PyTorch", f"no CUDA part: {EXTENSION.cuda}")
    if status := EXTENSION.module.cuda_status(device.index or 0):
        return Choice("PyTorch", f"the CUDA part does not run here: {EXTENSION.module.cuda_error(status)}")
    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    if architecture in verified()[op]:
        return Choice("CUDA C++", f"verified on {architecture}")
    if mode == "all":
        return Choice("CUDA C++", f"FASTGAN_KERNELS=all; not verified on {architecture} yet")
    return Choice("PyTorch", f"our kernel is not verified on {architecture} yet; FASTGAN_KERNELS=all runs it")


@functools.cache
def verified() -> dict[str, list[str]]:
    """Op -> the GPU architectures on which its tests have passed."""
    table: dict[str, list[str]] = json.loads(Path(__file__).with_name("verified.json").read_text())
    return table


def disable(op: str, device: torch.device, status: int) -> None:
    """After a launch that failed with cudaError_t `status`: warns once, and from now on PyTorch does it."""
    reason = f"its launch failed ({EXTENSION.module.cuda_error(status)})"
    _disabled[op, device] = reason
    choose.cache_clear()
    warnings.warn(
        f"fastgan: {op} runs in PyTorch on {device} from now on, because {reason}. Please report this with what "
        "`fastgan doctor` says.",
        RuntimeWarning,
        stacklevel=3,
    )
