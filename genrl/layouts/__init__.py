"""Layouts: the grammars that completions follow."""

from genrl.layouts import sid
from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal

__all__ = ["LAYOUTS", "Decoded", "Layout", "Legal", "sid"]
