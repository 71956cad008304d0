"""The report of `fastgan doctor` and the one line that a training run starts with."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from fastgan.kernels._runtime import doctor as module
from fastgan.kernels._runtime.choice import NO_GPU_KERNEL, OPS
from fastgan.kernels._runtime.doctor import build_summary, report
from fastgan.kernels._runtime.extension import Extension

BOTH = Extension(object(), True, "g++ 1.2, OpenMP", "nvcc 3.4, sm_80", "REBUILD")
CPU_ONLY = dataclasses.replace(BOTH, has_cuda=False, cuda="nvcc not found")
NOTHING = Extension(None, False, "no C++ compiler found", "no C++ compiler found", "REBUILD")


def test_every_op_on_every_device_has_its_reason() -> None:
    entries = report()
    devices = {"cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
    assert {(entry.op, entry.device) for entry in entries} == {
        (op, device) for op in (*OPS, *NO_GPU_KERNEL) for device in devices
    }
    assert all(entry.reason and entry.implementation in ("C++", "CUDA C++", "Triton", "PyTorch") for entry in entries)


@pytest.mark.parametrize(
    ("built", "gpu", "expected"),
    [
        (BOTH, True, "native: C++ (g++ 1.2, OpenMP) and CUDA (nvcc 3.4, sm_80)"),
        (BOTH, False, "native: C++ (g++ 1.2, OpenMP) and CUDA (nvcc 3.4, sm_80); no CUDA device: torch finds none"),
        (CPU_ONLY, True, "native: C++ (g++ 1.2, OpenMP); no CUDA part (nvcc not found); to build it: REBUILD"),
        (
            CPU_ONLY,
            False,
            "native: C++ (g++ 1.2, OpenMP); no CUDA part (nvcc not found); no CUDA device: torch finds none",
        ),
        (NOTHING, False, "native: none (no C++ compiler found); to build it: REBUILD"),
    ],
)
def test_summary_in_one_line(built: Extension, gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXTENSION", built)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert build_summary() == expected


def test_what_torch_warns_about_the_driver_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn("The driver is too old (found version 11040).\nPlease update it.", stacklevel=1)
        return False

    monkeypatch.setattr(module, "EXTENSION", BOTH)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_summary().endswith("; no CUDA device: The driver is too old (found version 11040).")
        assert {entry.device for entry in report()} == {"cpu"}


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXTENSION", BOTH)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build_summary().endswith("; no CUDA device: this torch is built without CUDA")
