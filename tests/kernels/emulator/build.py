"""Compiles csrc/cuda/norm_act*.cu with the C++ compiler against the emulator in this folder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]

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


def build(cxx: str, folder: Path) -> Path:
    """The path of the library. Raises CalledProcessError, which holds what the compiler said."""
    sources = []
    for name in ("norm_act.cu", "norm_act_fused.cu"):
        text = LAUNCH.sub(r"emulator::launch(\1, \2, \3, \4, false, ", (CSRC / "cuda" / name).read_text())
        assert "<<<" not in text, "a launch that is written in another way"
        sources.append(folder / f"{name}.cpp")
        sources[-1].write_text(text.replace(DYNAMIC, "#define kept emulator::dynamic.data()"))
    (folder / "options.cpp").write_text(f"#include <cuda_runtime.h>\n{OPTIONS}")
    library = folder / "emulated.so"
    includes = [f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
    command = [cxx, *FLAGS, *includes, *map(str, sources), str(folder / "options.cpp"), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library
