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


def one_pass(batches: HistoryBatches) -> list[tuple[tuple[int, ...], int]]:
    return [pair for step in range(batches.steps_per_epoch) for pair in contexts(batches.step(step))]


def test_every_training_position_is_a_target_once_per_pass_behind_its_own_history() -> None:
    maker = PromptMaker(TOY, TEMPLATE, max_history=50)
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for position in TOY.sequences.rows(Role.TRAIN).split(1):
        prompt = maker.at(position)
        wanted[tuple(prompt.tokens[prompt.mask].tolist()), int(prompt.targets.items)] += 1
    assert Counter(one_pass(HistoryBatches(TOY, TEMPLATE, CONFIG, max_history=50))) == wanted


def test_long_histories_are_cut_into_windows_with_context() -> None:
    pairs = one_pass(HistoryBatches(TOY, TEMPLATE, CONFIG, max_history=4))
    assert len(pairs) == TOY.sequences.rows(Role.TRAIN).numel()
    assert max(len(before) for before, _ in pairs) <= 1 + 2 * 4


def test_held_out_items_are_neither_targets_nor_context_and_ties_are_shuffled_among_the_others() -> None:
    dataset = dataset_of([[0, 1, 2, 3, 4, 5, 6], [7, 8]], ["htttrve", "te"], size=60)
    dataset = replace(dataset, sequences=replace(dataset.sequences, times=torch.zeros(9, dtype=torch.int64)))
    for shuffle in (False, True):
        packer = HistoryBatches(dataset, TEMPLATE, replace(CONFIG, shuffle_ties=shuffle), max_history=10)
        batches = [packer.step(step) for step in range(20)]
        for batch in batches:
            assert sorted(batch.items.tolist()) == [1, 2, 3, 7]
            assert {token - 100 for token in batch.tokens.flatten().tolist() if 100 <= token < 160} == {0, 1, 2, 3, 7}
        orders = {tuple(item for item in batch.items.tolist() if item < 7) for batch in batches}
        assert len(orders) > 3 if shuffle else orders == {(1, 2, 3)}
    with pytest.raises(DataError, match="no training positions"):
        HistoryBatches(dataset_of([[0, 1, 2]], ["rve"]), TEMPLATE, CONFIG, 10)


@pytest.mark.parametrize("items", [1, 3, 30, 100000])
def test_no_step_is_empty_however_few_items_a_step_takes(items: int) -> None:
    packer = HistoryBatches(TOY, TEMPLATE, replace(CONFIG, items_per_step=items), 50)
    batches = [packer.step(packer.steps_per_epoch + step) for step in range(packer.steps_per_epoch)]
    assert all(len(batch.items) and float(batch.share) == 2 * len(batch.items) for batch in batches)
    assert sum(len(batch.items) for batch in batches) == TOY.sequences.rows(Role.TRAIN).numel()


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
