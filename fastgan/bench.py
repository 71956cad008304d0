"""Timing several ways to do the same thing, fairly: the harness that `fastgan bench` and `benchmarks/` share.

`measure` runs the candidates in turn, A B A B ..., on a warm machine, so that whatever else the machine does
meets all of them alike; what counts is the *ratio* of their medians. A `Case` holds the raw times, a `Result`
the cases of one subject on one device with everything needed to read them later: versions, date, commit, the
measured limits of the device and how busy it was. A result is one file, `<folder>/<device>/<subject>.json`.
Medians, ratios and intervals are computed from its raw times when they are shown, never stored.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgan._version import __version__
from fastgan.errors import FastganError

FORMAT = 1  # of the JSON files


@dataclass(frozen=True)
class Ratio:
    """How many times faster: `value`; [low, high] has 95% of the bootstrapped ratios, and is NaN after one round."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "once" if math.isnan(self.low) else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f}x ({interval})"


@dataclass(frozen=True)
class Case:
    """One comparison: the seconds per call of every candidate, round by round.

    ours:    the candidate that the others are compared with
    bytes:   the least memory traffic of a call (inputs read once, outputs written once); 0 = not counted
    flops:   the floating-point operations that a call must do; 0 = not counted
    memory:  peak bytes per candidate, where measured
    notes:   what else a reader has to know, such as why a candidate is missing
    """

    name: str
    ours: str
    seconds: dict[str, list[float]]
    bytes: int = 0
    flops: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def median(self, candidate: str) -> float:
        """Median seconds per call."""
        return float(np.median(self.seconds[candidate]))

    def ratio(self, candidate: str) -> Ratio:
        """How many times faster ours is than `candidate`: the ratio of the medians.

        The interval is a percentile bootstrap over whole rounds: the candidates of a round ran next to each
        other in time, so a slow spell of the machine stays in both halves of the ratio.
        """
        other, ours = np.asarray(self.seconds[candidate]), np.asarray(self.seconds[self.ours])
        if len(ours) == 1:
            return Ratio(float(other[0] / ours[0]), math.nan, math.nan)
        rounds = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
        resampled = np.median(other[rounds], axis=1) / np.median(ours[rounds], axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return Ratio(float(np.median(other) / np.median(ours)), float(low), float(high))


@dataclass(frozen=True)
class Device:
    """Where and with what something was measured. `slug` names the folder of its results."""

    name: str
    slug: str
    kind: str  # torch's device type: "cpu", "cuda"
    cores: int  # CPU cores that this process may use
    threads: int  # CPU threads that PyTorch uses
    python: str
    torch: str
    triton: str
    cuda: str
    fastgan: str
    commit: str
    date: str


@dataclass(frozen=True)
class Result:
    """All cases of one subject on one device.

    copy_rate:   bytes per second of a large copy, read plus written: the limit of memory-bound work
    matmul_rate: operations per second of a large matrix product: the limit of arithmetic
    load:        the machine's load average over the minute before the measurement, in busy cores
    """

    subject: str
    device: Device
    copy_rate: float
    matmul_rate: float
    load: float
    cases: tuple[Case, ...]

    def save(self, folder: Path) -> Path:
        """Write `folder/<device>/<subject>.json` and return its path."""
        return self.write(folder / self.device.slug / f"{self.subject}.json")

    def write(self, path: Path) -> Path:
        """Write this very file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        stored = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", stored)  # a list, a line
        path.write_text(stored + "\n")
        return path

    def with_cases_of(self, earlier: Result) -> Result:
        """This result and those cases of `earlier` that it has not measured itself, in the order of `earlier`; itself
        where the two are not of the same machine, versions and commit, or the commit has changes."""
        mine, theirs = (asdict(result.device) | {"date": ""} for result in (self, earlier))
        if mine != theirs or not self.device.commit or self.device.commit.endswith("+"):
            return self
        own = {case.name: case for case in self.cases}
        kept = [own.pop(case.name, case) for case in earlier.cases]
        return replace(self, load=max(self.load, earlier.load), cases=(*kept, *own.values()))

    @staticmethod
    def load_file(path: Path) -> Result:
        """Read what `save` wrote. FastganError when it is of another format."""
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored.pop("format", None) != FORMAT:
            raise FastganError(f"{path}: expected a benchmark result of format {FORMAT}; measure it again")
        stored["device"] = Device(**stored["device"])
        stored["cases"] = tuple(Case(**case) for case in stored["cases"])
        return Result(**stored)


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 20,
    min_time: float = 0.05,
    budget: float = math.inf,
    warmup: int = 2,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds per call of every candidate in each round, the candidates in turn: A B C A B C ...

    candidates: name -> function of no arguments; all should do the same work on the same data
    rounds:     how many times each candidate is sampled; fewer (but at least 3) when `budget` runs out
    min_time:   seconds that a sample should last: short calls are repeated within it
    budget:     seconds after which no new round starts, not counting the warm-up
    warmup:     untimed calls of each candidate first, to keep compilation and allocation out of the numbers
    pause:      seconds without work before each sample: libraries' threads wait for more, each on a processor, for some
                tens of milliseconds after a call

    On a GPU every call is timed by device events and starts with a cold L2 cache.
    """
    device = torch.device(device)
    sample = _sample_cuda if device.type == "cuda" else _sample_cpu
    for function in candidates.values():
        for _ in range(warmup):
            function()
    calls = {
        name: max(1, math.ceil(min_time / max(sample(function, 1, device), 1e-9)))
        for name, function in candidates.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > budget:
            break
        for name, function in candidates.items():
            time.sleep(pause)
            seconds[name].append(sample(function, calls[name], device))
    return seconds


def _sample_cpu(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean seconds per call over `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _sample_cuda(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean seconds per call over `calls` calls, by device events; the L2 cache is swept before each call."""
    cache_size = torch.cuda.get_device_properties(device).L2_cache_size
    with torch.cuda.device(device):
        sweep = torch.empty(2 * cache_size, dtype=torch.int8, device=device)
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))  # type: ignore[no-untyped-call]
        for start, end in zip(starts, ends, strict=True):
            sweep.zero_()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
    milliseconds: float = sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
    return milliseconds / 1e3 / calls


@cache
def copy_rate(device: str = "cpu") -> float:
    """Bytes per second of a large copy within the device's memory, counting bytes read plus bytes written."""
    count = (1 << 29) if torch.device(device).type == "cuda" else (1 << 26)
    source = torch.randn(count // 64, device=device).repeat(64)
    target = torch.empty_like(source)
    seconds = measure({"copy": lambda: target.copy_(source)}, device=device, rounds=7, budget=5)
    return 2 * source.nbytes / float(np.median(seconds["copy"]))


@cache
def matmul_rate(device: str = "cpu") -> float:
    """Floating-point operations per second of a large matrix product: bf16 on a GPU, fp32 on a CPU.

    Of random numbers, because a product of zeros can run faster than any real one.
    """
    size, dtype = (8192, torch.bfloat16) if torch.device(device).type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = measure({"product": lambda: a @ b}, device=device, rounds=7, budget=5)
    return 2 * size**3 / float(np.median(seconds["product"]))


def device_info(device: torch.device | str = "cpu") -> Device:
    """Name of the device, and the versions of everything that was part of the measurement."""
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{_cpu_name()}, {cores} cores"
    return Device(
        name=name,
        slug=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if gpu else f"cpu-{cores}-cores",
        kind=device.type,
        cores=cores,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=str(torch.version.cuda or "none"),
        fastgan=__version__,
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _cpu_name() -> str:
    """The processor's name as Linux tells it, elsewhere the kind of machine."""
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Commit of the source tree of this package, with "+" when it has changes; "" outside git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed, perhaps below somebody else's repository
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "csrc", "fastgan") else ""
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return ""


def load_average() -> float:
    """Busy cores over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Most bytes that this process has ever held: in memory, or in tensors on the GPU `device`.

    To compare two programs, run each in a process of its own. On Linux this is VmHWM and not getrusage's
    ru_maxrss, which a process inherits from the one that started it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(kilobytes) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def duration(seconds: float) -> str:
    """`seconds` with three significant digits in the unit that fits: '1.23 s', '45.6 ms', '7.89 µs'."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    return f"{float(f'{seconds / scale:.3g}'):g} {unit}"


def text(result: Result) -> str:
    """`result` as plain lines for a terminal."""
    device = result.device
    lines = [
        f"{result.subject} on {device.name}, {device.threads} threads, torch {device.torch}",
        f"  limits: copy {result.copy_rate / 1e9:.0f} GB/s, matrix product {result.matmul_rate / 1e12:.2f}"
        f" TFLOP/s; load before: {result.load:.1f}",
    ]
    for case in result.cases:
        lines.append(f"  {case.name}")
        width = max(map(len, case.seconds))
        for name in case.seconds:
            parts = [f"    {name:<{width}}", f"{duration(case.median(name)):>8}", *limits(result, case, name)]
            if name in case.memory:
                parts.append(f"peak {case.memory[name] / 2**20:.0f} MiB")
            if name != case.ours:
                parts.append(f"{case.ours} is {case.ratio(name)} as fast")
            lines.append("  ".join(parts))
        lines += [f"    {topic}: {note}" for topic, note in case.notes.items()]
    return "\n".join(lines)


def limits(result: Result, case: Case, candidate: str) -> list[str]:
    """The shares of the device's measured limits that `candidate` reaches, as far as its work was counted."""
    shares = []
    if case.bytes:
        shares.append(f"{case.bytes / case.median(candidate) / result.copy_rate:.0%} of copy rate")
    if case.flops:
        shares.append(f"{case.flops / case.median(candidate) / result.matmul_rate:.0%} of product rate")
    return shares
