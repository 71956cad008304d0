"""Loading the extension: what is said when it is missing or does not fit; one pool of threads with torch."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastgan.kernels._runtime import extension
from fastgan.kernels._runtime.extension import ABI, EXTENSION, load

CPU = {"built": True, "reason": "", "compiler": "g++ 1.2", "openmp": True, "archs": [], "ptx": ""}
CUDA = {"built": True, "reason": "", "compiler": "nvcc 3.4", "openmp": False, "archs": ["80", "90a"], "ptx": "80"}
NO_CPU = CPU | {"built": False, "reason": "no C++ compiler found (CXX, PATH)"}
NO_CUDA = CUDA | {"built": False, "reason": "nvcc not found"}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """pretend(module or None or an error, **record): what is found when the extension is looked for."""
    monkeypatch.setattr(extension, "PACKAGE", tmp_path / "fastgan")
    (tmp_path / "fastgan").mkdir()

    def pretend(module: Any, **record: Any) -> None:
        def import_module(name: str) -> Any:
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: module)
        monkeypatch.setattr(importlib, "import_module", import_module)
        if record:
            (tmp_path / "fastgan" / "_build.json").write_text(json.dumps(record))

    return pretend


def test_with_both_parts(pretend: Any) -> None:
    pretend(SimpleNamespace(ABI=ABI, cuda_status=None), cpu=CPU, cuda=CUDA)
    loaded = load()
    assert loaded.module is not None
    assert loaded.has_cuda
    assert (loaded.cpu, loaded.cuda) == ("g++ 1.2, OpenMP", "nvcc 3.4, sm_80 90a, PTX 80")


def test_with_the_cpu_part_alone(pretend: Any) -> None:
    pretend(SimpleNamespace(ABI=ABI), cpu=CPU | {"openmp": False}, cuda=NO_CUDA)
    loaded = load()
    assert loaded.module is not None
    assert not loaded.has_cuda
    assert (loaded.cpu, loaded.cuda) == ("g++ 1.2, no OpenMP", "nvcc not found")


@pytest.mark.parametrize(
    ("module", "record", "reason"),
    [
        (None, {"cpu": NO_CPU, "cuda": NO_CUDA}, "no C++ compiler found (CXX, PATH)"),
        (None, {}, "no native part was built"),
        (SimpleNamespace(ABI=ABI + 1), {"cpu": CPU, "cuda": CUDA}, f"built for interface {ABI + 1}"),
        (ImportError("libx.so: no such file"), {"cpu": CPU, "cuda": CUDA}, "built, but does not load: libx.so"),
    ],
)
def test_without_a_part_that_fits(module: Any, record: dict[str, Any], reason: str, pretend: Any) -> None:
    pretend(module, **record)
    loaded = load()
    assert loaded.module is None
    assert not loaded.has_cuda
    assert loaded.cpu.startswith(reason)


def test_the_command_that_rebuilds(pretend: Any, tmp_path: Path) -> None:
    source = tmp_path / "my source"
    source.mkdir()
    pretend(None, cpu=NO_CPU, cuda=NO_CUDA, source=str(source), inplace=False)
    assert load().rebuild.endswith("--force-reinstall --no-deps SOURCE_OF_FASTGAN")  # it is gone
    (source / "setup.py").touch()
    assert load().rebuild == f"FASTGAN_BUILD=require pip install --force-reinstall --no-deps '{source}'"
    pretend(None, cpu=NO_CPU, cuda=NO_CUDA, source=str(source), inplace=True)
    assert load().rebuild == f"cd '{source}' && FASTGAN_BUILD=require python setup.py build_ext --inplace"


# One OpenMP runtime in the process, whose pool does not grow when our kernel runs after torch's.
SHARED = """
import os, torch
from fastgan.kernels import counter_noise
def openmp():
    return {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rpartition("/")[2]}
torch.set_num_threads(3)
torch.randn(1 << 20).exp_()
before, threads = openmp(), len(os.listdir("/proc/self/task"))
counter_noise.normal(1, torch.arange(64), (4096,))
assert before == openmp(), (before, openmp())
assert len(before) <= 1, before
assert len(os.listdir("/proc/self/task")) == threads, "a second pool of threads"
"""


@pytest.mark.skipif(EXTENSION.module is None, reason="no native part")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_torch_and_the_extension_share_their_threads() -> None:
    done = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
