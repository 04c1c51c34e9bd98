"""Promises of the front: every number can be read, in both colour schemes, and it says of what it is."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.report.columns import COLUMNS
from semu_diffusion.pipelines.report.front import SIDE, Point, axes_of, front, plot

SVG = "{http://www.w3.org/2000/svg}"
# most of the methods do what was asked: their marks are at one place, at the end of the axis
POINTS = [Point(f"method {n}", n == 3, {"drift": 0.01 * (1 + n // 4), "UA": 1.0, "revival": None}, "style") for n in range(9)]
POINTS += [Point("elsewhere", False, {"drift": 0.0, "UA": 0.25, "revival": 0.5})]


def test_no_number_of_a_mark_hides_another_or_the_end_of_an_axis() -> None:
    root = ElementTree.fromstring(plot(POINTS, "drift", "UA"))
    places = []
    for point in (one for one in root.iter("g") if "point" in one.get("class", "").split()):
        x, y = map(float, re.findall(r"[-\d.]+", point.get("transform", "")))
        text = point.find("text")
        assert text is not None
        places.append((x + float(text.get("x", "")), y + float(text.get("y", "")) - 4, 4 * len(text.text or "")))
        assert 10 < x < SIDE - 10
        assert 10 < y < SIDE - 10
    assert len(places) == len(POINTS)
    for (x, y, wide), (a, b, other) in combinations(places, 2):
        assert abs(x - a) >= wide + other - 0.2 or abs(y - b) >= 12 - 0.2
    assert all(wide < x < SIDE - wide and 6 < y < SIDE - 6 for x, y, wide in places)


def test_a_picture_of_its_own_brings_both_schemes_and_one_in_a_page_takes_the_pages() -> None:
    alone, inline = front(POINTS, "Classes: red & blue", ("drift", "UA")), plot(POINTS, "drift", "UA")
    root = ElementTree.fromstring(alone)
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in str(style.text)
    assert root.find(f"{SVG}text").text == "Classes: red & blue"  # type: ignore[union-attr]
    assert len([one for one in root.iter(f"{SVG}rect") if one.get("class") == "frame"]) == 1
    assert not re.search(r"#[0-9a-f]{3}|white|fill=|<style", inline)
    used = {name for one in re.findall(r'class="([^"]+)"', alone) for name in one.split()} - {"x", "y", "point", "none", "plot"}
    assert all(f".{name} " in str(style.text) for name in used)


def test_what_nobody_measured_is_said_in_the_panel() -> None:
    hidden = 'class="middle none" display="none"'
    assert hidden in plot(POINTS, "drift", "UA")
    assert hidden not in plot(POINTS, "drift", "SSIM")


def test_axes_are_two_columns_of_the_table_commas_and_all() -> None:
    assert axes_of("drift,revival") == ("drift", "revival")
    for x, y in combinations((column.heading for column in COLUMNS), 2):
        assert axes_of(f"{x.upper()}, {y}") == (x, y)
    for text in ("drift", "drift,revival,UA", "", "drift;UA"):
        with pytest.raises(InputError, match=r"--axes .*: give two of these, .*; drift, held out; SSIM;"):
            axes_of(text)
