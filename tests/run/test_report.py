"""The report: complete, self-contained, escaped, and never in the way of a run."""

import base64
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan.errors import FastganError
from fastgan.run.images import grid, save_png
from fastgan.run.report import MOMENTS, write_report

VOID = {"meta", "img", "br", "link", "path", "circle", "rect"}


class Page(HTMLParser):
    """Tags with attributes, the text, and whether every tag is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(out):
    return Page(write_report(out).read_text(encoding="utf-8"))


def picture(level, size=32, count=4):
    return grid(torch.full((count, size, size, 3), level, dtype=torch.uint8), cell=0, gap=0)


def row(images, **more):
    return {
        "critic.loss": 1 / images, "generator.loss": 0.7, "critic.real_logits": 0.2, "critic.r1": 0.01,
        "critic.gradient_norm.critic": 2.0, "images": images, "step": images // 64, "progress": images / 6400,
        "images_per_second": 800.0, "seconds": images / 800, "wait_share": 0.004, "peak_memory_mb": 2048.0,
        "skipped": 3, "skipped_in_a_row": 0, "feeder_images_per_second": 654321.0, "part.waiting for data": 0.5,
        "part.critic's turn": 6.0, "part.checkpoints": 1.5, **more,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run folder with everything in it."""
    out = tmp_path / "a run"
    out.mkdir()
    save_png(picture(10), out / "reals.png")
    for number in range(30):
        save_png(picture(100 + number), out / f"fakes-{number * 64:09}.png")
    lines = [json.dumps(row(64 * n)) for n in range(1, 101)]
    (out / "stats.jsonl").write_text("\n".join(lines) + "\n")
    (out / "kernels.json").write_text(
        json.dumps([{"op": "adam_ema", "implementation": "C++ <cpu>", "reason": "no GPU & no nvcc"}])
    )
    (out / "next.txt").write_text("fastgan sample 'a run' --seeds 0-99\n\nfastgan train --data X > log\n")
    data = '[data]\npath = "</pre><script>alert(1)</script>"\nsize = 32\n'
    (out / "config.toml").write_text('preset = "digits"\nbatch = 64\ndevice = "auto"\n' + data)
    (out / "about.json").write_text(json.dumps({"data": "1,797 <b>digits</b>", "device": "CPU"}))
    return out


def test_everything_is_shown(run):
    page = page_of(run)
    text = page.text
    assert page.all("title")
    assert text.startswith("digits · fastgan")
    assert "1,797 <b>digits</b> · 32\N{MULTIPLICATION SIGN}32 · batch 64 · CPU" in text
    assert (
        "Images, 100% 6,400 Images/s 800 Training time 8 s Steps 100 Turns skipped 3 "
        "Waiting for data 0.4% Peak memory 2.0 GiB"
    ) in text
    headings = [attrs["aria-label"] for attrs in page.all("svg")]
    for title in ("Losses", "Logits", "Gradient norms", "Penalties", "Images per second"):
        assert title in headings
    for name in ("critic loss", "generator loss", "critic real logits", "critic r1", "critic gradient norm"):
        assert name in text
    assert "adam_ema C++ <cpu> no GPU & no nvcc" in text
    assert "fastgan sample 'a run' --seeds 0-99 fastgan train --data X > log" in text
    assert 'path = "</pre><script>alert(1)</script>"' in text
    assert " yet" not in text


def test_pictures_are_inside_the_newest_last(run):
    images = page_of(run).all("img")
    assert len(images) == 2 + MOMENTS
    levels = []
    for attrs in images:
        kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.*)", attrs["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format.lower() == kind
            levels.append(int(np.asarray(image.convert("L"))[0, 0]))
    assert levels[:2] == [10, 129]
    assert levels[2] == 100
    assert levels[-1] == 129
    assert levels[2:] == sorted(levels[2:])
    assert images[1]["alt"] == "Generated after 1.86k images"


def test_fakes_are_sorted_by_number_not_by_name(tmp_path):
    for number in (9, 10, 100):
        save_png(picture(number), tmp_path / f"fakes-{number}.png")
    save_png(picture(0), tmp_path / "fakes-best.png")
    assert [a["alt"] for a in page_of(tmp_path).all("img")] == [
        "Generated after 100 images", "9 images", "10 images", "100 images",
    ]  # fmt: skip


def test_nothing_is_loaded_and_nothing_runs(run):
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", html))
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert attrs.get("src", "data:").startswith("data:")
        assert "href" not in attrs


def test_a_run_that_just_started_says_what_is_missing(tmp_path):
    text = page_of(tmp_path).text
    assert "No real and generated pictures yet" in text
    for part in ("statistics", "curves", "config.toml", "record of kernels", "suggestions"):
        assert f"No {part} yet" in text
    save_png(picture(1), tmp_path / "reals.png")
    assert "No generated pictures yet" in page_of(tmp_path).text


def test_damaged_parts_are_named_and_the_rest_is_shown(run):
    newest = sorted(run.glob("fakes-*.png"))[-1]
    newest.write_bytes(newest.read_bytes()[:60])
    (run / "reals.png").write_text("not a picture")
    (run / "kernels.json").write_text('[{"op":')
    (run / "config.toml").write_bytes(b"\xff\xfe = [")
    (run / "about.json").write_text("[]")
    with (run / "stats.jsonl").open("ab") as file:
        file.write(b'{"critic.loss": 0.1, "ima')
    text = page_of(run).text
    assert f"{newest.name} cannot be read" in text
    assert "reals.png cannot be read" in text
    assert "kernels.json is damaged" in text
    assert "Images, 100% 6,400" in text


def test_large_pictures_are_made_smaller(tmp_path):
    noise = torch.randint(0, 256, (1, 2000, 1500, 3), dtype=torch.uint8)
    save_png(grid(noise, cell=0), tmp_path / "reals.png")
    for number in (1, 2):
        save_png(picture(5, size=200), tmp_path / f"fakes-{number}.png")
    sizes = []
    for attrs in page_of(tmp_path).all("img"):
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1]))) as image:
            sizes.append(image.size)
    assert sizes == [(768, 1024), (400, 400), (320, 320), (320, 320)]


def test_training_time_adds_up_over_resumes(tmp_path):
    seconds = [100, 200, 3600, 50, 4000]  # resumed once; what a process trained counts from zero
    lines = [json.dumps(row(64 * (n + 1), seconds=s)) for n, s in enumerate(seconds)]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    assert "Training time 2 h 6 min" in page_of(tmp_path).text


def test_scales_far_apart_get_charts_of_their_own(tmp_path):
    losses = {"critic.loss": 900.0, "generator.loss": 0.5, "encoder.loss": 0.4}
    rows = [row(64 * n, **losses) for n in (1, 2, 3)]
    (tmp_path / "stats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    html = write_report(tmp_path).read_text()
    charts = re.findall(r'<figure class="chart"><h3>Losses.*?</figure>', html, re.DOTALL)
    names = [re.findall(r"</i>([a-z ]*) <b>", c) for c in charts]
    assert names == [["critic loss"], ["generator loss", "encoder loss"]]


def test_every_number_of_the_statistics_has_a_curve(tmp_path):
    (tmp_path / "stats.jsonl").write_text(json.dumps(row(64, fid=12.5, **{"<i>odd</i>": 1.0})))
    text = page_of(tmp_path).text
    assert "fid 12.5" in text
    assert "<i>odd</i> 1" in text


def test_scores_now_and_then_are_joined_and_leave_no_gaps_elsewhere(tmp_path):
    rows = [row(64 * i + 64, **({"score.fid": 90.0 - i, "score.recall": 0.1} if i % 3 == 0 else {})) for i in range(10)]
    (tmp_path / "stats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    charts = write_report(tmp_path).read_text().split('<figure class="chart">')
    scores = [chart for chart in charts if chart.startswith("<h3>Scores")]
    assert len(scores) == 2  # their scales lie apart
    for chart, name in zip(scores, ("fid", "recall"), strict=True):
        assert f"{name} <b>" in chart
        (path,) = re.findall(r'<path class="curve c0" d="([^"]*)"', chart)
        assert (path.count("M"), path.count("L")) == (1, 3)
        assert chart.count("<circle") == 4


def test_a_hundred_thousand_lines_are_quick_and_small(tmp_path):
    rng = np.random.default_rng(0)
    losses = rng.normal(size=100_000).tolist()
    losses[77_777] = 55.0
    with (tmp_path / "stats.jsonl").open("w") as file:
        for number, loss in enumerate(losses):
            values = {"images": 64 * number, "critic.loss": loss, "generator.loss": 1.0, "fid": None}
            file.write(json.dumps(values) + "\n")
    start = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - start < 5
    assert path.stat().st_size < 200_000
    assert "outliers up to 55" in path.read_text()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.dictionaries(
            st.sampled_from(["images", "a.loss", "seconds", "progress", "skipped", "wait_share", "r1", ""]),
            st.floats() | st.integers() | st.none() | st.text(max_size=3) | st.booleans(),
        ),
        max_size=6,
    ),
    other=st.binary(max_size=60),
)
def test_whatever_is_in_the_folder_there_is_a_report(tmp_path, lines, other):
    (tmp_path / "stats.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for name in ("config.toml", "kernels.json", "about.json", "next.txt", "reals.png", "fakes-1.png"):
        (tmp_path / name).write_bytes(other)
    page_of(tmp_path)


def test_a_full_disk_is_one_line_and_keeps_the_old_report(run, monkeypatch):
    before = write_report(run).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FastganError, match=r"cannot write .*report.html: no space left on device"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_where_the_time_goes(run):
    text = page_of(run).text
    assert "Where the time goes Part Share A step In all critic's turn 75.0% " in text
    assert "waiting for data 6.2% " in text
    assert "checkpoints 18.8% " in text


def test_rejects_are_named(run):
    about = {
        "data": "set",
        "feeder": "memory-mapped <b>",
        "rejected": 30,
        "left_out": [f"{i}.png is <bad>" for i in range(25)],
    }
    (run / "about.json").write_text(json.dumps(about))
    text = page_of(run).text
    assert "Way to the device memory-mapped <b> Speed when asked 654,321 images/s" in text
    assert "Rejected 30 images 0.png is <bad>" in text
    assert "19.png is <bad> and 10 more" in text
    assert "20.png" not in text
    (run / "about.json").write_text(json.dumps({"data": "set", "rejected": "many", "left_out": 3}))
    assert "Rejected" not in page_of(run).text
