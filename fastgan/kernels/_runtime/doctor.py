"""What runs here and why, for `fastgan doctor` and the first line of a training run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from fastgan.kernels._runtime.choice import NO_GPU_KERNEL, OPS, choose
from fastgan.kernels._runtime.extension import EXTENSION


@dataclass(frozen=True)
class OpReport:
    """Which implementation of `op` runs on `device`, such as "cpu" or "cuda:0", and why."""

    op: str
    device: str
    implementation: str
    reason: str


def report() -> list[OpReport]:
    """One entry per op and device that is here: the CPU and every CUDA device that torch can use."""
    devices = [torch.device("cpu"), *gpus()]
    choices = [(op, device, choose(op, device)) for op in (*OPS, *NO_GPU_KERNEL) for device in devices]
    return [OpReport(op, str(device), choice.implementation, choice.reason) for op, device, choice in choices]


def gpus() -> list[torch.device]:
    """Every CUDA device that torch can use."""
    count = 0 if _no_cuda() else torch.cuda.device_count()
    return [torch.device("cuda", i) for i in range(count)]


def build_summary() -> str:
    """One line: which native parts are there; of one that is not, why not and the command that builds it."""
    no_cuda = _no_cuda()
    if EXTENSION.module is None:
        return f"native: none ({EXTENSION.cpu}); to build it: {EXTENSION.rebuild}"
    cpp = f"native: C++ ({EXTENSION.cpu})"
    if EXTENSION.has_cuda:
        return f"{cpp} and CUDA ({EXTENSION.cuda})" + (f"; {no_cuda}" if no_cuda else "")
    summary = f"{cpp}; no CUDA part ({EXTENSION.cuda})"
    return f"{summary}; {no_cuda}" if no_cuda else f"{summary}; to build it: {EXTENSION.rebuild}"


def _no_cuda() -> str:
    """Why torch can use no CUDA device, or "" when it can. torch says some of it in warnings only."""
    if torch.version.cuda is None:
        return "no CUDA device: this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    detail = str(said[0].message).splitlines()[0] if said else "torch finds none"
    return f"no CUDA device: {detail}"
