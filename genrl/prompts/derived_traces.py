"""Traces from the history alone: what recent items say of the next one, counted on training pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.prompts.traces import Trace, in_blocks

Array = np.ndarray
Kind = Literal["derived", "evidence", "candidates"]
KINDS: tuple[Kind, ...] = ("derived", "evidence", "candidates")

REACH = 3
"""Recent items that are looked at."""
GAIN = 0.01
"""Share of pairs that must be guessed better for an attribute to be said, or for a second clue to be."""
NOTHING = "none"
"""Value of an attribute that an item does not have, and of an item that is not there."""
CHUNK = 4096


@dataclass(frozen=True)
class Clue:
    """An attribute of a recent item."""

    attribute: str
    back: int
    """1: of the latest item; 2: of the one before; ..."""

    def __str__(self) -> str:
        return f"{self.attribute} of item {-self.back}"


@dataclass(frozen=True)
class Finding:
    """What an attribute of the next item follows from."""

    attribute: str
    clues: tuple[Clue, ...]
    """One or two."""
    right: float
    """Share of held-out pairs that these guess right."""
    usual: float
    """Share that the most frequent value gets right."""


def derived_traces(
    dataset: Dataset, positions: Tensor, pairs: Tensor, levels: int, kind: Kind = "derived"
) -> list[Trace]:
    """Traces of K blocks for the targets at `positions` [P], in their order.

    For every attribute of items that follows from recent ones, the best clue or pair of clues is found (`mine`), and a
    trace says, always in the same order:

    - `derived`: the clues' values, and what mostly follows them: "Tea Amber Pans";
    - `evidence`: the clues' values alone: "Tea Amber";
    - `candidates`: what mostly follows, and the value that the history holds most often: "Pans Tea".

    What mostly follows is counted over all `pairs` but the position's own, so that no trace can copy its target.

    Args:
        dataset: with items that have categories or attributes.
        positions: training positions [P].
        pairs: positions that are counted [N], all of training.
        levels: K.
        kind: what is said.

    Raises:
        DataError: if items have no attributes, or none follows from recent items.
    """
    values = attributes(dataset.catalog)
    findings = mine(dataset, pairs)
    counted, asked = _looks(dataset, values, pairs), _looks(dataset, values, positions)
    own = np.isin(positions.numpy(), pairs.numpy())
    usual = {name: _favourites(dataset, number, positions) for name, number in values.items()}
    parts = [_said(finding, kind, values, counted, asked, own, usual[finding.attribute]) for finding in findings]
    rows = zip(positions.tolist(), zip(*parts, strict=True), strict=True)
    return [Trace(place, in_blocks(said, levels)) for place, said in rows]


def attributes(catalog: Catalog) -> dict[str, tuple[Array, list[str]]]:
    """Attribute -> value of each item [I] as an index, and the names of the values; the last one is `NOTHING`."""
    category = [catalog.category_names[number] if number >= 0 else "" for number in catalog.categories.tolist()]
    found = {}
    for name, texts in ({"category": category} | catalog.attributes).items():
        names = sorted({text for text in texts if text})
        if len(names) > 1:
            index = {text: number for number, text in enumerate(names)}
            numbers = np.array([index.get(text, len(names)) for text in texts])
            found[name] = numbers, [*(" ".join(text.split()) for text in names), NOTHING]
    return found


def mine(dataset: Dataset, pairs: Tensor) -> list[Finding]:
    """What each attribute of the items at `pairs` [N] follows from; those that follow from nothing are left out.

    All attributes of the latest `REACH` items are tried as clues, alone and in twos: tables are counted over one half
    of the users and judged on the other half.

    Raises:
        DataError: if nothing is found.
    """
    values = attributes(dataset.catalog)
    looks = _looks(dataset, values, pairs)
    learns = (dataset.sequences.users(pairs) % 2 == 0).numpy()
    clues = [Clue(name, back) for back in range(1, REACH + 1) for name in values]
    findings = []
    for name, (_, names) in values.items():
        target = looks[Clue(name, 0)]
        usual = _right((), looks, target, len(names), learns)
        one, best = max((_right((clue,), looks, target, len(names), learns), -n) for n, clue in enumerate(clues))
        chosen: tuple[Clue, ...] = (clues[-best],)
        two, number = max(
            (_right(both, looks, target, len(names), learns), -n) for n, both in enumerate(combinations(clues, 2))
        )
        if two >= one + GAIN:
            one, chosen = two, list(combinations(clues, 2))[-number]
        if one >= usual + GAIN:
            findings.append(Finding(name, chosen, one, usual))
    if not findings:
        known = ", ".join(values) or "no category and no attributes"
        raise DataError(
            f"no attribute of an item follows from those of the {REACH} items before it (items have: {known}). Name "
            f"columns in data.columns.attributes, or choose activate.traces=template."
        )
    return findings


Looks = dict[Clue, Array]
"""Clue -> its value for each position [N]; `back` 0 is the target itself."""


def _looks(dataset: Dataset, values: dict[str, tuple[Array, list[str]]], positions: Tensor) -> Looks:
    histories = dataset.sequences.histories(positions, REACH).numpy()
    items = np.concatenate([histories, dataset.sequences.items[positions].numpy()[:, None]], axis=1)
    found: Looks = {}
    for name, (numbers, names) in values.items():
        seen = np.where(items >= 0, numbers[items], len(names) - 1)
        found |= {Clue(name, back): seen[:, -1 - back] for back in range(REACH + 1)}
    return found


def _right(clues: tuple[Clue, ...], looks: Looks, target: Array, size: int, learns: Array) -> float:
    """Share of the pairs that are not learned from whose target is what mostly follows these clues."""
    cells, cell = _cells(clues, looks)
    counts = np.zeros((cells, size), np.int64)
    np.add.at(counts, (cell[learns], target[learns]), 1)
    usual = int(np.bincount(target[learns], minlength=size).argmax())
    guess = np.where(counts.any(1), counts.argmax(1), usual)
    return float((guess[cell[~learns]] == target[~learns]).mean())


def _cells(clues: tuple[Clue, ...], *looks: Looks) -> tuple[int, Array]:
    """Number the combinations of clues that occur, from 0."""
    columns = [np.concatenate([look[clue] for look in looks]) for clue in clues]
    if not columns:
        return 1, np.zeros(len(next(iter(looks[0].values()))), np.int64)
    key = columns[0].astype(np.int64)
    for column in columns[1:]:
        key = key * (int(column.max()) + 1) + column
    values, cell = np.unique(key, return_inverse=True)
    return len(values), cell


def _said(
    finding: Finding,
    kind: Kind,
    values: dict[str, tuple[Array, list[str]]],
    counted: Looks,
    asked: Looks,
    own: Array,
    favourites: Array,
) -> Iterator[Sequence[str]]:
    """Words about one attribute for each position that is asked for."""
    names = values[finding.attribute][1]
    evidence = [[values[clue.attribute][1][number] for number in asked[clue].tolist()] for clue in finding.clues]
    follows = [names[number] for number in _votes(finding, len(names), counted, asked, own).tolist()]
    for place, word in enumerate(follows):
        clues = [column[place] for column in evidence]
        said = {"derived": [*clues, word], "evidence": clues, "candidates": [word, names[favourites[place]]]}
        yield said[kind]


def _favourites(dataset: Dataset, value: tuple[Array, list[str]], positions: Tensor) -> Array:
    """Most frequent value of an attribute in the history of each position, the first by name of equal ones."""
    sequences, (numbers, names) = dataset.sequences, value
    found = []
    for chunk in positions.split(CHUNK):
        longest = int(sequences.seen(chunk).max())
        history = sequences.histories(chunk, max(longest, 1)).numpy()
        rows, places = np.nonzero(history >= 0)
        counts = np.zeros((len(chunk), len(names)), np.int64)
        np.add.at(counts, (rows, numbers[history[rows, places]]), 1)
        counts[:, -1] = 0
        found.append(np.where(counts.any(1), counts.argmax(1), len(names) - 1))
    return np.concatenate(found)


def _votes(finding: Finding, size: int, counted: Looks, asked: Looks, own: Array) -> Array:
    """What mostly follows the clues of each position that is asked for, its own pair not counted."""
    cells, cell = _cells(finding.clues, counted, asked)
    learned, wanted = cell[: -len(own)], cell[-len(own) :]
    target = counted[Clue(finding.attribute, 0)]
    counts = csr_matrix((np.ones(len(target), np.int64), (learned, target)), shape=(cells, size))
    total = np.bincount(target, minlength=size)
    itself = asked[Clue(finding.attribute, 0)]
    votes = []
    for start in range(0, len(wanted), CHUNK):
        part = slice(start, start + CHUNK)
        seen = counts[wanted[part]].toarray()
        seen[np.arange(len(seen)), itself[part]] -= own[part]
        votes.append(np.where(seen.any(1), seen.argmax(1), total.argmax()))
    return np.concatenate(votes)
