"""The build: what it makes of the compilers that it finds, what it records, and what ends up in a wheel."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fastgan.kernels._runtime import EXTENSION, build_summary

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_cxx = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
needs_nvcc = pytest.mark.skipif(not NVCC, reason="needs nvcc")

# Without optimisation, which is most of the time.
QUICK_CXX = f"""\
#!/bin/sh
exec {shutil.which("g++")} "$@" -O0
"""

# An nvcc that knows little, and makes empty objects of what it is given: quick, and good for no more than the record.
OLD_NVCC = """\
#!/bin/sh
case "$*" in
    *--list-gpu-arch*) echo compute_80; echo compute_90; exit ;;
    *--version*) echo "Cuda compilation tools, release 11.8, V11.8.89"; exit ;;
esac
compile=
for word; do
    shift
    case "$word" in
        --cudart=static | -Xcompiler=*) ;;
        -c) compile=1 ;;
        *) [ "$before" = -o ] && out="$word"; set -- "$@" "$word" ;;
    esac
    before="$word"
done
[ "$compile" ] || exec g++ "$@"
exec g++ -x c++ -c /dev/null -o "$out"
"""

# A compiler that knows what it is, and compiles nothing.
BROKEN = """\
#!/bin/sh
case "$*" in
    *--list-gpu-arch*) echo compute_80 ;;
    *--version*) echo "fake 13.0, V13.0.1" ;;
    *) echo "line before"; echo "x.cpp:1: error: the disk is on fire"; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, in a folder with a space. All tests build in it: each compiles only what is new."""
    tree = tmp_path_factory.mktemp("packaging") / "a copy"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("csrc", "fastgan"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    script(tree, "g++", QUICK_CXX)
    poison = tree / "poison"  # on PYTHONPATH while building: whoever imports torch fails
    poison.mkdir()
    (poison / "torch.py").write_text("raise RuntimeError('the build imported torch')\n")
    return tree


def run(tree: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FASTGAN_", "CUDA", "CXX", "LDFLAGS"))}
    quick = {} if "PATH" in changed else {"CXX": shlex.quote(str(tree / "g++"))}
    environment = {**kept, "PYTHONPATH": str(tree / "poison"), **quick, **changed}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=280)


def build(tree: Path, **changed: str) -> tuple[dict[str, Any], list[Path]]:
    """Builds into build/lib. Returns the record, and the extension modules that are there afterwards (one or none)."""
    done = run(tree, "setup.py", "build", "--build-lib=build/lib", **changed)
    assert done.returncode == 0, done.stdout + done.stderr
    package = tree / "build" / "lib" / "fastgan"
    return json.loads((package / "_build.json").read_text()), list(package.glob("_C*.so"))


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# Prints what the built package says of itself, after having used both of its ops.
USE = """
import sys
# An editable install of this checkout would find modules that the copy under test lacks.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import torch
from fastgan.kernels import adam_ema, counter_noise
from fastgan.kernels._runtime import EXTENSION, build_summary, report
from fastgan.kernels._runtime.choice import GPU_ONLY
assert counter_noise.normal(1, torch.arange(3), (5,)).isfinite().all()
one = lambda: [torch.ones(3)]
number = lambda: torch.tensor(0.5, dtype=torch.float64)
names = ("step", "lr", "beta1", "beta2", "ema_decay", "grad_scale")
adam_ema.adam_ema_(one(), one(), one(), one(), [], eps=1e-8, skip=torch.tensor(False), **{n: number() for n in names})
print(EXTENSION.module is not None, EXTENSION.has_cuda)
print({op.implementation for op in report() if op.device == "cpu" and op.op not in GPU_ONLY})
print(build_summary())
"""


def use(tree: Path) -> list[str]:
    done = run(tree, "-P", "-c", USE, PYTHONPATH=str(tree / "build" / "lib"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
@needs_cxx
@needs_nvcc
@pytest.mark.timeout(300)  # nvcc on a busy machine
def test_with_both_compilers(tree: Path) -> None:
    record, modules = build(tree, CUDACXX=str(NVCC), FASTGAN_ARCHS="80", FASTGAN_BUILD="require")
    assert len(modules) == 1
    assert record["cpu"]["built"]
    assert record["cpu"]["compiler"].startswith("g++ ")
    assert record["cuda"] == record["cuda"] | {"built": True, "archs": ["80"], "ptx": "80"}
    loaded, implementations, summary = use(tree)
    assert loaded == "True True"
    assert implementations == "{'C++'}"
    assert summary.startswith("native: C++ (g++ ")
    assert "and CUDA (nvcc " in summary
    assert "sm_80, PTX 80)" in summary
    if not Path("/proc/driver/nvidia").exists():
        assert "no CUDA device" in summary


@needs_cxx
@pytest.mark.skipif(not (ROOT / "fastgan" / "_build.json").exists(), reason="this checkout is not installed in place")
def test_make_has_built_what_the_compilers_here_allow() -> None:
    record = json.loads((ROOT / "fastgan" / "_build.json").read_text())
    if any("switched off" in record[part]["reason"] for part in ("cpu", "cuda")):
        pytest.skip("a part was switched off when this checkout was installed")
    assert record["cpu"]["built"]
    assert record["cuda"]["built"] == bool(NVCC)
    assert EXTENSION.module is not None
    assert EXTENSION.has_cuda == bool(NVCC)
    summary = build_summary()
    assert summary.startswith("native: C++ (g++ ")
    assert ("and CUDA (nvcc " in summary) == bool(NVCC)


@pytest.mark.long
@needs_cxx
def test_nvcc_that_knows_fewer_architectures(tree: Path) -> None:
    """Of an old one, only what it knows: no 90a (which came with CUDA 12), and the PTX of the highest."""
    nvcc = script(tree, "nvcc", OLD_NVCC)
    record, modules = build(tree, CUDACXX=nvcc)
    assert len(modules) == 1
    assert record["cuda"] == record["cuda"] | {"built": True, "archs": ["80"], "ptx": "80", "compiler": "nvcc 11.8.89"}
    record, _ = build(tree, CUDACXX=nvcc, FASTGAN_ARCHS="90a,100")
    assert record["cpu"]["built"]
    assert record["cuda"]["reason"] == "nvcc 11.8.89 knows none of the architectures 90a, 100"


@pytest.mark.long
@needs_cxx
def test_without_nvcc(tree: Path) -> None:
    record, modules = build(tree, CUDACXX="")
    assert len(modules) == 1
    assert record["cpu"]["built"]
    assert record["cuda"] == record["cuda"] | {"built": False, "reason": "switched off (CUDACXX is empty)"}
    loaded, implementations, summary = use(tree)
    assert loaded == "True False"
    assert implementations == "{'C++'}"
    assert "; no CUDA part (switched off (CUDACXX is empty))" in summary


@pytest.mark.long
@needs_cxx
def test_broken_nvcc_leaves_the_cpu_part(tree: Path, tmp_path: Path) -> None:
    nvcc = script(tmp_path, "nvcc", BROKEN)
    record, modules = build(tree, CUDACXX=nvcc)
    assert len(modules) == 1
    assert record["cpu"]["built"]
    assert record["cuda"]["reason"] == "CUDA part: x.cpp:1: error: the disk is on fire"
    assert use(tree)[0] == "True False"
    done = run(tree, "setup.py", "build", "--build-lib=build/lib", CUDACXX=nvcc, FASTGAN_BUILD="require")
    assert done.returncode != 0
    assert "FASTGAN_BUILD=require: CUDA part: x.cpp:1: error: the disk is on fire" in done.stderr


def test_broken_compiler_leaves_plain_python(tree: Path, tmp_path: Path) -> None:
    cxx = script(tmp_path, "c++", BROKEN)
    record, modules = build(tree, CXX=cxx)
    assert modules == []
    assert record["cpu"]["reason"] == "the C++ compiler does not work: x.cpp:1: error: the disk is on fire"
    assert record["cuda"]["reason"] == "needs the C++ part"
    loaded, implementations, summary = use(tree)
    assert loaded == "False False"
    assert implementations == "{'PyTorch'}"
    assert summary.startswith("native: none (the C++ compiler does not work: ")
    assert summary.endswith(f"FASTGAN_BUILD=require pip install --force-reinstall --no-deps '{tree}'")
    done = run(tree, "setup.py", "build", "--build-lib=build/lib", CXX=cxx, FASTGAN_BUILD="require")
    assert done.returncode != 0
    assert "line before" in done.stderr  # what the compiler said, in full
    assert "FASTGAN_BUILD=require: the C++ compiler does not work" in done.stderr


def test_no_compiler_at_all(tree: Path, tmp_path: Path) -> None:
    record, modules = build(tree, PATH=str(tmp_path))
    assert modules == []
    assert record["cpu"]["reason"] == "no C++ compiler found (CXX, PATH)"


def test_switched_off(tree: Path) -> None:
    record, modules = build(tree, FASTGAN_BUILD="0")
    assert modules == []
    assert record["cpu"]["reason"] == record["cuda"]["reason"] == "switched off (FASTGAN_BUILD=0)"
    assert use(tree)[1] == "{'PyTorch'}"


def test_unknown_mode(tree: Path) -> None:
    done = run(tree, "setup.py", "build", FASTGAN_BUILD="maybe")
    assert done.returncode != 0
    assert "FASTGAN_BUILD='maybe': expected 0, auto or require" in done.stderr


def backend(tree: Path, hook: str, **changed: str) -> Path:
    """Calls a hook of the build backend, as pip does. Returns the file that it made."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}('dist'))"
    (tree / "dist").mkdir(exist_ok=True)
    done = run(tree, "-c", code, **changed)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "dist" / done.stdout.splitlines()[-1]


def of_the_package() -> set[str]:
    """Every file of the package that is not made by a build: code, and what the code reads."""
    files = [path for path in (ROOT / "fastgan").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)) for path in files if path.suffix != ".so" and path.name != "_build.json"}


def test_wheel_without_the_extension_is_pure(tree: Path) -> None:
    wheel = backend(tree, "build_wheel", FASTGAN_BUILD="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastgan/_build.json", *of_the_package()} <= set(names)
    assert not [name for name in names if name.endswith(".so") or name.startswith(("csrc", "tests"))]


@pytest.mark.long
@needs_cxx
def test_wheel_with_the_extension_is_of_this_platform(tree: Path) -> None:
    wheel = backend(tree, "build_wheel", CUDACXX="")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in names if name.startswith("fastgan/_C") and name.endswith(".so")]) == 1
    assert "fastgan/_build.json" in names
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("dist-info/WHEEL"))).decode()
    assert "Root-Is-Purelib: false" in metadata


@pytest.mark.long
@needs_cxx
def test_editable_builds_in_place(tree: Path) -> None:
    for command in ("editable", "build_ext"):
        if command == "editable":
            backend(tree, "build_editable", CUDACXX="")
        else:
            assert run(tree, "setup.py", "build_ext", "--inplace", CUDACXX="").returncode == 0
        record = json.loads((tree / "fastgan" / "_build.json").read_text())
        assert record["inplace"]
        assert record["cpu"]["built"]
        assert len(list((tree / "fastgan").glob("_C*.so"))) == 1
        done = run(tree, "setup.py", "build_ext", "--inplace", FASTGAN_BUILD="0")
        assert done.returncode == 0, done.stderr
        assert not list((tree / "fastgan").glob("_C*.so"))  # nothing stale beside a record that says otherwise


def test_source_distribution_has_all_that_a_build_needs(tree: Path) -> None:
    archive = backend(tree, "build_sdist", FASTGAN_BUILD="0")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert {"setup.py", "pyproject.toml"} | of_the_package() | native <= names
    assert not {"fastgan/_build.json"} & names


def test_the_containerfile_names_no_registry_and_copies_what_is_there() -> None:
    lines = [line for line in (ROOT / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    assert "ARG BASE" in lines
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${BASE}"]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert "setup.py" in copied
    assert all((ROOT / name).exists() for name in copied)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = next(line for line in lines if line.startswith("ARG EXTRAS=")).partition("=")[2].split(",")
    assert set(extras) <= settings["optional-dependencies"].keys()
