"""What `make gpu` runs: build in place, the GPU tests, the Triton kernels' code, every benchmark, within eight minutes.

    python tools/gpu.py [PART ...]      with names, those parts alone, such as: build tests bench_fused_block

Uses the Python, torch and nvcc that are there, and no network. Writes benchmarks/results/<device>/, copies it
and the logs of all parts to $OUT where that is set, and prints one line per part last. Exit status: 0 all
passed, 1 something failed or ran out of time, 2 no GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 470.0  # seconds for everything
# As `fastgan doctor --verify`, without the packages of the command line
VERIFY = "import sys; from fastgan.kernels.verify import verify_kernels; sys.exit(not verify_kernels(print))"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Part:
    """One command. limit: seconds after which it is stopped."""

    name: str
    command: list[str]
    limit: float


@dataclass(frozen=True)
class Outcome:
    name: str
    seconds: float
    problem: str  # empty when it passed

    def __str__(self) -> str:
        return f"{self.name:<24} {self.seconds:6.1f} s  {self.problem or 'passed'}"


def parts() -> list[Part]:
    """Build, tests, what this Triton makes of the kernels, and the benchmarks one by one, each with a time limit."""
    subjects = sorted((ROOT / "benchmarks").glob("bench_*.py"))
    benchmark = [*PYTEST, "--device", "cuda", "--budget", "8", "--save-results"]
    return [
        Part("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 180),
        Part("tests", [*PYTEST, "-m", "gpu", "tests"], 150),
        Part("verify", [sys.executable, "-c", VERIFY], 120),
        Part("aot", [sys.executable, "-m", "fastgan.kernels.aot", "--arch", "90", "--case", "fp"], 60),
        *(Part(path.stem, [*benchmark, str(path)], 260) for path in subjects),
    ]


def run(part: Part, logs: Path, deadline: float) -> Outcome:
    """Run one part, its output to logs/<name>.log; the end of it is printed."""
    left = deadline - time.monotonic()
    limit = min(part.limit, left)
    if left < 5:
        return Outcome(part.name, 0.0, "not started: out of time")
    log, start = logs / f"{part.name}.log", time.monotonic()
    # A part that does not build is an error here. Tests run our kernels, verified or not; benchmarks what a user gets
    # after the part "verify".
    kernels = "auto" if part.name.startswith("bench") else "all"
    ours = {"PYTHONPATH": str(ROOT), "FASTGAN_BUILD": "require", "FASTGAN_KERNELS": kernels}
    ours["FASTGAN_CACHE"] = str(logs.parent / "cache")  # what was verified and chosen comes back with the logs
    environment = {**os.environ, **ours}
    with log.open("w") as output:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            problem = f"FAILED with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compilers and subprocesses with it
            process.wait()
            problem = f"STOPPED after {limit:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    print(f"== {part.name}", *lines[-60:], sep="\n", flush=True)
    return Outcome(part.name, time.monotonic() - start, problem)


def main() -> int:
    try:
        import torch
    except ImportError:
        print(f"make gpu: {sys.executable} has no torch; set PYTHON to one that has")
        return 2
    if not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} sees no CUDA GPU here; run it on a machine that has one")
        return 2
    chosen = [part for part in parts() if not sys.argv[1:] or part.name in sys.argv[1:]]
    if unknown := set(sys.argv[1:]) - {part.name for part in chosen}:
        print(
            f"make gpu: no part is called {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in parts())}"
        )
        return 2
    deadline = time.monotonic() + DEADLINE
    out = os.environ.get("OUT")
    with tempfile.TemporaryDirectory() as scratch:
        logs = Path(out or scratch) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        outcomes = [run(part, logs, deadline) for part in chosen]
    if out and (ROOT / "benchmarks" / "results").exists():
        shutil.copytree(ROOT / "benchmarks" / "results", Path(out) / "results", dirs_exist_ok=True)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}", *outcomes, sep="\n")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
