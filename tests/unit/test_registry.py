import os
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from genrl.errors import ComponentError, ConfigError, UnknownComponentError
from genrl.registry import Registry, load_plugin

INSTALLED = "genrl.tests_of_the_registry"


@dataclass(frozen=True)
class Options:
    size: int
    mode: Literal["a", "b"] = "a"
    levels: list[int] = field(default_factory=list)

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("size must be at least 0")


class Speed(Enum):
    fast = 1
    slow = 2


@dataclass
class Inner:
    size: int = 3


@dataclass
class Rich:
    speed: Speed = Speed.fast
    file: Path = Path("a")
    inner: Inner = field(default_factory=Inner)
    counts: dict[str, int] = field(default_factory=dict)
    levels: list[int] = field(default_factory=list)


def build(config, **context):
    return config, context


def plain():
    return "plain"


@pytest.fixture
def registry():
    registry = Registry("thing", INSTALLED)
    registry.register("good", config=Options, aliases=("fine",), title="A Good Thing", paper="1")(build)
    registry.register("plain")(plain)
    return registry


def test_an_entry_is_built_by_its_name_or_alias(registry):
    assert registry.build("fine", {"size": 3, "mode": "b"}, device="cpu") == (Options(3, "b"), {"device": "cpu"})
    assert registry.build("good", Options(4)) == (Options(4), {})
    assert registry.build("plain") == "plain"
    assert registry.entry("fine").name == "good"
    assert registry.aliases("good") == ("fine",)
    assert registry.names() == ("good", "plain")


def test_a_class_brings_its_options():
    registry = Registry("thing", INSTALLED)

    @registry.register("mine")
    class Mine:
        @dataclass
        class Config:
            size: int = 1

        def __init__(self, config):
            self.config = config

    assert registry.build("mine", {"size": 2}).config.size == 2


def test_an_unknown_name_is_told_the_closest_one(registry):
    with pytest.raises(UnknownComponentError, match=r"unknown thing 'god'. Did you mean 'good'\? Known: good, plain."):
        registry.entry("god")


def test_what_a_factory_of_a_user_raises_is_named(registry):
    def fails():
        raise KeyError("no such file")

    registry.register("mine")(fails)
    with pytest.raises(ComponentError, match=r"thing 'mine' raised KeyError: 'no such file' .*test_registry.py, line"):
        registry.build("mine")


def test_a_name_is_given_once(registry):
    registry.register("plain")(plain)  # the same object again changes nothing
    for name in ("good", "fine"):
        with pytest.raises(ConfigError, match="registered twice"):
            registry.register(name)(plain)


def test_every_problem_with_options_is_found(registry):
    problems = dict(registry.problems("good", {"sise": 1, "mode": "c", "levels": "x"}))
    assert set(problems) == {"sise", "mode", "levels", "size"}
    assert "has no option 'sise'. Did you mean 'size'? Options: size, mode, levels." in problems["sise"]
    assert problems["mode"] == "thing 'good', option 'mode': 'c' is not one of a, b."
    assert problems["levels"].endswith("'x' is not a list of integers such as [1, 2].")
    assert "needs the option 'size'" in problems["size"]
    with pytest.raises(ConfigError) as caught:
        registry.options("good", {"sise": 1, "mode": "c"})
    assert "'sise'" in str(caught.value)
    assert "'mode'" in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("speed", "fsat", "expected one of [fast, slow]"),
        ("file", ["a"], "could not be converted to Path"),
        ("inner", 3, "is a group of options"),
        ("counts", {"a": "x"}, "could not be converted to Integer"),
        ("levels", {"a": 1}, "{'a': 1} is not a list of integers"),
    ],
)
def test_a_problem_that_has_no_words_of_ours_is_told_in_those_of_the_library(registry, option, value, said):
    registry.register("rich", config=Rich)(build)
    ((_, reason),) = registry.problems("rich", {option: value})
    assert reason.startswith(f"thing 'rich', option {option!r}: ")
    assert said in reason


def test_options_may_nest(registry):
    registry.register("rich", config=Rich)(build)
    problems = dict(registry.problems("rich", {"inner": {"sise": 1, "size": "x"}}))
    assert problems == {
        "inner.sise": "thing 'rich' has no option 'inner.sise'. Did you mean 'size'? Options: size.",
        "inner.size": "thing 'rich', option 'inner.size': 'x' is not an integer.",
    }
    assert registry.options("rich", {"inner": {"size": 4}}).inner == Inner(4)


def test_good_options_have_no_problem_but_those_that_they_find_themselves(registry):
    assert registry.problems("good", {"size": 1, "levels": [1, 2]}) == []
    assert registry.options("good", {"size": 1, "levels": [1, 2]}) == Options(1, "a", [1, 2])
    with pytest.raises(ConfigError, match="thing 'good': size must be at least 0"):
        registry.options("good", {"size": -1})


def test_an_entry_without_options_takes_none(registry):
    assert registry.problems("plain", {"size": 1}) == [
        ("size", "thing 'plain' has no option 'size'. It belongs to good. It takes no options.")
    ]
    with pytest.raises(ConfigError, match="takes no options"):
        registry.build("plain", {"size": 1})


def test_installed_plugins_are_listed_without_import_and_fail_only_when_chosen(registry, monkeypatch):
    points = {"theirs": "json:dumps", "broken": "no_such_module_anywhere:x"}
    found = [EntryPoint(name, value, INSTALLED) for name, value in points.items()]
    monkeypatch.setattr("genrl.registry.entry_points", lambda group: found if group == INSTALLED else [])
    assert registry.names() == ("broken", "good", "plain", "theirs")
    assert registry.build("plain") == "plain"
    assert registry.entry("theirs").origin == "json:dumps"
    assert registry.broken() == {"broken": "No module named 'no_such_module_anywhere'"}
    said = "'broken' from 'no_such_module_anywhere:x' does not import: ModuleNotFoundError"
    with pytest.raises(ConfigError, match=said):
        registry.entry("broken")


def test_a_plugin_is_a_file_or_a_module(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("import os\nos.environ['GENRL_TEST_PLUGIN'] = 'ran'\n")
    monkeypatch.setenv("GENRL_TEST_PLUGIN", "")
    load_plugin(str(file))
    load_plugin("json")
    assert os.environ["GENRL_TEST_PLUGIN"] == "ran"
    leaver = tmp_path / "leaver.py"
    leaver.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"leaver\.py' does not import: SystemExit: 0"):  # which is no success
        load_plugin(str(leaver))
    for reference, reason in (("nowhere.py", "no such file"), ("no_such_module", "not import: ModuleNotFoundError")):
        with pytest.raises(ConfigError, match=reason):
            load_plugin(reference)


@pytest.mark.parametrize(("made", "said"), [(None, "None"), ([1.0], "a list of length 1")])
def test_a_factory_that_makes_something_else_is_named(made, said):
    kinds: Registry[dict] = Registry("kind", "genrl.kinds", dict)
    kinds.register("wrong")(lambda: made)
    kinds.register("right")(lambda: {})
    with pytest.raises(ComponentError, match=rf"'wrong': .*<lambda> must return builtins.dict; it returned {said}\."):
        kinds.build("wrong")
    assert kinds.build("right") == {}
    anything: Registry[object] = Registry("thing", "genrl.things")
    anything.register("nothing")(lambda: None)
    with pytest.raises(ComponentError, match="must return something; it returned None"):
        anything.build("nothing")
