"""Fixtures and options of the benchmarks: `pytest benchmarks/`.

Each benchmark first checks the numbers, then times the candidates in turn (fastgan.bench). pytest-benchmark
times one function at a time, so it only keeps the outcome (`extra_info`, in its `--benchmark-json`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from fastgan import bench
from fastgan.errors import FastganError

RESULTS = Path(__file__).parent / "results"
CASES = pytest.StashKey[dict[str, list[bench.Case]]]()
LOAD = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastgan benchmarks")
    group.addoption("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    group.addoption("--budget", type=float, default=60.0, help="seconds of timing per case")
    group.addoption(
        "--save-results",
        action="store_true",
        help="write <results>/<device>/<subject>.json: the cases of this run, and those that the file has from earlier "
        "runs of the same commit on the same machine",
    )
    group.addoption("--compile-limit", type=float, default=600.0, help="seconds that torch.compile has for a loop")
    group.addoption(
        "--memory-runs", type=int, default=3, help="processes that measure a CPU's peak memory, the median counts"
    )
    group.addoption("--images", type=int, default=None, help="images that bench_eval scores")
    group.addoption("--results", default=str(RESULTS), help="folder of the results; default: benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # pytest-benchmark's table shows one call of one candidate
    config.option.showcapture = "stdout"  # torch.compile logs thousands of lines
    config.stash[CASES] = {}
    config.stash[LOAD] = bench.load_average()


def device_name(config: pytest.Config) -> str:
    return str(config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu"))


def result_of(config: pytest.Config, subject: str) -> bench.Result:
    """All cases of a subject so far."""
    name = device_name(config)
    rates = bench.copy_rate(name), bench.matmul_rate(name)
    return bench.Result(
        subject, bench.device_info(name), *rates, config.stash[LOAD], tuple(config.stash[CASES][subject])
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device's name, set up as a careful user would: TF32 on, convolution algorithms measured."""
    name = device_name(request.config)
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return name


class Comparison:
    """The `ratio` fixture: `ratio(subject, case, candidates, ours)` times in turn and keeps the Case."""

    def __init__(self, request: pytest.FixtureRequest, device: str, store: Callable[..., object]) -> None:
        self.config, self.device, self.store = request.config, device, store

    def __call__(
        self,
        subject: str,
        case: str,
        candidates: Mapping[str, Callable[[], object]],
        ours: str,
        *,
        bytes: int = 0,
        flops: int = 0,
        rounds: int = 20,
        memory: Mapping[str, int] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> bench.Case:
        budget, pause = self.config.getoption("--budget"), 0.0 if self.device == "cuda" else 0.1
        seconds = bench.measure(candidates, device=self.device, rounds=rounds, budget=budget, pause=pause)
        seconds = {name: [float(f"{s:.5g}") for s in times] for name, times in seconds.items()}
        result = bench.Case(case, ours, seconds, bytes, flops, dict(memory or {}), dict(notes or {}))
        self.keep(subject, result)
        ratios = {name: str(result.ratio(name)) for name in candidates if name != ours}
        self.store(candidates[ours], {"case": case, "ratios": ratios, "seconds": seconds})
        return result

    def keep(self, subject: str, result: bench.Case) -> None:
        """An outcome that was timed in another way."""
        self.config.stash[CASES].setdefault(subject, []).append(result)
        if self.config.getoption("--save-results"):  # now, so that a run that is stopped keeps what it has
            save(result_of(self.config, subject), Path(self.config.getoption("--results")))


def save(result: bench.Result, folder: Path) -> None:
    """Write the subject's file. A subject that takes too long for one run is measured case by case."""
    path = folder / result.device.slug / f"{result.subject}.json"
    if path.exists():
        with contextlib.suppress(FastganError, ValueError, TypeError):  # of another format: it is replaced
            result = result.with_cases_of(bench.Result.load_file(path))
    result.save(folder)


@pytest.fixture
def ratio(request: pytest.FixtureRequest, device: str, benchmark) -> Comparison:  # type: ignore[no-untyped-def]
    """Times candidates in turn and keeps the outcome; see Comparison."""

    def store(function: Callable[[], object], extra_info: dict[str, object]) -> None:
        benchmark.extra_info.update(extra_info)
        benchmark.pedantic(function, rounds=1)

    return Comparison(request, device, store)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the outcome."""
    for subject in config.stash[CASES]:
        terminalreporter.write_line("\n" + bench.text(result_of(config, subject)))
    if config.stash[CASES] and config.stash[LOAD] > len(os.sched_getaffinity(0)) / 2:
        terminalreporter.write_line(f"\nThe machine was busy (load {config.stash[LOAD]:.1f}): not numbers to publish.")
