"""Layouts: the grammars that completions follow."""

from genrl.config.schema import RunConfig
from genrl.layouts import blocked, sid
from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal, ThinkingLayout

__all__ = ["LAYOUTS", "Decoded", "Layout", "Legal", "ThinkingLayout", "blocked", "sid", "thinks"]


def thinks(config: RunConfig) -> bool:
    """Whether completions of the configured layout hold thinking."""
    return bool(getattr(LAYOUTS.entry(config.layout["name"]).factory, "thinking", False))
