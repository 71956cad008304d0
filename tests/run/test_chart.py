"""Charts: what is drawn is what was measured."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastgan.run import chart as chart_module
from fastgan.run.chart import Curve, chart, downsample, linear_ticks, short, smooth

HEIGHT, START, STOP = chart_module.HEIGHT, chart_module.LEFT, chart_module.WIDTH - chart_module.RIGHT


def parsed(html):
    return ElementTree.fromstring(html)  # raises where tags or escapes are wrong


def curve_points(html, kind="curve"):
    """[(x, y)] of every curve of that class, in pixels."""
    paths = [p.get("d") for p in parsed(html).iter("path") if kind in p.get("class").split()]
    return [[(float(a), float(b)) for a, b in re.findall(r"[ML](\S+) ([\d.-]+)", path)] for path in paths]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-2, "-2"),
        (12.84, "12.8"),
        (999.7, "1k"),
        (1234, "1.23k"),
        (200_000, "200k"),
        (3.4e6, "3.4M"),
        (2e9, "2G"),
        (0.0213, "0.0213"),
        (5e-4, "5e-4"),
        (1.234e-7, "1.23e-7"),
        (-1e15, "-1e15"),
        (np.nan, "\N{EN DASH}"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-0.3, 1.2, [0, 0.5, 1]), (0, 2e5, [0, 5e4, 1e5, 1.5e5, 2e5])],
)
def test_ticks_are_round(low, high, ticks):
    assert linear_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e29, 1e29), st.floats(1e-6, 1e29))
def test_there_are_always_some_ticks_and_all_are_inside(low, width):
    high = low + max(width, abs(low) * 1e-6)
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


def test_points_are_where_their_values_are():
    x = np.array([0.0, 50.0, 100.0])
    html = chart("Losses", x, [Curve("a", np.array([0.0, 1.0, 2.0]))], x_name="images seen", from_zero=True)
    (points,) = curve_points(html)
    assert [a for a, _ in points] == pytest.approx([START, (START + STOP) / 2, STOP], abs=0.06)
    labels = {t.text: float(t.get("y")) for t in parsed(html).iter("text") if t.get("text-anchor") == "end"}
    for (_, pixel), value in zip(points, ["0", "1", "2"], strict=True):
        assert pixel == pytest.approx(labels[value] - 3.5, abs=0.11)
    assert points[0][1] > points[1][1] > points[2][1]


def test_gaps_are_gaps():
    y = np.array([1.0, 2.0, np.nan, 3.0, np.inf, 4.0, 5.0])
    html = chart("t", np.arange(7.0), [Curve("a", y)], x_name="x")
    (path,) = [p.get("d") for p in parsed(html).iter("path") if "curve" in p.get("class")]
    assert path.count("M") == 3
    assert path.count("L") == 2
    assert len(list(parsed(html).iter("circle"))) == 5


def test_nothing_finite_is_nothing_drawn():
    assert chart("t", np.arange(3.0), [Curve("a", np.full(3, np.nan))], x_name="x") == ""


def test_wide_positive_ranges_get_a_logarithmic_axis():
    html = chart("t", np.arange(5.0), [Curve("a", 10.0 ** np.arange(-2, 3))], x_name="x")
    heights = np.diff([b for _, b in curve_points(html)[0]])
    assert "logarithmic" in html
    assert np.ptp(heights) < 0.21  # powers of ten are evenly spaced
    assert "logarithmic" not in chart("t", np.arange(5.0), [Curve("a", np.arange(5.0))], x_name="x")


def test_one_spike_does_not_flatten_the_curve_and_is_named():
    y = np.sin(np.linspace(0, 20, 300))
    y[100] = 5000.0
    html = chart("t", np.arange(300.0), [Curve("a", y)], x_name="x")
    heights = [b for _, b in curve_points(html)[0]]
    assert "outliers up to 5k" in html
    assert np.median(np.abs(np.array(heights) - np.median(heights))) > 0.15 * HEIGHT
    assert min(heights) >= 0


def test_noisy_curves_are_pale_under_their_average_and_smooth_ones_are_plain():
    x = np.arange(400.0)
    noisy = chart("t", x, [Curve("a", np.random.default_rng(0).normal(size=400))], x_name="x")
    assert [len(curve_points(noisy, kind)) for kind in ("curve", "pale")] == [2, 1]
    plain = chart("t", x, [Curve("a", np.minimum(1, 2 - x / 200))], x_name="x")
    assert [len(curve_points(plain, kind)) for kind in ("curve", "pale")] == [1, 0]


@given(hnp.arrays(np.float64, st.integers(1, 4000), elements=st.floats(-1e3, 1e3) | st.just(np.nan)))
@settings(max_examples=40, deadline=None)
def test_thinning_keeps_extremes_order_and_ends_of_gaps(y):
    x = np.arange(len(y), dtype=float)
    few_x, few_y = downsample(x, y, buckets=50)
    assert len(few_x) <= max(100, 1)
    assert (np.diff(few_x) > 0).all()
    np.testing.assert_array_equal(few_y, y[few_x.astype(int)])
    if not np.isnan(y).all():
        assert np.nanmin(few_y) == np.nanmin(y)
        assert np.nanmax(few_y) == np.nanmax(y)


def test_the_average_is_centred_and_leaves_gaps_out():
    y = np.arange(600.0)
    y[100] = np.nan
    average = smooth(y)
    assert np.isnan(average[100])
    np.testing.assert_allclose(average[20:80], y[20:80])  # a line stays a line
    assert average[105] == pytest.approx(np.nanmean(y[95:116]))


def test_tooltips_cover_the_plot_and_give_the_values():
    x = np.linspace(0, 1000, 5)
    html = chart("t", x, [Curve("a & b", x / 500), Curve("c", -x)], x_name="images seen")
    strips = list(parsed(html).iter("rect"))
    assert [s.find("title").text for s in strips][2] == "500 images seen\na & b: 1\nc: -500"
    assert sum(float(s.get("width")) for s in strips) == pytest.approx(STOP - START, abs=0.3)


@given(
    hnp.arrays(np.float64, (2, 25), elements=st.floats(allow_nan=True, allow_infinity=True)),
    st.text(max_size=12).filter(lambda text: text.isprintable()),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_numbers_and_names_make_a_sound_figure(values, name, from_zero):
    curves = [Curve(name, values[0]), Curve("other", values[1])]
    html = chart(name, np.arange(25.0), curves, x_name="x", from_zero=from_zero)
    if html:
        for points in curve_points(html):
            assert all(START <= a <= STOP and 0 <= b <= HEIGHT for a, b in points)


def test_ticks_where_powers_of_ten_end():
    assert linear_ticks(0.0, 5e-324) == [0.0, 5e-324]
    assert "<svg" in chart("a", np.arange(2.0), [Curve("b", np.array([0.0, 5e-324]))], x_name="x", from_zero=True)
