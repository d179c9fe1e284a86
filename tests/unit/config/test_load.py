from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest

from genrl.cli.configuration import REGISTRIES
from genrl.config import RunConfig, dotted_keys, load_config, run_folder, save_config
from genrl.errors import ConfigError
from genrl.registry import Registry


@dataclass(frozen=True)
class StepOptions:
    clip_high: float = 0.2
    normalize: Literal["std", "mean"] = "std"
    levels: list[int] = field(default_factory=list)
    label: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RewardOptions:
    weight: float = 1.0


def component(config=None):
    return config


@dataclass
class LayoutOptions:
    budget: int = 48


@pytest.fixture
def registries():
    def registry(kind, **entries):
        made = Registry(kind, "genrl.tests_of_load")
        for name, config in entries.items():
            made.register(name, config=config, aliases=("step-aligned",) if name == "sapo" else ())(component)
        return lambda: made

    return {
        "objective": registry("objective", sapo=StepOptions, gbpo=None),
        "layout": registry("layout", sid=None, blocked=LayoutOptions),
        "reward": registry("reward", **dict.fromkeys(("exact_match", "level_match", "format"), RewardOptions)),
        "sid": registry("SID builder", kmeans=None),
    }


def problems_of(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_later_layers_win(tmp_path):
    assert load_config() == RunConfig()
    seeds = "sid: {seed: 1}\nmodel: {seed: 1}\nalign: {seed: 1}\n"
    write(tmp_path, "base.yaml", f"experiment: base\noutput: base\nseed: 1\n{seeds}")
    over = "output: first\nseed: 2\nsid: {seed: 2}\nmodel: {seed: 2}\n"
    first = write(tmp_path, "first.yaml", f"include: base.yaml\n{over}")
    second = write(tmp_path, "second.yaml", "seed: 3\nsid: {seed: 3}\n")
    config = load_config([first, second], {"seed": 4, "output": None}, ["seed=5", "rl.max_steps=7"])
    assert config.experiment == "base"
    assert config.output == "first"
    assert (config.align.seed, config.model.seed, config.sid["seed"], config.seed) == (1, 2, 3, 5)
    assert load_config([first, second], {"seed": 4}).seed == 4
    assert config.rl.max_steps == 7
    assert config.rl.select == RunConfig().rl.select


TEXTS = ("001", "12:30:45", "no", "1e3", "2026-01-31", "0x1F", "on", "1_000", "~x", ".5")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("in_file", [True, False])
def test_text_stays_as_it_is_written(tmp_path, registries, text, in_file):
    columns = f"user: {text}, split: {text}, text: [{text}, b]"
    label = f"label: {text}, tags: [a, {text}]"
    tree = [
        f"data: {{columns: {{{columns}}}}}",
        f"objective: {{{label}}}",
        f"model: {{lora: {{target_modules: [{text}]}}}}",
    ]
    lines = [f"data.columns={{{columns}}}", f"objective={{{label}}}", f"model.lora.target_modules=[{text}]"]
    files = [write(tmp_path, "a.yaml", "\n".join(tree))] if in_file else []
    config = load_config(files, overrides=[f"prompt.prefix={text}", *([] if in_file else lines)], registries=registries)
    columns = config.data.columns
    assert (columns.user, columns.split, columns.text, config.prompt.prefix) == (text, text, [text, "b"], text)
    assert (config.objective["label"], config.objective["tags"]) == (text, ["a", text])
    assert config.model.lora.target_modules == [text]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config([tmp_path / "saved.yaml"]) == config


def test_null_and_quoted_text_and_numbers_are_what_yaml_says(tmp_path):
    file = write(
        tmp_path, "a.yaml", "experiment: 007\ndata: {columns: {time: null, title: ~, user: 'null'}}\nseed: 010\n"
    )
    config = load_config([file], {"experiment": "x"}, ["prompt.prefix=The user bought: "])
    assert config.prompt.prefix == "The user bought: "  # text that reads like a group
    assert (config.experiment, config.seed) == ("x", 8)
    assert (config.data.columns.time, config.data.columns.title, config.data.columns.user) == (None, None, "null")
    with pytest.raises(ConfigError, match=r"data\.columns\.user: is not text"):
        load_config(overrides=["data.columns.user=null"])


def test_flags_have_their_options_and_plugins_are_added_to_those_of_the_files(tmp_path):
    plugin = str(write(tmp_path, "yours.py", ""))
    file = write(tmp_path, "a.yaml", "plugins: [json]\n")
    flags = {"objective": "gbpo", "layout": "other", "stage": ["rl"], "seed": 0, "experiment": "e", "output": "o"}
    config = load_config([file], {**flags, "plugin": [plugin]})
    assert run_folder(config).as_posix() == "o/e/gbpo-s0"
    assert (config.objective, config.layout, config.stages) == ({"name": "gbpo"}, {"name": "other"}, ["rl"])
    assert (config.seed, config.experiment, config.output, config.plugins) == (0, "e", "o", ["json", plugin])


def test_components_are_completed_under_their_canonical_name(registries):
    config = load_config(overrides=["objective.name=step-aligned", "objective.normalize=mean"], registries=registries)
    assert config.objective == {"name": "sapo", **asdict(StepOptions(normalize="mean"))}
    assert config.rewards == {"exact_match": {"weight": 1.0}, "level_match": {"weight": 1.0}}


def test_all_problems_are_shown_together_with_their_places(tmp_path):
    broken = write(tmp_path, "broken.yaml", "seed: [1\n")
    file = write(
        tmp_path, "a.yaml", "include: broken.yaml\nobjectve: gbpo\nrl:\n  select: bst\nselect: {metric: hits@3}\n"
    )
    text = problems_of(
        [file], {"stage": ["algin"]}, ["rl.max_step=3", "nonsense", "model.quantize=nf4", "rl.max_steps=x"]
    )
    assert text.startswith("9 problems in the configuration:")
    for part in (
        f"{broken}:2: this is not YAML",
        f"{file}:2: objectve = 'gbpo': is not an option. Did you mean 'objective'?",
        f"{file}:4: rl.select = 'bst': is not one of best, last.",
        f"{file}:5: select.metric = 'hits@3': must be one of ndcg@K, recall@K",
        "--stage: stages = ['algin']: has no stage 'algin'. Did you mean 'align'?",
        "command line: rl.max_step = 3: is not an option. Did you mean 'max_steps'?",
        "command line: 'nonsense' is not an override.",
        "command line: rl.max_steps = 'x': is not an integer.",
        "command line: model.quantize = 'nf4': nf4 needs adapters",
    ):
        assert part in text


def test_all_problems_of_components_are_shown_together(registries):
    line = "objective.clip=3 objective.normalize=sd rewards.level_mach.weight=1 layout=side sid.name=kmean"
    text = problems_of(overrides=line.split(), registries=registries)
    assert text.startswith("5 problems")
    for part in (
        "command line: objective.clip = 3: objective 'sapo' has no option 'clip'",
        "command line: objective.normalize = 'sd'",
        "command line: rewards.level_mach: unknown reward 'level_mach'. Did you mean 'level_match'?",
        "layout = 'side': unknown layout 'side'. Did you mean 'sid'?",
        "unknown SID builder 'kmean'. Did you mean 'kmeans'?",
    ):
        assert part in text


def test_registries_are_not_touched_while_anything_else_is_wrong():
    def untouchable():
        raise AssertionError("a registry was asked for")

    text = problems_of(
        overrides=["rl.max_step=3"], registries=dict.fromkeys(("objective", "layout", "reward", "sid"), untouchable)
    )
    assert text.startswith("command line: rl.max_step = 3: is not an option.")


def test_a_problem_stands_at_its_place_and_alone_where_others_follow_from_it(registries):
    unknown = "--objective: objective = 'sappo': unknown objective 'sappo'. Did you mean 'sapo'?"
    assert problems_of(flags={"objective": "sappo"}, registries=registries).startswith(unknown)
    text = problems_of(overrides=["data.valid_fraction=0.9", "data.test_fraction=wide"], registries=registries)
    assert text.startswith("command line: data.test_fraction = 'wide': is not a number.")
    assert "leave nothing" not in text


@pytest.mark.parametrize("folder", ["${oc.env:GENRL_TEST_DATA}", "${experiment}", "toy"])
def test_options_of_a_component_may_come_before_its_name_and_refer_to_others(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("GENRL_TEST_DATA", "toy")
    empty = write(tmp_path, "a.yaml", "sid:\nobjective:\n")
    overrides = [f"sid.path={folder}/a.json", "sid.collisions=keep", "sid.name=import"]
    config = load_config([empty], overrides=overrides, registries=REGISTRIES)
    assert config.sid == {"name": "import", "path": "toy/a.json", "collisions": "keep"}


def test_a_plugin_is_loaded_before_names_are_looked_up(tmp_path, registries, monkeypatch):
    plugin = write(
        tmp_path, "more.py", "import genrl.registry as r\nr.SEEN_BY_TEST.register('mine')(lambda config=None: config)\n"
    )
    monkeypatch.setattr("genrl.registry.SEEN_BY_TEST", registries["objective"](), raising=False)
    config = load_config(flags={"objective": "mine", "plugin": [str(plugin)]}, registries=registries)
    assert config.objective == {"name": "mine"}


def test_a_plugin_that_does_not_import(tmp_path, registries):
    plugin = write(tmp_path, "broken.py", "import no_such_module_anywhere\n")
    text = problems_of(flags={"plugin": [str(plugin)]}, registries=registries)
    assert "--plugin: plugins" in text
    assert "ModuleNotFoundError" in text


def test_the_saved_configuration_is_the_same_one(tmp_path, registries):
    overrides = [
        "rewards.level_match=null",
        "rewards.format.weight=0.5",
        "align.text_tasks=on",
        'prompt.prefix="1e-3: yes"',
        "trainer.extra={max_time: {minutes: 3}, plugins: [1, null]}",
        "data.columns.text=[category_path, brand]",
        "rl.learning_rate=1e-5",
        "evaluate.valid_users=null",
        "objective.levels=[1, 2]",
    ]
    config = load_config(overrides=overrides, registries=registries)
    path = tmp_path / "run" / "config.yaml"
    save_config(config, path)
    assert load_config([path], registries=registries) == config
    assert load_config([path]) == config
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]
    assert all(f"{key.rpartition('.')[2]}:" in path.read_text() for key in dotted_keys())


@pytest.mark.parametrize(
    ("overrides", "taken"),
    [
        (["objective=sage"], (2, 1)),
        (["objective=sage", "rollout.epochs=1"], (1, 1)),
        (["objective=sage", "rollout.minibatches=4"], (1, 4)),
        (["objective=grpo"], (1, 1)),
    ],
)
def test_advice_of_an_objective_is_taken_where_nothing_is_given(overrides, taken, tmp_path):
    config = load_config(overrides=overrides, registries=REGISTRIES)
    assert (config.rollout.epochs, config.rollout.minibatches) == taken
    save_config(config, tmp_path / "config.yaml")
    assert load_config([tmp_path / "config.yaml"], registries=REGISTRIES) == config


def test_advice_that_does_not_fit_the_other_options_is_a_problem():
    registry = Registry("objective", "genrl.tests_of_load")
    registry.register("keen", advice={"rollout.minibatches": 3})(component)
    found = problems_of(overrides=["objective=keen"], registries={**REGISTRIES, "objective": lambda: registry})
    assert "rollout.prompts: must be a multiple of rollout.minibatches x trainer.devices = 3 x 1" in found
