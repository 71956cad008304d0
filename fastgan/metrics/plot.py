"""The PRD curve as a picture: one SVG, readable by any browser, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fastgan.errors import FastganError
from fastgan.metrics.result import Result

COLOURS = ("#1f6fb4", "#d1622b", "#3b8f4d", "#8a5fb0", "#7a7a7a", "#b8860b")
SIDE, LEFT, TOP = 320, 46, 14  # of the square from 0 to 1, in pixels


def prd_svg(curves: Mapping[str, Result]) -> str:
    """curves: name -> result of fastgan.metrics.prd. Recall to the right, precision upwards, one curve for each."""
    for name, result in curves.items():
        if result.name != "prd":
            raise FastganError(f"{name}: expected a result of fastgan.metrics.prd, got one of {result.name}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE + LEFT + 20}" height="{SIDE + TOP + 46}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        *(grid(tick / 5) for tick in range(6)),
        f'<text x="{at(0.5)[0]}" y="{TOP + SIDE + 36}" text-anchor="middle">recall</text>',
        f'<text transform="translate(12 {at(0, 0.5)[1]}) rotate(-90)" text-anchor="middle">precision</text>',
    ]
    for number, (name, result) in enumerate(curves.items()):
        parts += curve(name, result, number)
    return "\n".join([*parts, "</svg>", ""])


def at(recall: float, precision: float = 0.0) -> tuple[float, float]:
    """Pixels."""
    return round(LEFT + SIDE * recall, 1), round(TOP + SIDE * (1 - precision), 1)


def grid(value: float) -> str:
    (x, y), line = at(value, value), 'stroke="#ddd"'
    return (
        f'<path d="M{x} {TOP}V{TOP + SIDE}M{LEFT} {y}H{LEFT + SIDE}" {line} fill="none"/>'
        f'<text x="{x}" y="{TOP + SIDE + 16}" text-anchor="middle">{value:g}</text>'
        f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    )


def curve(name: str, result: Result, number: int) -> list[str]:
    recall, precision = result.values["recall"], result.values["precision"]
    assert isinstance(recall, tuple)
    assert isinstance(precision, tuple)
    points = " ".join(f"{x},{y}" for x, y in map(at, recall, precision))
    colour = COLOURS[number % len(COLOURS)]
    x, y = at(0.04, 0.06 + 0.06 * number)
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{x}" y="{y}" fill="{colour}">{escape(name)}</text>',
    ]
