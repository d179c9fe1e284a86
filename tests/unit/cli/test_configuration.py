import json
import re
from pathlib import Path

import pytest

from genrl.cli import parse
from genrl.cli.configuration import REGISTRIES, compose
from genrl.cli.flags import BUILT_IN
from genrl.config import load_config, run_folder, save_config
from genrl.errors import ConfigError, GenRLError


def test_a_baseline_is_a_run_of_its_own():
    config = compose(parse(["fit", "--baseline", "sasrec", "--seed", "2", "baseline.loss=binary"]))
    assert config.stages == ["baseline"]
    assert (config.baseline["name"], config.baseline["loss"]) == ("sasrec", "binary")
    assert run_folder(config) == Path("runs/toy/sasrec-s2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "sasrek"], "unknown baseline 'sasrek'. Did you mean 'sasrec'"),
        (["--baseline", "sasrec", "baseline.hiden=3"], "has no option 'hiden'. Did you mean 'hidden'"),
        (["--baseline", "sasrec", "--objective", "grpo"], "--baseline sasrec is a run of its own, without --objective"),
        (["--baseline", "tiger", "--stage", "rl"], "--baseline tiger is a run of its own, without --stage"),
        (["stages=[align,baseline]"], "has `baseline` beside other stages. Run it alone: --baseline NAME"),
    ],
)
def test_what_is_wrong_with_a_baseline_is_said(words, message):
    with pytest.raises(GenRLError, match=re.escape(message)):
        compose(parse(["fit", *words]))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["rollout.group_size=1"], "rollout.group_size"),
        (["rewards.level_match=null"], "needs a match per step"),
        (["rewards.level_match.weight=0"], "needs a match per step"),
        (["rewards.level_match.weight=0", "rewards.exact_match.weight=0"], "none has a weight other than 0"),
    ],
)
def test_an_objective_that_cannot_learn_is_refused(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        compose(parse(["fit", "--objective", "sapo", *overrides]))


def test_categories_of_the_toy_items_are_known_when_they_are_there():
    assert compose(parse(["fit", "--objective", "sage", "objective.category=colour"])).objective["category"] == "colour"
    files = ("data.source=files", "data.interactions=x.csv", "data.columns.attributes=[brand]")
    with pytest.raises(ConfigError, match=r"the item column 'brandd' \(objective.category\)"):
        compose(parse(["fit", "--objective", "sage", "objective.category=brandd", *files]))


def test_a_stage_without_rl_asks_nothing_of_the_objective():
    assert compose(parse(["fit", "--stage", "align", "rollout.group_size=1"])).stages == ["align"]


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_built_in_objective_fits_the_defaults(name):
    assert compose(parse(["fit", "--objective", name])).objective["name"] == name


def test_the_saved_configuration_with_real_components_is_the_same_one(tmp_path):
    config = compose(parse(["fit", "--objective", "sapo", "objective.kl_coef=0.01", "rewards.format.weight=0.1"]))
    save_config(config, tmp_path / "config.yaml")
    assert load_config([tmp_path / "config.yaml"], registries=REGISTRIES) == config
    assert json.dumps(config.objective["kl_coef"]) == "0.01"
