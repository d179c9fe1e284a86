"""Layouts: the grammars that completions follow."""

from genrl.config.schema import RunConfig
from genrl.layouts import blocked, sid, slate
from genrl.layouts.base import LAYOUTS, Layout, Legal, Reading, TokenRanges, Words
from genrl.layouts.items import Items

__all__ = [
    "LAYOUTS",
    "Items",
    "Layout",
    "Legal",
    "Reading",
    "TokenRanges",
    "Words",
    "blocked",
    "sid",
    "slate",
    "thinks",
    "writes_slates",
]


def thinks(config: RunConfig) -> bool:
    """Whether completions of the configured layout hold thinking."""
    return bool(getattr(LAYOUTS.entry(config.layout["name"]).factory, "writes_text", False))


def writes_slates(config: RunConfig) -> bool:
    """Whether completions of the configured layout are slates."""
    return bool(getattr(LAYOUTS.entry(config.layout["name"]).factory, "writes_slates", False))
