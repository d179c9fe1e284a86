"""Layouts: the grammars that completions follow."""

from genrl.layouts import blocked, sid
from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal, ThinkingLayout

__all__ = ["LAYOUTS", "Decoded", "Layout", "Legal", "ThinkingLayout", "blocked", "sid"]
