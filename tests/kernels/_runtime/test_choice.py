"""Which implementation runs: by mode, by device, by what was built, verified or has failed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastgan.errors import FastganError
from fastgan.kernels._runtime import choice
from fastgan.kernels._runtime.choice import GPU_KERNELS, MODES, OPS, choose, disable, verified
from fastgan.kernels._runtime.extension import EXTENSION

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, *, status: int | None = 0, capability: tuple[int, int] = (9, 0)) -> None:
    """An extension with a C++ part and, unless `status` is None, a CUDA part that says `status` of every device."""
    module = SimpleNamespace(cuda_status=lambda device: status, cuda_error=lambda status: f"error {status}")
    has_cuda = status is not None
    built = dataclasses.replace(EXTENSION, module=module, has_cuda=has_cuda, cpu="g++ 1.2", cuda="nvcc not found")
    monkeypatch.setattr(choice, "EXTENSION", built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGAN_KERNELS", raising=False)
    monkeypatch.setattr(choice, "_disabled", {})
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.mark.parametrize("op", sorted(set(OPS) - set(choice.GPU_ONLY)))
def test_on_the_cpu_ours_runs_where_it_was_built(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert choose(op, CPU) == choice.Choice("C++", "g++ 1.2")
    assert choose(op, CPU).native
    monkeypatch.setattr(choice, "EXTENSION", dataclasses.replace(EXTENSION, module=None, cpu="no compiler"))
    choose.cache_clear()
    assert choose(op, CPU) == choice.Choice("PyTorch", "no compiler")
    assert not choose(op, CPU).native


@pytest.mark.parametrize("op", choice.GPU_ONLY)
def test_what_the_library_does_best_on_a_cpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert choose(op, CPU) == choice.Choice("PyTorch", "a matrix product of the library")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_library_mode_means_pytorch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("FASTGAN_KERNELS", "library")
    assert choose("adam_ema", device) == choice.Choice("PyTorch", "FASTGAN_KERNELS=library")


def test_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_KERNELS", "fast")
    with pytest.raises(FastganError, match="FASTGAN_KERNELS='fast': expected one of " + ", ".join(MODES)):
        choose("adam_ema", CPU)


def test_a_gpu_kernel_runs_where_it_was_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(choice, "verified", lambda: {"adam_ema": ["sm_90"], "counter_noise": []})
    assert choose("adam_ema", GPU) == choice.Choice("CUDA C++", "verified on sm_90")
    assert choose("counter_noise", GPU).implementation == "PyTorch"
    reason = choose("counter_noise", GPU).reason
    assert "not verified on sm_90 yet; `fastgan doctor --verify` does it, FASTGAN_KERNELS=all runs it" in reason
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    choose.cache_clear()
    assert choose("counter_noise", GPU).implementation == "CUDA C++"
    monkeypatch.delenv("FASTGAN_KERNELS")
    pretend(monkeypatch, capability=(12, 0))
    choose.cache_clear()
    assert choose("adam_ema", GPU).implementation == "PyTorch"


@pytest.mark.parametrize("op", OPS)
def test_a_gpu_kernel_is_called_what_it_is_written_in(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    assert choose(op, GPU).implementation == GPU_KERNELS[op]


def test_a_triton_kernel_needs_triton_and_no_cuda_part(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, status=None)
    monkeypatch.setattr(choice, "verified", lambda: {"masked_act": ["sm_90"]})
    assert choose("masked_act", GPU) == choice.Choice("Triton", "verified on sm_90")
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    choose.cache_clear()
    assert choose("masked_act", GPU) == choice.Choice("PyTorch", "triton is not installed")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(35, "the CUDA part does not run here: error 35"), (None, "no CUDA part: nvcc not found")],
)
def test_a_cuda_part_that_cannot_run_is_absent(
    status: int | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too old a driver, no code for the device, or not built: even when everything is asked for."""
    pretend(monkeypatch, status=status)
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    assert choose("adam_ema", GPU) == choice.Choice("PyTorch", reason)


def test_other_devices_run_pytorch() -> None:
    assert choose("adam_ema", torch.device("mps")) == choice.Choice("PyTorch", "no native kernel for mps")


def test_a_failed_launch_disables_the_kernel_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    assert choose("adam_ema", GPU).native
    with pytest.warns(RuntimeWarning, match=r"adam_ema runs in PyTorch on cuda:0 .*error 700.* report") as said:
        disable("adam_ema", GPU, 700)
    assert len(said) == 1
    assert choose("adam_ema", GPU) == choice.Choice("PyTorch", "its launch failed (error 700)")
    assert choose("counter_noise", GPU).native


def test_an_exception_at_launch_is_told_in_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    with pytest.warns(
        RuntimeWarning, match=r"masked_act runs in PyTorch on cuda:0 .*\(RuntimeError: out of shared memory\)"
    ):
        disable("masked_act", GPU, RuntimeError("\nout of shared memory\nand a long story"))
    assert choose("masked_act", GPU).reason == "its launch failed (RuntimeError: out of shared memory)"


def test_the_table_of_verified_kernels_knows_every_op() -> None:
    assert tuple(verified()) == OPS
    assert all(re.fullmatch(r"sm_\d{2,3}", name) for names in verified().values() for name in names)
