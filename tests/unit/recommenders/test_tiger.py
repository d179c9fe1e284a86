import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from genrl.config.schema import ModelConfig
from genrl.errors import ConfigError
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders import BASELINES, Problem
from genrl.recommenders.tiger import EDGE, PAD, TIGER, TIGERConfig
from genrl.sid.table import make_table
from tests.helpers import assert_same
from tests.models import SIZES, make_codes
from tests.unit.recommenders.problems import dataset_of, problem_of, rows_of, shaken, train

ITEMS = 30
HISTORIES = ((3, 17, 4, 4, 29), (8,), (11, 2, 25), ())
SMALL = {"max_length": 5, "layers": 2, "hidden": 16, "heads": 2, "head_size": 8, "feed_forward": 24, "dropout": 0.0}


def problem(codes: Tensor | None = None, sizes: tuple[int, ...] = SIZES) -> Problem:
    """A catalogue with the given SIDs; by default three levels and a SID for each item."""
    dataset = dataset_of([list(range(ITEMS)), [5, 6]])
    codes = make_codes(ITEMS) if codes is None else codes
    return Problem(dataset, make_table(codes, sizes, dataset.catalog, collisions="keep"), ModelConfig())


def make(chosen: Problem | None = None, **options: object) -> TIGER:
    """A model far from uniform distributions; exact but for its float32 log-probabilities."""
    torch.manual_seed(0)
    model = TIGER(TIGERConfig(**{**SMALL, **options}), problem=chosen or problem())
    shaken(model)
    return model.double()


def padded(rows: tuple[tuple[int, ...], ...], width: int = 5) -> Tensor:
    return torch.tensor([[-1] * (width - len(row)) + list(row) for row in rows], dtype=torch.int64)


def targets(*rows: tuple[int, ...]) -> SequenceBatch:
    return rows_of(*rows, per="target")


@torch.no_grad()
def score(model: TIGER, history: tuple[int, ...], item: int) -> Tensor:
    """Log-probability of an item behind a history, from the loss."""
    row = padded(((*history, item),), len(history) + 1)
    return -model.loss(SequenceBatch(row, torch.arange(row.shape[1])[None] == len(history), torch.tensor(1.0)))


def every_score(model: TIGER, history: tuple[int, ...]) -> Tensor:
    return torch.stack([score(model, history, item) for item in range(ITEMS)])


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
def test_a_beam_as_wide_as_the_catalogue_finds_what_scoring_every_item_finds(normalize):
    model = make(normalize=normalize)
    found = model.best(padded(HISTORIES), ITEMS)
    for row in (0, 3):
        scores = every_score(model, HISTORIES[row])
        assert sorted(found.items[row].tolist()) == list(range(ITEMS))
        assert_same(found.scores[row], scores[found.items[row]])
        assert bool((found.scores[row].diff() <= 0).all())


def test_the_items_have_a_distribution_of_their_own_unless_it_is_that_of_the_vocabulary():
    assert_same(make().best(padded(HISTORIES), ITEMS).scores.exp().sum(1), [1.0] * 4)
    assert bool((make(normalize="vocab").best(padded(HISTORIES), ITEMS).scores.exp().sum(1) < 0.9).all())


def test_the_loss_over_the_vocabulary_is_that_of_transformers():
    model = make(normalize="vocab")
    whole = T5ForConditionalGeneration(model.t5.config).eval().double()
    whole.load_state_dict({**model.t5.state_dict(), "lm_head.weight": model.t5.shared.weight})
    rows = [(*history, 7) for history in HISTORIES[:3]]
    total = 0.0
    for row in rows:
        tokens = model.layout.catalogue.render(torch.tensor(row))
        read = torch.cat([tokens[:-1].flatten(), torch.tensor([EDGE])])[None]
        total += whole(input_ids=read, labels=tokens[-1:]).loss.item() * 3
    assert_same(model.loss(targets(*rows)), total, 1e-4)


def test_tokens_of_the_levels_follow_the_special_ones():
    model = make()
    assert (model.layout.tokens.first_ids, model.t5.config.vocab_size) == ((2, 8, 13), 20)
    assert (PAD, EDGE) == (0, 1)


@pytest.mark.parametrize("beam", [1, 3, 8])
def test_a_narrow_beam_gives_items_with_their_own_scores_and_pads_what_it_does_not_find(beam):
    model = make(beam=beam)
    found = model.best(padded(HISTORIES), 1)
    for row, history in enumerate(HISTORIES):
        assert_same(found.scores[row, 0], score(model, history, int(found.items[row, 0])))
    wide = model.best(padded(HISTORIES), ITEMS + 4)
    assert bool((wide.items[:, ITEMS:] == -1).all())
    assert bool(wide.scores[:, ITEMS:].isneginf().all())


def test_a_beam_that_is_wider_than_the_ranking_finds_what_greedy_search_misses():
    histories = torch.arange(ITEMS)[:, None]
    best = make().best(histories, ITEMS).scores[:, :1]
    assert_same(make(beam=ITEMS).best(histories, 1).scores, best)
    assert bool((make(beam=1).best(histories, 1).scores < best - 0.01).any())


def test_padding_and_neighbours_in_a_batch_change_nothing():
    model = make()
    together = model.best(padded(HISTORIES, 9), ITEMS)
    for row, history in enumerate(HISTORIES):
        alone = model.best(padded((history,), len(history)), ITEMS)
        assert_same(together.scores[row], alone.scores[0])
        assert together.items[row].tolist() == alone.items[0].tolist()


def test_a_large_batch_keeps_its_order():
    model = make()
    order = torch.arange(100) % 4
    assert (
        model.best(padded(HISTORIES)[order], 6).items.tolist() == model.best(padded(HISTORIES), 6).items[order].tolist()
    )


def test_only_the_latest_items_and_their_order_count():
    model = make()
    long = torch.arange(12)[None]
    assert_same(model.best(long, 5).scores, model.best(long[:, -5:], 5).scores)
    assert (model.best(long, 5).scores != model.best(long.flip(1), 5).scores).any()
    assert_same(model.loss(targets(tuple(range(12)))), model.loss(targets(tuple(range(6, 12)))))


def test_denied_items_leave_the_others_with_their_scores():
    model = make()
    every, unseen = (model.best(padded(HISTORIES), ITEMS, deny) for deny in (None, padded(HISTORIES)))
    for row, history in enumerate(HISTORIES):
        left = [place for place, item in enumerate(every.items[row].tolist()) if item not in history]
        assert unseen.items[row, : len(left)].tolist() == every.items[row, left].tolist()
        assert_same(unseen.scores[row, : len(left)], every.scores[row, left])
        assert bool((unseen.items[row, len(left) :] == -1).all())


def test_denied_items_take_no_place_in_the_beam():
    model = make(beam=1)
    first = model.best(padded(HISTORIES), 1).items
    second = model.best(padded(HISTORIES), 1, first)
    assert bool((second.items != first).all())
    assert bool((second.items >= 0).all())


def test_items_that_share_a_sid_share_its_probability_and_stand_in_order_of_popularity():
    codes = make_codes(ITEMS)
    codes[5] = codes[6] = codes[0]
    model = make(problem(codes))
    found = model.best(padded(HISTORIES[:1]), ITEMS)
    place = found.items[0].tolist().index(5)  # seen twice, like 6; 0 only once
    assert found.items[0, place : place + 3].tolist() == [5, 6, 0]
    assert len(set(found.scores[0, place : place + 3].tolist())) == 1
    unseen = model.best(padded(HISTORIES[:1]), ITEMS, torch.tensor([[5, -1]]))
    assert unseen.items[0, place : place + 2].tolist() == [6, 0]


def test_one_level_is_a_softmax_over_items():
    model = make(problem(torch.arange(ITEMS)[:, None], (ITEMS,)))
    found = model.best(padded(HISTORIES), ITEMS)
    assert_same(found.scores.exp().sum(1), [1.0] * 4)
    assert_same(found.scores[0], every_score(model, HISTORIES[0])[found.items[0]])


def test_a_history_of_no_items_and_no_columns_is_ranked():
    model = make()
    empty = model.best(torch.full((2, 3), -1), 4)
    assert bool((empty.items >= 0).all())
    assert_same(model.best(torch.empty(2, 0, dtype=torch.int64), 4).scores, empty.scores)


def test_losses_of_parts_add_up_to_that_of_the_batch():
    model = make()
    rows = [(*history, 7) for history in HISTORIES[:3]] * 20
    whole = model.loss(targets(*rows))
    assert_same(whole, sum(model.loss(targets(*rows[start : start + 20])) for start in range(0, 60, 20)), 1e-3)
    empty = replace(targets((1, 2)), items=torch.empty(0, 1, dtype=torch.int64))
    nothing = model.loss(empty)
    nothing.backward()
    assert nothing.item() == 0.0
    assert all(value.grad is not None for value in model.parameters())


def test_every_parameter_gets_a_gradient():
    model = make(dropout=0.1).train()
    torch.manual_seed(0)
    model.loss(targets(*((*history, 7) for history in HISTORIES[:3]))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_it_learns_which_item_follows_which():
    users = [[(start + step) % 8 for step in range(6)] for start in range(8)]
    chosen = problem_of(users)
    codes = torch.stack([torch.arange(8) // 3, torch.arange(8) % 3], dim=1)
    chosen = replace(chosen, table=make_table(codes, (3, 3), chosen.dataset.catalog))
    torch.manual_seed(0)
    model = TIGER(TIGERConfig(**{**SMALL, "layers": 1, "hidden": 32}), problem=chosen)
    assert train(model, chosen, 80, 0.005) < 0.6 < math.log(8)
    found = model.best(torch.tensor([[1, 2, 3], [5, 6, 7], [-1, -1, 4]]), 3)
    assert found.items[:, 0].tolist() == [4, 0, 5]


def test_weights_go_to_another_instance():
    model, other = make(), TIGER(TIGERConfig(**SMALL), problem=problem()).eval().double()
    assert not torch.equal(model.best(padded(HISTORIES), 5).scores, other.best(padded(HISTORIES), 5).scores)
    other.load_state(model.state(), "weights")
    assert torch.equal(model.best(padded(HISTORIES), 5).scores, other.best(padded(HISTORIES), 5).scores)


def test_it_is_built_by_name_and_refuses_to_read_nothing():
    model = BASELINES.build("tiger", {"hidden": 16, "layers": 1}, problem=problem())
    assert isinstance(model, TIGER)
    assert (len(model.t5.encoder.block), len(model.t5.decoder.block), model.config.max_length) == (1, 1, 20)
    with pytest.raises(ConfigError, match="at least 1 item"):
        BASELINES.build("tiger", {"max_length": 0}, problem=problem())
