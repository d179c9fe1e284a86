import pytest

from genrl.compare.plan import (
    RESERVED,
    UNLIMITED,
    Plan,
    check_baseline,
    parse_budget,
    parse_grid,
    parse_rows,
    parse_seeds,
)
from genrl.errors import ConfigError
from genrl.runs.stages import SUPERVISED, supervised_stages
from genrl.runs.tables import NAMES
from tests.comparisons import plan_of


def names(plan: Plan) -> list[str]:
    return [run.folder.name for run in plan.runs]


def test_every_row_has_an_ordinary_run_per_seed(tmp_path):
    plan = plan_of(tmp_path, "grpo,wide=sapo", "rl.max_steps=7", "experiment=here", seeds=(0, 3))
    assert names(plan) == ["grpo-s0", "grpo-s3", "wide-s0", "wide-s3"]
    assert [run.folder.parent for run in plan.runs] == [tmp_path / "here"] * 4
    assert [run.config.objective["name"] for run in plan.runs] == ["grpo", "grpo", "sapo", "sapo"]
    assert plan.runs[0].config.name is None  # what `fit --objective grpo` made is reused
    assert {run.max_steps for run in plan.runs} == {7}
    assert all(run.words[0] == "fit" and run.words[-1] == "--resume" for run in plan.runs)


def test_stage_align_is_a_run_of_its_own_that_no_budget_ends(tmp_path):
    plan = plan_of(tmp_path, "grpo,sapo", budget="seconds=5")
    assert plan.shared.config.stages == ["align"]
    assert plan.shared.config.trainer.extra == {}
    assert plan.shared.max_steps is None
    other = plan_of(tmp_path, "grpo,sapo", "rl.max_steps=9")
    assert plan.shared.folder != other.shared.folder  # so that another comparison does not find it taken
    assert plan.shared.folder == plan_of(tmp_path, "grpo,ce").shared.folder


@pytest.mark.parametrize(
    ("layout", "stages", "shared"),
    [
        ("blocked", "[align,activate,rl]", ["align", "activate"]),
        ("blocked", "[align,rl]", ["align"]),
        ("sid", "[align,activate,rl]", ["align"]),  # nothing to activate
        ("sid", "[align,rl]", ["align"]),
        ("slate", "[activate,rl]", ["activate"]),  # titles behind prompts in words, which align does not teach
    ],
)
def test_the_stages_before_rl_are_shared(tmp_path, layout, stages, shared):
    plan = plan_of(tmp_path, "grpo", f"layout={layout}", f"stages={stages}")
    assert supervised_stages(plan.runs[0].config) == shared
    assert plan.shared.config.stages == shared
    assert plan.runs[0].config.stages == stages.strip("[]").split(",")


def test_points_of_a_grid_are_runs_with_telling_names(tmp_path):
    plan = plan_of(tmp_path, "grpo,ce", seeds=(0,), grids=("lr=1e-5,3e-5", "grpo:kl=0,0.01"))
    assert names(plan) == [
        *("grpo-lr1e-5-kl0-s0", "grpo-lr1e-5-kl0.01-s0", "grpo-lr3e-5-kl0-s0", "grpo-lr3e-5-kl0.01-s0"),
        *("ce-lr1e-5-s0", "ce-lr3e-5-s0"),
    ]
    last = plan.rows["grpo"][-1]
    assert last.point == {"lr": "3e-5", "kl": "0.01"}
    assert (last.runs[0].config.rl.learning_rate, last.runs[0].config.objective["kl_coef"]) == (3e-5, 0.01)


def test_an_option_of_one_row_leaves_the_others(tmp_path):
    plan = plan_of(tmp_path, "grpo,sapo", "rl.learning_rate=1e-3", "sapo:rl.learning_rate=1e-4", seeds=(0,))
    assert [run.config.rl.learning_rate for run in plan.runs] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("steps=5", [5, 5]),
        ("prompts=32", [24, 24]),  # 4 rollouts of 8 prompts, each 3 passes over 2 mini-batches
        ("prompts=39", [24, 24]),
        ("tokens=384", [24, 96]),  # 4 rollouts of 8 x 4 x 3 tokens; the control trains on one completion per prompt
        ("seconds=9", [None, None]),
    ],
)
def test_a_budget_becomes_optimiser_steps(tmp_path, budget, steps):
    rollouts = ("rollout.prompts=8", "rollout.group_size=4", "rollout.epochs=3", "rollout.minibatches=2")
    plan = plan_of(tmp_path, "grpo,ce", *rollouts, seeds=(0,), budget=budget)
    assert [run.max_steps for run in plan.runs] == steps
    if budget.startswith("seconds"):
        assert plan.runs[0].config.trainer.extra == {"max_time": {"seconds": 9}}
        assert plan.runs[0].config.rl.max_steps == UNLIMITED


def test_the_control_that_thinks_writes_as_many_completions_as_the_others(tmp_path):
    rollouts = ("rollout.prompts=8", "rollout.group_size=4", "layout=blocked")
    plan = plan_of(tmp_path, "grpo,ce", *rollouts, seeds=(0,), budget="tokens=384")
    assert [run.max_steps for run in plan.runs] == [4, 4]


@pytest.mark.parametrize(("budget", "least"), [("prompts=15", "16 prompts"), ("tokens=767", "768 tokens")])
def test_a_budget_below_one_rollout_is_refused(tmp_path, budget, least):
    with pytest.raises(ConfigError, match=f"takes {least}"):
        plan_of(tmp_path, "grpo", budget=budget)


@pytest.mark.parametrize(
    ("objectives", "overrides", "grids", "reason"),
    [
        ("grppo", (), (), "Did you mean 'grpo'"),
        ("grpo", ("rl.max_step=3",), (), "Did you mean 'max_steps'"),
        ("grpo", (), ("lr=fast",), "is not a number"),
        ("ce", (), ("objective.clip=0.1",), "has no option 'clip'"),
        ("grpo", ("seed=3",), (), "Use --seeds"),
        ("grpo", ("objective.name=sapo",), (), "Use --objectives"),
        ("grpo", ("stages=[rl]",), (), "a comparison needs rl and a stage before it"),
        ("grpo", ("stages=[align]",), (), "a comparison needs rl and a stage before it"),
        ("grpo", ("layout=sid", "stages=[activate,rl]"), (), "a comparison needs rl and a stage before it"),
        ("grpo", ("grppo:rl.max_steps=3",), (), "Did you mean 'grpo'"),
        ("grpo", ("grpo:model.hidden=8",), (), "all rows share the stages before it"),
        ("grpo", (), ("lr=1e-5", "rl.learning_rate=1e-4"), "has a grid already"),
        ("grpo", (), ("lr=1e-5", "grpo:lr=1e-4"), "has a grid already"),
        ("sapo,step-aligned", (), (), "would hold two runs"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, objectives, overrides, grids, reason):
    with pytest.raises(ConfigError, match=reason):
        plan_of(tmp_path, objectives, *overrides, grids=grids)


def test_a_grid_and_a_budget_do_not_set_the_same_option(tmp_path):
    with pytest.raises(ConfigError, match="Leave one of them out"):
        plan_of(tmp_path, "grpo", grids=("rl.max_steps=3,4",), budget="steps=5")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grpo,", "a value is missing"),
        ("grpo,grpo", "twice"),
        ("a/b=grpo", "is no row"),
        ("a=", "is no row"),
        ("align=ce", "row of every report"),
        ("activate=ce", "row of every report"),
        ("item_knn=ce", "row of every report"),
    ],
)
def test_rows_that_are_none(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_rows(text)


def test_the_rows_that_every_report_has_are_reserved():
    assert set(RESERVED) == {*SUPERVISED, *NAMES}


def test_a_baseline_is_a_row():
    check_baseline("grpo", ["align", "grpo"])
    with pytest.raises(ConfigError, match="Did you mean 'grpo'"):
        check_baseline("grppo", ["align", "grpo"])


@pytest.mark.parametrize("text", ["", "0,x", "-1", "1.5", "0,1,1"])
def test_seeds_that_are_none(text):
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "step=5", "steps", "steps=0", "tokens=many", "seconds=1.5"])
def test_budgets_that_are_none(text):
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    "text", ["lrr=1", "rl=1", "align.learning_rate=1", "objective.name=ce", "lr=", "lr=1,1", "b:lr=1"]
)
def test_grids_that_are_none(text):
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid(text, {"grpo": "grpo"})


def test_a_value_of_a_grid_may_be_a_list():
    assert parse_grid("rl.betas=[0.9,0.95],[0.8,0.9]", {}).values == ("[0.9,0.95]", "[0.8,0.9]")
