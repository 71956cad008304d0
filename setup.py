"""Builds fastgan's optional native part: csrc/ -> the one extension module fastgan._C.

The kernels take raw pointers, so that neither torch nor its headers are needed here, and one build serves every torch.
What can be built is built, what cannot is left out, and `fastgan/_build.json` in the installed package says which it
was and why.

    FASTGAN_BUILD=auto      (default) the C++ part with the C++ compiler and, where nvcc is found, the CUDA part
    FASTGAN_BUILD=require   the same, but a part that does not compile is an error
    FASTGAN_BUILD=0         nothing is compiled
    FASTGAN_ARCHS=80,90a    CUDA architectures, instead of all of ours that nvcc knows

CXX, CXXFLAGS, LDFLAGS, CUDACXX (nvcc; empty for no CUDA part) and CUDA_HOME are honoured.
In place, for development: `python setup.py build_ext --inplace`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
ARCHS = ("80", "86", "89", "90a", "100", "120")
# NaN and signed zeros mean what IEEE 754 says, and nothing is contracted into a fused multiply-add: every processor
# gives the same bits. What is given up (errno, floating-point traps) is never looked at, and stands in the way of SIMD.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]


class NotBuilt(Exception):
    """Why a part is not there, in one line; `log` is what the compiler said."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


@dataclass(frozen=True)
class Part:
    """One part of the extension (C++ or CUDA) as `_build.json` records it."""

    built: bool
    reason: str = ""
    compiler: str = ""
    openmp: bool = False
    archs: tuple[str, ...] = ()
    ptx: str = ""


def run(command: list[str], what: str) -> str:
    """Runs `command` and returns its output. Raises NotBuilt with the first line that looks like an error."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise NotBuilt(f"{what}: {error}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        line = next((line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), lines[-1])
        raise NotBuilt(f"{what}: {line[:200]}", done.stdout)
    return done.stdout


def find_cxx() -> list[str]:
    """The C++ compiler: CXX, else the one that Python was built with, else what is on the PATH."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    configured = shlex.split(sysconfig.get_config_var("CXX") or "")[:1]
    for name in [*configured, "c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return [found]
    raise NotBuilt("no C++ compiler found (CXX, PATH)")


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
    raise NotBuilt("ninja not found: pip install ninja")


def find_nvcc() -> str:
    if "CUDACXX" in os.environ:
        if os.environ["CUDACXX"]:
            return os.environ["CUDACXX"]
        raise NotBuilt("switched off (CUDACXX is empty)")
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for folder in [*map(str, folders), None, "/usr/local/cuda/bin"]:  # None: the PATH
        if found := shutil.which("nvcc", path=folder):
            return found
    raise NotBuilt("nvcc not found (CUDA_HOME, PATH, /usr/local/cuda)")


def has_openmp(cxx: list[str]) -> bool:
    """Whether `cxx` knows OpenMP. Raises NotBuilt when it cannot compile anything at all."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        compile_ = [*cxx, "-shared", "-fPIC", str(source), "-o", str(Path(folder) / "probe.so")]
        source.write_text("int probe() { return 0; }\n")
        run(compile_, "the C++ compiler does not work")
        source.write_text("#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n")
        try:
            run([*compile_, "-fopenmp"], "no OpenMP")
        except NotBuilt:
            return False
        return True


def version_of(compiler: list[str]) -> str:
    """Name and version, such as "g++ 12.2.0" or "nvcc 13.0.88"."""
    text = run([*compiler, "--version"], f"{compiler[0]} --version")
    version = re.search(r"V(\d+\.\d+\.\d+)", text) or re.search(r"(\d+\.\d+(?:\.\d+)?)", text)
    return f"{Path(compiler[-1]).name} {version[1] if version else '?'}"


def choose_archs(nvcc: str, version: str) -> tuple[tuple[str, ...], str]:
    """Architectures to compile for, and the one whose PTX goes along for newer devices ("" for none).

    PTX of an "a" architecture runs on nothing else, so that the highest plain one gives it.
    """
    known = set(re.findall(r"compute_(\w+)", run([nvcc, "--list-gpu-arch"], "nvcc --list-gpu-arch")))
    if "90" in known and int(version.split()[1].split(".")[0]) >= 12:
        known.add("90a")  # not listed
    wanted = re.findall(r"\w+", os.environ.get("FASTGAN_ARCHS", "")) or ARCHS
    archs = tuple(arch for arch in wanted if arch in known)
    if not archs:
        raise NotBuilt(f"{version} knows none of the architectures {', '.join(wanted)}")
    return archs, max((arch for arch in archs if arch.isdigit()), key=int, default="")


def ninja_file(cxx: list[str], cpu: Part, nvcc: str, cuda: Part, target: Path) -> str:
    """The text of build.ninja; with `cuda.built` unset it has the C++ part only."""
    import pybind11

    flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *CXX_FLAGS, f"-I{CSRC}"]
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    flags += ["-fopenmp"] * cpu.openmp
    gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in cuda.archs]
    gencode += [f"-gencode=arch=compute_{cuda.ptx},code=compute_{cuda.ptx}"] if cuda.ptx else []
    openmp = ["-Xcompiler=-fopenmp" if cuda.built else "-fopenmp"] * cpu.openmp
    linker = [nvcc, "-shared", "--cudart=static", *openmp] if cuda.built else [*cxx, "-shared", *openmp]
    ldflags = shlex.split(os.environ.get("LDFLAGS", ""))
    ldflags = [f"-Xlinker={flag[4:]}" for flag in ldflags if flag.startswith("-Wl,")] if cuda.built else ldflags

    def escape(path: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    def shell(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    def rule(name: str, command: list[str]) -> str:
        dependencies = "" if name == "link" else "  depfile = $out.d\n  deps = gcc\n"
        more = "$in -o $out" if name == "link" else "-MMD -MF $out.d -c $in -o $out"
        return f"rule {name}\n  command = {shell(command)} {more}\n{dependencies}"

    sources = [("bind", CSRC / "bind.cpp"), *(("cxx", path) for path in sorted((CSRC / "cpu").glob("*.cpp")))]
    sources += [("nvcc", path) for path in sorted((CSRC / "cuda").glob("*.cu"))] if cuda.built else []
    objects = [Path(f"{path.parent.name}_{path.stem}.o") for _, path in sources]
    if cuda.built:  # objects of either kind are kept, so that the next build has less to do
        sources[0], objects[0] = ("bind_cuda", CSRC / "bind.cpp"), Path("bind_cuda.o")
    edges = [f"build {out}: {name} {escape(path)}" for out, (name, path) in zip(objects, sources, strict=True)]
    rules = [rule("cxx", [*cxx, *flags]), rule("bind", [*cxx, *flags, "-O1"])]  # half the time, and nothing hot in it
    rules += [rule("bind_cuda", [*cxx, *flags, "-O1", "-DFASTGAN_CUDA"])]
    rules += [rule("nvcc", [nvcc, *NVCC_FLAGS, f"-I{CSRC}", *gencode])] if cuda.built else []
    rules += [rule("link", [*linker, *ldflags])]
    link = f"build {escape(target)}: link {' '.join(map(str, objects))}"
    return "\n".join([*rules, *edges, link, ""])


class BuildNative(build_ext):
    """Compiles what can be compiled with ninja, and records the outcome beside it."""

    def _folder(self) -> Path:
        return ROOT / "fastgan" if self.inplace else Path(self.build_lib).resolve() / "fastgan"

    def _module(self) -> Path:
        return self._folder() / Path(self.get_ext_filename("fastgan._C")).name

    def get_outputs(self) -> list[str]:
        built = (self._module(), self._folder() / "_build.json")
        return [str(path) for path in built if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib, "fastgan", Path(path).name)): path for path in self.get_outputs()}

    def run(self) -> None:
        mode = os.environ.get("FASTGAN_BUILD", "auto")
        if mode not in ("0", "auto", "require"):
            raise SystemExit(f"FASTGAN_BUILD={mode!r}: expected 0, auto or require")
        self._folder().mkdir(parents=True, exist_ok=True)
        self._module().unlink(missing_ok=True)  # of an earlier build: never a stale one beside a new record
        if mode == "0":
            cpu = cuda = Part(False, "switched off (FASTGAN_BUILD=0)")
        else:
            cpu, cuda = self._build(required=mode == "require")
        if not cpu.built:
            self.extensions = self.distribution.ext_modules = []
        for name, part in (("C++", cpu), ("CUDA", cuda)):
            outcome = f"built with {part.compiler}" if part.built else f"left out: {part.reason}"
            print(f"fastgan: {name} part {outcome}", flush=True)
        record = {"cpu": asdict(cpu), "cuda": asdict(cuda), "source": str(ROOT), "inplace": bool(self.inplace)}
        (self._folder() / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    def _build(self, *, required: bool) -> tuple[Part, Part]:
        try:
            cxx, ninja = find_cxx(), find_ninja()
            cpu = Part(True, compiler=version_of(cxx), openmp=has_openmp(cxx))
            nvcc, cuda = self._plan_cuda()
            if cuda.built:
                try:
                    self._ninja(ninja, ninja_file(cxx, cpu, nvcc, cuda, self._module()), "CUDA part")
                    return cpu, cuda
                except NotBuilt as error:
                    cuda = self._failed(error, required)
            elif required and nvcc:
                raise SystemExit(f"FASTGAN_BUILD=require: {cuda.reason}")
            self._ninja(ninja, ninja_file(cxx, cpu, "", cuda, self._module()), "C++ part")
            return cpu, cuda
        except NotBuilt as error:
            cpu = self._failed(error, required)
            return cpu, Part(False, "needs the C++ part")
        except ImportError as error:
            cpu = self._failed(NotBuilt(f"{error}: pip install pybind11"), required)
            return cpu, Part(False, "needs the C++ part")

    def _plan_cuda(self) -> tuple[str, Part]:
        """nvcc ("" when there is none), and what it is going to build or why not."""
        nvcc = ""
        try:
            nvcc = find_nvcc()
            version = version_of([nvcc])
            archs, ptx = choose_archs(nvcc, version)
            return nvcc, Part(True, compiler=version, archs=archs, ptx=ptx)
        except NotBuilt as error:
            return nvcc, Part(False, str(error))

    def _ninja(self, ninja: str, text: str, what: str) -> None:
        folder = Path(self.build_temp).resolve()
        if self.inplace:  # of an editable installation it would be a temporary one, and nothing in it ever used again
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(text)
        print(run([ninja, "-v", "-C", str(folder)], what), flush=True)

    def _failed(self, error: NotBuilt, required: bool) -> Part:
        print(error.log, file=sys.stderr, flush=True)
        if required:
            raise SystemExit(f"FASTGAN_BUILD=require: {error}")
        return Part(False, str(error))


class Wheel(bdist_wheel):
    """A platform wheel when the extension was built, else a pure one: known only after building."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def sources(*patterns: str) -> list[str]:
    """Paths below csrc, relative to the project as setuptools wants them; they also go into the source distribution."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in CSRC.glob(pattern))


native = Extension("fastgan._C", sources("*.cpp", "*/*.cpp", "*/*.cu"), depends=sources("*.h", "*/*.h", "*/*.cuh"))
setup(ext_modules=[native], cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel})
