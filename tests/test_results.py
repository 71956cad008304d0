"""Benchmark results and the README's tables: what the README shows is what was measured."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import table
from fastgan.bench import Case, Device, Result
from fastgan.errors import FastganError
from tools import gpu

ROOT = Path(__file__).resolve().parent.parent
CASE = Case(
    "a case",
    "ours",
    {"ours": [0.5, 0.5], "other": [1.0, 1.0]},
    bytes=10**9,
    memory={"ours": 1 << 20},
    notes={"third": "missing"},
)


def result_on(slug, kind, case=CASE):
    device = Device(slug.upper(), slug, kind, 2, 2, "3.11", "2.13", "3.9", "none", "0.1", "abc", "2025-01-01")
    return Result("subject", device, 10e9, 1e11, 0.5, (case,))


def test_pages_show_the_results():
    results = table.load_results()
    pages = {page: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
    shown = sorted(subject for text in pages.values() for _, subject, _ in table.BLOCK.findall(text))
    assert shown == sorted(results), "every subject with results has one block in the README or in docs/, and no other"
    for page, text in pages.items():
        assert table.fill(text, results) == text, f"run: python -m benchmarks.table --write {page.relative_to(ROOT)}"


def test_a_cpu_shows_ratios_only_and_a_gpu_times_too():
    cpu, gpu = (
        table.markdown([result_on("cpu-2-cores", "cpu")]),
        table.markdown([result_on("some-gpu", "cuda")]),
    )
    for shown in (cpu, gpu):
        assert "| 2.00x (2.00 to 2.00) |" in shown
        assert "2025-01-01, commit abc" in shown
        assert "1 MiB" in shown
        assert "- third: missing" in shown
    assert "500 ms" in gpu
    assert "20% of copy rate" in gpu
    assert "500 ms" not in cpu
    assert "of copy rate" not in cpu


def test_rows_have_as_many_cells_as_the_header():
    for shown in (table.markdown([result_on("cpu", "cpu")]), table.markdown([result_on("gpu", "cuda")])):
        assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


def test_load_results_puts_gpus_first(tmp_path):
    for slug, kind in (("cpu-2-cores", "cpu"), ("some-gpu", "cuda")):
        result_on(slug, kind).save(tmp_path)
    assert [r.device.slug for r in table.load_results(tmp_path)["subject"]] == ["some-gpu", "cpu-2-cores"]


def test_fill_replaces_blocks_and_nothing_else():
    results = {"subject": [result_on("cpu", "cpu")]}
    old = "before\n<!-- benchmarks:subject -->\nold numbers\n<!-- /benchmarks -->\nafter\n"
    new = table.fill(old, results)
    assert new.startswith("before\n<!-- benchmarks:subject -->\n")
    assert new.endswith("<!-- /benchmarks -->\nafter\n")
    assert "old numbers" not in new
    assert "a case" in new
    assert table.fill(new, results) == new


def test_fill_refuses_a_subject_without_results():
    with pytest.raises(FastganError, match="did you mean 'subject'"):
        table.fill("<!-- benchmarks:subjekt -->\n<!-- /benchmarks -->", {"subject": [result_on("cpu", "cpu")]})


def test_command_writes_the_file_or_prints(tmp_path, capsys):
    result_on("cpu", "cpu").save(tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmarks:subject -->\n<!-- /benchmarks -->\n")
    table.main(["--results", str(tmp_path / "results"), "--write", str(readme)])
    assert "2.00x" in readme.read_text()
    table.main(["--results", str(tmp_path / "results")])
    assert capsys.readouterr().out.startswith("## subject")


def test_gpu_run_without_a_gpu_says_so(tmp_path):
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path)}
    ended = subprocess.run([sys.executable, "tools/gpu.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stdout.splitlines()) == 1
    assert "no CUDA GPU" in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture
def part():
    """A part of the GPU run from Python code."""
    return lambda code, limit=20.0: gpu.Part("part", [sys.executable, "-c", code], limit)


def test_gpu_run_keeps_the_log_and_the_status_of_a_part(part, tmp_path):
    passed, failed = (
        gpu.run(part(f"print('said'); raise SystemExit({status})"), tmp_path, time.monotonic() + 60)
        for status in (0, 3)
    )
    assert (passed.problem, failed.problem) == ("", "FAILED with status 3")
    assert (tmp_path / "part.log").read_text() == "said\n"


def test_gpu_run_stops_a_part_with_its_children(part, tmp_path):
    """The child holds the log open and would write to it later."""
    child = "import time; time.sleep(3); print('still here', flush=True)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    outcome = gpu.run(part(code, limit=1.0), tmp_path, time.monotonic() + 60)
    assert "STOPPED after 1 s" in outcome.problem
    time.sleep(3)
    assert (tmp_path / "part.log").read_text() == ""


def test_gpu_run_starts_nothing_past_its_deadline(part, tmp_path):
    assert "out of time" in gpu.run(part("print('ran')"), tmp_path, time.monotonic() + 1).problem
    assert not (tmp_path / "part.log").exists()
