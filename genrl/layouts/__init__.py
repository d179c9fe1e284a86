"""Layouts: the grammars that completions follow."""

from genrl.layouts import blocked, sid
from genrl.layouts.base import LAYOUTS, Layout, Legal, Reading, TokenRanges, Words
from genrl.layouts.items import Items

__all__ = ["LAYOUTS", "Items", "Layout", "Legal", "Reading", "TokenRanges", "Words", "blocked", "sid"]
