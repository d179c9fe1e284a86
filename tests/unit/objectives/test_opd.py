"""On-policy distillation; what the teacher says is tested in tests/unit/policy/test_teach.py."""

import pytest
import torch

from genrl.batches import Rewards
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, Setting, live_prompts
from tests.unit.objectives.loops import assert_as_in_the_loop, rollout


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_opd(reduction):
    drawn, _ = rollout()
    pairs = zip(drawn.teacher_gap.tolist(), drawn.teacher_kl.tolist(), strict=True)
    advantages = [[gap + kl for gap, kl in zip(*row, strict=True)] for row in pairs]
    nothing = Rewards({"none": torch.zeros(10, dtype=torch.float64)}, {"none": 1.0})
    assert_as_in_the_loop("opd", {"reduction": reduction}, nothing, advantages, reduction)


def test_opd_has_no_dead_groups_and_needs_a_teacher():
    drawn, _ = rollout()
    objective = OBJECTIVES.build("opd")
    nothing = Rewards({"none": torch.zeros(10, dtype=torch.float64)}, {"none": 1.0})
    assert live_prompts(objective.prepare(drawn, nothing)).all()
    with pytest.raises(ConfigError, match=r"objective 'opd' needs a teacher; .* Add teacher\.run=FOLDER"):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=1, teacher=False), "opd")
    objective.check(Setting(("exact_match",), step_rewards=False, group_size=1, teacher=True), "opd")
