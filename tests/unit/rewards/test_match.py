"""Rewards against a row-by-row reference, and what must hold for any batch."""

from dataclasses import replace

import pytest
import torch

from genrl.batches import Targets
from genrl.errors import ConfigError, LayoutError
from genrl.rewards import REWARDS
from genrl.rewards.match import rank_penalties
from tests.helpers import assert_same
from tests.unit.rewards.test_base import context as context_of
from tests.unit.rewards.test_base import make_rollout

ITEMS, LEVELS, PROMPTS, GROUP, TARGETS = 12, 3, 5, 4, 2
EVERY = [
    ("exact_match", {}),
    ("exact_match", {"level": "sid"}),
    ("exact_match", {"level": "sid", "shared": "divided"}),
    ("level_match", {}),
    ("level_match", {"levels": 2}),
    ("prefix_match", {}),
    ("ndcg_rank", {}),
    ("ndcg_rank", {"order": "given"}),
    ("ndcg_rank", {"level": "sid"}),
]


def make_context(seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (ITEMS, LEVELS), generator=generator)  # 8 SIDs for 12 items: collisions are certain
    return context_of(codes)


def random_case(seed, context):
    """A rollout with invalid items, and targets with pads, both frequent enough to meet."""
    generator = torch.Generator().manual_seed(seed)
    rows = PROMPTS * GROUP
    items = torch.randint(-1, ITEMS, (rows, 1), generator=generator)
    choices = context.codes_of(items[:, 0])
    logps = -torch.rand(rows, LEVELS, generator=generator)
    targets = torch.randint(0, ITEMS, (PROMPTS, TARGETS), generator=generator)
    targets[torch.rand(PROMPTS, generator=generator) < 0.5, 1] = -1
    targets[-1] = -1
    return make_rollout(items, choices, logps, GROUP), Targets(targets)


def wanted_items(targets, row):
    return [target for target in targets.items[row // GROUP].tolist() if target >= 0]


def slow_hit(options, rollout, targets, context, row):
    item, wanted = int(rollout.items[row, 0]), wanted_items(targets, row)
    if item < 0:
        return False
    if options.get("level", "item") == "item":
        return item in wanted
    return context.codes[item].tolist() in [context.codes[target].tolist() for target in wanted]


def slow_exact_match(options, rollout, targets, context, row):
    codes = context.codes.tolist()
    share = codes.count(codes[int(rollout.items[row, 0])]) if options.get("shared") == "divided" else 1
    return [slow_hit(options, rollout, targets, context, row) / share]


def slow_ndcg_rank(options, rollout, targets, context, row):
    order = list(range(row // GROUP * GROUP, row // GROUP * GROUP + GROUP))
    hits = {other: slow_hit(options, rollout, targets, context, other) for other in order}
    if hits[row] or not any(hits.values()):
        return 0.0
    if options.get("order", "probability") == "probability":
        order.sort(key=lambda other: -float(rollout.logps[other].sum()))
    gains = 1 / torch.log2(torch.arange(GROUP, dtype=torch.float64) + 2)
    return float(-gains[order.index(row)] / gains.sum())


def slow_steps(prefix):
    def value(options, rollout, targets, context, row):
        steps = [0.0] * LEVELS
        for step in range(options.get("levels") or LEVELS):
            first = 0 if prefix else step
            chosen = rollout.codes[row, first : step + 1].tolist()
            codes = [context.codes[target, first : step + 1].tolist() for target in wanted_items(targets, row)]
            steps[step] = float(chosen in codes)
        return steps

    return value


SLOW = {
    "exact_match": slow_exact_match,
    "ndcg_rank": slow_ndcg_rank,
    "level_match": slow_steps(prefix=False),
    "prefix_match": slow_steps(prefix=True),
}


def reference(name, options, rollout, targets, context):
    """The definitions, one row at a time."""
    return torch.tensor([SLOW[name](options, rollout, targets, context, row) for row in range(PROMPTS * GROUP)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_batch_equals_row_by_row(name, options, seed):
    context = make_context(seed)
    rollout, targets = random_case(seed, context)
    reward = REWARDS.build(name, options)
    actual = reward(rollout, targets.repeat(GROUP), context)
    assert actual.dtype == torch.float32
    assert_same(actual, reference(name, options, rollout, targets, context))


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_targets_travel_with_their_prompt_and_pads_are_no_targets(name, options):
    context, reward = make_context(), REWARDS.build(name, options)
    rollout, targets = random_case(7, context)
    found = reward(rollout, targets.repeat(GROUP), context)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = reward(rollout.groups(order), targets.rows(order).repeat(GROUP), context)
    assert_same(shuffled.unflatten(0, (PROMPTS, GROUP)), found.unflatten(0, (PROMPTS, GROUP))[order])
    wider = Targets(torch.nn.functional.pad(targets.items, (1, 2), value=-1))
    assert_same(reward(rollout, wider.repeat(GROUP), context), found)
    nothing = torch.full((GROUP, 1), -1)
    rollout = make_rollout(nothing, nothing.expand(-1, LEVELS).contiguous(), torch.zeros(GROUP, LEVELS), GROUP)
    for pads in (1, 3):
        assert not reward(rollout, Targets(nothing.expand(-1, pads).contiguous()), context).any()


def test_a_shared_sid_is_paid_as_asked():
    codes = torch.tensor([[0, 0], [0, 0], [1, 1]])
    context = context_of(codes)
    rollout = make_rollout(torch.tensor([[0]]), torch.tensor([[0, 0]]), torch.zeros(1, 2), 1)
    targets = Targets(torch.tensor([[1]]))
    paid = [
        REWARDS.build("exact_match", options)(rollout, targets, context).item()
        for options in ({}, {"level": "sid"}, {"level": "sid", "shared": "divided"})
    ]
    assert paid == [0.0, 1.0, 0.5]


def test_level_match_pays_under_a_wrong_prefix_and_prefix_match_does_not():
    context = context_of(torch.tensor([[1, 2, 3]]))
    rollout = make_rollout(torch.tensor([[-1]]), torch.tensor([[0, 2, 3]]), torch.zeros(1, 3), 1)
    targets = Targets(torch.tensor([[0]]))
    assert_same(REWARDS.build("level_match")(rollout, targets, context), torch.tensor([[0.0, 1.0, 1.0]]))
    assert_same(REWARDS.build("prefix_match")(rollout, targets, context), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("level_match", {}, [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
        ("level_match", {"levels": 3}, [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        ("level_match", {"levels": 1}, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        ("prefix_match", {}, [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    ],
)
def test_the_code_that_tells_colliding_items_apart_matches_only_behind_the_others(name, options, wanted):
    codes = torch.tensor([[1, 2, 0], [1, 2, 1], [0, 2, 0]])
    context = replace(context_of(codes), collision_level=True)
    rollout = make_rollout(torch.tensor([[2], [0]]), codes[[2, 0]], torch.zeros(2, 3), 2)
    assert_same(REWARDS.build(name, options)(rollout, Targets(torch.tensor([[0], [0]])), context), torch.tensor(wanted))


def test_rank_penalties_are_minionerecs():
    # Golden "minionerec_ndcg_rule" of golden_objectives.json.
    expected = torch.tensor([-0.3903800499921017, -0.24630238874073, -0.19519002499605084, -0.16812753627111746])
    assert_same(rank_penalties(4), expected)


def test_ndcg_rank_in_a_group_with_one_hit():
    context = context_of(torch.tensor([[0], [1], [2], [3]]))
    items = torch.tensor([[0], [1], [2], [3]])
    logps = torch.tensor([[-4.0], [-1.0], [-3.0], [-2.0]])  # ranks 3, 0, 2, 1; item 1 hits
    rollout = make_rollout(items, items, logps, 4)
    targets = Targets(torch.tensor([[1]])).repeat(4)
    wanted = rank_penalties(4)[[3, 0, 2, 1]] * torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert_same(REWARDS.build("ndcg_rank")(rollout, targets, context), wanted)


def test_step_rewards_need_one_step_per_level():
    context = make_context()
    rollout = make_rollout(torch.tensor([[0]]), torch.tensor([[0, 1]]), torch.zeros(1, 2), 1)
    with pytest.raises(LayoutError, match="2 steps and SIDs have 3 levels"):
        REWARDS.build("level_match")(rollout, Targets(torch.tensor([[0]])), context)


@pytest.mark.parametrize("name", ["level_match", "prefix_match"])
def test_a_slate_of_one_item_is_told_to_hold_several(name):
    context = make_context()
    with pytest.raises(LayoutError, match=r"the layout has 1 steps.*or a slate of several items \(layout.length=2"):
        REWARDS.build(name).check(1, context, items=1)
    REWARDS.build(name).check(2, context, items=2)


def test_negative_levels_are_refused():
    with pytest.raises(ConfigError, match="'levels': -1 must be at least 0"):
        REWARDS.build("prefix_match", {"levels": -1})


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("level_match", {}, [[1.0, 2 / 3, 0.0], [1 / 3, 0.0, 1.0]]),
        ("level_match", {"levels": 1}, [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        ("prefix_match", {}, [[1.0, 1 / 3, 0.0], [0.0, 0.0, 1.0]]),
    ],
)
def test_items_of_slates_get_the_share_of_their_codes_that_the_best_target_has(name, options, wanted):
    context = context_of(torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 1], [2, 2, 0], [3, 3, 3]]))
    items = torch.tensor([[0, 1, -1], [3, -1, 4]])
    rollout = make_rollout(items, items, torch.zeros(2, 3), 1)
    targets = Targets(torch.tensor([[0, -1], [0, 4]]))
    assert_same(REWARDS.build(name, options)(rollout, targets, context), torch.tensor(wanted))
