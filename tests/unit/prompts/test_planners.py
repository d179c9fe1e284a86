"""What holds for every planner of supervised steps: seeds and numbers decide, and ranks share a step.

Digests were recorded when each kind of batch had a planner of its own.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, AlignConfig, DataConfig, ToyConfig
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig, Words
from genrl.layouts.items import Items
from genrl.prompts.packing import (
    HistoryBatches,
    PackedBatch,
    Planner,
    Segment,
    SequenceBatch,
    SequenceBatches,
    TraceBatches,
)
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.prompts.traces import Trace
from genrl.sid.trie import Trie

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=40, items=60)))
CODES = torch.stack([torch.arange(60) // 10, torch.arange(60) % 10], 1)
TEMPLATE = PromptTemplate(1, (7, 8), CODES + torch.tensor([100, 106]), 0)
WORDS = Words(2, 3, 4, torch.arange(100) > 9)
PACKED = ("tokens", "positions", "segments", "item_places", "items", "text_places", "share")


def segment(tokens: Sequence[int], starts: Sequence[int], items: Sequence[int], words: Sequence[int]) -> Segment:
    return Segment(*(np.array(values, np.int64) for values in (tokens, starts, items, words)))


TEXT = tuple(segment([1, 50 + row, *[9] * (row % 4), 60], [], [], [1, 2]) for row in range(6))
TEXT += (segment([1, 50, 100, 106], [2], [0], []),)


class Tokenizer:
    """A word is its length."""

    unk_token_id = 0

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[10 + len(word) for word in text.split()] for text in texts]}


def ranked(batches: Planner[Any], rank: int, world: int) -> Planner[Any]:
    """The same steps for one of several processes."""
    batches.rank, batches.world = rank, world
    return batches


def digest(batches: Planner[Any], names: Sequence[str]) -> str:
    """Of the first and last step of a pass and of one of the next."""
    found = hashlib.sha256()
    for number in (0, batches.steps_per_epoch - 1, batches.steps_per_epoch + 1):
        step = batches.step(number)
        for name in names:
            value = getattr(step, name)
            found.update(f"{name}{list(value.shape)}".encode() + value.double().numpy().tobytes())
    return found.hexdigest()[:16]


def history_batches(
    seed: int = 0, size: int = 30, text: tuple[Segment, ...] = (), history: int = 50, **options: Any
) -> HistoryBatches:
    config = AlignConfig(items_per_step=size, pack_length=64, seed=seed, **options)
    return HistoryBatches(TOY, TEMPLATE, config, history, text)


def trace_batches(order: Any = "tail", **options: Any) -> TraceBatches:
    positions = TOY.sequences.rows(Role.TRAIN)[:23].tolist()
    said = "a bb ccc dddd eeeee"
    traces = [Trace(place, tuple(said[place % 4 : 5 + (place + step) % 9] for step in range(2))) for place in positions]
    trie = Trie.build(CODES, (6, 10))
    config = BlockedLayoutConfig(order=order, budget=6)
    layout = BlockedLayout(config, catalogue=Items(trie, (100, 106), CODES), words=WORDS)
    activate = ActivateConfig(**{"examples_per_step": 6, "pack_length": 60, "foreign": 0.0, "plain": 0.0, **options})
    return TraceBatches(traces, PromptMaker(TOY, TEMPLATE, 5), layout, Tokenizer(), activate)


SEQUENCE, TRACE = ("items", "targets", "share"), ("tokens", "positions", "segments", "places", "share")


@pytest.mark.parametrize(
    ("batches", "names", "ranks", "alone", "recorded"),
    [
        (history_batches(), PACKED, (0, 1), False, "44914e6f5ae14e7a"),
        (history_batches(), PACKED, (0, 1), True, "13e3509a2d64cc68"),
        (history_batches(5, text=TEXT, history=4, item_dropout=0.3), PACKED, (0, 1), False, "6876983315855766"),
        (history_batches(5, text=TEXT, history=4, item_dropout=0.3), PACKED, (0, 1), True, "7d277c1d9c63dbc3"),
        (history_batches(size=7, text=TEXT, history=4), PACKED, (1, 2), False, "6b66a2d3c7bfda4f"),
        (trace_batches(), TRACE, (0, 1), False, "689a1aa5c5dc7641"),
        (trace_batches("interleaved", foreign=0.5), TRACE, (0, 1), False, "b5782976d9e4e186"),
        (trace_batches(foreign=0.5), TRACE, (1, 2), True, "be3c6b871b0ed317"),
        (SequenceBatches(TOY, "target", 5, 8, 3), SEQUENCE, (0, 1), False, "f0288870ad1f8773"),
        (SequenceBatches(TOY, "user", 50, 8, 3), SEQUENCE, (0, 1), False, "b85433516753a9f5"),
        (SequenceBatches(TOY, "user", 6, 8, 3), SEQUENCE, (1, 2), False, "5c055e37fc43e5b0"),
    ],
)
def test_steps_are_those_that_were_recorded(batches, names, ranks, alone, recorded):
    batches.alone = alone
    assert digest(ranked(batches, *ranks), names) == recorded


def rows_of(batch: PackedBatch | SequenceBatch) -> list[Any]:
    """What is read together, without padding; with its targets where these are marked."""
    if isinstance(batch, SequenceBatch):
        pairs = zip(batch.items, batch.targets, strict=True)
        return sorted((items[items >= 0].tolist(), marks[items >= 0].tolist()) for items, marks in pairs)
    pairs = zip(batch.tokens, batch.segments, strict=True)
    return sorted(row[own == n].tolist() for row, own in pairs for n in own.unique().tolist() if n >= 0)


each_planner = pytest.mark.parametrize(
    "make",
    [
        history_batches,
        lambda seed=0, size=6: trace_batches(seed=seed, examples_per_step=size),
        lambda seed=0, size=20: SequenceBatches(TOY, "user", 6, size, seed=seed),
        lambda seed=0, size=20: SequenceBatches(TOY, "target", 6, size, seed=seed),
    ],
    ids=["histories", "traces", "users", "targets"],
)


@each_planner
def test_a_step_depends_on_seed_and_number_alone(make):
    one, two, other = make(3), make(3), make(4)
    for step in (1, 0, one.steps_per_epoch + 1):
        assert rows_of(one.step(step)) == rows_of(two.step(step))
    assert rows_of(one.step(1)) != rows_of(two.step(one.steps_per_epoch + 1))  # the same place of the next pass
    assert rows_of(one.step(0)) != rows_of(other.step(0))


@each_planner
def test_ranks_share_a_step_and_its_denominator(make):
    whole, world = make(), 3
    ranks = [ranked(make(), rank, world) for rank in range(world)]
    for step in range(whole.steps_per_epoch):
        parts = [rank.step(step) for rank in ranks]
        assert sorted(row for part in parts for row in rows_of(part)) == rows_of(whole.step(step))
        assert {float(part.share) for part in parts} == {float(whole.step(step).share)}


@each_planner
def test_a_rank_without_rows_has_at_most_a_token_of_padding(make):
    batch = ranked(make(size=1), 1, 2).step(0)
    assert rows_of(batch) == []
    assert float(batch.share) > 0
    if isinstance(batch, PackedBatch):
        assert (batch.tokens.tolist(), batch.segments.tolist()) == ([[TEMPLATE.pad_id]], [[-1]])
        assert len(batch.items) == len(batch.places) == 0
    else:
        assert len(batch) == len(batch.items) == len(batch.targets) == 0
