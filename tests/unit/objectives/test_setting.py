"""What is missing is said before a model is loaded, and again where it is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genrl.batches import Scores
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, Setting
from tests.property.rollouts import sample

FINE = Setting(("exact_match", "level_match"), step_rewards=True, group_size=4)


def message(name: str, options: dict[str, object] | None = None, **given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        OBJECTIVES.build(name, options).check(replace(FINE, **given), name)
    return str(caught.value)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_nothing_missing(name: str) -> None:
    OBJECTIVES.build(name).check(replace(FINE, items=1, categories=True, thinking=False), name)


def test_sapo_without_step_reward() -> None:
    assert message("sapo", step_rewards=False, rewards=("exact_match",)) == (
        "objective 'sapo' needs a match per step; none of rewards [exact_match] gives one. "
        "Add e.g. rewards.level_match.weight=1"
    )


@pytest.mark.parametrize("name", ["grpo", "sapo", "sage", "dapo", "gdpo"])
def test_group_of_one(name: str) -> None:
    assert "rollout.group_size is 1. Set it to 2 or more" in message(name, group_size=1)


@pytest.mark.parametrize("name", ["ce", "gbpo"])
def test_groups_of_one_where_nothing_is_compared(name: str) -> None:
    options = {"advantage": "sign"} if name == "gbpo" else {}
    OBJECTIVES.build(name, options).check(replace(FINE, group_size=1), name)


def test_raw_singletons_may_be_alone() -> None:
    OBJECTIVES.build("grpo", {"singleton": "raw"}).check(replace(FINE, group_size=1), "grpo")


def test_no_rewards_by_name() -> None:
    assert "at least one reward by name" in message("sage", rewards=())


def test_named_reward() -> None:
    options = {"ablation": "outcome", "exact_reward": "hit"}
    assert "needs the reward 'hit'; rewards are [exact_match, level_match]. Add rewards.hit.weight=1" in message(
        "sapo", options
    )


def test_layout() -> None:
    assert "objective.diversity=group" in message("sage", {"diversity": "slate"}, items=1)
    assert "data.columns.category" in message("sage", categories=False)
    assert "layout=blocked" in message("sapo", {"scope": "think_only"}, thinking=False)
    assert "layout=sid" in message("ce", thinking=True)


def test_all_problems_at_once() -> None:
    assert len(message("sapo", step_rewards=False, group_size=1).splitlines()) == 2


def test_the_same_where_it_is_missed() -> None:
    batch = sample("sid")
    whole = batch.with_rewards({"exact_match": batch.rewards.values["exact_match"]})
    with pytest.raises(ConfigError, match=r"need a match per step; none of rewards \[exact_match\] gives one"):
        OBJECTIVES.build("sapo").prepare(whole.rollout, whole.rewards)
    alone = replace(batch.rollout, group_size=1)
    with pytest.raises(ConfigError, match=r"rollout\.group_size is 1"):
        OBJECTIVES.build("grpo").prepare(alone, batch.rewards)


@pytest.mark.parametrize(
    ("name", "options", "absent", "text"),
    [
        ("grpo", {}, "ref_logps", "set kl_coef=0"),
        ("sage", {}, "categories", "set diversity=policy"),
        ("sage", {"diversity": "policy"}, "entropy", "set diversity=group"),
    ],
)
def test_missing_in_the_rollout(name: str, options: dict[str, str], absent: str, text: str) -> None:
    batch = sample("slate")
    batch = replace(batch, rollout=replace(batch.rollout, **{absent: None}))
    with pytest.raises(ConfigError, match=text):
        batch.outcome(OBJECTIVES.build(name, options))


def test_missing_in_the_scores() -> None:
    batch = sample("sid")
    objective = OBJECTIVES.build("dapo", {"entropy_coef": 0.1})
    experience = batch.experience(objective)
    with pytest.raises(ConfigError, match="set entropy_coef=0"):
        objective.loss(Scores(batch.logps), experience)


def test_decoupled_rewards_need_names_and_weights() -> None:
    batch = sample("sid")
    objective = OBJECTIVES.build("gdpo")
    with pytest.raises(ConfigError, match="by name and weight"):
        objective.prepare(batch.rollout, batch.with_rewards({"novelty": batch.logps[:, 0]}, novelty=0.0).rewards)
    named = OBJECTIVES.build("sapo", {"ablation": "outcome", "exact_reward": "style"})
    with pytest.raises(ConfigError, match=r"rewards.style.weight=1"):
        named.prepare(batch.rollout, batch.rewards)


def test_slate_diversity_of_single_items() -> None:
    batch = sample("sid")
    with pytest.raises(ConfigError, match="Set diversity=group"):
        OBJECTIVES.build("sage", {"diversity": "slate"}).prepare(batch.rollout, batch.rewards)
