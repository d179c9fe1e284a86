"""The worked example of docs/custom-objective.md runs as it stands there, and docs/objectives.md knows every option."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genrl.batches import Scores
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, Setting
from genrl.registry import load_plugin
from tests.helpers import assert_same
from tests.property.rollouts import LAYOUTS, sample

DOCS = Path(__file__).resolve().parents[3] / "docs"
BUILT_IN = OBJECTIVES.names()


@pytest.fixture
def _example(tmp_path: Path) -> Iterator[None]:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "custom-objective.md").read_text(), re.DOTALL)
    path = tmp_path / "mine.py"
    path.write_text(code)
    load_plugin(str(path))
    yield
    del OBJECTIVES._entries["good-only"]


@pytest.mark.usefixtures("_example")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_worked_example(layout):
    batch = sample(layout)
    objective = OBJECTIVES.build("good-only", {"focus": 2.0, "kl_coef": 0.0})
    assert not objective.uses_reference
    experience = objective.prepare(batch.rollout, batch.rewards)
    loss, gradient = batch.run(objective, experience)
    unsure = (1 - batch.logps.exp()) ** 2
    assert_same(gradient, -experience.weights * experience.advantages * unsure)
    assert_same(loss, (gradient * batch.logps).sum())
    assert (gradient <= 0).all()
    assert gradient.abs().sum() > 0
    stats = objective.loss(Scores(batch.logps), experience).stats
    assert_same(stats["unsure"], unsure[batch.rollout.chosen].mean())
    parts = [batch.prompts(slice(i, i + 1)).run(objective, experience.groups(slice(i, i + 1)))[0] for i in range(4)]
    assert_same(torch.stack(parts).sum(), loss)


@pytest.mark.usefixtures("_example")
def test_the_worked_example_is_treated_like_a_built_in_one():
    objective = OBJECTIVES.build("good-only")
    assert "GoodOnly" in repr(objective)
    with pytest.raises(ConfigError, match=r"group_size is 1"):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=1), "good-only")
    with pytest.raises(ConfigError, match=r"Did you mean 'focus'"):
        OBJECTIVES.build("good-only", {"fokus": 2.0})


def test_the_table_has_every_objective_with_its_paper():
    rows = {
        cells[0].strip("` "): cells
        for line in (DOCS / "objectives.md").read_text().splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
    }
    assert set(rows) == set(BUILT_IN)
    for name, cells in rows.items():
        assert cells[-1] == OBJECTIVES.entry(name).paper
        assert float(cells[-2]) == OBJECTIVES.options(name, {}).kl_coef
