"""Compiles files of csrc/cuda with the C++ compiler against the emulator in this folder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-pthread", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]

# A launch, kernel<<<grid, threads, shared, stream>>>(arguments), and shared memory whose size the launch says
LAUNCH = re.compile(r"(\w+(?:<[\w\s,:()<>]*>)?)\s*<<<([^,]+),\s*(\w+),\s*(\w+),\s*\w+>>>\(")
DYNAMIC = "extern __shared__ uint4 kept[];"

OPTIONS = """
extern "C" void emulator_device(int multiprocessors, int blocks_per_multiprocessor, bool cooperative) {
  emulator::multiprocessors = multiprocessors;
  emulator::blocks_per_multiprocessor = blocks_per_multiprocessor;
  emulator::cooperative = cooperative;
}
"""


def build(cxx: str, folder: Path, *names: str) -> Path:
    """The path of the library of csrc/cuda/<names>. Raises RuntimeError with what the compiler said."""
    includes = [f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
    objects, running = [], []
    for name in (*names, "options"):
        text = f"#include <cuda_runtime.h>\n{OPTIONS}"
        if name != "options":
            text = LAUNCH.sub(r"emulator::launch(\1, \2, \3, \4, false, ", (CSRC / "cuda" / name).read_text())
        assert "<<<" not in text, "a launch that is written in another way"
        source = folder / f"{name}.cpp"
        source.write_text(text.replace(DYNAMIC, "#define kept emulator::dynamic.data()"))
        objects.append(str(source.with_suffix(".o")))
        command = [cxx, *FLAGS, *includes, "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("\n".join(said))
    library = folder / "emulated.so"
    subprocess.run([cxx, "-shared", "-pthread", *objects, "-o", str(library)], check=True)
    return library
