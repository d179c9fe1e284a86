import math

import torch

from genrl.objectives import OBJECTIVES
from genrl.training.gap import based_on, sampling_gap, truncated
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_the_gap_by_hand():
    experience = sample("sid", prompts=1, group_size=2).experience(OBJECTIVES.build("grpo"))
    drawn = experience.completions
    chosen = drawn.chosen.nonzero()
    row, column = chosen[0].tolist()
    logps = drawn.logps.clone()
    logps[row, column] += math.log(3)  # scoring finds this token three times as likely as sampling did
    logps[~drawn.chosen] = 7.0  # of no concern
    values = sampling_gap(experience, logps.requires_grad_())
    assert_same(values["policy/sampling_gap"], math.log(3) / len(chosen))
    assert_same(values["policy/sampling_gap_max"], math.log(3))
    for bound, factor in ((2.0, 2.0), (4.0, 3.0), (0.5, 0.5)):
        found = truncated(experience, logps, bound).weights
        wanted = experience.weights * min(1.0, bound)
        wanted[row, column] = experience.weights[row, column] * factor
        assert_same(found, wanted)
        assert not found.requires_grad
    based = based_on(experience, logps)
    assert not based.completions.logps.requires_grad
    assert torch.equal(based.completions.logps, logps.detach())
    assert torch.equal(based.weights, experience.weights)
