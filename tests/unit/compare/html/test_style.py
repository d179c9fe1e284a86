from __future__ import annotations

import re

import pytest

from genrl.compare.curves import COLOURS
from genrl.compare.html.style import DARK, LIGHT, RULES, sheet


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_guidelines() -> None:
    assert round(contrast("#000000", "#ffffff"), 2) == 21.0
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_texts_can_be_read(colours: dict[str, str]) -> None:
    for background in ("paper", "panel"):
        for name in ("ink", "muted", "accent"):
            assert contrast(colours[name], colours[background]) >= 4.5, (name, background)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_marks_can_be_seen(colours: dict[str, str]) -> None:
    for name in ("grey", "up", "down", *(f"colour{number}" for number in range(len(COLOURS)))):
        assert contrast(colours[name], colours["paper"]) >= 2.2, name


def test_rows_have_the_colours_of_the_other_curves() -> None:
    kept = [LIGHT[f"colour{number}"] == colour for number, colour in enumerate(COLOURS)]
    assert kept == [True] * 7 + [False]


def test_every_colour_that_is_used_is_given() -> None:
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", sheet())) - {"mark", "strength"}
    assert used <= LIGHT.keys()
    assert LIGHT.keys() == DARK.keys()


def test_the_sheet_asks_for_nothing_from_elsewhere() -> None:
    assert "url(" not in sheet()
    assert "@import" not in sheet()
    assert sheet().count("{") == sheet().count("}")


def test_only_screens_become_dark() -> None:
    assert "@media screen and (prefers-color-scheme:dark)" in sheet()
    assert "prefers-color-scheme" not in RULES
