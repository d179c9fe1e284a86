"""Imports a published SID index: JSON {item id: [code token, ...]}."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.given import json_of, regular
from genrl.options import option
from genrl.sid.registry import SID_BUILDERS, SidConfig
from genrl.sid.table import SidTable, make_table

Index = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class ImportConfig(SidConfig):
    """Options of `import`."""

    path: str = option(says="give the JSON file {item id: [code, ...]}")
    """JSON {item id: [code token, ...]}."""


@SID_BUILDERS.register("import", config=ImportConfig, title="published SID index (JSON)")
def published(config: ImportConfig, dataset: Dataset) -> SidTable:
    """Read the index at `config.path`; levels and codebook sizes are those of the file.

    Raises:
        DataError: if the file cannot be read or does not fit the catalogue.
    """
    path = regular(config.path, "sid.path")
    index = _read(path)
    _check_items(path, index, dataset.catalog)
    codes, sizes = _codes([index[item_id] for item_id in dataset.catalog.item_ids])
    return make_table(codes, sizes, dataset.catalog, config.collisions)


def _read(path: Path) -> Index:
    content = json_of(path, "sid.path", lambda pairs: _object(path, pairs))
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: no JSON object of items. Expected {{item id: [code, ...]}}.")
    return {item_id: _tokens(path, item_id, tokens) for item_id, tokens in content.items()}


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: item {twice!r} is there twice. Keep one entry per item.")
    return content


def _tokens(path: Path, item_id: str, tokens: object) -> list[str]:
    """Code tokens of one item as text; whole numbers are welcome too."""
    fits = isinstance(tokens, list) and tokens and all(type(token) in (str, int) for token in tokens)
    if not fits:
        raise DataError(
            f'{path}: item {item_id!r} has {tokens!r}. Expected a list of codes such as ["<a_1>", "<b_2>"].'
        )
    return [str(token) for token in tokens]  # type: ignore[attr-defined]


def _check_items(path: Path, index: Index, catalog: Catalog) -> None:
    missing = [item_id for item_id in catalog.item_ids if item_id not in index]
    known = set(catalog.item_ids)
    extra = [item_id for item_id in index if item_id not in known]
    if missing or extra:
        example = f"item {missing[0]!r} has no SID" if missing else f"item {extra[0]!r} is not in the catalogue"
        raise DataError(
            f"{path}: the index of another catalogue: {example}. {len(missing):,} of {len(catalog):,} catalogue items "
            f"are missing, {len(extra):,} of {len(index):,} entries are extra. Use the index made for data.items (a "
            f"k-core filter changes the catalogue too)."
        )
    lengths = {len(tokens) for tokens in index.values()}
    if len(lengths) > 1:
        usual = len(index[catalog.item_ids[0]])
        odd = next(item_id for item_id, tokens in index.items() if len(tokens) != usual)
        raise DataError(
            f"{path}: item {odd!r} has {len(index[odd])} codes, item {catalog.item_ids[0]!r} has {usual}. "
            f"All items need the same number of codes."
        )


def _codes(rows: list[list[str]]) -> tuple[Tensor, tuple[int, ...]]:
    """Number the tokens of each level from 0, in their own order: <a_2> comes before <a_10>."""
    levels, sizes = [], []
    for level in zip(*rows, strict=True):
        names = sorted(set(level), key=_order)
        number = {name: code for code, name in enumerate(names)}
        levels.append(torch.tensor([number[name] for name in level], dtype=torch.int64))
        sizes.append(len(names))
    return torch.stack(levels, dim=1), tuple(sizes)


def _order(token: str) -> tuple[str, int, str, str]:
    """Sort key: the letters, then the last number of the token, which may have any number of digits."""
    found = re.search(r"([0-9]+)[^0-9]*$", token)
    digits = found[1].lstrip("0") if found else ""
    return (token[: found.start()], len(digits), digits, token) if found else (token, -1, "", token)
