"""HTML and SVG whose text is escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = ("meta", "br", "hr", "circle", "line", "path", "rect")
"""Elements that are written without an end."""


class Markup(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


Child = str | None | Iterable["str | None"]
"""Text to be escaped, markup, several of them, or nothing."""


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element with its attributes and children.

    Args:
        name: of the element.
        children: plain strings are escaped, `Markup` is not.
        attributes: a trailing underscore is dropped and others become hyphens; None and False leave an attribute out,
            True writes it without a value. Numbers are rounded to two decimals.

    Example:
        >>> element("td", "a < b", class_="wide", aria_label="x")
        '<td class="wide" aria-label="x">a &lt; b</td>'
        >>> element("rect", x=1.0, y=0.333333)
        '<rect x="1" y="0.33"/>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other; plain strings are escaped.

    Example:
        >>> join("&", [element("b", "x"), None])
        '&amp;<b>x</b>'
    """
    return Markup("".join(_written(child) for child in children))


def scrolling(caption: str, head: Child, rows: Child) -> Markup:
    """A table with a caption, in a container that scrolls sideways where the page is narrower.

    Args:
        caption: what it holds.
        head: the row of heads.
        rows: the other rows.
    """
    table = element("table", element("caption", caption), element("thead", head), element("tbody", rows))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _written(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, str):
        return child if isinstance(child, Markup) else escape(child)
    return "".join(_written(part) for part in child)


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
