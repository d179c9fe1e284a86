from dataclasses import fields

import pytest

from genrl.config import RunConfig, dotted_keys
from genrl.config.typed import to_typed


def test_dotted_keys_reach_every_section():
    keys = set(dotted_keys())
    assert {"seed", "objective", "data.columns.user", "model.lora.rank", "sid"} <= keys
    assert {key.partition(".")[0] for key in keys} == {field.name for field in fields(RunConfig)}


def test_values_of_the_right_type_arrive():
    config, problems = to_typed(
        {"rl": {"max_steps": 3, "betas": [0, 0.5]}, "evaluate": {"valid_users": None}, "data": None}
    )
    assert problems == []
    assert (config.rl.max_steps, config.rl.betas, config.evaluate.valid_users) == (3, [0.0, 0.5], None)
    assert config.data == RunConfig().data


@pytest.mark.parametrize(
    ("tree", "key", "reason"),
    [
        ({"rl": {"max_steps": "many"}}, "rl.max_steps", "is not an integer. The default is 30"),
        ({"rl": {"max_steps": None}}, "rl.max_steps", "is not an integer"),
        ({"rl": {"max_steps": 2.5}}, "rl.max_steps", "is not an integer"),
        ({"rl": {"learning_rate": "fast"}}, "rl.learning_rate", "is not a number"),
        ({"trainer": {"compile": "maybe"}}, "trainer.compile", "is not true or false. The default is false"),
        ({"evaluate": {"k": 5}}, "evaluate.k", "a list of integers such as [1, 2]. The default is [1, 5, 10, 20, 50]"),
        ({"evaluate": {"test_users": "x"}}, "evaluate.test_users", "is not an integer or null"),
        ({"rl": {"select": "bst"}}, "rl.select", "is not one of best, last. Did you mean 'best'?"),
        ({"trainer": {"extra": 3}}, "trainer.extra", "is not a group of options"),
        ({"trainer": {"extra": {1.5: 2}}}, "trainer.extra", "does not fit: "),
        ({"rl": {"betas": {"a": 1}}}, "rl.betas", "is not a list of numbers such as [0.9, 0.95]"),
        ({"trainer": 3}, "trainer", "is a group of options, not a value"),
        ({"objectve": "gbpo"}, "objectve", "is not an option. Did you mean 'objective'?"),
        ({"rl": {"max_step": 3}}, "rl.max_step", "is not an option. Did you mean 'max_steps'?"),
        ({"prompt": {"context": 0}}, "prompt.context", "is an option of an earlier version. Leave it out;"),
        (
            {"align": {"shuffle_ties": False}},
            "align.shuffle_ties",
            "version, in place of which there is data.ties. Leave",
        ),
        ({"max_steps": 3}, "max_steps", "Did you mean 'rl.max_steps'?"),
        ({"learning_rate": 3}, "learning_rate", "'activate.learning_rate' or 'rl.learning_rate'?"),
        ({"rl.max_steps": 3}, "rl.max_steps", "Nest it: rl: {max_steps: ...}"),
        ({"data": {"items": "${nowhere}"}}, "data.items", "'nowhere' not found"),
        ({"activate": {"labels": "${seed}"}}, "activate.labels", "Cannot assign int"),
        ({"rewards": "${seed}"}, "rewards", "Cannot assign int"),
        ({"stages": "${seed}"}, "stages", "int is not a"),
        ({"objective": {"name": 3}}, "objective", "needs the name of a component, e.g. objective.name=sapo"),
        ({"layout": {}}, "layout", "needs the name of a component, e.g. layout.name=blocked"),
        ({"rewards": {"exact_match": 2}}, "rewards.exact_match", "rewards.exact_match.weight=1.0"),
    ],
)
def test_a_misfit_is_named(tree, key, reason):
    _, (problem,) = to_typed(tree)
    assert problem.keys == (key,)
    assert reason in problem.reason


def test_a_misfit_keeps_its_default_and_what_is_right_arrives():
    rewards = {"exact_match": {"weight": 1.0}, "level_match": None}  # null drops a reward
    config, problems = to_typed({"rl": {"max_steps": "many", "warmup_steps": 7}, "rewards": rewards})
    assert len(problems) == 1
    assert (config.rl.max_steps, config.rl.warmup_steps) == (RunConfig().rl.max_steps, 7)
    assert list(config.rewards) == ["exact_match"]


def test_an_option_may_refer_to_another_or_to_the_environment(monkeypatch):
    monkeypatch.setenv("GENRL_TEST_DATA", "folder")
    config, problems = to_typed(
        {"seed": 4, "model": {"seed": "${seed}"}, "data": {"items": "${oc.env:GENRL_TEST_DATA}/i.csv"}}
    )
    assert problems == []
    assert (config.model.seed, config.data.items) == (4, "folder/i.csv")
