from __future__ import annotations

import pytest

from genrl.compare.html.svg import Scale, figure, looks, padded, swatch, ticks
from tests.pages import Page


def test_a_scale_maps_its_ends_to_its_ends() -> None:
    scale = Scale(2.0, 4.0, 100.0, 0.0)
    assert [scale(value) for value in (2.0, 3.0, 4.0, 5.0)] == [100.0, 50.0, 0.0, -50.0]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 30.0, ["0", "10", "20", "30"]),
        (-0.011, 0.02, ["−0.01", "0.00", "0.01", "0.02"]),
        (0.0, 3000.0, ["0", "1,000", "2,000", "3,000"]),
        (0.0, 3e-9, ["0.000000000", "1e−09", "2e−09", "3e−09"]),
        (1.0, 1.5, ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]),
    ],
)
def test_ticks_are_round_and_written_alike(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in ticks(low, high)] == texts


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.7, 9.99, 1.0, 12345.0])
@pytest.mark.parametrize("low", [-1.0, -0.3, 0.0, 0.49])
def test_there_are_some_ticks_but_not_too_many(low: float, scale: float) -> None:
    found = [value for value, _ in ticks(low * scale, scale)]
    assert 2 <= len(found) <= 6
    assert all(low * scale * (1 + 1e-9) - 1e-20 <= value <= scale * (1 + 1e-9) for value in found if value)
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (0.0, 1.0), (0.01, 1.0), (-1.0, 0.0), (-1.0, -0.01), (-1.0, 1.0), (2.0, 2.0)]
)
def test_a_padded_range_is_wider_and_does_not_go_below_zero_for_nothing(low: float, high: float) -> None:
    bottom, top = padded(low, high)
    assert bottom <= low <= high <= top
    assert bottom < top
    assert low < 0 or bottom >= 0


def test_no_two_of_many_rows_look_alike() -> None:
    found = looks([f"row {number}" for number in range(16)], ["a", "b", "c", "d"])
    assert len({(look.colour, look.shape) for look in found.values()}) == 20
    assert len({(look.solid, look.shape) for look in found.values()}) == 12  # also without colour
    first = [look for row, look in found.items() if row.startswith("row")][:8]
    assert len({look.shape for look in first}) == 8


def test_a_swatch_is_not_read_aloud() -> None:
    look = looks(["grpo"], [])["grpo"]
    (svg,) = Page(swatch(look, line=True)).named("svg")
    assert svg["aria-hidden"] == "true"
    assert svg["class"] == "swatch colour0"


def test_a_figure_says_what_it_shows() -> None:
    page = Page(figure("a < b", ["one", "two"], (3.0, 4.0), []))
    assert page.texts == ["a < b", "one; two"]
    assert page.elements[0] == ("svg", {"viewbox": "0 0 3 4", "role": "img", "class": "figure"})
