from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import AlignConfig, DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.prompts.packing import HistoryBatches, PackedBatch, text_segments
from genrl.prompts.template import PromptMaker, PromptTemplate
from tests.models import make_layout, make_policy
from tests.unit.recommenders.problems import dataset_of

TOY = load_dataset(DataConfig(toy=ToyConfig(users=60, items=60)))
SIDS = torch.stack([torch.arange(60) + 100, torch.arange(60) + 200], dim=1)
TEMPLATE = PromptTemplate(start_id=1, prefix_ids=(), sid_tokens=SIDS, pad_id=0)
CONFIG = AlignConfig(items_per_step=30, pack_length=32, shuffle_ties=False)


def contexts(batch: PackedBatch) -> list[tuple[tuple[int, ...], int]]:
    """What stands before each target item inside its segment, with the item."""
    found = []
    for (row, column), item in zip(batch.item_places.tolist(), batch.items.tolist(), strict=True):
        segment = batch.segments[row, column]
        before = batch.tokens[row, :column][batch.segments[row, :column] == segment]
        assert batch.tokens[row, column : column + 2].tolist() == SIDS[item].tolist()
        found.append((tuple(before.tolist()), item))
    return found


def test_every_training_position_is_a_target_once_per_pass_behind_its_own_history() -> None:
    packer = HistoryBatches(TOY, TEMPLATE, CONFIG, max_history=50)
    seen = Counter(pair for step in range(packer.steps_per_epoch) for pair in contexts(packer.step(step)))
    maker = PromptMaker(TOY, TEMPLATE, max_history=50)
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for position in TOY.sequences.rows(Role.TRAIN).split(1):
        prompt = maker.at(position)
        wanted[tuple(prompt.tokens[prompt.mask].tolist()), int(prompt.targets.items)] += 1
    assert seen == wanted


def test_held_out_items_are_neither_targets_nor_context() -> None:
    dataset = dataset_of([[0, 1, 2, 3, 4, 5], [6, 7]], ["httrve", "te"], size=60)
    dataset = replace(dataset, sequences=replace(dataset.sequences, times=torch.zeros(8, dtype=torch.int64)))
    for shuffle in (False, True):
        packer = HistoryBatches(dataset, TEMPLATE, replace(CONFIG, shuffle_ties=shuffle), max_history=10)
        batch = packer.step(0)
        assert sorted(batch.items.tolist()) == [1, 2, 6]
        shown = {int(token) - 100 for token in batch.tokens.flatten().tolist() if 100 <= token < 160}
        assert shown == {0, 1, 2, 6}


def test_long_histories_are_cut_into_windows_with_context() -> None:
    packer = HistoryBatches(TOY, TEMPLATE, CONFIG, max_history=4)
    pairs = [pair for step in range(packer.steps_per_epoch) for pair in contexts(packer.step(step))]
    assert len(pairs) == TOY.sequences.rows(Role.TRAIN).numel()
    assert max(len(before) for before, _ in pairs) <= 1 + 2 * 4


@pytest.mark.parametrize("items", [1, 3, 30, 100000])
def test_no_step_is_empty_however_few_items_a_step_takes(items: int) -> None:
    packer = HistoryBatches(TOY, TEMPLATE, replace(CONFIG, items_per_step=items), 50)
    batches = [packer.step(packer.steps_per_epoch + step) for step in range(packer.steps_per_epoch)]
    assert all(len(batch.items) and float(batch.share) == 2 * len(batch.items) for batch in batches)
    assert sum(len(batch.items) for batch in batches) == TOY.sequences.rows(Role.TRAIN).numel()


def test_ties_are_shuffled_among_training_positions_only() -> None:
    dataset = dataset_of([range(6)], ["ttttve"], size=60)
    dataset = replace(dataset, sequences=replace(dataset.sequences, times=torch.zeros(6, dtype=torch.int64)))
    packer = HistoryBatches(dataset, TEMPLATE, replace(CONFIG, shuffle_ties=True), max_history=10)
    orders = {tuple(packer.step(step).items.tolist()) for step in range(20)}
    assert len(orders) > 5
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no training positions"):
        HistoryBatches(dataset_of([[0, 1, 2]], ["rve"]), TEMPLATE, CONFIG, 10)


def test_text_examples_pair_titles_with_sids() -> None:
    policy = make_policy()
    sids = make_layout(policy).catalogue.render(torch.arange(60))
    titles = ("red apple pie", "", "green pear tart")
    segments = list(text_segments(policy.tokenizer, titles, PromptTemplate(1, (), sids, 0)))
    assert len(segments) == 4
    to_title, to_sid = segments[2:]
    words = policy.tokenizer.decode(to_title.tokens[to_title.text_starts[0] : -1].tolist()).strip()
    assert words == "green pear tart"
    assert to_title.tokens[-1] == policy.tokenizer.eos_token_id
    assert to_sid.tokens[int(to_sid.item_starts[0]) :].tolist() == sids[2].tolist()
    packed, plain = (HistoryBatches(TOY, TEMPLATE, CONFIG, 10, more) for more in ((to_title,), ()))
    assert len(packed.targets) == len(plain.targets) + 1
