"""SAPO: what it needs, and advantages step by step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.objectives import OBJECTIVES, GroupNorm, Setting, StepCredit
from genrl.objectives.sapo import ShapedOutcome, matched
from tests.helpers import assert_same
from tests.property.rollouts import Sample, sample, thinking_shape


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({}, ["a match per step"]),
        ({"ablation": "no_step_advantage"}, ["a match per step"]),
        ({"ablation": "no_match_reward", "exact_reward": "hit"}, []),
        ({"ablation": "outcome", "exact_reward": "hit"}, []),
        ({"ablation": "outcome"}, ["the reward 'exact_match'"]),
        ({"scope": "think_only"}, ["a match per step", "a layout with thinking"]),
    ],
)
def test_what_an_ablation_needs(options, problems):
    setting = Setting(("hit",), step_rewards=False, group_size=4, thinking=False)
    found = list(OBJECTIVES.build("sapo", options).missing(setting))
    assert len(found) == len(problems)
    assert all(problem.startswith(start) for problem, start in zip(found, problems, strict=True))
    alone = list(OBJECTIVES.build("sapo", options).missing(replace(setting, group_size=1)))
    assert len(alone) == len(found) + 1


ORDERS = pytest.mark.parametrize("order", ["tail", "interleaved"])
ABLATIONS = ("none", "no_step_advantage", "no_match_reward", "outcome")
WORDS = [[2, 3, 1], [1, 1, 2], [3, 1, 1], [1, 2, 2]]
ENDED = [[True, True, True], [True, False, True], [True, True, True], [False, True, True]]
FORCED = [[False, False, False], [False, True, True], [False, False, True], [False, True, False]]


def thoughts(order: str, match: Tensor, closed: list[list[bool]] = ENDED, weight: float = 0.0) -> Sample:
    """One group of four completions on policy whose steps match as told; `format` has a weight."""
    levels = match.shape[1]
    parts = [[row[:levels] for row in rows] for rows in (WORDS, closed, FORCED)]
    shape = thinking_shape(order, *parts)
    shape.pop("N")
    rows, length = shape["chosen"].shape
    logps = -torch.rand(rows, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * shape["chosen"]
    rollout = Completions(
        tokens=torch.zeros(rows, length, dtype=torch.int64),
        codes=torch.zeros(rows, levels, dtype=torch.int64),
        items=torch.zeros(rows, 1, dtype=torch.int64),
        logps=logps,
        ref_logps=logps - 0.1 * shape["chosen"],
        group_size=rows,
        num_steps=levels,
        **shape,
    )
    exact, ended = match.prod(1), shape["closed"].double()
    values = {"level_match": match, "exact_match": exact, "format": ended}
    drawn = Sample(rollout, Rewards(values, dict.fromkeys(values, 1.0)), logps, torch.zeros_like(logps))
    return drawn.with_rewards(values, format=weight)


def whole(batch: Sample) -> Sample:
    """Without the matches of single steps."""
    values = {name: value for name, value in batch.rewards.values.items() if name != "level_match"}
    return batch.with_rewards(values, format=batch.rewards.weights["format"])


def raised(batch: Sample, name: str, **options: object) -> Tensor:
    """What a step of gradient descent adds to the log-probability of each token, up to a factor."""
    return -batch.outcome(OBJECTIVES.build(name, {"kl_coef": 0.0, **options}))[1]


NEAR_MISS = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)


@ORDERS
def test_a_near_miss_is_raised_where_it_was_right_and_lowered_where_it_was_wrong(order):
    batch = thoughts(order, NEAR_MISS)
    mask, steps = batch.rollout.chosen[0], batch.rollout.step_ids[0]
    sapo, grpo = raised(batch, "sapo")[0], raised(whole(batch), "grpo")[0]
    assert (sapo[mask & (steps < 2)] > 0).all()
    assert (sapo[mask & (steps == 2)] < 0).all()
    assert (grpo[mask] < 0).all()
    assert not sapo[~mask].any()
    advantages = [0.5, 0.5 / (1 / 3) ** 0.5, -0.5]  # (m - mean) / std of the columns of NEAR_MISS
    for step, advantage in enumerate(advantages):
        chosen = WORDS[0][step] + 2  # words, </think> and the code
        here = mask & (steps == step)
        assert_same(sapo[here], torch.full((chosen,), advantage / (4 * 3 * chosen), dtype=torch.float64))


@ORDERS
def test_a_near_miss_has_one_sign_under_every_reward_of_whole_completions(order):
    batch = thoughts(order, NEAR_MISS)
    summed = batch.with_rewards({"sum": NEAR_MISS.sum(1)})
    for slope in (raised(summed, "grpo"), raised(batch, "sapo", ablation="no_step_advantage")):
        assert (slope[0][batch.rollout.chosen[0]] > 0).all()  # two of three steps are better than the group's mean
    for ablation in ("no_match_reward", "outcome"):
        assert (raised(batch, "sapo", ablation=ablation)[0][batch.rollout.chosen[0]] < 0).all()


@ORDERS
def test_a_group_without_a_hit_is_dead_for_grpo_and_alive_for_sapo(order):
    match = NEAR_MISS.clone()
    match[1, 2] = 0
    assert not raised(whole(thoughts(order, match)), "grpo").any()
    assert raised(thoughts(order, match), "sapo").any()


@ORDERS
def test_a_step_with_a_forced_code_still_has_its_block(order):
    batch = thoughts(order, NEAR_MISS)
    rollout = batch.rollout
    forced = rollout.item_mask & ~rollout.chosen
    assert forced.sum() == 4
    slope = raised(batch, "sapo")
    assert not slope[forced].any()
    weights = batch.experience(OBJECTIVES.build("sapo")).weights
    for step in range(3):
        here = rollout.step_ids == step
        assert_same((weights * here).sum(1), torch.full((4,), 1 / 12, dtype=torch.float64))


@ORDERS
def test_think_only_trains_blocks_and_lets_codes_dilute_them(order):
    batch = thoughts(order, NEAR_MISS)
    rollout = batch.rollout
    both, thinking = (raised(batch, "sapo", scope=scope) for scope in ("think_and_sid", "think_only"))
    assert_same(thinking, both.masked_fill(rollout.item_mask, 0))
    assert both[rollout.item_mask & rollout.chosen].all()
    by_token = raised(batch, "sapo", scope="think_only", reduction="token")
    credit = batch.experience(OBJECTIVES.build("sapo", {"scope": "think_only"})).advantages
    assert_same(by_token, credit * rollout.chosen / rollout.chosen.sum())


SAPO_FORMS = [
    *({"match": match} for match in ("per_level", "prefix", "nested")),
    *({"ablation": ablation} for ablation in ABLATIONS[1:]),
    {"scope": "think_only"},
    {"reduction": "token"},
    {"match": "nested", "ablation": "no_step_advantage"},
]


@ORDERS
@pytest.mark.parametrize("weight", [0.2, 1.0])
@pytest.mark.parametrize("options", SAPO_FORMS, ids=str)
def test_format_reaches_the_gradient_of_sapo(options, weight, order):
    """Completions that differ in nothing else; the block that was closed for the policy is what is lowered."""
    for match in (torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)):
        closed = [[True] * 3, [True, False, True], [True] * 3, [True] * 3]
        batch = thoughts(order, match, closed, weight)
        slope = raised(batch, "sapo", **options)
        thinking = batch.rollout.chosen & ~batch.rollout.item_mask
        per_step = options.get("ablation", "none") in ("none", "no_match_reward")
        reached = thinking & (batch.rollout.step_ids == 1) if per_step else thinking
        assert (slope[1][reached[1]] < 0).all()
        assert (slope[0][reached[0]] > 0).all()
        assert not slope[thinking & ~reached].any()
        assert not raised(thoughts(order, match, closed), "sapo", **options).any()


@ORDERS
@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if name not in ("sapo", "ce", "opd")])
def test_format_reaches_the_gradient_of_the_others(name, order):
    closed = [[True] * 3, [True, False, True], [True] * 3, [True] * 3]
    batch = thoughts(order, torch.zeros(4, 3, dtype=torch.float64), closed, 0.2)
    batch = replace(batch, rollout=replace(batch.rollout, categories=torch.arange(4)[:, None]))
    slope = raised(whole(batch), name)
    assert (slope[1][batch.rollout.chosen[1]] < 0).all()
    assert (slope[0][batch.rollout.chosen[0]] > 0).all()


def test_format_weighs_as_much_against_a_match_in_every_row_of_the_ablation():
    """Where steps match all or not at all and format is of all steps too, the rows have one advantage."""
    match = torch.tensor([[1.0], [1.0], [0.0], [0.0]], dtype=torch.float64).expand(4, 3).contiguous()
    closed = [[True] * 3, [False] * 3, [True] * 3, [False] * 3]
    batch = thoughts("tail", match, closed, 0.3)
    rows = [
        batch.experience(OBJECTIVES.build("sapo", {"ablation": ablation, "eps": 0.0})).advantages
        for ablation in ABLATIONS
    ]
    assert rows[0].any()
    for row in rows[1:]:
        assert_same(row, rows[0])


def test_prefix_counts_a_level_only_after_all_before_it():
    steps = torch.tensor([[0.5, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.0]], dtype=torch.float64)
    assert_same(matched(steps, "prefix"), [[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    assert_same(matched(steps, "nested").sum(1), [0.5 / 8, 0.5 / 2])
    assert_same(matched(steps, "per_level"), steps)


def test_shaping_is_added_to_the_match_after_it_is_gated():
    batch = sample("blocked", prompts=1)
    steps = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.float64)
    shaping = torch.tensor([[0.2, 0.2], [0, 0.2], [0.2, 0], [0, 0]], dtype=torch.float64)
    batch = batch.with_rewards({"level_match": steps, "format": shaping})
    raw = StepCredit(GroupNorm("none"), "prefix")(batch.rollout, batch.rewards)
    wanted = torch.tensor([[0.2, 0.2], [1, 1.2], [1.2, 0], [0, 0]], dtype=torch.float64)
    assert_same(raw, wanted.gather(1, batch.rollout.step_ids.clamp(min=0)) * (batch.rollout.step_ids >= 0))


def test_equal_sums_in_another_order_of_steps_are_a_dead_group():
    draw, steps = torch.Generator().manual_seed(0), 6
    match = torch.stack([torch.tensor([1.0, 1, 0, 0, 0, 0])[torch.randperm(steps, generator=draw)] for _ in range(200)])
    ended = torch.stack([torch.tensor([0, 1.0, 1, 1, 1, 1])[torch.randperm(steps, generator=draw)] for _ in range(200)])
    assert len((match + 0.1 * ended).sum(1).unique()) > 1  # in float32
    batch = sample("sid", prompts=1, group_size=200)
    places = torch.zeros(200, steps, dtype=torch.int64)
    rollout = replace(batch.rollout, num_steps=steps, codes=places)
    values = {"level_match": match, "hit": match[:, 0] * 0, "format": ended}
    rewards = batch.with_rewards(values, format=0.1).rewards
    assert not StepCredit(GroupNorm(), per_step=False)(rollout, rewards).any()
    assert not ShapedOutcome(GroupNorm(), "hit")(rollout, rewards).any()
