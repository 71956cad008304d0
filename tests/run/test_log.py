"""The log: what is appended, what is cut on resume, and that TensorBoard never stops a run."""

import json
import math
import os
import re
import sys

import numpy as np
import pytest

from fastgan.errors import FastganError
from fastgan.run.log import RunLog, read_statistics


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch, request):
    """TensorBoard takes seconds to import: only the tests that are about it have it."""
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def statistics(out):
    lines = (out / "stats.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_lines_are_stamped_appended_and_echoed(tmp_path):
    echoed = []
    out = tmp_path / "runs" / "one"
    with RunLog(out, echo=echoed.append) as log:
        log.line("first")
        assert "first" in (out / "log.txt").read_text()  # flushed
        log.line("quiet", echo=False)
    with RunLog(out, echo=echoed.append) as log:
        log.line("two\nlines")
    lines = (out / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["first", "quiet", "two", "lines"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in lines)
    assert echoed == ["first", "two\nlines"]


def test_statistics_are_valid_json_whatever_the_numbers(tmp_path):
    with RunLog(tmp_path, echo=print) as log:
        log.stats({"images": 64, "loss": math.nan, "norm": math.inf, "low": -math.inf, "fine": 0.5})
        assert statistics(tmp_path) == [{"images": 64, "loss": None, "norm": None, "low": None, "fine": 0.5}]


def write(out, positions, tail=b""):
    lines = [json.dumps({"images": p, "loss": 1 / p}) + "\n" for p in positions]
    (out / "stats.jsonl").write_bytes("".join(lines).encode() + tail)


RESUMED = [(None, [64, 128, 192]), (192, [64, 128, 192]), (130, [64, 128]), (64, [64]), (0, [])]


@pytest.mark.parametrize(("resume_at", "left"), RESUMED)
@pytest.mark.parametrize("tail", [b"", b'{"images": 256, "lo', b'{"images": 9, "loss": 1.0}'])
def test_what_is_done_again_is_cut_and_half_a_line_is_dropped(tmp_path, resume_at, left, tail):
    write(tmp_path, [64, 128, 192], tail)
    with RunLog(tmp_path, echo=print, resume_at=resume_at) as log:
        log.stats({"images": 999, "loss": 2.0})
    assert [line["images"] for line in statistics(tmp_path)] == [*left, 999]


def test_curves_do_not_double_over_two_resumes(tmp_path):
    for start in (0, 100, 50):
        with RunLog(tmp_path, echo=print, resume_at=start) as log:
            for images in range(start + 10, start + 110, 10):
                log.stats({"images": images})
    assert [line["images"] for line in statistics(tmp_path)] == list(range(10, 160, 10))


def test_a_half_written_log_line_stays_on_its_own(tmp_path):
    (tmp_path / "log.txt").write_text("whole\nhalf a li")
    with RunLog(tmp_path, echo=print) as log:
        log.line("next")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[:2] == ["whole", "half a li"]
    assert lines[2].endswith("  next")


def test_damaged_lines_are_skipped_when_read(tmp_path):
    path = tmp_path / "stats.jsonl"
    huge = b"1" + b"0" * 400
    good = [b'{"images": 1}', b'{"images": 2, "loss": null}', b'{"loss": 5, "images": 3}', b'{"loss": "x"}']
    bad = [b"\x00\xff{", b"[1]", b"3", b"", b"[" * 100_000, b"9" * 10_000, b'{"ima']
    path.write_bytes(b"\n".join([*bad, *good, b'{"images": %s}' % huge, *bad]))
    columns = read_statistics(path)
    assert columns.keys() == {"images", "loss"}
    np.testing.assert_array_equal(columns["images"], [1, 2, 3, math.nan, math.nan])
    np.testing.assert_array_equal(columns["loss"], [math.nan, math.nan, 5, math.nan, math.nan])
    assert read_statistics(tmp_path / "nowhere") == {}


def test_a_folder_in_the_way_is_one_line(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(FastganError, match=r"cannot write the log in .*: is a directory; free") as caught:
        RunLog(tmp_path, echo=print)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    log = RunLog(tmp_path, echo=print)
    monkeypatch.setattr(log, "_stats", open("/dev/full", "w"))  # noqa: SIM115
    with pytest.raises(FastganError, match=r"cannot write the log in .*: no space left on device") as caught:
        log.stats({"images": 1})
    assert "\n" not in str(caught.value)


def test_tensorboard_gets_the_finite_numbers_and_forgets_what_is_done_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, echo=print, resume_at=0) as log:
        for images in (64, 128, 192):
            log.stats({"images": images, "critic.loss": images / 2, "norm": math.nan})
    with RunLog(tmp_path, echo=print, resume_at=128) as log:
        log.stats({"images": 192, "critic.loss": 7.0, "norm": 1.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("critic/loss")] == [(64, 32.0), (128, 64.0), (192, 7.0)]
    assert [(e.step, e.value) for e in events.Scalars("norm")] == [(192, 1.0)]


@pytest.mark.parametrize("when", ["import", "write"])
def test_a_failing_tensorboard_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, when):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def broken(*_, **__):
        raise RuntimeError("no pkg_resources\nand more")

    if when == "import":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", broken)
    echoed = []
    with RunLog(tmp_path, echo=echoed.append) as log:
        for images in (1, 2, 3):
            log.stats({"images": images, "loss": 1.0})
    assert len(echoed) == 1
    assert echoed[0].startswith("TensorBoard does not work here")
    assert "\n" not in echoed[0]
    assert len(statistics(tmp_path)) == 3
