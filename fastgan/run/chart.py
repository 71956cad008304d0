"""Curves as inline SVG: no script, no other file, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 8, 40  # margins around the plot
DOTS_TO = 20  # curves of fewer points have a dot at each
AVERAGE_FROM = 60  # noisy curves of so many points have their moving average drawn over them
BUCKETS = 500  # of a long curve the least and the greatest value in each of so many parts are drawn
STRIPS = 80  # upright parts of the plot with a tooltip of their own
COLOURS = 8  # classes c0 ... c7 of the style sheet


@dataclass(frozen=True)
class Curve:
    """y: [points]; NaN is a gap."""

    name: str
    y: Array


@dataclass(frozen=True)
class _Axis:
    """Maps values from [low, high] to pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def pixels(self, values: Array) -> Array:
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return self.start + (values - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return linear_ticks(self.low, self.high)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**e for e in range(first, last + 1, max(1, (last - first + 6) // 6))]


def chart(title: str, x: Array, curves: Sequence[Curve], *, x_name: str, from_zero: bool = False) -> str:
    """A figure: title, plot, legend with the last value of each curve. "" where there is nothing to draw.

    x: [points], finite, the same for all curves;  from_zero: the y axis begins there
    Few values that lie far from all others do not flatten the rest: they run along the edge, and the title
    says so. Positive values over more than two orders of magnitude get a logarithmic axis.
    """
    curves = [Curve(curve.name, np.where(np.abs(curve.y) < 1e30, curve.y, np.nan)) for curve in curves]
    values = np.concatenate([curve.y[~np.isnan(curve.y)] for curve in curves])
    if not len(values):
        return ""
    low, high, log = _range(values, from_zero)
    across = _Axis(*_x_range(x), LEFT, WIDTH - RIGHT)
    up = _Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    note = ", ".join(["logarithmic"] * log + _outliers(values, up))
    coloured = [(f"c{number % COLOURS}", curve) for number, curve in enumerate(curves)]
    drawn = "".join(_draw(curve, x, across, up, colour) for colour, curve in coloured)
    legend = "".join(
        f'<li class="{colour}"><i></i>{escape(curve.name)} <b>{_last(curve.y)}</b></li>' for colour, curve in coloured
    )
    return (
        f'<figure class="chart"><h3>{escape(title)}{f" <small>{note}</small>" if note else ""}</h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_frame(across, up, x_name)}{drawn}{_tooltips(curves, x, across, x_name)}</svg>"
        f'<ul class="legend">{legend}</ul></figure>'
    )


def short(value: float) -> str:
    """A number for people, three digits: 5e-4, 0.021, 12.8, 1.2k, 3.4M."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if 0.9995 * 10**power <= abs(value) < 1e12:
            return f"{value / 10**power:.3g}{letter}"
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e12:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.3g}"


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about five."""
    rough = (high - low) / 5
    if rough < 1e-300:  # the powers of ten end there
        return [low, high]
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((f for f in (1, 2, 5) if f * power >= rough * 0.999), default=10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def downsample(x: Array, y: Array, buckets: int = BUCKETS) -> tuple[Array, Array]:
    """At most 2 * `buckets` points that draw the same picture: of each part the least and the greatest."""
    if len(y) <= 2 * buckets:
        return x, y
    chosen = []
    for part in np.array_split(np.arange(len(y)), buckets):
        known = part[~np.isnan(y[part])]
        if len(known):
            chosen.extend(sorted({known[y[known].argmin()], known[y[known].argmax()]}))
        else:
            chosen.append(part[0])  # keeps the gap
    return x[chosen], y[chosen]


def smooth(y: Array) -> Array:
    """Centred moving average over a 30th of the curve; gaps stay, and are left out of the averages."""
    half = max(1, len(y) // 60)
    known = ~np.isnan(y)
    totals = np.cumsum(np.concatenate([[0.0], np.where(known, y, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, (totals[last] - totals[first]) / (counts[last] - counts[first]), np.nan)


def _range(values: Array, from_zero: bool) -> tuple[float, float, bool]:
    """(low, high, whether logarithmic) of the y axis."""
    low, high = float(values.min()), float(values.max())
    if from_zero:
        return min(low, 0.0), 1.1 * high if high > 0 else 1.0, False
    inner_low, inner_high = low, high
    if len(values) >= 20:
        inner_low, inner_high = (float(v) for v in np.percentile(values, [1, 99]))
    if low > 0 and high / low > 100:
        return (inner_low if low * 10 < inner_low else low) / 1.2, high * 1.2, True
    far = 3 * (inner_high - inner_low)
    low = inner_low if inner_low - low > far > 0 else low
    high = inner_high if high - inner_high > far > 0 else high
    low, high = _apart(low, high)
    pad = 0.06 * (high - low)
    return (low - pad if low < 0 or low > pad else 0.0), high + pad, False


def _x_range(x: Array) -> tuple[float, float]:
    """From zero where the first point is near it."""
    low, high = float(x.min()), float(x.max())
    return _apart(0.0 if 0 < low < 0.2 * high else low, high)


def _apart(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is a point."""
    if high - low > 1e-9 * max(abs(low), abs(high)) and high - low > 1e-30:
        return low, high
    pad = max(0.1 * abs(low), 1e-9)
    return low - pad, high + pad


def _outliers(values: Array, y: _Axis) -> list[str]:
    """What to say of values outside the axis."""
    least, greatest = float(values.min()), float(values.max())
    sides = [f"down to {short(least)}"] * (least < y.low) + [f"up to {short(greatest)}"] * (greatest > y.high)
    return [f"outliers {' and '.join(sides)}"] if sides else []


def _frame(x: _Axis, y: _Axis, x_name: str) -> str:
    """Grid lines, tick labels and the name of the x axis."""
    parts = []
    for value, at in _placed(y):
        parts.append(f'<path class="line" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    floor = HEIGHT - BOTTOM
    for value, at in _placed(x):
        parts.append(f'<path class="line" d="M{at:.1f} {floor}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join(parts)


def _placed(axis: _Axis) -> list[tuple[float, float]]:
    ticks = axis.ticks()
    return list(zip(ticks, axis.pixels(np.array(ticks)).tolist(), strict=True))


def _draw(curve: Curve, xs: Array, x: _Axis, y: _Axis, colour: str) -> str:
    """A short curve with dots; a long and noisy one pale, with its moving average on top."""
    points = _pixels(xs, curve.y, x, y)
    if len(xs) < DOTS_TO:
        dots = (f'<circle class="{colour}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in points if b == b)
        return f'<path class="curve {colour}" d="{_path(points)}"/>' + "".join(dots)
    average = np.exp(smooth(np.log(curve.y))) if y.log else smooth(curve.y)
    averages = _pixels(xs, average, x, y)
    noise = np.nanmedian(np.abs(y.pixels(average) - y.pixels(curve.y))) if len(xs) >= AVERAGE_FROM else 0.0
    if noise < 1.0:
        return f'<path class="curve {colour}" d="{_path(points)}"/>'
    pale = f'<path class="curve pale {colour}" d="{_path(points)}"/>'
    return f'{pale}<path class="curve {colour}" d="{_path(averages)}"/>'


def _pixels(xs: Array, ys: Array, x: _Axis, y: _Axis) -> list[tuple[float, float]]:
    """The points to draw; what lies outside is at the edge."""
    xs, ys = downsample(xs, ys)
    up = y.pixels(np.clip(ys, y.low, y.high))
    return list(zip(x.pixels(xs).tolist(), up.tolist(), strict=True))


def _path(points: list[tuple[float, float]]) -> str:
    """Path data, interrupted at NaN."""
    parts, pen_down = [], False
    for a, b in points:
        known = not math.isnan(b)
        if known:
            parts.append(f"L{a:.1f} {b:.1f}" if pen_down else f"M{a:.1f} {b:.1f}h0")  # h0: seen even if alone
        pen_down = known
    return "".join(parts)


def _tooltips(curves: Sequence[Curve], xs: Array, x: _Axis, x_name: str) -> str:
    """Invisible upright strips whose titles give the values there."""
    chosen = np.linspace(0, len(xs) - 1, min(STRIPS, len(xs))).round().astype(int)
    centres = x.pixels(xs[chosen])
    edges = [x.start, *((centres[1:] + centres[:-1]) / 2).tolist(), x.stop]
    strips = []
    for index, left, right in zip(chosen, edges[:-1], edges[1:], strict=True):
        values = [f"{curve.name}: {short(float(curve.y[index]))}" for curve in curves]
        title = escape("\n".join([f"{short(float(xs[index]))} {x_name}", *values]))
        strips.append(
            f'<rect class="strip" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
        )
    return "".join(strips)


def _last(y: Array) -> str:
    known = y[~np.isnan(y)]
    return short(float(known[-1])) if len(known) else ""
