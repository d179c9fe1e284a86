"""The catalogue: every item that can be recommended, by row number."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from genrl.errors import ConfigError, DataError, suggest
from genrl.ops import expect


@dataclass(frozen=True, eq=False)
class Catalog:
    """All items of a data set; everything else names an item by its row here.

    Example:
        >>> catalog = Catalog.from_table(["b7", "b9"], ["Red lipstick", "Blue soap"], ["Makeup", "Bath"])
        >>> catalog.row("b9"), catalog.category_names
        (1, ('Bath', 'Makeup'))
    """

    item_ids: tuple[str, ...]
    """External ids; an item's row is its index here."""
    titles: tuple[str, ...]
    """Titles, "" where unknown."""
    categories: Tensor
    """[I] int64 index into `category_names` (the level that Entropy@K is taken over); -1 unknown."""
    category_names: tuple[str, ...]
    """Names of the categories, sorted."""
    texts: tuple[str, ...]
    """Title, category and further text columns of each item, for text embeddings."""
    train_counts: Tensor
    """[I] int64 interactions in the training part (roles TRAIN and RL)."""
    cold: Tensor
    """[I] bool: the items that count as cold in Cold-Recall@K."""
    attributes: dict[str, list[str]] = field(default_factory=dict)
    """Column of `data.columns.attributes` -> [I] its texts, "" where unknown."""

    def __post_init__(self) -> None:
        size = len(self.item_ids)
        expect(self.categories, "Catalog.categories", (size,), torch.int64)
        expect(self.train_counts, "Catalog.train_counts", (size,), torch.int64)
        expect(self.cold, "Catalog.cold", (size,), torch.bool)
        if len(self.titles) != size or len(self.texts) != size:
            raise ValueError(f"Catalog has {size} ids, {len(self.titles)} titles and {len(self.texts)} texts")
        for name, values in self.attributes.items():
            if len(values) != size:
                raise ValueError(f"Catalog has {size} ids and {len(values)} values of attribute {name!r}")

    @classmethod
    def from_table(
        cls,
        item_ids: Sequence[str],
        titles: Sequence[str] | None = None,
        categories: Sequence[str | None] | None = None,
        texts: Sequence[str] | None = None,
        train_counts: Tensor | None = None,
        cold: Tensor | None = None,
        attributes: Mapping[str, list[str]] | None = None,
    ) -> Catalog:
        """Build a catalogue from plain columns; what is left out is unknown, zero or not cold.

        Raises:
            DataError: if two items have the same id.
        """
        size = len(item_ids)
        dense, names = numbered(categories or [None] * size)
        _refuse_duplicates(item_ids)
        return cls(
            item_ids=tuple(item_ids),
            titles=tuple(titles) if titles else ("",) * size,
            categories=dense,
            category_names=names,
            texts=tuple(texts or titles or ("",) * size),
            train_counts=torch.zeros(size, dtype=torch.int64) if train_counts is None else train_counts,
            cold=torch.zeros(size, dtype=torch.bool) if cold is None else cold,
            attributes=dict(attributes or {}),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def level(self, column: str | None) -> Tensor:
        """Number [I] of each item's value in a column of `attributes`, in the order of the values; -1 unknown.

        None stands for `categories`.

        Raises:
            ConfigError: if there is no such column.
        """
        return self.categories if column is None else column_numbers(self.attributes, column)

    def row(self, item_id: str) -> int:
        """Row of an external id.

        Raises:
            DataError: if there is no such item, with the closest id.
        """
        row = self._rows.get(item_id)
        if row is None:
            raise DataError(
                f"item {item_id!r} is not in the catalogue ({len(self):,} items).{suggest(item_id, self.item_ids)} "
                f"Use an id of the item table."
            )
        return row

    def row_of(self, text: str) -> int:
        """Row of the item that a person means: that with this id, else that with exactly this title.

        Raises:
            DataError: if there is none, with the closest ids and titles, or if several items have this title.

        Example:
            >>> catalog = Catalog.from_table(["b7", "b9"], ["Red lipstick", "b7"])
            >>> catalog.row_of("b7"), catalog.row_of("Red lipstick"), catalog.row_of("b9")
            (0, 0, 1)
        """
        if text in self._rows:
            return self._rows[text]
        rows = self._titled.get(" ".join(text.split()), [])
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise DataError(f"title {text!r} is shared by {len(rows):,} items: {self._named(rows)}. Give an id.")
        names = difflib.get_close_matches(text, [*self.item_ids, *self._titled], n=3)
        close = dict.fromkeys(row for name in names for row in [self._rows.get(name, -1), *self._titled.get(name, [])])
        hint = self._named([row for row in close if row >= 0])
        raise DataError(
            f"{text!r} is neither an id nor a title of the catalogue ({len(self):,} items)."
            f"{f' Close to it: {hint}.' if hint else ''} Give an item id, or a whole title of the item table."
        )

    def _named(self, rows: list[int], most: int = 5) -> str:
        shown = [f"{self.item_ids[row]!r}" + f" ({self.titles[row]})" * bool(self.titles[row]) for row in rows[:most]]
        return ", ".join(shown) + f" and {len(rows) - most:,} more" * (len(rows) > most)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _titled(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles):
            if title:
                rows.setdefault(title, []).append(row)
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when an id, a title, a category, a text or the order of the items changes."""
        names = [self.category_names[number] if number >= 0 else "" for number in self.categories.tolist()]
        digest = hashlib.sha256()
        for column in (self.item_ids, self.titles, names, self.texts):
            digest.update("\x1e".join(column).encode("utf-8", "surrogatepass") + b"\x1d")
        return digest.hexdigest()[:16]


def numbered(names: Sequence[str | None]) -> tuple[Tensor, tuple[str, ...]]:
    """Number names in sorted order: [n] int64, -1 for None and "", and the names.

    Example:
        >>> numbered(["soap", "", "brush", "soap"])
        (tensor([ 1, -1,  0,  1]), ('brush', 'soap'))
    """
    known = tuple(sorted({name for name in names if name}))
    index = {name: number for number, name in enumerate(known)}
    return torch.tensor([index.get(name or "", -1) for name in names], dtype=torch.int64), known


def column_numbers(attributes: Mapping[str, Sequence[str]], column: str) -> Tensor:
    """Number [I] of each item's value in one of the columns `attributes`, -1 unknown.

    Raises:
        ConfigError: if there is no such column.
    """
    if column not in attributes:
        raise ConfigError(
            f"there is no item column {column!r}.{suggest(column, attributes)} "
            f"Kept: {', '.join(attributes) or 'none'}. Name it in data.columns.attributes."
        )
    return numbered(attributes[column])[0]


def cold_items(train_counts: Tensor, fraction: float, rule: Literal["rank", "percentile_value"] = "rank") -> Tensor:
    """Mark the given fraction of items that are least frequent in training, [I] bool (methods.md, section 15).

    `rank` takes the first ceil(fraction * I) items in order of (training count, row). `percentile_value` takes every
    item whose count is at most the fraction-quantile of the counts; with many equal counts that is a far larger set.

    Example:
        >>> cold_items(torch.tensor([4, 1, 1, 9]), 0.25).tolist()
        [False, True, False, False]
        >>> cold_items(torch.tensor([4, 1, 1, 9]), 0.25, "percentile_value").tolist()
        [False, True, True, False]
    """
    order = torch.argsort(train_counts, stable=True)
    share = math.ceil(fraction * len(train_counts) - 1e-9)  # 0.07 * 100 is a little above 7 in floating point
    if share and rule == "percentile_value":
        return train_counts <= train_counts[order[share - 1]]
    return torch.zeros(len(train_counts), dtype=torch.bool).index_fill_(0, order[:share], True)


def _refuse_duplicates(item_ids: Sequence[str]) -> None:
    name, count = max(Counter(item_ids).items(), key=lambda pair: pair[1], default=("", 0))
    if count > 1:
        raise DataError(f"the catalogue has item {name!r} twice. Keep one row per item.")
