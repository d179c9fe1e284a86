"""The verifier: sums, weights, logs, and what it refuses."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from genrl.batches import Completions, Requests, Targets
from genrl.catalog import Catalog
from genrl.errors import ConfigError, UnknownComponentError
from genrl.registry import load_plugin
from genrl.rewards import REWARDS, RewardContext, build_verifier
from genrl.runs.session import Session
from tests.helpers import assert_same
from tests.runs import attach, rl_module, small_config

DOCS = Path(__file__).resolve().parents[3] / "docs"
CODES = torch.tensor([[0, 0], [0, 1], [1, 0]])


def context(codes=CODES, **known):
    """What a catalogue with these codes says, all else unknown unless told."""
    return RewardContext.from_catalog(Catalog.from_table([f"i{row}" for row in range(len(codes))], **known), codes)


def requests(targets, history=None, feedback=None):
    """Requests with targets [P, M]."""
    rows = len(targets)
    history = torch.full((rows, 1), -1) if history is None else history
    ones = torch.ones(rows, 1, dtype=torch.int64)
    return Requests(ones, ones.bool(), history, Targets(targets, feedback or {}))


def make_rollout(items, choices, logps, group):
    rows, steps = choices.shape
    ones = torch.ones(rows, steps, dtype=torch.bool)
    steps_ids = torch.arange(steps).expand(rows, steps).contiguous()
    return Completions(
        tokens=choices.clamp(min=0),
        chosen=ones,
        step_ids=steps_ids,
        item_ids=torch.zeros_like(steps_ids),
        codes=choices,
        items=items,
        logps=logps,
        group_size=group,
        num_steps=steps,
    )


def rollout(items=(0, 1, 2, -1)):
    """Two prompts with two completions each."""
    items = torch.tensor(items).unsqueeze(1)
    choices = context().codes_of(items[:, 0])
    return make_rollout(items, choices, torch.zeros(choices.shape), 2)


TARGETS = requests(torch.tensor([[1], [2]]))


def test_outcome_is_the_weighted_sum_and_components_are_not_weighted():
    options = {"exact_match": {"weight": 2.0}, "level_match": {"weight": 0.5}}
    verifier = build_verifier({**options, "prefix_match": {}, "ndcg_rank": {"weight": 0}}, context())
    rewards = verifier(rollout(), TARGETS)
    level = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    exact = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert_same(rewards.steps, 1.5 * level)  # here every match is a prefix
    assert_same(rewards.outcome, 2 * exact + 1.5 * level.sum(1))
    assert_same(rewards.components["exact_match"], exact)
    assert_same(rewards.components["level_match"], level.sum(1))
    assert rewards.components["ndcg_rank"].any()
    assert rewards.weights == {"exact_match": 2.0, "level_match": 0.5, "prefix_match": 1.0, "ndcg_rank": 0.0}
    assert rewards.step_shaping is None
    assert list(rewards.components) == list(rewards.weights)


def thinking_rollout():
    return replace(rollout(), closed=torch.tensor([[True, False], [True, True], [False, True], [True, True]]))


def test_format_is_in_the_outcome_and_in_shaping_but_no_match():
    options = {"exact_match": {"weight": 2.0}, "level_match": {"weight": 0.5}, "format": {"weight": 0.25}}
    verifier = build_verifier(options, context(), thinking=True)
    rewards = verifier(thinking_rollout(), TARGETS)
    level = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    ended = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # the last row names no item
    assert_same(rewards.steps, 0.5 * level)
    assert_same(rewards.step_shaping, 0.25 * ended)
    assert_same(rewards.outcome, torch.tensor([0.0, 2.0, 2.0, 0.0]) + 0.5 * level.sum(1) + 0.25 * ended.sum(1))
    assert_same(rewards.components["format"], ended.sum(1))
    assert verifier.step_names == ("level_match",)


@pytest.mark.parametrize("options", [{"format": {}}, {"exact_match": {}, "level_match": None}])
def test_without_a_match_per_step_there_are_no_steps(options):
    verifier = build_verifier(options, context())
    assert verifier(thinking_rollout(), TARGETS).steps is None
    assert verifier.step_names == ()


def test_a_step_reward_of_weight_zero_does_not_count():
    verifier = build_verifier({"level_match": {"weight": 0}}, context())
    assert verifier.step_names == ()
    rewards = verifier(rollout(), TARGETS)
    assert not rewards.steps.any()
    assert rewards.components["level_match"].any()


def test_there_is_a_request_per_group_and_it_has_targets():
    verifier = build_verifier({"exact_match": {}}, context())
    with pytest.raises(ValueError, match="3 requests; a rollout of 2 prompts x 2 completions needs 2"):
        verifier(rollout(), requests(torch.zeros(3, 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="have no targets"):
        verifier(rollout(), replace(TARGETS, targets=None))


def test_micro_batches_of_whole_groups_get_the_same_rewards():
    verifier = build_verifier({"exact_match": {}, "ndcg_rank": {}, "prefix_match": {}}, context())
    whole = verifier(rollout(), TARGETS)
    parts = [verifier(rollout().groups(slice(i, i + 1)), TARGETS.rows(slice(i, i + 1))) for i in range(2)]
    assert_same(torch.cat([part.outcome for part in parts]), whole.outcome)
    assert_same(torch.cat([part.steps for part in parts]), whole.steps)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exact_mach": {}}, UnknownComponentError, "Did you mean 'exact_match'"),
        ({"exact_match": {"weigth": 1}}, ConfigError, "has no option 'weigth'"),
        ({"exact_match": None}, ConfigError, "none is configured"),
        ({"exact_match": {}, "format": {}}, ConfigError, r"rewards.format judges thinking.*rewards.format=null"),
        ({"information": {}}, ConfigError, r"rewards.information judges thinking.*rewards.information=null"),
        ({"information": {"clip": 0}}, ConfigError, "clip"),
    ],
)
def test_refusals_say_what_is_known(options, error, message):
    with pytest.raises(error, match=message):
        build_verifier(options, context(), thinking=False)


def test_every_built_in_reward_has_a_weight_first():
    for name in REWARDS.names():
        first = fields(REWARDS.entry(name).config)[0]
        assert (first.name, first.default) == ("weight", 1.0)


def test_the_context_needs_its_row_of_no_item():
    with pytest.raises(ValueError, match="last row must be all -1"):
        replace(context(), codes=torch.zeros(4, 2, dtype=torch.int64))
    assert context().codes_of(torch.tensor([-1, 2])).tolist() == [[-1, -1], [1, 0]]


LOG = """user_id,item_id,timestamp,click
u,a,1,1
u,b,2,0
u,c,3,1
u,d,4,0.5
u,a,5,1
u,b,6,1
v,b,1,1
v,a,2,1
v,d,3,0
v,c,4,
v,b,5,1
v,d,6,1
"""
ITEMS = "item_id,title,category,brand\na,A,x,ex\nb,B,x,ex\nc,C,y,why\nd,D,y,\n"


@pytest.fixture
def plugin(tmp_path):
    """The reward of docs/rewards.md that uses category, history and feedback, as a file."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "rewards.md").read_text(), re.DOTALL)
    path = tmp_path / "liked_kind.py"
    path.write_text(next(block for block in blocks if "liked_kind" in block))
    load_plugin(str(path))
    yield path
    del REWARDS._entries["liked_kind"]


@pytest.mark.usefixtures("plugin")
def test_a_reward_sees_category_history_and_feedback():
    known = context(categories=["x", "x", "y"], attributes={"brand": ["ex", "", "why"]})
    verifier = build_verifier({"exact_match": {}, "liked_kind": {"weight": 0.5}}, known)
    feedback = {"click": torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])}
    asked = requests(torch.tensor([[0, 2], [2, 0]]), torch.tensor([[-1, 1], [-1, -1]]), feedback)
    rewards = verifier(rollout((0, 1, 1, 2)), asked)
    assert rewards.values["liked_kind"].tolist() == [[1.0], [0.0], [1.0], [0.0]]  # 1 was had; 2 is of no liked kind
    assert rewards.outcome.tolist() == [1.5, 0.0, 0.5, 1.0]
    assert rewards.steps is None
    assert known.history is None
    assert known.attributes["brand"][2] == "why"
    assert known.to("cpu").attributes == known.attributes


def test_a_reward_sees_them_in_training(plugin, tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    files = [f"data.interactions={tmp_path / 'log.csv'}", f"data.items={tmp_path / 'items.csv'}"]
    columns = ["data.source=files", "data.columns.feedback=[click]", "data.columns.attributes=[brand]"]
    rewards = [f"plugins=[{plugin}]", "rewards.liked_kind.weight=2", "rewards.exact_match.weight=1"]
    quick = ["stages=[rl]", "objective=grpo", "rollout.prompts=2", "rollout.group_size=2", "sid.codes=2"]
    beam = ["evaluate.beam=4", "evaluate.k=[4]"]
    session = Session.build(small_config(tmp_path / "run", *files, *columns, *rewards, *quick, *beam))
    module, seen = attach(rl_module(session, tmp_path)), []

    class Spy(REWARDS.entry("liked_kind").factory):
        def __call__(self, completions, targets, context):
            seen.append((targets, context))
            return super().__call__(completions, targets, context)

    module.verifier.rewards["liked_kind"] = Spy(module.verifier.rewards["liked_kind"].config)
    module.experience(0)
    targets, known = seen[0]
    rows = zip(targets.items[::2, 0].tolist(), targets.feedback["click"][::2, 0], known.history[::2], strict=True)
    found = {item: (float(click), history.tolist()) for item, click, history in rows}
    assert found.keys() == {2, 3}  # the last training position of each user
    assert found[3] == (0.5, [0, 1, 2])
    assert math.isnan(found[2][0])
    assert found[2][1] == [1, 0, 3]
    assert known.attributes == {"brand": ["ex", "ex", "why", ""]}
    assert known.categories.tolist() == [0, 0, 1, 1]
