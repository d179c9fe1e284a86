"""Rewards of lists, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from genrl.batches import Targets
from genrl.errors import ConfigError, LayoutError
from genrl.rewards import REWARDS, build_verifier
from tests.helpers import assert_same
from tests.unit.rewards.test_base import context as context_of
from tests.unit.rewards.test_base import make_rollout, requests

CODES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
KNOWN = {
    "categories": ["pan", "pan", "tea", None, "oil"],
    "attributes": {"shelf": ["low", "high", "low", "low", ""]},
    "train_counts": torch.tensor([7, 3, 1, 0, 0]),
    "cold": torch.tensor([False, False, False, True, True]),
}
SLATES = [[0, 1, 2], [0, 0, 2], [3, -1, 4], [4, 3, 2]]
TARGETS = torch.tensor([[2, 0, -1], [4, -1, -1]])
LISTS = ("slate_hit", "slate_ndcg", "validity", "cold_hit", "novelty", "diversity")
LOG2 = [1.0, 1 / math.log2(3), 0.5]
"""Discounts of three places."""
PAIR = math.log(2) / math.log(3)
MIXED = 1 - 2 / 3 * PAIR
"""Entropies over that of three categories: of two once each; of one twice and another once."""


@pytest.fixture(scope="module")
def known():
    return context_of(CODES, **KNOWN)


def slates(items=SLATES):
    """Two prompts with two slates each; a step is an item."""
    rows = torch.tensor(items)
    return make_rollout(rows, rows, torch.zeros(rows.shape), 2)


def paid(name, known, options=None, items=SLATES):
    rewards = build_verifier({name: options or {}}, known, steps=3, items=3)(slates(items), requests(TARGETS))
    return rewards.values[name]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("exact_match", {}, [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        ("slate_hit", {}, [1.0, 1.0, 1.0, 1.0]),
        ("slate_ndcg", {}, [1.5 / sum(LOG2[:2])] * 2 + [0.5, 1.0]),
        ("validity", {}, [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]),
        ("cold_hit", {}, [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        ("novelty", {}, [[0.0, 1 / 3, 2 / 3], [0.0, 0.0, 2 / 3], [1.0, 0.0, 1.0], [1.0, 1.0, 2 / 3]]),
        ("diversity", {}, [MIXED, PAIR, 0.0, PAIR]),
        ("diversity", {"category": "shelf"}, [MIXED, 0.0, 0.0, 0.0]),
        ("level_match", {}, [[1.0, 0.5, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.5]]),
        ("level_match", {"levels": 1}, [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        ("prefix_match", {}, [[1.0, 0.5, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ],
)
def test_by_hand(known, name, options, wanted):
    assert_same(paid(name, known, options), torch.tensor(wanted))


def test_a_slate_without_targets_or_items_gets_nothing(known):
    nothing = [[-1, -1, -1]] * 4
    for name in (
        "exact_match",
        "slate_hit",
        "slate_ndcg",
        "validity",
        "novelty",
        "cold_hit",
        "diversity",
        "prefix_match",
    ):
        assert not paid(name, known, items=nothing).any()
    none = Targets(torch.full((4, 2), -1))
    for name in ("slate_hit", "slate_ndcg", "cold_hit", "exact_match"):
        assert not REWARDS.build(name)(slates(), none, known).any()


@pytest.mark.parametrize("name", LISTS)
def test_targets_travel_with_their_prompt_and_pads_change_nothing(known, name):
    reward, targets = REWARDS.build(name), Targets(TARGETS)
    found = reward(slates(), targets.repeat(2), known)
    order = torch.tensor([1, 0])
    swapped = reward(slates().groups(order), targets.rows(order).repeat(2), known)
    assert_same(swapped, found.unflatten(0, (2, 2))[order].flatten(0, 1))
    wider = Targets(torch.nn.functional.pad(TARGETS, (1, 2), value=-1))
    assert_same(reward(slates(), wider.repeat(2), known), found)


def test_on_one_item_a_hit_is_an_exact_match(known):
    one = make_rollout(torch.tensor([[2], [1], [4], [-1]]), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2), 2)
    targets = Targets(TARGETS).repeat(2)
    exact = REWARDS.build("exact_match")(one, targets, known)
    assert_same(exact, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
    for name in ("slate_hit", "slate_ndcg"):
        assert_same(REWARDS.build(name)(one, targets, known)[:, None], exact)


@pytest.mark.parametrize(
    ("options", "items", "error", "message"),
    [
        ({}, 1, LayoutError, "one item per completion. Drop it with rewards.diversity=null"),
        ({"category": "shelv"}, 3, ConfigError, r"no item column 'shelv'. Did you mean 'shelf'\? Kept: shelf."),
    ],
)
def test_diversity_needs_a_list_and_categories(known, options, items, error, message):
    with pytest.raises(error, match=message):
        build_verifier({"diversity": options}, known, steps=3, items=items)
    bare = replace(known, categories=torch.full((5,), -1))
    with pytest.raises(ConfigError, match=r"needs item categories.*data\.columns\.category"):
        build_verifier({"diversity": {}}, bare, steps=3, items=3)


def test_match_rewards_want_a_step_for_each_level_or_item(known):
    build_verifier({"level_match": {}}, known, steps=3, items=3)
    with pytest.raises(LayoutError, match=r"layout has 6 steps.*a slate of several items"):
        build_verifier({"level_match": {}}, known, steps=6, items=3)
