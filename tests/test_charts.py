"""Charts: what is drawn is what was given, in the page's colours, and with its labels."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from svision_dask.judging.charts import COLOURS, INK, Line, draw_lines, draw_map

SVG = "{http://www.w3.org/2000/svg}"


def words(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_labels_legend_and_level_are_words():
    lines = [Line(name="before", x=[0, 1], y=[1, 2]), Line(name="after", x=[0, 1], y=[2, 3])]
    found = words(draw_lines(lines, x="x (µm)", y="intensity", level=(2.5, "1/7")))
    assert {"x (µm)", "intensity", "1/7", "before", "after"} <= set(found)


def test_dollars_are_words_and_no_mathematics():
    found = words(draw_lines([Line(name="after", x=[0, 1], y=[1, 2])], x=r"x ($\frac$)", y="$"))
    assert {r"x ($\frac$)", "$"} <= set(found)
    plane = np.arange(12.0).reshape(3, 4)
    assert "$_$" in words(draw_map(plane, extent=(0, 4, 3, 0), x="x", y="y", colours="$_$"))


def test_nothing_is_black_or_in_ink_so_that_it_shows_on_dark_ground():
    plane = np.arange(12.0).reshape(3, 4)
    for svg in (
        draw_lines([Line(name="after", x=[0, 1], y=[1, 10])], x="x", y="y", log=True),
        draw_map(plane, extent=(0, 4, 3, 0), x="x", y="y", colours="intensity", mark=(1, 1)),
    ):
        assert INK not in svg
        assert not re.search(r"#000000|(?<![-\w])black", svg)
        for text in ElementTree.fromstring(svg).iter(f"{SVG}text"):
            assert all("fill: currentColor" in part.get("style", "") for part in list(text) or [text])


def test_a_curve_goes_through_its_points():
    svg = draw_lines([Line(name="after", x=[0, 1, 2], y=[0, 5, 10])], x="x", y="y")
    curve = next(
        path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if COLOURS["after"] in path.get("style", "")
    )
    points = np.array(re.findall(r"[-\d.]+", curve.get("d")), float).reshape(-1, 2)
    assert len(points) == 2 or points[1] == pytest.approx((points[0] + points[-1]) / 2)  # straight: simplified
    assert points[0, 0] < points[-1, 0]
    assert points[0, 1] > points[-1, 1]  # SVG counts downwards


def test_the_same_chart_is_written_alike_twice():
    lines = [Line(name="after", x=[0, 1], y=[1, 2])]
    assert draw_lines(lines, x="x", y="y") == draw_lines(lines, x="x", y="y")
