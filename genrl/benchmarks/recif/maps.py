"""Which items have a SID: `sid2pid.json` and `sid2iid.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from genrl.benchmarks.recif.sids import CODES, LEVELS
from genrl.errors import DataError
from genrl.given import json_of

SIDS = CODES ** len(LEVELS)
COUNT = "count_after_downsample"


@dataclass(frozen=True)
class ItemMap:
    """The SIDs that there are, and the item that each stands for."""

    sids: Tensor
    """[S] int64 SIDs as numbers a * 8192^2 + b * 8192 + c, ascending."""
    items: Tensor
    """[S] int64 id of the item that each stands for: the most popular one after down-sampling."""
    tied: int
    """SIDs of which several items are equally popular; the one that the file names first stands for them."""

    def items_of(self, sids: Tensor) -> Tensor:
        """Items of SIDs in their shape; -1 where no item has one, as for -1, no SID."""
        known, items = (pad(each, (0, 1), value=end) for each, end in ((self.sids, SIDS), (self.items, -1)))
        places = torch.searchsorted(known, sids)
        return torch.where(known[places] == sids, items[places], -1)

    @property
    def codes(self) -> Tensor:
        """[S, 3] codes of the SIDs."""
        return torch.stack([self.sids // CODES**2, self.sids // CODES % CODES, self.sids % CODES], dim=1)


def read_map(path: Path) -> ItemMap:
    """Read a map from SIDs to items.

    The file is an object of SID number -> [{"pid" or "iid": id, "count": n, "count_after_downsample": m}, ..], items in
    the order of `count`. The evaluator draws among equally popular items at random; here the first of them is taken,
    that with the largest `count`.

    Raises:
        DataError: for a file that is missing or no JSON, a key that is no SID, or an entry without an id.
    """
    entries = json_of(path, "map, which says what item a SID stands for (mode=sid needs none)")
    if not isinstance(entries, Mapping) or not entries:
        raise DataError(f"{path}: the file is no object of SIDs. Write {{'SID number': [{{'pid': .., ..}}]}}.")
    pairs, tied = {}, 0
    for key, listed in entries.items():
        sid = _sid(key, path)
        if not listed:
            continue
        counts = [_number(entry, COUNT, path, key) for entry in listed]
        most = max(counts)
        tied += counts.count(most) > 1
        pairs[sid] = _number(listed[counts.index(most)], "pid", path, key, "iid")
    sids, items = torch.tensor(sorted(pairs.items()), dtype=torch.int64).reshape(-1, 2).unbind(1)
    return ItemMap(sids.contiguous(), items.contiguous(), tied)


def _sid(key: str, path: Path) -> int:
    if not key.isdecimal() or int(key) >= SIDS:
        raise DataError(
            f"{path}: key {key!r} is no SID. Keys are a * {CODES}^2 + b * {CODES} + c of three codes below {CODES:,}, "
            f"so from 0 to {SIDS - 1}. Give the map that belongs to these rows."
        )
    return int(key)


def _number(entry: Any, name: str, path: Path, key: str, other: str = "") -> int:  # noqa: ANN401
    value = entry.get(name, entry.get(other)) if isinstance(entry, Mapping) else None
    if not isinstance(value, int):
        names = f"{name!r} or {other!r}" if other else repr(name)
        raise DataError(f"{path}: an item of SID {key} is {str(entry)[:80]}, without a whole number as {names}.")
    return value
