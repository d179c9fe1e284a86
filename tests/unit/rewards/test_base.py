"""The verifier: sums, weights, logs, and what it refuses."""

from dataclasses import dataclass, replace

import pytest
import torch

from genrl.batches import Completions, Targets
from genrl.errors import ConfigError, UnknownComponentError
from genrl.rewards import REWARDS, Reward, RewardContext, Verifier, build_verifier
from tests.helpers import assert_same

CODES = torch.tensor([[0, 0], [0, 1], [1, 0]])


def context():
    return RewardContext.from_codes(CODES, torch.tensor([3, 2, 1]))


def rollout(items=(0, 1, 2, -1)):
    """Two prompts with two completions each."""
    items = torch.tensor(items).unsqueeze(1)
    choices = context().codes_of(items[:, 0])
    rows, steps = choices.shape
    ones = torch.ones(rows, steps, dtype=torch.bool)
    ids = torch.arange(steps).expand(rows, steps).contiguous()
    return Completions(
        tokens=choices.clamp(min=0),
        chosen=ones,
        step_ids=ids,
        item_ids=torch.zeros_like(ids),
        codes=choices,
        items=items,
        logps=torch.zeros(rows, steps),
        group_size=2,
        num_steps=steps,
    )


TARGETS = Targets(torch.tensor([[1], [2]]))


def test_outcome_is_the_weighted_sum_and_components_are_not_weighted():
    verifier = build_verifier(
        {
            "exact_match": {"weight": 2.0},
            "level_match": {"weight": 0.5},
            "prefix_match": {},
            "ndcg_rank": {"weight": 0},
        },
        context(),
    )
    rewards = verifier(rollout(), TARGETS)
    level = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    exact = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert_same(rewards.steps, 1.5 * level)  # here every match is a prefix
    assert_same(rewards.outcome, 2 * exact + 1.5 * level.sum(1))
    assert_same(rewards.components["exact_match"], exact)
    assert_same(rewards.components["level_match"], level.sum(1))
    assert rewards.components["ndcg_rank"].any()
    assert rewards.weights == {"exact_match": 2.0, "level_match": 0.5, "prefix_match": 1.0, "ndcg_rank": 0.0}
    assert rewards.shaping is None
    assert list(rewards.components) == list(rewards.weights)


def test_weighted_components_add_up_to_the_outcome():
    verifier = build_verifier({"exact_match": {"weight": 0.3}, "prefix_match": {"weight": -0.7}}, context())
    rewards = verifier(rollout(), TARGETS)
    total = sum(rewards.weights[name] * value for name, value in rewards.components.items())
    assert_same(rewards.outcome, total)


def thinking_rollout():
    return replace(rollout(), closed=torch.tensor([[True, False], [True, True], [False, True], [True, True]]))


def test_format_is_in_the_outcome_and_in_shaping_but_no_match():
    options = {"exact_match": {"weight": 2.0}, "level_match": {"weight": 0.5}, "format": {"weight": 0.25}}
    verifier = build_verifier(options, context(), thinking=True)
    rewards = verifier(thinking_rollout(), TARGETS)
    level = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    ended = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # the last row names no item
    assert_same(rewards.steps, 0.5 * level)
    assert_same(rewards.shaping, 0.25 * ended)
    assert_same(rewards.outcome, torch.tensor([0.0, 2.0, 2.0, 0.0]) + 0.5 * level.sum(1) + 0.25 * ended.sum(1))
    assert_same(rewards.components["format"], ended.sum(1))
    assert verifier.step_names == ("level_match",)


def test_format_alone_gives_step_advantages_no_match():
    verifier = build_verifier({"format": {}}, context())
    assert verifier.step_names == ()
    assert verifier(thinking_rollout(), TARGETS).steps is None


def test_rewards_of_thinking_are_refused_where_there_is_none():
    with pytest.raises(ConfigError, match=r"rewards.format judges thinking.*rewards.format=null"):
        build_verifier({"exact_match": {}, "format": {}}, context(), thinking=False)
    assert build_verifier({"exact_match": {}}, context(), thinking=False).rewards.keys() == {"exact_match"}


def test_without_step_rewards_there_are_no_steps():
    verifier = build_verifier({"exact_match": {}, "level_match": None}, context())
    assert verifier(rollout(), TARGETS).steps is None
    assert verifier.step_names == ()
    assert verifier.outcome_names == ("exact_match",)


def test_a_step_reward_of_weight_zero_does_not_count():
    verifier = build_verifier({"level_match": {"weight": 0}}, context())
    assert verifier.step_names == ()
    rewards = verifier(rollout(), TARGETS)
    assert not rewards.steps.any()
    assert rewards.components["level_match"].any()


def test_targets_may_come_per_prompt_or_per_completion():
    verifier = build_verifier({"exact_match": {}}, context())
    assert_same(verifier(rollout(), TARGETS).outcome, verifier(rollout(), TARGETS.repeat(2)).outcome)
    with pytest.raises(ValueError, match="targets have 3 rows"):
        verifier(rollout(), Targets(torch.zeros(3, 1, dtype=torch.int64)))


def test_micro_batches_of_whole_groups_get_the_same_rewards():
    verifier = build_verifier({"exact_match": {}, "ndcg_rank": {}, "prefix_match": {}}, context())
    whole = verifier(rollout(), TARGETS)
    parts = [verifier(rollout().groups(slice(i, i + 1)), TARGETS.rows(slice(i, i + 1))) for i in range(2)]
    assert_same(torch.cat([part.outcome for part in parts]), whole.outcome)
    assert_same(torch.cat([part.steps for part in parts]), whole.steps)


class Wrong(Reward):
    level = "outcome"

    @dataclass
    class Config:
        weight: float = 1.0

    def __call__(self, rollout, targets, context):
        return torch.zeros(rollout.tokens.shape[0], dtype=torch.float64)


def test_a_reward_of_another_dtype_is_named():
    with pytest.raises(ValueError, match=r"reward 'mine' is torch\.float64"):
        Verifier({"mine": (Wrong(), 1.0)}, context())(rollout(), TARGETS)


def test_refusals_say_what_is_known():
    with pytest.raises(UnknownComponentError, match="Did you mean 'exact_match'"):
        build_verifier({"exact_mach": {}}, context())
    with pytest.raises(ConfigError, match="has no option 'weigth'"):
        build_verifier({"exact_match": {"weigth": 1}}, context())
    with pytest.raises(ConfigError, match="none is configured"):
        build_verifier({"exact_match": None}, context())


def test_every_built_in_reward_has_a_weight_first():
    from dataclasses import fields

    for name in ("exact_match", "level_match", "prefix_match", "ndcg_rank", "format"):
        first = fields(REWARDS.entry(name).config)[0]
        assert (first.name, first.default) == ("weight", 1.0)


def test_the_context_needs_its_row_of_no_item():
    with pytest.raises(ValueError, match="last row must be all -1"):
        RewardContext(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2))
    assert context().codes_of(torch.tensor([-1, 2])).tolist() == [[-1, -1], [1, 0]]
