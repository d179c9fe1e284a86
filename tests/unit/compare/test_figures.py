import re
from itertools import combinations

import pytest
from matplotlib.transforms import Bbox

from genrl.compare.figures import LETTER, curves, forest, labels, scatter
from genrl.plots import looks
from tests.pages import Page, difference

STYLES = looks(["grpo", "sapo"], ["align"])


def marks(page: Page) -> list[dict[str, str | None]]:
    """Marks of rows; all other paths stand where they are."""
    return [one for one in page.named("path") if (one.get("transform") or "").startswith("translate")]


def at(mark: dict[str, str | None]) -> tuple[float, float]:
    x, y = (mark["transform"] or "")[10:-1].split()
    return float(x), float(y)


def test_curves_are_told_by_their_ends_and_larger_values_stand_higher():
    page = Page(curves("reward", {"grpo": [(0, 2.0, 1.0, 3.0), (10, 4.0, 4.0, 4.0)]}, STYLES))
    assert page.texts[:2] == ["reward", "grpo: 2 at step 0, 4 at step 10"]
    assert "optimiser steps" in page.texts
    (start, first), (end, second) = (at(one) for one in marks(page)[-2:])
    assert end > start
    assert second < first


def test_rows_are_told_apart_without_colour():
    curve = [(0, 1.0, 1.0, 1.0), (5, 2.0, 2.0, 2.0)]
    page = Page(curves("reward", {"grpo": curve, "sapo": curve}, STYLES))
    lines = [one["style"] or "" for one in page.named("path") if "stroke-width:2" in (one.get("style") or "")]
    assert ["stroke-dasharray" in line for line in lines] == [False, True]
    assert len({one["d"] for one in marks(page)[-4:]}) == 2


def test_a_forest_shows_effect_and_interval_of_each_row():
    rows = {"grpo": difference(0.04, 0.01), "sapo": difference(-0.01, 0.5)}
    page = Page(forest("NDCG", rows, STYLES))
    one, other = (mark for mark in marks(page) if "var(--paper)" in (mark["style"] or ""))
    assert "fill:var(--colour0)" in (one["style"] or "")
    assert "fill:var(--paper)" in (other["style"] or "")
    zero = next(path for path in page.named("path") if "stroke:var(--ink)" in (path.get("style") or ""))
    middle = float(re.match(r"M ([\d.]+)", zero["d"] or "").group(1))
    assert abs((at(one)[0] - middle) / (middle - at(other)[0]) - 4) < 0.05
    assert at(one)[1] < at(other)[1]
    assert {"grpo", "sapo", "+0.0400", "−0.0100"} <= set(page.texts)
    assert page.texts[1].endswith("sapo: −0.0100, interval −0.0300 to +0.0100")


def test_a_forest_of_no_differences_at_all_can_be_drawn():
    assert "+0.0000" in Page(forest("NDCG", {"grpo": difference(0.0, low=0.0, high=0.0)}, STYLES)).texts


def test_names_are_cut_so_that_they_fit_and_are_no_formulas():
    name = "$a_row$ with a very long name that goes on"
    page = Page(forest("NDCG", {name: difference(0.1)}, {name: STYLES["grpo"]}))
    assert "$a_row$ with a ve…" in page.texts
    assert name in page.texts[1]  # a screen reader gets all of it


def test_a_scatter_draws_more_of_both_further_up_and_to_the_right():
    page = Page(scatter("quality", {"grpo": (0.1, 0.4), "align": (0.2, 0.2)}, STYLES, ("share", "NDCG")))
    (x1, y1), (x2, y2) = (at(one) for one in marks(page)[-2:])
    assert x2 > x1
    assert y2 > y1
    assert page.texts[1] == "grpo: NDCG 0.4000, share 0.1000; align: NDCG 0.2000, share 0.2000"
    assert {"grpo", "align", "share", "NDCG"} <= set(page.texts)


@pytest.mark.parametrize("count", [1, 6])
def test_labels_lie_apart_and_inside_even_where_points_do_not(count):
    inside = Bbox([[50, 46], [420, 304]])
    points = {f"row number {place}": (230.0, 175.0) for place in range(count)}
    points |= {"corner": (410.0, 290.0), "origin": (52.0, 48.0)}
    found = labels(points, inside)
    assert found.keys() == points.keys()
    boxes = []
    for row, (x, y, anchor) in found.items():
        wide = LETTER * len(row)
        left = x - {"left": 0.0, "center": wide / 2, "right": wide}[anchor]
        assert inside.x0 <= left
        assert left + wide <= inside.x1
        boxes.append(Bbox([[left, y - 6], [left + wide, y + 7]]))
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
