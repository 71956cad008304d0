"""The measuring harness: right numbers from known times, candidates in turn, results that survive a file."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgan import bench
from fastgan.bench import Case, Result
from fastgan.errors import FastganError


def case_of(**seconds):
    return Case("a case", "ours", seconds)


def result_of(case):
    return Result("subject", bench.device_info("cpu"), 10e9, 1e11, 0.5, (case,))


def test_ratio_is_that_of_the_medians():
    case = case_of(ours=[1.0, 1.0, 100.0], other=[3.0, 0.001, 2.0])
    assert case.median("ours") == 1.0
    assert case.ratio("other").value == 2.0
    assert str(case.ratio("ours")) == "1.00x (1.00 to 1.00)"
    assert str(case_of(ours=[2.0], other=[3.0]).ratio("other")) == "1.50x (once)"


def test_interval_shrinks_with_rounds_and_covers_the_truth():
    generator = torch.Generator().manual_seed(0)

    def noisy(median, count):
        return (median * (1 + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64))).tolist()

    few, many = (case_of(ours=noisy(1.0, n), other=noisy(1.5, n)).ratio("other") for n in (10, 400))
    assert many.low < 1.5 < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_interval_keeps_rounds_together():
    """A machine that is now slow, now fast, for both candidates of a round alike, does not widen it."""
    machine = [1.0, 5.0, 2.0, 9.0, 1.0, 3.0, 7.0, 4.0]
    ratio = case_of(ours=machine, other=[2 * t for t in machine]).ratio("other")
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told: `clock(seconds)` returns a function that takes so long."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def function():
            now[0] += seconds

        return function

    return takes


def test_candidates_run_in_turn(clock):
    calls = []
    tick = clock(1.0)

    def candidate(name):
        return lambda: (calls.append(name), tick())

    seconds = bench.measure({"a": candidate("a"), "b": candidate("b")}, rounds=3, min_time=0.5, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ababab", "warm-up, one call each to see how long it takes, rounds"
    assert [len(s) for s in seconds.values()] == [3, 3]


def test_seconds_are_per_call_and_short_calls_are_repeated(clock):
    calls = []
    tick = clock(0.001)
    seconds = bench.measure({"short": lambda: (calls.append(1), tick())}, rounds=5, min_time=0.1, warmup=0)["short"]
    assert seconds == pytest.approx([0.001] * 5)
    assert len(calls) == pytest.approx(1 + 5 * 100, abs=5)


def test_warm_up_is_not_in_the_numbers(clock):
    fast, slow = clock(1.0), clock(1000.0)
    calls = iter([slow, slow, fast, fast, fast, fast])
    assert bench.measure({"a": lambda: next(calls)()}, rounds=3, warmup=2)["a"] == [1.0, 1.0, 1.0]


def test_budget_ends_the_rounds_but_leaves_three(clock):
    for budget, rounds in ((10.5, 11), (0.1, 3), (1e9, 20)):
        assert len(bench.measure({"a": clock(1.0)}, rounds=20, budget=budget)["a"]) == rounds


def test_a_faster_function_measures_faster():
    x = torch.randn(1 << 16)
    candidates = {"one": lambda: x.sum(), "many": lambda: [x.sum() for _ in range(100)]}
    assert Case("sums", "one", bench.measure(candidates, rounds=5, min_time=0.002)).ratio("many").value > 5


def test_result_survives_its_file(tmp_path):
    result = result_of(
        Case(
            "a case",
            "ours",
            {"ours": [0.1, 0.30000000000000004], "other": [1e-7, 2.0]},
            bytes=3,
            memory={"ours": 5},
            notes={"why": "because"},
        )
    )
    path = result.save(tmp_path)
    assert path == tmp_path / result.device.slug / "subject.json"
    assert Result.load_file(path) == result


def test_result_of_another_format_is_refused(tmp_path):
    path = result_of(case_of(ours=[1.0])).save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(FastganError, match="measure it again"):
        Result.load_file(path)


def test_text_shows_medians_ratios_limits_memory_and_notes():
    text = bench.text(
        result_of(
            Case(
                "a case",
                "ours",
                {"ours": [0.5, 0.5], "other": [1.0, 1.0]},
                bytes=10**9,
                flops=10**10,
                memory={"other": 3 << 20},
                notes={"third": "missing"},
            )
        )
    )
    ours, other, note = text.splitlines()[-3:]
    assert "500 ms" in ours
    assert "20% of copy rate" in ours
    assert "20% of product rate" in ours
    assert "ours is 2.00x (2.00 to 2.00) as fast" in other
    assert "peak 3 MiB" in other
    assert note.strip() == "third: missing"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2345, "1.23 s"),
        (0.0123, "12.3 ms"),
        (4.5e-5, "45 µs"),
        (1e-9, "0.001 µs"),
        (123.4, "123 s"),
        (0.99996, "1000 ms"),
    ],
)
def test_duration(seconds, text):
    assert bench.duration(seconds) == text


def test_device_info_names_the_device():
    device = bench.device_info()
    assert device.slug == f"cpu-{device.cores}-cores"
    assert device.cores == len(os.sched_getaffinity(0))
    assert device.torch == torch.__version__
    assert len(device.date) == 10


def test_peak_memory_counts_what_was_freed_and_nothing_of_the_parent():
    """Measured in a child of a process that holds much more than the child."""
    ballast = bytearray(os.urandom(1 << 20)) * 400
    code = """if True:
        from fastgan.bench import peak_memory
        before = peak_memory()
        block = bytearray(b"x") * (200 << 20)
        del block
        print(before, peak_memory() - before)
    """
    root = Path(bench.__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout
    before, rise = map(int, out.split())
    assert 190 << 20 < rise < 260 << 20
    assert rise + before < bench.peak_memory(), "the parent's memory must not matter"
    del ballast


def test_rates_are_those_of_a_machine():
    assert 1e8 < bench.copy_rate("cpu") < 1e13
    assert 1e8 < bench.matmul_rate("cpu") < 1e14


@pytest.mark.gpu
def test_device_events_see_the_work_that_the_host_does_not_wait_for():
    x = torch.randn(4096, 4096, device="cuda")
    case = Case(
        "products",
        "one",
        bench.measure({"one": lambda: x @ x, "four": lambda: [x @ x for _ in range(4)]}, device="cuda", rounds=7),
    )
    assert 3 < case.ratio("four").value < 5
    assert 2 * 4096**3 / case.median("one") < 2e15, "faster than any GPU: the work was not waited for"


def test_cases_of_an_earlier_run_are_kept():
    """Of the same machine, versions and commit; a case that was measured again replaces its older self."""

    def measured(*cases, **device):
        return replace(result_of(cases[0]), cases=cases, device=replace(here, **device))

    here = replace(bench.device_info("cpu"), commit="abc", date="2026-01-01")
    first, second, again = (replace(case_of(ours=[t]), name=name) for t, name in ((1.0, "a"), (2.0, "b"), (3.0, "a")))
    earlier = measured(first, second)
    joined = measured(again, date="2026-01-02").with_cases_of(earlier)
    assert [(case.name, case.median("ours")) for case in joined.cases] == [("a", 3.0), ("b", 2.0)]
    assert joined.device.date == "2026-01-02"
    for other in ({"commit": "abd"}, {"torch": "9"}, {"name": "another"}):
        assert measured(again, **other).with_cases_of(earlier).cases == (again,)
    changed = measured(again, commit="abc+")
    assert changed.with_cases_of(measured(second, commit="abc+")).cases == (again,), "nobody knows what of"
