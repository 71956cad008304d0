"""report.html: one file that shows a run. Pictures and curves are inside; it loads nothing, runs no script.

What it is made from, all of it optional: stats.jsonl, reals.png, fakes-IMAGES.png, config.toml, kernels.json
(a list of {op, implementation, reason}), next.txt (a command a line), about.json ({data, device, feeder} in words,
rejected: how many images, left_out: why)
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tomllib
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from fastgan._version import __version__
from fastgan.errors import FastganError
from fastgan.run.chart import Array, Curve, chart, short
from fastgan.run.files import reason, write_atomic
from fastgan.run.log import POSITION, read_statistics
from fastgan.run.report_time import PART, data, times

# Curves that may share a chart: its title, and what the names of their statistics contain.
GROUPS = (
    ("Scores", r"^score\."),
    ("Losses", r"loss"),
    ("Logits", r"logit"),
    ("Gradient norms", r"grad"),
    ("Penalties", r"\br[12]\b|wgan_gp|penalty|gamma"),
    ("Learning rates", r"\blr\b|learning_rate"),
)
# Statistics with a chart of their own, from zero: its title, and the factor to its unit.
ALONE = {
    "images_per_second": ("Images per second", 1.0),
    "wait_share": ("Waiting for data, % of the time", 100.0),
    "peak_memory_mb": ("Peak memory, MiB", 1.0),
    "skipped": ("Turns skipped because not finite", 1.0),
}
NOT_DRAWN = {POSITION, "step", "seconds", "progress", "skipped_in_a_row", "feeder_images_per_second"}
READING = "Hover over a chart for its values. Where a curve is noisy, its moving average is drawn over it."
SAME_SCALE = 20.0  # curves share a chart where the largest is at most so many times the smallest
MOMENTS = 12  # fakes over time
PICTURE, THUMBNAIL = 1024, 320  # longest side in pixels


def write_report(out: Path) -> Path:
    """Writes `out`/report.html from what the run folder `out` holds by now.

    Raises FastganError where it cannot be written. Parts that are missing or damaged are named in the page.
    """
    statistics = read_statistics(out / "stats.jsonl")
    config = _read_toml(out / "config.toml")
    about = _read_json(out / "about.json")
    page = files("fastgan.run").joinpath("report.html").read_text(encoding="utf-8")
    preset = str(config.get("preset") or out.resolve().name)
    text = Template(page).substitute(
        css=files("fastgan.run").joinpath("report.css").read_text(encoding="utf-8").strip(),
        title=escape(f"{preset} \N{MIDDLE DOT} fastgan"),
        subtitle=escape(_subtitle(config, about if isinstance(about, dict) else {})),
        summary=_summary(statistics),
        pictures=_pictures(out),
        strip=_over_time(out),
        curves=_curves(statistics),
        times=times(statistics) or _none("No times yet: they come with the first tick."),
        data=data(about if isinstance(about, dict) else {}, statistics) or _none("No record of the data yet."),
        kernels=_kernels(_read_json(out / "kernels.json")),
        commands=_commands(_read_text(out / "next.txt")),
        config=_config(_read_text(out / "config.toml")),
        version=escape(__version__),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )
    return write_atomic(out / "report.html", text.encode())


# ---------------------------------------------------------------------------------------- words and numbers


def _subtitle(config: dict[str, Any], about: dict[str, Any]) -> str:
    """Data, size, batch and device, as far as known."""
    data = config.get("data")
    options = data if isinstance(data, dict) else {}
    size = options.get("size")
    parts = [
        about.get("data") or options.get("path"),
        f"{size}\N{MULTIPLICATION SIGN}{size}" if size else None,
        f"batch {config['batch']}" if "batch" in config else None,
        about.get("device") or config.get("device"),
    ]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part and part != "auto")


def _summary(statistics: dict[str, Array]) -> str:
    """The run in seven numbers."""
    if not statistics:
        return _none("No statistics yet: the first line comes after the first tick.")
    seconds = statistics.get("seconds")
    facts = [
        ("Images" + _share_done(statistics), _number(_final(statistics, POSITION))),
        ("Images/s", _number(_median(statistics, "images_per_second"))),
        ("Training time", _clock(_total(seconds)) if seconds is not None else None),
        ("Steps", _number(_final(statistics, "step"))),
        ("Turns skipped", _number(_final(statistics, "skipped"))),
        ("Waiting for data", _percent(_median(statistics, "wait_share"))),
        ("Peak memory", _memory(_final(statistics, "peak_memory_mb"))),
    ]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    return f'<dl class="facts">{tiles}</dl>' if tiles else ""


def _share_done(statistics: dict[str, Array]) -> str:
    progress = _final(statistics, "progress")
    return "" if progress is None else f", {math.floor(100 * min(max(progress, 0), 1))}%"


def _final(statistics: dict[str, Array], key: str) -> float | None:
    """The last finite value of a statistic."""
    values = statistics.get(key, np.empty(0))
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else None


def _median(statistics: dict[str, Array], key: str) -> float | None:
    values = statistics.get(key, np.empty(0))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _total(clock: Array) -> float:
    """Seconds over all parts of a run, of which each counts from zero."""
    clock = clock[np.isfinite(clock)]
    ends = np.append(clock[1:] < clock[:-1], True)[: len(clock)]
    return float(clock[ends].sum())


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _memory(mebibytes: float | None) -> str | None:
    if mebibytes is None:
        return None
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"


# -------------------------------------------------------------------------------------------------- pictures


def _pictures(out: Path) -> str:
    """The reals beside the newest fakes."""
    fakes = _fakes(out)
    reals = out / "reals.png"
    shown = [(reals, "Real images")] if reals.exists() else []
    if fakes:
        shown.append((fakes[-1], f"Generated after {_moment(fakes[-1])}"))
    figures = "".join(_figure(path, caption, PICTURE) for path, caption in shown)
    missing = " and ".join(["real"] * (not reals.exists()) + ["generated"] * (not fakes))
    note = _none(f"No {missing} pictures yet.") if missing else ""
    return (f'<div class="pictures">{figures}</div>' if figures else "") + note


def _over_time(out: Path) -> str:
    """Fakes from the first to the newest, evenly chosen."""
    fakes = _fakes(out)
    if len(fakes) < 2:
        return _none("No second set of generated pictures yet.")
    chosen = np.unique(np.linspace(0, len(fakes) - 1, min(MOMENTS, len(fakes))).round().astype(int))
    figures = "".join(_figure(fakes[i], _moment(fakes[i]), THUMBNAIL) for i in chosen)
    return f'<div class="strip-of-fakes">{figures}</div>'


def _fakes(out: Path) -> list[Path]:
    """fakes-IMAGES.png by number of images."""
    named = [path for path in out.glob("fakes-*.png") if re.fullmatch(r"fakes-[0-9]{1,18}", path.stem)]
    return sorted(named, key=lambda path: (_images(path), path.name))


def _images(path: Path) -> int:
    return int(path.stem.removeprefix("fakes-"))


def _moment(path: Path) -> str:
    return f"{short(_images(path))} images"


def _figure(path: Path, caption: str, longest: int) -> str:
    """A picture inside the page; a damaged one is named."""
    try:
        source = _embed(path, longest)
    except (OSError, ValueError, SyntaxError):  # SyntaxError: what Pillow raises for a broken PNG
        return f"<figure>{_none(f'{path.name} cannot be read.')}</figure>"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _embed(path: Path, longest: int) -> str:
    """A data URL of the picture: as it is, or made smaller where a side is over `longest`."""
    with Image.open(path) as image:
        image.load()
        if max(image.size) <= longest:
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------- curves


def _curves(statistics: dict[str, Array]) -> str:
    """A chart for every group of statistics, or several where their scales lie apart."""
    x, x_name = _positions(statistics)
    keys = [
        k
        for k in statistics
        if k not in NOT_DRAWN | ALONE.keys() and not k.startswith(PART) and np.isfinite(statistics[k]).any()
    ]
    charts = []
    for title, pattern in (*GROUPS, ("Other", "")):
        group = [k for k in keys if re.search(pattern, k)]
        keys = [k for k in keys if k not in group]
        for together in _by_scale(group, statistics):
            # Scores are taken now and then: only the lines that have some, so that their points are joined.
            rows = np.any([np.isfinite(statistics[k]) for k in together], 0) if title == "Scores" else slice(None)
            curves = [Curve(_name(k), statistics[k][rows]) for k in together]
            charts.append(chart(title, x[rows], curves, x_name=x_name))
    for key, (title, factor) in ALONE.items():
        if np.nan_to_num(statistics.get(key, np.empty(0))).any():
            curves = [Curve("last", factor * statistics[key])]
            charts.append(chart(title, x, curves, x_name=x_name, from_zero=True))
    if not charts:
        return _none("No curves yet.")
    return f'{_none(READING)}<div class="charts">{"".join(charts)}</div>'


def _positions(statistics: dict[str, Array]) -> tuple[Array, str]:
    """The x axis: images seen where every line says so, else the line's number."""
    lines = max(map(len, statistics.values()), default=0)
    images = statistics.get(POSITION, np.empty(0))
    if len(images) and np.isfinite(images).all() and np.abs(images).max() < 1e30:
        return images, "images seen"
    return np.arange(lines, dtype=np.float64), "lines of stats.jsonl"


def _by_scale(keys: list[str], statistics: dict[str, Array]) -> list[list[str]]:
    """The keys in as few lists as their magnitudes allow; in each in the order of the file."""
    sizes = {k: float(np.nanpercentile(np.abs(statistics[k]), 90)) for k in keys}
    lists: list[list[str]] = []
    for key in sorted(keys, key=lambda k: -sizes[k]):
        if lists and sizes[key] * SAME_SCALE >= sizes[lists[-1][0]]:
            lists[-1].append(key)
        else:
            lists.append([key])
    return [sorted(together, key=keys.index) for together in lists]


def _name(key: str) -> str:
    """`critic.gradient_norm.critic` -> "critic gradient norm"."""
    first, *rest = key.removeprefix("score.").split(".")
    if rest and rest[-1] == first:
        rest.pop()
    return " ".join([first, *rest]).replace("_", " ")


# ----------------------------------------------------------------------------------------------- other parts


def _kernels(report: Any) -> str:
    if report is None:
        return _none("No record of kernels yet.")
    if not isinstance(report, list) or not all(isinstance(op, dict) for op in report):
        return _none("kernels.json is damaged.")
    rows = "".join(
        f"<tr><td><code>{_field(op, 'op')}</code></td><td>{_field(op, 'implementation')}</td>"
        f"<td>{_field(op, 'reason')}</td></tr>"
        for op in report
    )
    return (
        '<div class="card"><table><thead><tr><th>Operation</th><th>Runs as</th><th>Because</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _field(op: dict[str, Any], name: str) -> str:
    return escape(str(op.get(name, "")))


def _commands(text: str | None) -> str:
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if not lines:
        return _none("No suggestions yet: they come at the end of the run.")
    items = "".join(f"<li><code>{escape(line)}</code></li>" for line in lines)
    return f'<ul class="commands">{items}</ul>'


def _config(text: str | None) -> str:
    if text is None:
        return _none("No config.toml yet.")
    return f'<details class="card"><summary>config.toml</summary><pre>{escape(text)}</pre></details>'


def _none(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'


def _read_text(path: Path) -> str | None:
    """The text of a file; None where there is none. Raises FastganError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FastganError(f"cannot read {path} for the report: {reason(error)}") from error


def _read_json(path: Path) -> Any:
    """The JSON in a file; None where there is no file, "" where it is damaged."""
    text = _read_text(path)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return ""


def _read_toml(path: Path) -> dict[str, Any]:
    """The TOML in a file; {} where there is none: the page shows the text itself in any case."""
    try:
        return tomllib.loads(_read_text(path) or "")
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
