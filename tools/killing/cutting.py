"""Ends a process at a chosen file operation: by the preloaded library `cut.c`, or by audit hooks of Python."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("open", "write", "fsync", "rename", "unlink")
"""File operations that are counted: `open` where it may make or empty a file."""
MOMENTS = ("before", "middle", "after")
LOADED = "GENRL_CUT"
"""Variable of the environment that names the library of this process."""
PRELOAD = "LD_PRELOAD"


@dataclass(frozen=True)
class Cut:
    """Where a process ends: at the `number`-th operation of a kind, from 1; "" is any kind, and 0 never."""

    number: int = 0
    kind: str = ""
    moment: str = "before"

    def __str__(self) -> str:
        return f"{self.moment} {self.kind or 'operation'} {self.number}"


def compiler() -> str | None:
    """A C compiler of this machine."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    library = folder / "cut.so"
    source = Path(__file__).with_name("cut.c")
    command = [str(compiler()), "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Library:
    """The library that this process was started with (`LD_PRELOAD`)."""

    moments = MOMENTS
    logs = True

    def __init__(self) -> None:
        self._functions = ctypes.CDLL(None)
        self.count()  # there, or an AttributeError

    def arm(self, root: Path, cut: Cut = Cut(), log: Path | None = None) -> None:
        """Count operations below a folder from nought, in this process and its forks, and cut one of them."""
        kind = KINDS.index(cut.kind) if cut.kind else len(KINDS)
        book = os.fsencode(log) if log else b""
        if self._functions.cut_arm(os.fsencode(root), kind, cut.number, MOMENTS.index(cut.moment), book):
            raise OSError(f"{log}: cannot be written")

    def disarm(self) -> None:
        """Leave the operations of this process alone."""
        self._functions.cut_disarm()

    def count(self, kind: str = "") -> int:
        """Operations since it was armed."""
        return int(self._functions.cut_count(KINDS.index(kind) if kind else len(KINDS)))


class Hooks:
    """The same by audit hooks, which are told of opening, renaming and unlinking before it happens and of no more."""

    moments = ("before",)
    logs = False

    def __init__(self) -> None:
        self._done = mmap.mmap(-1, 8 * (len(KINDS) + 1))
        self._root, self._cut = "", Cut()
        sys.addaudithook(self._told)

    def arm(self, root: Path, cut: Cut = Cut(), log: Path | None = None) -> None:
        """As that of the library; there is no log."""
        self._done[:] = bytes(len(self._done))
        self._cut, self._root = cut, str(root)

    def disarm(self) -> None:
        """As that of the library."""
        self._root = ""

    def count(self, kind: str = "") -> int:
        """As that of the library."""
        place = 8 * (KINDS.index(kind) if kind else len(KINDS))
        return int(struct.unpack("q", self._done[place : place + 8])[0])

    def _told(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._root or not arguments or not str(arguments[0]).startswith(self._root):
            return
        kind = {"os.rename": "rename", "os.remove": "unlink"}.get(event, "")
        if event == "open" and arguments[2] & (os.O_CREAT | os.O_TRUNC):
            kind = "open"
        if not kind:
            return
        for name in (kind, ""):
            place = 8 * (KINDS.index(name) if name else len(KINDS))
            self._done[place : place + 8] = struct.pack("q", self.count(name) + 1)
        if self._cut.number and self._cut.kind in (kind, "") and self.count(self._cut.kind) == self._cut.number:
            os.killpg(0, signal.SIGKILL)
