from __future__ import annotations

import re
from itertools import combinations

from genrl.compare.html.figures import LETTER, MOST_POINTS, WIDE, WIDTH, curves, forest, scatter
from genrl.compare.html.svg import looks
from tests.pages import Page, difference

STYLES = looks(["grpo", "sapo"], ["align"])


def paths(page: Page, kind: str) -> list[dict[str, str | None]]:
    return [attributes for attributes in page.named("path") if attributes["class"] == kind]


def places(path: str | None) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([\d.]+)", path or "")]


def test_a_curve_is_drawn_through_the_means_with_a_band_between_least_and_largest() -> None:
    page = Page(curves("reward", {"grpo": [(0, 2.0, 1.0, 3.0), (10, 4.0, 4.0, 4.0)]}, STYLES))
    (line,), (band,) = paths(page, "line"), paths(page, "band")
    (start, first), (end, second) = places(line["d"])
    assert end > start
    assert second < first  # larger values stand higher
    corners = places(band["d"])
    assert [x for x, _ in corners] == [start, end, end, start]
    assert corners[1][1] == corners[2][1] == second
    assert corners[0][1] < first < corners[3][1]
    assert abs(corners[0][1] + corners[3][1] - 2 * first) <= 0.1
    assert page.texts[:2] == ["reward", "grpo: 2 at step 0, 4 at step 10"]


def test_rows_are_told_apart_without_colour() -> None:
    curve = [(0, 1.0, 1.0, 1.0), (5, 2.0, 2.0, 2.0)]
    page = Page(curves("reward", {"grpo": curve, "sapo": curve}, STYLES))
    assert [line.get("stroke-dasharray") for line in paths(page, "line")] == [None, "7 3"]
    assert len({mark["d"] for mark in paths(page, "mark")}) == 2


def test_one_point_and_constant_values_can_be_drawn() -> None:
    page = Page(curves("reward", {"grpo": [(3, 0.0, 0.0, 0.0)]}, STYLES))
    assert len(places(paths(page, "line")[0]["d"])) == 1


def test_a_long_curve_is_drawn_as_means_of_neighbours() -> None:
    curve = [(step, float(step % 2), 0.0, 1.0) for step in range(5 * MOST_POINTS * 2)]
    found = places(paths(Page(curves("reward", {"grpo": curve}, STYLES)), "line")[0]["d"])
    assert len(found) == MOST_POINTS
    assert len({y for _, y in found}) == 1


def test_a_forest_shows_effect_and_interval_of_each_row() -> None:
    rows = {"grpo": difference(0.04, 0.01), "sapo": difference(-0.01, 0.5)}
    page = Page(forest("NDCG", rows, STYLES))
    (one,), (other,) = paths(page, "mark"), paths(page, "hollow")
    zero = next(float(line["x1"] or 0) for line in page.named("line") if line["class"] == "zero")
    across = [float((mark["transform"] or "")[10:].split()[0]) for mark in (one, other)]
    assert across[1] < zero < across[0]
    assert abs((across[0] - zero) / (zero - across[1]) - 4) < 0.05
    low, high = re.match(r"M(\S+) \S+?H([\d.]+)M", paths(page, "line")[0]["d"] or "").groups()  # type: ignore[union-attr]
    assert abs(float(low) + float(high) - 2 * across[0]) <= 0.2
    assert {"grpo", "sapo", "+0.0400", "−0.0100"} <= set(page.texts)
    assert page.texts[1].endswith("sapo: −0.0100, interval −0.0300 to +0.0100")


def test_a_forest_of_no_differences_at_all_can_be_drawn() -> None:
    nothing = {"effect": 0.0, "low": 0.0, "high": 0.0, "p_holm": 1.0}
    assert "+0.0000" in Page(forest("NDCG", {"grpo": nothing}, STYLES)).texts


def test_long_names_are_cut_so_that_they_fit() -> None:
    name = "a_row_with_a_very_long_name_that_goes_on"
    page = Page(forest("NDCG", {name: difference(0.1)}, {name: STYLES["grpo"]}))
    assert "a_row_with_a_very…" in page.texts
    assert name in page.texts[1]  # a screen reader gets all of it
    assert float(page.named("text")[-2]["x"] or 0) < WIDTH / 2


def test_labels_of_a_scatter_lie_apart_and_inside_even_where_points_do_not() -> None:
    points = {f"row number {place}": (0.5, 0.5) for place in range(6)} | {"corner": (1.0, 1.0), "origin": (0.0, 0.0)}
    styles = looks(points, [])
    page = Page(scatter("quality", points, styles, ("share", "NDCG")))
    labels = [
        (attributes, text)
        for attributes, text in zip(page.named("text"), page.texts[2:], strict=True)
        if attributes["class"] == "label" and text in points
    ]
    assert {text for _, text in labels} == set(points)
    boxes = []
    for attributes, text in labels:
        x, y, wide = float(attributes["x"] or 0), float(attributes["y"] or 0), LETTER * len(text)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[attributes["text-anchor"] or ""]
        assert left >= 0
        assert left + wide <= WIDE
        boxes.append((left, y - 10, left + wide, y + 3))
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_scatter_draws_more_of_both_further_up_and_to_the_right() -> None:
    page = Page(scatter("quality", {"grpo": (0.1, 0.4), "align": (0.2, 0.2)}, STYLES, ("share", "NDCG")))
    (x1, y1), (x2, y2) = [
        tuple(map(float, (mark["transform"] or "")[10:-1].split()))
        for kind in ("mark", "hollow")
        for mark in paths(page, kind)
    ]
    assert x2 > x1
    assert y2 > y1
    assert "align: NDCG 0.2000, share 0.2000" in page.texts[1]
