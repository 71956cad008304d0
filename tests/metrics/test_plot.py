"""The picture of PRD curves."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from parity_inputs import features

from fastgan.errors import FastganError
from fastgan.metrics import fid, prd, prd_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_one_line_per_curve_within_the_square() -> None:
    x = features(1, 200, 8)
    same, other = prd(x, features(1, 201, 8), runs=2), prd(x, features(5, 200, 8), runs=2)
    drawing = ET.fromstring(prd_svg({"same <1>": same, "other": other}))
    lines = drawing.findall(f"{SVG}polyline")
    assert len(lines) == 2
    for line, result in zip(lines, (same, other), strict=True):
        points = [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
        assert len(points) == 1001
        right, up = (points[500][0] - 46) / 320, 1 - (points[500][1] - 14) / 320
        recall, precision = result.values["recall"], result.values["precision"]
        assert (right, up) == pytest.approx((recall[500], precision[500]), abs=1e-3)  # type: ignore[index]
    assert [t.text for t in drawing.findall(f"{SVG}text")][-2:] == ["same <1>", "other"]


def test_only_such_results() -> None:
    x = features(1, 200, 8)
    with pytest.raises(FastganError, match="mine: expected a result"):
        prd_svg({"mine": fid(x, x)})
