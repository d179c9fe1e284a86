"""Traces made from the catalogue alone: what each level of a SID stands for, and what in the history speaks for it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.errors import ConfigError
from genrl.progress import progress_bar
from genrl.prompts.traces import RUN, Trace, function_words, words_of, written_words
from genrl.sid.table import SidTable, places_within

COUNT, LATEST = 3, 2
"""Words of "3 of 8" and of "last Polish"."""
ENOUGH = 3
"""Words for what a code stands for that are worth more than the latest item."""
SHARE = 0.5
"""More than that share of a cluster's items have a category or a word that stands for it."""
RANKS = ("favourite", "popular", "usual", "rare")
"""Popularity of a cluster among those with the same prefix: the first, and the thirds of the rest."""
ONLY = "only"
"""Instead of them, where there is one choice."""
OWN = frozenset(("of", "last", "new", ONLY, *RANKS))
"""Words that the template adds."""
CHUNK = 4096
SLOW = 100_000
"""Positions from which a progress bar is shown."""

Array = np.ndarray


def template_traces(
    dataset: Dataset, table: SidTable, positions: Tensor | Sequence[int], max_history: int, words: int = 8
) -> list[Trace]:
    """Traces of K blocks of at most so many words for the targets at `positions` [P], in their order.

    Block k is "WHAT: EVIDENCE". WHAT are categories and words that most items with the target's first k codes have, and
    more often than those with its first k - 1 codes, as far as no block before says them. Where there are none, it is
    how popular the cluster is among its siblings (`RANKS`), or `ONLY`. EVIDENCE is how many items of the history share
    the k codes, from 8 words on with a word of the latest of them; or "new", at the first level with the number of
    items of the same category.

    A word is said only if two items of the cluster above have it, and a trace says less than half of the words of its
    target's title, or at most three and not all.

    Raises:
        ConfigError: if `words` is below 4, which leaves no room for what a code stands for.
    """
    template, sequences = Template(dataset.catalog, table, words), dataset.sequences
    places = torch.as_tensor(positions, dtype=torch.int64)
    traces: list[Trace] = []
    bar = progress_bar("making traces", len(places), "traces") if len(places) >= SLOW else nullcontext(lambda _: None)
    with bar as advance:
        for chunk in places.split(CHUNK):
            blocks = template.blocks(sequences.items[chunk], sequences.histories(chunk, max(max_history, 1)))
            traces += [Trace(*pair) for pair in zip(chunk.tolist(), blocks, strict=True)]
            advance(len(chunk))
    return traces


@dataclass(frozen=True)
class _Phrase:
    """A category or a word that stands for a cluster."""

    text: str
    stems: frozenset[str]
    size: int
    """Words in it."""


@dataclass(frozen=True, eq=False)
class _Level:
    """The clusters that prefixes of one length make."""

    groups: Tensor
    """[I] cluster of each item."""
    phrases: list[tuple[_Phrase, ...]]
    """What stands for each cluster, the most telling first."""
    categories: list[int]
    """The most telling category of each cluster, also where there is no room for it; -1 for none."""
    ranks: list[str]
    """How popular each cluster is among its siblings."""


@dataclass(frozen=True)
class _Item:
    """What the traces of one target may say."""

    what: tuple[str, ...]
    """What its K clusters are; all empty where any word would be one too many of the title."""
    stems: tuple[frozenset[str], ...]
    """Stems in each of them."""
    secret: frozenset[str]
    """Stems of the title that must not be added."""
    category: int
    """The category that counts as evidence where no item shares the first code; -1 for none."""


class Template:
    """Writes blocks about items; the clusters of every level and what may be said of each item are found once."""

    def __init__(self, catalog: Catalog, table: SidTable, words: int) -> None:
        if words <= COUNT:
            raise ConfigError(f"a template trace needs at least {COUNT + 1} words per block, not {words}.")
        self.catalog = catalog
        self.shows_latest = words >= ENOUGH + COUNT + LATEST
        evidence = COUNT + LATEST * self.shows_latest
        self.kin_room = evidence - 2
        self.levels = _levels(self.catalog, table.codes, words - evidence)
        self._items: dict[int, _Item] = {}

    def blocks(self, targets: Tensor, histories: Tensor) -> list[tuple[str, ...]]:
        """K blocks about each target [P], with the evidence for it in histories [P, H] (-1 pads)."""
        known, seen = histories >= 0, histories.clamp(min=0)
        items = [self._item(row) for row in targets.tolist()]
        shared, latest = [], []
        for level in self.levels:
            same = (level.groups[seen] == level.groups[targets][:, None]) & known
            last = same.shape[1] - 1 - same.flip(1).int().argmax(1)
            shared.append(same.sum(1))
            latest.append(seen.gather(1, last[:, None])[:, 0])
        categories = torch.tensor([item.category for item in items], dtype=torch.int64)
        kin = ((self.catalog.categories[seen] == categories[:, None]) & known & (categories >= 0)[:, None]).sum(1)
        columns = (known.sum(1), kin, torch.stack(shared, dim=1), torch.stack(latest, dim=1))
        rows = zip(items, *(column.tolist() for column in columns), strict=True)
        return [tuple(self._blocks(*evidence)) for evidence in rows]

    def _blocks(self, item: _Item, total: int, kin: int, shared: Sequence[int], latest: Sequence[int]) -> Iterator[str]:
        """The K blocks; of `total` items in the history `kin` have the category and `shared` each cluster."""
        for level, (what, count, row) in enumerate(zip(item.what, shared, latest, strict=True)):
            if not what:
                yield f"{count} of {total}"
            elif count:
                yield f"{what}: {count} of {total}{self._word_of(row, level, item)}"
            elif kin and level == 0:
                yield f"{what}: new, {kin} {self.catalog.category_names[item.category]}"
            else:
                yield f"{what}: new"

    def _word_of(self, row: int, level: int, item: _Item) -> str:
        """What an item of the history is, among those that share a prefix with the target."""
        if self.shows_latest and level + 1 < len(self.levels):
            below = self.levels[level + 1]
            for phrase in below.phrases[int(below.groups[row])]:
                if phrase.size == 1 and not phrase.stems & (item.stems[level] | item.secret):
                    return f", last {phrase.text}"
        return ""

    def _item(self, row: int) -> _Item:
        if row not in self._items:
            self._items[row] = self._describe(row)
        return self._items[row]

    def _describe(self, row: int) -> _Item:
        title = words_of(self.catalog.titles[row])
        content = frozenset(_stem(word) for word in title if _telling(word)) or frozenset(title)
        left = _sayable(len(content)) - len(content & OWN)
        if content and left < 0:
            nothing = frozenset[str]()
            return _Item(("",) * len(self.levels), (nothing,) * len(self.levels), content, -1)
        said: set[str] = set()
        what, stems = [], []
        for level in self.levels:
            group = int(level.groups[row])
            chosen = []
            for phrase in level.phrases[group]:
                given = (phrase.stems & content) - OWN
                if len(said | given) <= left:
                    said |= given
                    chosen.append(phrase)
            what.append(" ".join(phrase.text for phrase in chosen) or level.ranks[group])
            stems.append(frozenset[str]().union(*(phrase.stems for phrase in chosen)))
        secret = content - said
        first = self.levels[0]
        category = first.categories[int(first.groups[row])]
        if category >= 0:
            phrase = _category_phrase(self.catalog.category_names[category])
            category = -1 if phrase.stems & secret or phrase.size > self.kin_room else category
        return _Item(tuple(what), tuple(stems), secret, category)


def _sayable(content: int) -> int:
    """How many of the telling words of a title a trace may say, so that no run of them names it (see `LeakCheck`)."""
    return max(min(content, RUN) - 1, (content - 1) // 2)


def _telling(word: str) -> bool:
    """Whether a word can stand for a cluster: no number or size, no function word, no one or two letters."""
    if any(map(str.isdigit, word)) or word.casefold() in function_words():
        return False
    return len(word) > 2 or not word.isascii()


def _stem(word: str) -> str:
    """A word without its plural s, so that Nail and Nails are not both said."""
    return word.removesuffix("s") if len(word) > 3 else word


def _levels(catalog: Catalog, codes: Tensor, room: int) -> list[_Level]:
    """The clusters of each level, with at most `room` words for each."""
    stems, surfaces, holders = _vocabulary(catalog.texts)
    names = [_category_phrase(name) for name in catalog.category_names]
    phrases = [*names, *(_Phrase(text, frozenset((stem,)), 1) for stem, text in zip(stems, surfaces, strict=True))]
    features = hstack([_one_hot(catalog.categories, len(names)), holders], format="csr")
    levels: list[_Level] = []
    above = torch.zeros(len(codes), dtype=torch.int64)
    said: list[frozenset[str]] = [frozenset()]
    for length in range(1, codes.shape[1] + 1):
        _, groups = torch.unique(codes[:, :length], dim=0, return_inverse=True)
        parents = torch.zeros(int(groups.max()) + 1, dtype=torch.int64).scatter_(0, groups, above)
        candidates = [found.tolist() for found in _telling_features(features, groups, above, parents)]
        categories = [next((n for n in found if n < len(names)), -1) for found in candidates]
        chosen = [
            _choose([phrases[number] for number in found], said[parent], room)
            for parent, found in zip(parents.tolist(), candidates, strict=True)
        ]
        told = [tuple(words) for words, _ in chosen]
        levels.append(_Level(groups, told, categories, _ranks(groups, parents, catalog.train_counts)))
        above, said = groups, [known for _, known in chosen]
    return levels


def _choose(candidates: Sequence[_Phrase], said: frozenset[str], room: int) -> tuple[list[_Phrase], frozenset[str]]:
    """Phrases that fit into `room` words and say something new, and all that is said with them."""
    chosen: list[_Phrase] = []
    for phrase in candidates:
        apart = [other for other in chosen if not other.stems <= phrase.stems]  # "Skin" is part of "Skin Care"
        if sum(other.size for other in apart) + phrase.size <= room and not phrase.stems <= said:
            chosen = [*apart, phrase]
            said |= phrase.stems
    return chosen, said


def _category_phrase(name: str) -> _Phrase:
    words = words_of(name)
    return _Phrase(name, frozenset(map(_stem, words)), len(words))


def _vocabulary(texts: Sequence[str]) -> tuple[list[str], list[str], csr_matrix]:
    """Telling words of all items: their stems, sorted; how each is mostly written; the items [I, V] that have it."""
    written: dict[str, Counter[str]] = defaultdict(Counter)
    rows: list[set[str]] = []
    for text in texts:
        words = [(_stem(word.casefold()), word) for word in written_words(text) if _telling(word)]
        rows.append({stem for stem, _ in words})
        for stem, word in words:
            written[stem][word] += 1
    stems = sorted(written)
    surfaces = [min(written[stem].items(), key=lambda pair: (-pair[1], pair[0]))[0] for stem in stems]
    index = {stem: number for number, stem in enumerate(stems)}
    columns = [index[stem] for row in rows for stem in row]
    starts = np.cumsum([0, *map(len, rows)])
    return stems, surfaces, csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(stems)))


def _one_hot(numbers: Tensor, size: int) -> csr_matrix:
    """Matrix [I, size] with a one in the column of each number; -1 has none."""
    rows = torch.nonzero(numbers >= 0).flatten()
    return csr_matrix((np.ones(len(rows)), (rows.numpy(), numbers[rows].numpy())), shape=(len(numbers), size))


def _telling_features(features: csr_matrix, groups: Tensor, above: Tensor, parents: Tensor) -> Iterator[Array]:
    """Features [I, F] (zeros and ones) that stand for each cluster, the most telling first.

    They are more frequent in the cluster than in the one above, more than `SHARE` of its items have them, and so have
    two items of the cluster above. How telling they are is their part in the divergence of the two,
    share * log(share / share above); equal ones come in the order of columns. An item is in `groups` [I], on the level
    above in `above` [I]; `parents` [G] are the clusters above each cluster.
    """
    sizes, sizes_above = np.bincount(groups), np.bincount(above)
    counts = _one_hot(groups, len(sizes)).T.tocsr() @ features
    counts_above = _one_hot(above, len(sizes_above)).T.tocsr() @ features
    counts.sort_indices()
    counts_above.sort_indices()
    rows = np.repeat(np.arange(len(sizes)), np.diff(counts.indptr))
    rows_above = np.repeat(np.arange(len(sizes_above)), np.diff(counts_above.indptr))
    wide = features.shape[1]
    wanted = parents.numpy()[rows] * wide + counts.indices
    found = np.searchsorted(rows_above * wide + counts_above.indices, wanted)
    holders_above = counts_above.data[found]
    share = counts.data / sizes[rows]
    share_above = holders_above / sizes_above[parents.numpy()[rows]]
    kept = (share > share_above) & (share > SHARE) & (holders_above >= 2)
    score = share[kept] * np.log(share[kept] / share_above[kept])
    order = np.lexsort((counts.indices[kept], -score, rows[kept]))
    starts = np.searchsorted(rows[kept][order], np.arange(1, len(sizes)))
    yield from np.split(counts.indices[kept][order], starts)


def _ranks(groups: Tensor, parents: Tensor, counts: Tensor) -> list[str]:
    """How popular each cluster is among those with the same parent, by training interactions."""
    totals = torch.zeros(len(parents), dtype=torch.int64).index_add_(0, groups, counts)
    places, siblings = places_within(parents, totals).tolist(), torch.bincount(parents)[parents].tolist()
    return [
        ONLY if many == 1 else RANKS[1 + place * 3 // many if place else 0]
        for place, many in zip(places, siblings, strict=True)
    ]
