from __future__ import annotations

import pytest

from genrl.compare.html.markup import Markup, element, join, scrolling
from tests.pages import Page

HOSTILE = "<script>alert('1')</script> & \"x\""


def test_texts_and_attributes_are_escaped_and_markup_is_not() -> None:
    found = element("p", HOSTILE, Markup("<b>x</b>"), title=HOSTILE)
    page = Page(found)
    assert page.texts == [HOSTILE, "x"]
    assert page.elements == [("p", {"title": HOSTILE}), ("b", {})]
    assert "<script" not in found


def test_joined_parts_are_escaped_however_deep_they_lie() -> None:
    assert join("<", ["<", (element("b", ">"), None)], None) == "&lt;&lt;<b>&gt;</b>"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "<td></td>"),
        (False, "<td></td>"),
        (True, "<td x></td>"),
        (3, '<td x="3"></td>'),
        (100.0, '<td x="100"></td>'),
        (1 / 3, '<td x="0.33"></td>'),
        ("", '<td x=""></td>'),
    ],
)
def test_attributes_are_written_by_their_kind(value: object, written: str) -> None:
    assert element("td", x=value) == written


def test_an_element_may_have_an_attribute_called_name() -> None:
    assert element("meta", name="viewport") == '<meta name="viewport"/>'


def test_a_scrolling_table_is_named_and_reached_with_the_keyboard() -> None:
    page = Page(scrolling("a < b", element("tr", element("th", "x")), [element("tr", element("td", "1"))]))
    assert page.rows == [["x"], ["1"]]
    assert page.elements[0] == (
        "div",
        {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "a < b"},
    )
