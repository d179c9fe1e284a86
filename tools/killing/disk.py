"""What a power cut may leave of a folder: names and contents that nothing has put on the disk are lost, or are noughts.

The log of `cut.c` says what was written, put on the disk (fsync of a file) and named there (fsync of its folder). More
is lost here than on most file systems, which keep the order of some of it: who relies on that order is found.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

STATES = ("emptied", "noughts", "undone", "mixed")
"""Contents since the last fsync are gone, or are NUL; names since the last fsync of their folder are undone, with the
contents; or any of that, at random for each file and each name."""


@dataclass(eq=False)
class Inode:
    """A file or a folder, whatever its names are."""

    folder: bool = False
    durable: bytes | None = None
    """What is on the disk for sure; None: nothing is."""
    dirty: bool = True
    """Whether something was written since."""


Names = dict[str, Inode]


class Disk:
    """A folder as it is named and filled at the start of a command, and by its log at the end.

    Args:
        root: all of it is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: Names = {}
        self.numbers: dict[str, Inode] = {}
        for path in sorted(root.rglob("*")):
            found = Inode(True) if path.is_dir() else Inode(False, path.read_bytes(), dirty=False)
            self.names[str(path)] = found
            self.numbers[str(path.stat().st_ino)] = found
        self.durable: Names = dict(self.names)

    def replay(self, log: Path) -> None:
        """Do what a log says; copies of what was put on the disk lie beside it."""
        for line in log.read_text().splitlines():
            word, _, rest = line.partition(" ")
            getattr(self, f"_{word}")(rest, log)

    def leave(self, state: str, random: Random) -> int:
        """Make one of `STATES` of what a killed process has left; returns how many files are not as they were."""
        before = {path: Path(path).read_bytes() for path in self.names if Path(path).is_file()}
        names = self._named(state, random)
        left: dict[str, bytes | None] = {}
        for path in sorted(names):
            if all(str(parent) in names for parent in Path(path).parents if self.root in parent.parents):
                inode = names[path]
                now = before.get(path) if self.names.get(path) is inode else None
                left[path] = None if inode.folder else _content(inode, now, state, random)
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, content in left.items():
            if content is None:
                Path(path).mkdir()
            else:
                Path(path).write_bytes(content)
        return sum(left.get(path) != before.get(path) for path in left.keys() | before.keys())

    def _named(self, state: str, random: Random) -> Names:
        if state in ("emptied", "noughts"):
            return self.names
        if state == "undone":
            return self.durable
        names: Names = {}
        for path in sorted(self.names.keys() | self.durable.keys()):
            found = random.choice((self.names, self.durable)).get(path)
            if found is not None:
                names[path] = found
        return names

    def _make(self, rest: str, log: Path) -> None:
        number, _, path = rest.partition(" ")
        self.names[path] = self.numbers[number] = Inode()

    def _open(self, rest: str, log: Path) -> None:
        number, _, path = rest.partition(" ")
        self.numbers[number] = self.names.setdefault(path, Inode())

    def _empty(self, rest: str, log: Path) -> None:
        self._open(rest, log)
        self._write(rest.partition(" ")[0], log)

    def _write(self, rest: str, log: Path) -> None:
        self.numbers.setdefault(rest, Inode()).dirty = True

    def _sync(self, rest: str, log: Path) -> None:
        number, copy, path = rest.split(" ", 2)
        inode = self.numbers.get(number)
        if inode is None or self.names.get(path) is not inode:  # renamed by a call that the library does not see
            inode = self.names[path] = self.numbers[number] = Inode()
        inode.durable, inode.dirty = log.with_name(f"{log.name}.{copy}").read_bytes(), False

    def _move(self, rest: str, log: Path) -> None:
        source, _, target = rest.partition("\t")
        self.names[target] = self.names.pop(source)

    def _gone(self, rest: str, log: Path) -> None:
        self.names.pop(rest, None)

    def _folder(self, rest: str, log: Path) -> None:
        self.names[rest] = Inode(True)

    def _names(self, rest: str, log: Path) -> None:
        for path in [path for path in self.durable if str(Path(path).parent) == rest]:
            del self.durable[path]
        self.durable |= {path: inode for path, inode in self.names.items() if str(Path(path).parent) == rest}


def _content(inode: Inode, now: bytes | None, state: str, random: Random) -> bytes:
    """What a file holds behind the cut, of which the killed process saw `now`, None if it had lost the name."""
    durable = inode.durable or b""
    if not inode.dirty or now is None:
        return durable
    kept = len(durable) if now.startswith(durable) else 0
    noughts = now[:kept] + bytes(len(now) - kept)
    half = now[: (kept + len(now)) // 2]
    if state == "mixed":
        return random.choice((now, durable, noughts, half))
    return noughts if state == "noughts" else durable
