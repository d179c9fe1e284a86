"""The same seeds make the same batches: digests were recorded when each kind of batch had a planner of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, AlignConfig, DataConfig, ToyConfig
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig, Words
from genrl.layouts.items import Items
from genrl.prompts.packing import HistoryBatches, Planner, Segment, SequenceBatches, TraceBatches
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.prompts.traces import Trace
from genrl.sid.trie import Trie
from tests.unit.prompts.planners import ranked

TOY = load_dataset(DataConfig(toy=ToyConfig(users=40, items=60)))
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


def digest(batches: Planner[Any], names: Sequence[str]) -> str:
    """Of the first and last step of a pass and of one of the next."""
    found = hashlib.sha256()
    for step in (0, batches.steps_per_epoch - 1, batches.steps_per_epoch + 1):
        for name in names:
            value = getattr(batches.step(step), name)
            found.update(f"{name}{list(value.shape)}".encode() + value.double().numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("changes", "text", "history", "ranks", "alone", "recorded"),
    [
        ({}, (), 50, (0, 1), False, "44914e6f5ae14e7a"),
        ({}, (), 50, (0, 1), True, "13e3509a2d64cc68"),
        ({"item_dropout": 0.3, "seed": 5}, TEXT, 4, (0, 1), False, "6876983315855766"),
        ({"item_dropout": 0.3, "seed": 5}, TEXT, 4, (0, 1), True, "7d277c1d9c63dbc3"),
        ({"items_per_step": 7}, TEXT, 4, (1, 2), False, "6b66a2d3c7bfda4f"),
    ],
)
def test_histories(
    changes: dict[str, Any], text: tuple[Segment, ...], history: int, ranks: tuple[int, int], alone: bool, recorded: str
) -> None:
    config = replace(AlignConfig(items_per_step=30, pack_length=64), **changes)
    batches = HistoryBatches(TOY, TEMPLATE, config, history, text)
    batches.alone = alone
    assert digest(ranked(batches, *ranks), PACKED) == recorded


@pytest.mark.parametrize(
    ("order", "foreign", "ranks", "alone", "recorded"),
    [
        ("tail", 0.0, (0, 1), False, "767e6a1fe5c90111"),
        ("interleaved", 0.5, (0, 1), False, "e8f2b31767550432"),
        ("tail", 0.5, (1, 2), True, "ff60b0a5fc79b614"),
    ],
)
def test_traces(order: Any, foreign: float, ranks: tuple[int, int], alone: bool, recorded: str) -> None:
    positions = TOY.sequences.rows(Role.TRAIN)[:23].tolist()
    said = "a bb ccc dddd eeeee"
    traces = [Trace(place, tuple(said[place % 4 : 5 + (place + step) % 9] for step in range(2))) for place in positions]
    trie = Trie.build(CODES, (6, 10))
    config = BlockedLayoutConfig(order=order, budget=6)
    layout = BlockedLayout(config, catalogue=Items(trie, (100, 106), CODES), words=WORDS)
    maker, activate = (
        PromptMaker(TOY, TEMPLATE, 5),
        ActivateConfig(examples_per_step=6, pack_length=60, foreign=foreign),
    )
    batches = TraceBatches(traces, maker, layout, Tokenizer(), activate)
    batches.alone = alone
    assert digest(ranked(batches, *ranks), ("tokens", "positions", "segments", "places", "share")) == recorded


@pytest.mark.parametrize(
    ("per", "length", "ranks", "recorded"),
    [
        ("target", 5, (0, 1), "f0288870ad1f8773"),
        ("user", 50, (0, 1), "b85433516753a9f5"),
        ("user", 6, (1, 2), "5c055e37fc43e5b0"),
    ],
)
def test_item_sequences(per: Any, length: int, ranks: tuple[int, int], recorded: str) -> None:
    batches = SequenceBatches(TOY, per, length, 8, 3)
    assert digest(ranked(batches, *ranks), ("items", "targets", "share")) == recorded
