"""Traces: what a model is taught to think before it names an item, one text per SID level."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.errors import DataError
from genrl.given import lines_of
from genrl.prompts.places import Places, record_of
from genrl.sid.table import SidTable

WORD = re.compile(r"[^\W_]+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
TAGS = re.compile(r"</?think>", re.IGNORECASE)
KINDS = ("title", "item id", "SID token")
"""What of a target a trace may give away."""
RUN = 4
"""Words of a title in a row that name it, if they are half of it; a shorter title must stand there whole."""
SAME = 0.98
"""A word depends on the target alone if so many pairs of traces of one target that may share it do ..."""
OTHERS = 0.5
"""... and no more of the traces of other targets have it."""
PAIRS = 50
"""Pairs of traces that a word is judged by at least."""
MANY = 0.5
"""Share of traces with such a word from which they are said to be read off their targets."""
COMMON = 10
"""A title of one word is not looked for if more items than that, and more than 1%, have the word in their text."""


@dataclass(frozen=True)
class Trace:
    """The thinking before one target."""

    position: int
    """Position of the target in `dataset.sequences`; its history is what stands before it."""
    blocks: tuple[str, ...]
    """K texts, one per SID level; a text may be empty."""


@dataclass(frozen=True)
class LeakReport:
    """Which traces give their target away; numbers are places in the list that was checked."""

    checked: int
    """Traces."""
    found: Mapping[str, tuple[int, ...]]
    """What is named (`KINDS`) -> the traces that do; a trace may do several."""
    unchecked: int
    """Traces whose target's title was not looked for: it is unknown, or one common word."""
    example: str
    """The first leak, in words; "" without one."""
    told: tuple[str, ...] = ()
    """Words that stand in a trace whenever they stand in another one of the same target, most frequent first."""
    telling: float = 0.0
    """Share of the traces with such a word."""

    @property
    def leaking(self) -> tuple[int, ...]:
        """Traces with any leak, ascending."""
        return tuple(sorted({place for places in self.found.values() for place in places}))

    def line(self) -> str:
        """The report in one line."""
        kinds = ", ".join(f"{kind}: {len(places):,}" for kind, places in self.found.items() if places)
        named = f" ({kinds}; first: {self.example})" if self.example else ""
        left = f"; {self.unchecked:,} titles unknown or too common to look for" if self.unchecked else ""
        return f"{len(self.leaking):,} of {self.checked:,} traces name their target{named}{left}"

    def reading(self) -> str:
        """Whether the traces can be read off their targets, in words; "" if they cannot."""
        if self.telling < MANY:
            return ""
        words = ", ".join(self.told[:5])
        return (
            f"{self.telling:.0%} of {self.checked:,} traces say words that depend on nothing but the target ({words} "
            f"...): they describe what the user chose, which is not known when the policy thinks, and teach it to "
            f"guess. Take traces that follow from the history: activate.traces=derived"
        )


def words_of(text: str) -> list[str]:
    """Words of a text, without case and punctuation.

    Example:
        >>> words_of("O.P.I's Nail-Lacquer")
        ['o', 'p', 'i', 's', 'nail', 'lacquer']
    """
    return [word.casefold() for word in written_words(text)]


def written_words(text: str) -> list[str]:
    """Words of a text as they are written, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text))


@cache
def function_words() -> frozenset[str]:
    """English words that tell nothing: and, the, for ..."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def split_text(text: str, blocks: int) -> tuple[str, ...]:
    """Cut a text at ends of sentences into blocks of equally many sentences; the first blocks take what is left over.

    Example:
        >>> split_text("She buys polish. It is red! Which brand? OPI.", 3)
        ('She buys polish. It is red!', 'Which brand?', 'OPI.')
        >>> split_text("She buys polish.", 2)
        ('She buys polish.', '')
    """
    sentences = [_one_line(sentence) for sentence in SENTENCE_END.split(text) if sentence.strip()]
    each, more = divmod(len(sentences), blocks)
    cuts = accumulate((each + (block < more) for block in range(blocks)), initial=0)
    return tuple(" ".join(sentences[start:stop]) for start, stop in pairwise(cuts))


def in_blocks(parts: Sequence[Sequence[str]], levels: int) -> tuple[str, ...]:
    """Words of each conclusion as K blocks: what is too much goes into the last, missing ones repeat the last word.

    Example:
        >>> in_blocks((["red", "pie"], ["large"]), 3)
        ('red pie', 'large', 'large')
        >>> in_blocks((["red", "pie"], ["large"]), 1)
        ('red pie large',)
    """
    blocks = [list(part) for part in parts[:levels]]
    for part in parts[levels:]:
        blocks[-1] += part
    blocks += [blocks[-1][-1:]] * (levels - len(blocks))
    return tuple(" ".join(block) for block in blocks)


def trace_positions(dataset: Dataset) -> Tensor:
    """Training positions that a line of a file of traces can name, ascending: [P] int64.

    Where a user has an item several times in the training part, that is the latest one.
    """
    return Places(dataset, (Role.TRAIN,), "trace").nameable()


def read_traces(path: str | Path, dataset: Dataset, levels: int) -> list[Trace]:
    """Read a JSONL file of a teacher's traces, in the order of the file.

    A line is {"user": id, "item": id, "blocks": [K texts]} or {"user": id, "item": id, "text": "..."}; user and item
    name the latest training position of that user with that item. Other keys are ignored; line breaks inside a block
    become spaces.

    Raises:
        DataError: if the file is missing or empty; with the line, if a line cannot be used.
    """
    places = Places(dataset, (Role.TRAIN,), "trace")
    traces = []
    for place, line in lines_of(path, "activate.path"):
        try:
            record = _record(line, levels)
            traces.append(Trace(places(record), _blocks(record, levels)))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if not traces:
        raise DataError(f"{path}: no traces. Write one per line: {_form(levels)}.")
    return traces


def leaks(
    traces: Sequence[Trace], dataset: Dataset, table: SidTable, sid_token: Callable[[int, int], str]
) -> LeakReport:
    """Find the traces that name their target, as `LeakCheck` says."""
    check = LeakCheck(dataset, table, sid_token)
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    unchecked = 0
    example = ""
    for place, trace in enumerate(traces):
        unchecked += not check.title_runs(int(dataset.sequences.items[trace.position]))
        for kind in check.kinds(trace):
            found[kind].append(place)
            example = example or f"{kind} of {check.title_or_id(trace)!r} in {' | '.join(trace.blocks)[:200]!r}"
    told, telling = read_off(traces, dataset.sequences.items)
    named = {kind: tuple(places) for kind, places in found.items()}
    return LeakReport(len(traces), named, unchecked, example, told, telling)


def read_off(traces: Sequence[Trace], items: Tensor) -> tuple[tuple[str, ...], float]:
    """Words of traces that are a function of the target, and the share of the traces with any of them.

    Of two traces of one target, both or neither have such a word in a block, whatever the histories are; of other
    targets' traces most do not. What follows from the history changes with it, even where it mostly leads to the
    target. Words of targets with one trace are not judged.

    Args:
        traces: T.
        items: [N] catalogue row at each position.
    """
    targets = items[[trace.position for trace in traces]].numpy()
    said = [{(block, word) for block, text in enumerate(trace.blocks) for word in words_of(text)} for trace in traces]
    every = Counter(word for words in said for word in words)
    traced = Counter(targets.tolist())
    holders = Counter((target, word) for target, words in zip(targets.tolist(), said, strict=True) for word in words)
    both: Counter[tuple[int, str]] = Counter()
    either: Counter[tuple[int, str]] = Counter()
    for (target, word), count in holders.items():
        both[word] += count * (count - 1)
        either[word] += count * (traced[target] - 1)
    told = {
        word
        for word, pairs in either.items()
        if pairs >= PAIRS and both[word] >= SAME * pairs and every[word] <= OTHERS * len(traces)
    }
    named = dict.fromkeys(word for (block, word), _ in every.most_common() if (block, word) in told)
    return tuple(named), sum(not told.isdisjoint(words) for words in said) / max(len(traces), 1)


class LeakCheck:
    """Looks for the target's title, id and SID tokens in traces.

    - A title is named by all its words in a row, or by half of them in a row if these are `RUN` words or more. Case and
      punctuation do not count. A title of one word is not looked for if it is a number of one or two digits, a function
      word, or `COMMON` in the texts of the catalogue: "It" and "Shampoo" do not tell the item.
    - An id that has letters and digits, or six characters or more, is named wherever it stands as a word. Other ids
      (`17`, `red`) are named only behind "item", "id", "product" or "#".
    - SID tokens are looked for as `sid_token(level, code)` writes them.
    """

    def __init__(self, dataset: Dataset, table: SidTable, sid_token: Callable[[int, int], str]) -> None:
        self.dataset, self.table, self.sid_token = dataset, table, sid_token
        self._runs: dict[int, tuple[str, ...]] = {}

    def kinds(self, trace: Trace) -> tuple[str, ...]:
        """What of its target a trace names: some of `KINDS`."""
        row = int(self.dataset.sequences.items[trace.position])
        text = " ".join(trace.blocks).casefold()
        words = f" {' '.join(words_of(text))} "
        tokens = (self.sid_token(level, code) for level, code in enumerate(self.table.codes[row].tolist()))
        named = (
            any(run in words for run in self.title_runs(row)),
            _names_id(self.dataset.catalog.item_ids[row].casefold(), text),
            any(token.casefold() in text for token in tokens),
        )
        return tuple(kind for kind, is_named in zip(KINDS, named, strict=True) if is_named)

    def title_runs(self, row: int) -> tuple[str, ...]:
        """Runs of words, each between blanks, that name the title of an item; none if it is not looked for."""
        if row not in self._runs:
            words = words_of(self.dataset.catalog.titles[row])
            size = min(len(words), max(RUN, -(-len(words) // 2)))
            starts = range(len(words) - size + 1) if words and not self._is_common(words) else ()
            self._runs[row] = tuple(f" {' '.join(words[start : start + size])} " for start in starts)
        return self._runs[row]

    def title_or_id(self, trace: Trace) -> str:
        """What to call the target of a trace."""
        row = int(self.dataset.sequences.items[trace.position])
        return self.dataset.catalog.titles[row] or self.dataset.catalog.item_ids[row]

    def _is_common(self, words: Sequence[str]) -> bool:
        if len(words) > 1:
            return False
        word = words[0]
        short = word.isdigit() and len(word) < 3
        return short or word in function_words() or self._holders[word] > max(COMMON, len(self.table) / 100)

    @cached_property
    def _holders(self) -> Counter[str]:
        """Word -> items with it in their text."""
        return Counter(word for text in self.dataset.catalog.texts for word in set(words_of(text)))


def _names_id(item_id: str, text: str) -> bool:
    if item_id not in text:  # nearly always, and quick
        return False
    telling = len(item_id) >= 6 or (any(map(str.isdigit, item_id)) and any(map(str.isalpha, item_id)))
    before = r"(?<!\w)" if telling else r"(?:\b(?:items?|ids?|products?)\W{1,3}|#)"
    return re.search(rf"{before}{re.escape(item_id)}(?!\w)", text) is not None


def _form(levels: int) -> str:
    return f'{{"user": .., "item": .., "blocks": [{levels} texts]}} or {{"user": .., "item": .., "text": ".."}}'


def _record(line: str, levels: int) -> dict[str, Any]:
    record = record_of(line, _form(levels))
    if ("blocks" in record) == ("text" in record):
        what = "both 'blocks' and 'text'" if "blocks" in record else "neither 'blocks' nor 'text'"
        raise DataError(f"{what}. A line is {_form(levels)}.")
    return record


def _blocks(record: Mapping[str, Any], levels: int) -> tuple[str, ...]:
    given = record["blocks"] if "blocks" in record else [record["text"]]
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise DataError(f"'blocks' must be a list of texts and 'text' a text. A line is {_form(levels)}.")
    for text in given:
        tag = TAGS.search(text)
        if tag:
            raise DataError(f"the trace holds {tag.group()!r}, which the layout writes itself. Remove it.")
    if "text" in record:
        return split_text(given[0], levels)
    if len(given) != levels:
        raise DataError(
            f"{len(given)} blocks, but the SID table has {levels} levels. Give {levels} blocks, one per level, or a "
            f"'text', which is split."
        )
    return tuple(map(_one_line, given))


def _one_line(text: str) -> str:
    return " ".join(text.split())
