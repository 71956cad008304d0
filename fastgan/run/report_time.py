"""Two parts of the report: where the time of the run goes, and what came of the images that were given."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import numpy as np

from fastgan.run.chart import Array

PART = "part."  # statistics of this name: seconds since the line before
BESIDE = {"pictures", "checkpoints", "scores"}  # what is done between steps
MOST_REJECTS = 20


def times(statistics: dict[str, Array]) -> str:
    """A table of the parts of a step, and of what is done between steps, with their shares; "" without any."""
    totals = {
        name.removeprefix(PART): float(np.nansum(values[np.isfinite(values)]))
        for name, values in statistics.items()
        if name.startswith(PART)
    }
    whole = sum(totals.values())
    if not whole > 0:
        return ""
    counted = _steps_counted(statistics)
    inside = {name: value for name, value in totals.items() if name not in BESIDE}
    rows = [
        _row(name, value, value / whole, f"{1000 * value / counted:,.3g} ms" if counted and name in inside else "")
        for name, value in sorted(totals.items(), key=lambda item: (item[0] in BESIDE, -item[1]))
    ]
    return (
        '<div class="card"><table class="times"><thead><tr><th>Part</th><th></th><th>Share</th><th>A step</th>'
        f"<th>In all</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _steps_counted(statistics: dict[str, Array]) -> float:
    """Steps that the lines are of: a resumed run goes on at the step of its last line."""
    steps = statistics.get("step", np.empty(0))
    steps = steps[np.isfinite(steps)]
    return float(steps.max()) if len(steps) else 0.0


def _row(name: str, seconds: float, share: float, step: str) -> str:
    return (
        f'<tr><td>{escape(name)}</td><td class="bar"><i style="width:{100 * share:.2f}%"></i></td>'
        f"<td>{share:.1%}</td><td>{step}</td><td>{clock(seconds)}</td></tr>"
    )


def data(about: dict[str, Any], statistics: dict[str, Array]) -> str:
    """Where the images come from and by what way, how fast; which were rejected and why."""
    rate, waits = (_last(statistics, name) for name in ("feeder_images_per_second", "wait_share"))
    facts = [
        ("Images", about.get("data")),
        ("Way to the device", about.get("feeder")),
        ("Speed when asked", f"{rate:,.0f} images/s" if rate else None),
        ("Training waits for it", None if waits is None else f"{waits:.2%} of the time"),
        ("Rejected", _rejects(about)),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in _escaped(facts) if value)
    return f'<div class="card"><table class="data"><tbody>{rows}</tbody></table></div>' if rows else ""


def _escaped(facts: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, escape(str(value)).replace("\n", "<br>")) for name, value in facts if value]


def _rejects(about: dict[str, Any]) -> str | None:
    lines, count = about.get("left_out"), about.get("rejected")
    if not isinstance(count, int) or not isinstance(lines, list):
        return None
    shown = [re.sub(r"\s+", " ", str(line)) for line in lines[:MOST_REJECTS]]
    if count > len(shown) and shown:
        shown.append(f"and {count - len(shown):,} more")
    return "\n".join([f"{count:,} images" if count != 1 else "1 image", *shown]) if count else "none"


def _last(statistics: dict[str, Array], name: str) -> float | None:
    values = statistics.get(name, np.empty(0))
    values = values[np.isfinite(values)]
    return float(values[-1] if name != "wait_share" else np.median(values)) if len(values) else None


def clock(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"
