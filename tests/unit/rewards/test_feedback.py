"""Several behaviours from columns of the log, by hand and in training."""

import math
from dataclasses import replace

import pytest
import torch

from genrl.config import RunConfig
from genrl.errors import ConfigError, DataError
from genrl.rewards import Verifier, build_verifier
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, make_verifier
from tests.helpers import assert_same
from tests.runs import attach, rl_module, small_config
from tests.unit.rewards.test_base import ITEMS, LOG, requests
from tests.unit.rewards.test_base import context as context_of
from tests.unit.rewards.test_slate import CODES, slates

NAN = float("nan")
TARGETS = torch.tensor([[2, 0, 2], [4, 3, -1]])
FEEDBACK = {
    "click": torch.tensor([[1.0, 0.0, 5.0], [1.0, NAN, 7.0]]),
    "play": torch.tensor([[90.0, 30.0, 1.0], [240.0, 60.0, 9.0]]),
    "hate": torch.tensor([[0.0, 1.0, 0.0], [NAN, 1.0, 1.0]]),
}
REWARDS = {
    "like": {"reward": "feedback", "column": "click"},
    "time": {"reward": "feedback", "column": "play", "scale": 60, "limit": 2.0, "weight": 0.5},
    "long": {"reward": "feedback", "column": "play", "threshold": 60},
    "hate": {"reward": "feedback", "column": "hate", "weight": -1.0},
}


def test_every_behaviour_is_a_reward_of_its_own_per_item():
    known = replace(context_of(CODES), feedback=tuple(FEEDBACK))
    verifier = build_verifier(REWARDS, known, steps=3, items=3)
    rewards = verifier(slates(), requests(TARGETS, feedback=FEEDBACK))
    # Slates [0 1 2], [0 0 2], [3 no 4], [4 3 2]; the second 2 of the targets is the same item again.
    assert_same(rewards.values["like"], torch.tensor([[0.0, 0, 1], [0.0, 0, 1], [0.0, 0, 1], [1.0, 0, 0]]))
    assert_same(rewards.values["time"], torch.tensor([[0.5, 0, 1.5], [0.5, 0, 1.5], [1.0, 0, 2.0], [2.0, 1.0, 0]]))
    assert_same(rewards.values["long"], torch.tensor([[0.0, 0, 1], [0.0, 0, 1], [0.0, 0, 1], [1.0, 0, 0]]))
    assert_same(rewards.values["hate"], torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0]]))
    assert rewards.per_item == frozenset(REWARDS)
    assert_same(rewards.outcome, torch.tensor([2.0, 2.0, 2.5, 2.5]))
    assert rewards.weights == {"like": 1.0, "time": 0.5, "long": 1.0, "hate": -1.0}


def test_a_column_that_is_not_kept_is_named_with_its_remedy():
    known = replace(context_of(CODES), feedback=("click", "play"))
    with pytest.raises(ConfigError, match=r"'clik' is not kept.*Did you mean 'click'\? Kept: click, play. Name it in"):
        build_verifier({"like": {"reward": "feedback", "column": "clik"}}, known, steps=3, items=3)
    with pytest.raises(ConfigError, match=r"needs the option 'column': a column of data\.columns\.feedback"):
        build_verifier({"feedback": {}}, known)


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    (folder / "log.csv").write_text(LOG.replace("click", "click,note").replace("\n", ",x\n").replace("note,x", "note"))
    (folder / "items.csv").write_text(ITEMS.replace("\n", ",\n").replace("brand,", "brand,shade"))
    files = [f"data.interactions={folder / 'log.csv'}", f"data.items={folder / 'items.csv'}", "data.source=files"]
    columns = ["data.columns.feedback=[click]", "data.columns.attributes=[brand]"]
    quick = ["stages=[rl]", "rollout.prompts=2", "rollout.group_size=2", "sid.codes=2", "evaluate.beam=4"]
    rewards = ["rewards.like.reward=feedback", "rewards.like.column=click", "rewards.level_match=null"]
    return lambda *more: small_config(folder / "run", *files, *columns, *quick, "evaluate.k=[4]", *rewards, *more)


def test_behaviours_and_a_category_level_reach_training(config_of, tmp_path):
    config = config_of("objective=sage", "objective.category=brand")
    assert list(config.rewards["like"]) == ["reward", "weight", "column", "threshold", "scale", "limit"]
    session = Session.build(config)
    module = attach(rl_module(session, tmp_path))
    assert module.categories.tolist() == [0, 0, 1, -1]
    assert (module.updates, module.objective.category) == (2, "brand")
    module.experience(0)
    _, rewards, asked = module.sampled
    drawn = module.sampled[0].completions
    click = asked.wanted.feedback["click"].nan_to_num().repeat_interleave(2, 0)
    hit = (drawn.items == asked.wanted.items.repeat_interleave(2, 0)).float()
    assert_same(rewards.values["like"], hit * click)
    numbers = torch.tensor([0, 0, 1, -1])
    assert torch.equal(drawn.categories, torch.where(drawn.items < 0, -1, numbers[drawn.items]))


def verified(config: RunConfig) -> Verifier:
    return make_verifier(Session.build(config), build_objective(config))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["rewards.like.column=clicks"], ConfigError, "'clicks' is not kept.*Did you mean 'click'"),
        (["data.columns.feedback=[clicks]", "rewards.like.column=clicks"], DataError, "clicks"),
        (
            ["data.columns.feedback=[note]", "rewards.like.column=note"],
            DataError,
            "note is 'x', which is neither a number",
        ),
        (["rewards.like.threshold=0", "rewards.like.limit=2"], ConfigError, "threshold=0 pays 1 or 0, so scale and"),
        (["rewards.like.threshold=0", "rewards.like.scale=2"], ConfigError, "threshold=0 pays 1 or 0, so scale and"),
        (
            ["data.columns.attributes=[brand,shade]", "objective=sage", "objective.category=shade"],
            ConfigError,
            r"^objective 'sage' needs item categories; no item has a value in the column 'shade'.*[^\n]$",
        ),
        (["objective=sage", "objective.category=brands"], ConfigError, "'brands'.*Did you mean 'brand'"),
    ],
)
def test_wrong_columns_are_one_clear_error(config_of, overrides, error, message):
    config = config_of(*overrides)
    with pytest.raises(error, match=message):
        verified(config)


def test_one_kind_twice_and_unknown_kinds_in_a_configuration(config_of):
    with pytest.raises(ConfigError, match=r"unknown reward 'fedback'. Did you mean 'feedback'"):
        config_of("rewards.like.reward=fedback")
    both = config_of("rewards.more.reward=feedback", "rewards.more.column=click", "rewards.more.weight=2")
    assert both.rewards["more"]["weight"] == 2.0
    assert math.isclose(both.rewards["like"]["weight"], 1.0)
