"""Which implementation of an op runs on a device: ours, or the library's (the reference in PyTorch).

`FASTGAN_KERNELS`, read at the first call of each op on a device, decides:

    auto      (default) our C++ on the CPU; our GPU kernel on architectures on which its tests have passed, be it before
              the release or here, by `fastgan doctor --verify`
    library   PyTorch everywhere
    all       ours wherever there is one, tested or not
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan.errors import FastganError
from fastgan.kernels._runtime import cache
from fastgan.kernels._runtime.extension import EXTENSION

# Op -> what its GPU kernel is written in
GPU_KERNELS = {
    "adam_ema": "CUDA C++",
    "batch_norm_act": "CUDA C++",
    "conv_transpose_bn_act": "Triton",
    "counter_noise": "CUDA C++",
    "ingest": "CUDA C++",
    "masked_act": "Triton",
    "modulated_act": "Triton",
    "symmetric_product": "CUDA C++",
}
GPU_ONLY = ("symmetric_product",)  # on a CPU the library's matrix product is the fastest there is
NO_GPU_KERNEL = ("close_pairs", "polynomial_mmd", "symmetric_eigenvalues")  # these have no kernel for GPUs
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
    if device.type == "cpu" and op in GPU_ONLY:
        return Choice("PyTorch", "a matrix product of the library")
    if device.type == "cpu":
        return Choice("C++" if EXTENSION.module else "PyTorch", EXTENSION.cpu)
    if op in NO_GPU_KERNEL:
        return Choice("PyTorch", f"no kernel for {device.type}")
    if device.type == "cuda":
        return _choose_cuda(op, device, mode)
    return Choice("PyTorch", f"no native kernel for {device.type}")


def _choose_cuda(op: str, device: torch.device, mode: str) -> Choice:
    kernel = GPU_KERNELS[op]
    if problem := _no_triton() if kernel == "Triton" else _no_cuda_part(device):
        return Choice("PyTorch", problem)
    architecture = architecture_of(device)
    here = verified_here(op, architecture)
    if mode == "auto" and here not in ("", PASSED):
        return Choice("PyTorch", f"`fastgan doctor --verify` failed on {architecture}: {here}")
    if architecture in verified()[op]:
        return Choice(kernel, f"verified on {architecture}")
    if here == PASSED:
        return Choice(kernel, f"verified on {architecture} by `fastgan doctor --verify`")
    if mode == "all":
        return Choice(kernel, f"FASTGAN_KERNELS=all; not verified on {architecture} yet")
    return Choice(
        "PyTorch",
        f"our kernel is not verified on {architecture} yet; `fastgan doctor --verify` does it, "
        "FASTGAN_KERNELS=all runs it",
    )


def architecture_of(device: torch.device) -> str:
    """Such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


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


# What is recorded of a check that has passed; of one that has not it is the reason.
PASSED = "passed"


def verified_here(op: str, architecture: str) -> str:
    """What `fastgan doctor --verify` found on this machine with these versions: PASSED, why it failed, or ""."""
    return cache.read("verified").get(verification(op, architecture), "")


def verification(op: str, architecture: str) -> str:
    """The key under which the outcome is recorded."""
    return f"{op} on {architecture}, {cache.versions()}"


@contextlib.contextmanager
def forced(mode: str) -> Iterator[None]:
    """FASTGAN_KERNELS=mode for as long as this lasts; what has failed before is tried again, and forgotten after."""
    before, failed = os.environ.get("FASTGAN_KERNELS"), dict(_disabled)
    os.environ["FASTGAN_KERNELS"] = mode
    _disabled.clear()
    choose.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTGAN_KERNELS"]
        else:
            os.environ["FASTGAN_KERNELS"] = before
        _disabled.clear()
        _disabled.update(failed)
        choose.cache_clear()


def disable(op: str, device: torch.device, failure: int | Exception) -> None:
    """After a launch that failed, with a cudaError_t or an exception: warns once, and from now on PyTorch does it."""
    why = EXTENSION.module.cuda_error(failure) if isinstance(failure, int) else first_line(failure)
    reason = f"its launch failed ({why})"
    _disabled[op, device] = reason
    choose.cache_clear()
    warnings.warn(
        f"fastgan: {op} runs in PyTorch on {device} from now on, because {reason}. Please report this with what "
        "`fastgan doctor` says.",
        RuntimeWarning,
        stacklevel=3,
    )


def first_line(error: Exception) -> str:
    """Of an error of any kind: its type and the beginning of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
