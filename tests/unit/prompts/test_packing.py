import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.sequences import Role
from genrl.catalog.ties import moments
from genrl.config.schema import AlignConfig, DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.prompts.packing import HistoryBatches, PackedBatch, SequenceBatch, SequenceBatches, text_segments
from genrl.prompts.template import PromptMaker, PromptTemplate
from tests.models import make_layout, make_policy
from tests.unit.recommenders.problems import dataset_of

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=60, items=60)))
SIDS = torch.stack([torch.arange(60) + 100, torch.arange(60) + 200], dim=1)
TEMPLATE = PromptTemplate(start_id=1, prefix_ids=(), sid_tokens=SIDS, pad_id=0)
CONFIG = AlignConfig(items_per_step=30, pack_length=32)


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


def test_histories_are_what_stands_before_each_target_and_made_only_for_a_teacher():
    assert HistoryBatches(TOY, TEMPLATE, CONFIG, 4).step(0).histories is None
    item = {tuple(sid): row for row, sid in enumerate(SIDS.tolist())}
    batches = HistoryBatches(TOY, TEMPLATE, replace(CONFIG, teacher_share=0.5, item_dropout=0.2), 4)
    for step in range(batches.steps_per_epoch):
        batch = batches.step(step)
        for history, (before, _) in zip(batch.histories.tolist(), contexts(batch), strict=True):
            shown = [item[before[place : place + 2]] for place in range(1, len(before), 2)]
            assert history == [-1] * (len(history) - len(shown)) + shown


def test_rows_of_items_know_the_history_of_each_target():
    items = torch.tensor([[-1, 4, 7, 9], [1, 2, 2, 3]])
    targets = torch.tensor([[False, True, False, True], [False, False, True, True]])
    found = SequenceBatch(items, targets, torch.tensor(4.0)).histories
    assert found.tolist() == [[-1, -1, -1, -1], [-1, -1, 4, 7], [-1, -1, 1, 2], [-1, 1, 2, 2]]


def in_moments(dataset: Dataset, apart: int) -> Dataset:
    """The data set with times `apart` times as coarse, interactions of equal time and role standing together."""
    sequences = dataset.sequences
    users, times = sequences.users(torch.arange(len(sequences))), sequences.times // apart
    runs = torch.from_numpy(moments(users.numpy(), times.numpy(), sequences.roles.numpy()))
    starts = torch.searchsorted(runs, runs)
    assert 0.2 < float((starts < torch.arange(len(runs))).float().mean()) < 0.8
    return replace(dataset, sequences=replace(sequences, times=times, moments=starts))


@pytest.mark.parametrize("dataset", [TOY, in_moments(TOY, 20)], ids=["apart", "together"])
def test_every_training_position_is_a_target_once_per_pass_behind_its_own_history(dataset):
    maker = PromptMaker(dataset, TEMPLATE, max_history=50)
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for position in dataset.sequences.rows(Role.TRAIN).split(1):
        prompt = maker.at(position)
        wanted[tuple(prompt.tokens[prompt.mask].tolist()), int(prompt.wanted.items)] += 1
    assert Counter(one_pass(HistoryBatches(dataset, TEMPLATE, CONFIG, max_history=50))) == wanted


def test_long_histories_are_cut_into_windows_with_context():
    for dataset in (TOY, in_moments(TOY, 20)):
        pairs = one_pass(HistoryBatches(dataset, TEMPLATE, CONFIG, max_history=4))
        assert len(pairs) == dataset.sequences.rows(Role.TRAIN).numel()
        assert max(len(before) for before, _ in pairs) == 1 + 2 * 4


def test_held_out_items_are_neither_targets_nor_context():
    dataset = dataset_of([[0, 1, 2, 3, 4, 5, 6], [7, 8]], ["htttrve", "te"], size=60)
    packer = HistoryBatches(dataset, TEMPLATE, CONFIG, max_history=10)
    for step in range(20):
        batch = packer.step(step)
        assert sorted(batch.items.tolist()) == [1, 2, 3, 7]
        assert {token - 100 for token in batch.tokens.flatten().tolist() if 100 <= token < 160} == {0, 1, 2, 3, 7}
    with pytest.raises(DataError, match="no training positions"):
        HistoryBatches(dataset_of([[0, 1, 2]], ["rve"]), TEMPLATE, CONFIG, 10)


@pytest.mark.parametrize("items", [1, 3, 30, 100000])
def test_no_step_is_empty_however_few_items_a_step_takes(items):
    packer = HistoryBatches(TOY, TEMPLATE, replace(CONFIG, items_per_step=items), 50)
    batches = [packer.step(packer.steps_per_epoch + step) for step in range(packer.steps_per_epoch)]
    assert all(len(batch.items) and float(batch.share) == 2 * len(batch.items) for batch in batches)
    assert sum(len(batch.items) for batch in batches) == TOY.sequences.rows(Role.TRAIN).numel()


def test_text_examples_pair_titles_with_sids():
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


def users_of() -> Dataset:
    """Users of 1-30 interactions, each item unlike all others, with every order of roles that a split makes."""
    draw = random.Random(0)
    users, roles, number = [], [], 0
    for _ in range(40):
        held = draw.choice(["", "v", "ve", "vvee", "e"])
        known = "t" * draw.randint(0, 25) + draw.choice(["", "r"])
        letters = "h" * draw.randint(0, 4) + known + held or "t"
        users.append(list(range(number, number + len(letters))))
        roles.append(letters)
        number += len(letters)
    return dataset_of(users, roles)


def targets_of(dataset: Dataset) -> list[int]:
    """Items (numbered by position) that must be predicted: known, and not the first of their user."""
    roles, starts = dataset.sequences.roles, set(dataset.sequences.offsets.tolist())
    return [item for item in range(len(roles)) if roles[item] in (Role.TRAIN, Role.RL) and item not in starts]


def sequence_rows(batch: SequenceBatch) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Rows without padding, with their marks."""
    found = []
    for items, marks in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
        padding = items.count(-1)
        assert items[:padding] == [-1] * padding  # on the left only
        assert not any(marks[: padding + 1])  # neither padding nor the first item of a row is a target
        found.append((tuple(items[padding:]), tuple(marks[padding:])))
    return found


def rows_of_a_pass(batches: SequenceBatches) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    return [row for step in range(batches.steps_per_epoch) for row in sequence_rows(batches.step(step))]


@pytest.mark.parametrize("length", [2, 3, 7, 50])
def test_every_known_target_counts_once_per_pass_behind_as_much_of_its_user_as_fits(length):
    dataset = users_of()
    starts = dataset.sequences.offsets[dataset.sequences.users(torch.arange(len(dataset.sequences)))].tolist()
    for per in ("target", "user"):
        rows = rows_of_a_pass(SequenceBatches(dataset, per, length, batch=20))
        marked = [item for items, marks in rows for item, mark in zip(items, marks, strict=True) if mark]
        assert Counter(marked) == Counter(targets_of(dataset))
        for items, marks in rows:
            last = items[-1]  # items are numbered by position
            assert marks[-1]
            assert items == tuple(range(max(starts[last], last - length + 1), last + 1))
            if per == "target":
                assert sum(marks) == 1


@pytest.mark.parametrize("per", ["target", "user"])
@pytest.mark.parametrize("length", [3, 8, 50])
def test_what_stands_together_is_never_seen_by_a_target_of_its_own_moment(per, length):
    dataset = in_moments(users_of(), 3)  # items are numbered by position
    sequences = dataset.sequences
    steps = SequenceBatches(dataset, per, length, batch=20)
    batches = [steps.step(step) for step in range(steps.steps_per_epoch)]
    assert all(float(batch.share) == int(batch.targets.sum()) for batch in batches)
    marked = []
    for items, marks in (row for batch in batches for row in sequence_rows(batch)):
        for place in (place for place, mark in enumerate(marks) if mark):
            marked.append(items[place])
            history = sequences.histories(torch.tensor([items[place]]), place)[0].tolist()
            assert list(items[:place]) == history
            assert place >= min(length // 2, int(sequences.seen(torch.tensor([items[place]]))))
    wanted = [row for role in (Role.TRAIN, Role.RL) for row in sequences.rows(role).tolist()]
    assert sorted(marked) == sorted(row for row in wanted if int(sequences.seen(torch.tensor([row]))))


def test_a_target_behind_the_first_window_has_half_a_window_before_it():
    dataset = dataset_of([list(range(23))])
    rows = rows_of_a_pass(SequenceBatches(dataset, "user", 8, batch=1))
    assert sorted(items for items, _ in rows) == [tuple(range(end - 8, end)) for end in (8, 12, 16, 20)] + [
        tuple(range(15, 23))
    ]
    contexts = [place for items, marks in rows if items[0] for place, mark in enumerate(marks) if mark]
    assert min(contexts) == 4


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(DataError, match="every interaction is held out"):
        SequenceBatches(dataset_of([[0, 1]], ["tv"]), "user", 6, batch=5)
    with pytest.raises(DataError, match="length=1"):
        SequenceBatches(dataset_of([[0, 1]]), "user", 1, batch=5)
