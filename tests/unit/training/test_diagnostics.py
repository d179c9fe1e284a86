from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.objectives import OBJECTIVES
from genrl.training.diagnostics import (
    StepGradients,
    advantage_values,
    completion_values,
    entropy_values,
    match_values,
    reward_values,
    thinking_values,
)
from tests.helpers import assert_same
from tests.property.rollouts import Sample, sample, thinking_shape

ORDERS = ("blocked", "interleaved")


def written(order: str, words: list[list[int]], closed: list[list[bool]]) -> Sample:
    """Two prompts with two completions each, of given blocks; a block of 0 words was never begun."""
    base = sample("sid", prompts=2, group_size=2)
    codes = [[False] * len(words[0])] * len(words)
    shape = thinking_shape("tail" if order == "blocked" else order, words, closed, codes)
    shape.pop("N")
    rows, width = shape["chosen"].shape
    zeros = torch.zeros(rows, width)
    rollout = replace(
        base.rollout,
        tokens=zeros.long(),
        logps=zeros,
        ref_logps=None,
        teacher_gap=None,
        teacher_kl=None,
        entropy=zeros,
        codes=torch.zeros(rows, len(words[0]), dtype=torch.int64),
        num_steps=len(words[0]),
        **shape,
    )
    return replace(base, rollout=rollout)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_were_never_begun_count_neither_as_short_nor_as_hits(order):
    words = [[3, 1], [2, 2], [5, 0], [4, 3]]
    closed = [[True, True], [True, False], [False, False], [False, True]]
    batch = written(order, words, closed)
    items = torch.tensor([[3], [4], [-1], [5]])
    values = thinking_values(replace(batch.rollout, items=items))
    assert_same(values["rollout/think_length/block1"], (3 + 2 + 5 + 4) / 4)
    assert_same(values["rollout/think_length/block2"], (1 + 2 + 3) / 3)
    assert_same(values["rollout/budget_hits"], 3 / 7)
    assert_same(values["rollout/format_failures"], 1 / 4)


def test_a_block_that_no_completion_begins_has_no_words():
    batch = written("blocked", [[2, 0]] * 4, [[False, False]] * 4)
    values = thinking_values(batch.rollout)
    assert_same(values["rollout/think_length/block2"], torch.tensor(0.0))
    assert_same(values["rollout/budget_hits"], torch.tensor(1.0))


def test_layouts_without_thinking_have_nothing_to_say_of_it():
    drawn = sample("sid").rollout
    assert thinking_values(drawn) == {}
    assert set(entropy_values(drawn)) == {"policy/entropy", *(f"policy/entropy/level{level}" for level in (1, 2, 3))}


@pytest.mark.parametrize("order", ["sid", *ORDERS])
def test_entropy_is_that_of_chosen_tokens_by_what_they_are(order):
    drawn = sample(order).rollout
    found: dict[str, list[float]] = {}
    for row in range(len(drawn.tokens)):
        for place in range(drawn.tokens.shape[1]):
            if not drawn.chosen[row, place]:
                continue
            kind = f"level{int(drawn.step_ids[row, place]) + 1}" if drawn.item_mask[row, place] else "thinking"
            found.setdefault(kind, []).append(float(drawn.entropy[row, place]))
    levels = [value for kind, part in found.items() if kind != "thinking" for value in part]
    wanted = {f"policy/entropy/{kind}": part for kind, part in found.items()}
    wanted["policy/entropy"] = [value for part in found.values() for value in part]
    if order != "sid":
        wanted["policy/entropy/sid"] = levels
    values = entropy_values(drawn)
    assert set(values) == set(wanted)
    for tag, part in wanted.items():
        assert_same(values[tag], sum(part) / len(part))


def test_the_reward_of_a_step_is_its_match_and_what_shapes_it():
    rewards = sample("blocked").rewards
    values = reward_values(rewards)
    assert_same(values["train/reward"], rewards.outcome.mean())
    assert_same(values["train/reward/format"], rewards.components["format"].mean())
    for step in range(2):
        wanted = sum((rewards.steps[row, step] + rewards.step_shaping[row, step]) / 16 for row in range(16))
        assert_same(values[f"train/reward/step{step + 1}"], wanted)
    matches = {"level_match": rewards.values["level_match"]}
    bare = reward_values(Rewards(matches, {"level_match": 1.0}))
    assert_same(bare["train/reward/step2"], rewards.steps[:, 1].mean())
    assert "train/reward/step1" not in reward_values(Rewards({"hit": rewards.outcome}, {"hit": 1.0}))


def test_a_match_is_the_code_of_the_target_of_the_prompt():
    drawn = sample("blocked", prompts=2, group_size=2).rollout
    choices = torch.tensor([[1, 2], [1, -1], [7, 8], [0, 8]])
    codes = torch.tensor([[7, 8], [0, 0], [1, 3]])
    values = match_values(replace(drawn, codes=choices), torch.tensor([[2, -1], [0, 1]]), codes)
    assert_same(values["train/match/step1"], torch.tensor(0.75))
    assert_same(values["train/match/step2"], torch.tensor(0.5))


def test_a_match_of_a_slate_is_a_place_that_holds_a_target():
    drawn = sample("slate", prompts=2, group_size=2).rollout
    items = torch.tensor([[4, 2, -1], [5, 4, 6], [1, 2, 3], [9, -1, 3]])
    drawn = replace(drawn, items=items, codes=items, categories=None, num_steps=3)
    values = match_values(drawn, torch.tensor([[4, 6], [3, -1]]), torch.zeros(10, 2))
    assert [round(float(values[f"train/match/step{place}"]), 4) for place in (1, 2, 3)] == [0.25, 0.25, 0.75]


def test_what_completions_are_like():
    drawn = sample("sid", prompts=2, group_size=3).rollout
    items = torch.tensor([[4], [4], [5], [-1], [7], [8]])
    values = completion_values(replace(drawn, items=items), torch.arange(20) >= 7)
    assert_same(values["train/valid_rate"], torch.tensor(5 / 6))
    assert_same(values["rollout/cold_share"], torch.tensor(2 / 6))
    assert_same(values["rollout/distinct"], torch.tensor(5 / 6))
    assert_same(values["rollout/length"], float(drawn.chosen.sum()) / 6)


@pytest.mark.parametrize("name", ["grpo", "sapo"])
def test_every_objective_shows_its_advantages_by_step(name):
    batch = sample("interleaved")
    experience = batch.experience(OBJECTIVES.build(name))
    values = advantage_values(experience)
    drawn = batch.rollout
    assert set(values) == {"objective/advantage_abs_step1", "objective/advantage_abs_step2"}
    for step in range(2):
        sizes = experience.advantages[drawn.chosen & (drawn.step_ids == step)].abs()
        assert_same(values[f"objective/advantage_abs_step{step + 1}"], sizes.mean())


@pytest.mark.parametrize("order", ["sid", *ORDERS])
def test_the_gradient_of_a_step_is_that_by_its_log_probabilities(order):
    batch = sample(order)
    _, gradient = batch.outcome(OBJECTIVES.build("sapo"))
    values = gradient_values((gradient, batch.rollout))
    for step in range(batch.rollout.num_steps):
        wanted = gradient[batch.rollout.step_ids == step].norm()
        assert float(wanted) > 0
        assert_same(values[f"train/grad_norm/step{step + 1}"], wanted.float())
    halves = gradient_values(*((gradient[rows], batch.prompts(part).rollout) for rows, part in PARTS))
    assert_same(halves["train/grad_norm/step1"], values["train/grad_norm/step1"])


PARTS = ((slice(0, 8), slice(0, 2)), (slice(8, 16), slice(2, 4)))


def gradient_values(*passes: tuple[Tensor, Completions]) -> dict[str, Tensor]:
    """What is logged of backward passes with given gradients by log-probabilities."""
    gradients = StepGradients(passes[0][1].num_steps)
    for gradient, drawn in passes:
        logps = torch.zeros_like(gradient, requires_grad=True)
        gradients.watch(logps, drawn)
        (logps * gradient).sum().backward()
    return {tag: torch.tensor(value) for tag, value in gradients.close(torch.device("cpu")).items()}
