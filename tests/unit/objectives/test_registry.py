"""The doors of a plug-in to the objectives, and what the built-in ones say of themselves."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator

import pytest
import torch

from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, Objective, PolicyObjective
from genrl.registry import load_plugin
from tests.property.rollouts import sample

BUILT_IN = OBJECTIVES.names()
SOURCE = '''
from dataclasses import dataclass

from genrl.objectives import OBJECTIVES, ClippedRatio, FixedBounds, GroupNorm, PolicyObjective, StepCredit, TokenMean


@dataclass
class Config:
    """Options."""

    clip: float = 0.2
    """Distance from 1."""

{decorator}
def mine(config: Config) -> PolicyObjective:
    """Step advantages, mean over tokens."""
    bounds = FixedBounds(config.clip, config.clip)
    return PolicyObjective(StepCredit(GroupNorm()), ClippedRatio("token", bounds), TokenMean())

mine.Config = Config
'''


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    held = (OBJECTIVES._entries, OBJECTIVES._aliases)
    before = [dict(known) for known in held]
    yield
    for known, old in zip(held, before, strict=True):
        known.clear()
        known.update(old)


def learns(objective: Objective) -> None:
    batch = sample("blocked")
    loss, gradient = batch.outcome(objective)
    assert torch.isfinite(loss)
    assert gradient.abs().sum() > 0


def test_decorator_in_a_file(tmp_path):
    path = tmp_path / "my_objective.py"
    path.write_text(SOURCE.format(decorator='@OBJECTIVES.register("by-decorator", config=Config, paper="none")'))
    load_plugin(str(path))
    assert "by-decorator" in OBJECTIVES.names()
    learns(OBJECTIVES.build("by-decorator", {"clip": 0.3}))
    with pytest.raises(ConfigError, match=r"no option 'clop'.*Did you mean 'clip'"):
        OBJECTIVES.build("by-decorator", {"clop": 0.3})


def test_entry_point_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "installed_objective.py").write_text(SOURCE.format(decorator=""))
    info = tmp_path / "installed_objective-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-objective\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[genrl.objectives]\nby-entry-point = installed_objective:mine\nbroken = installed_objective:absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"by-entry-point", "broken"} <= set(OBJECTIVES.names())
    assert "installed_objective" not in sys.modules
    learns(OBJECTIVES.build("by-entry-point", {"clip": 0.1}))
    assert OBJECTIVES.entry("by-entry-point").origin == "installed_objective:mine"
    assert "absent" in OBJECTIVES.broken()["broken"]
    with pytest.raises(ConfigError, match="does not import"):
        OBJECTIVES.build("broken")


def test_all_built_in_objectives_have_title_and_paper():
    assert set(BUILT_IN) <= set(OBJECTIVES.names())
    for name in BUILT_IN:
        entry = OBJECTIVES.entry(name)
        assert entry.title
        assert entry.title != name
        assert entry.paper.startswith(("arXiv:", "none: "))
        assert isinstance(OBJECTIVES.build(name), PolicyObjective)


def test_sapo_is_step_aligned():
    assert OBJECTIVES.entry("step-aligned").name == "sapo"
    assert OBJECTIVES.entry("sapo").title == "Step-Aligned Policy Optimization"


def test_every_option_is_documented():
    for name in BUILT_IN:
        for config in OBJECTIVES.entry(name).config.__mro__[:-1]:
            body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body
            for place, node in enumerate(body):
                if isinstance(node, ast.AnnAssign):
                    following = body[place + 1]
                    assert isinstance(following, ast.Expr), f"{name}.{node.target.id} has no docstring"
                    assert isinstance(following.value, ast.Constant), f"{name}.{node.target.id} has no docstring"
