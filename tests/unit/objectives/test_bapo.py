"""The options of bapo."""

from __future__ import annotations

import pytest

from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, AdaptiveBounds, ClippedRatio, GroupNorm, OutcomeCredit, Range, TokenMean


def test_defaults_are_the_recipe() -> None:
    objective = OBJECTIVES.build("bapo")
    bounds = AdaptiveBounds(Range(0.6, 0.8, 0.05), Range(1.2, 2.0, 0.05), 1.0)
    assert objective.surrogate == ClippedRatio("token", bounds, 3.0)
    assert objective.reduction == TokenMean()


def test_options() -> None:
    options = {
        "variant": "paper",
        "target": 0.4,
        "low": [0.6, 0.9],
        "high": [1.2, 3.0],
        "step_low": 0.02,
        "count": "active",
    }
    objective = OBJECTIVES.build("bapo", {**options, "dual_clip": None, "ddof": 0, "eps": 0.1})
    bounds = AdaptiveBounds(Range(0.6, 0.9, 0.02), Range(1.2, 3.0, 0.05), 0.4, "paper", "active")
    assert objective.surrogate == ClippedRatio("token", bounds)
    assert objective.credit == OutcomeCredit(GroupNorm(ddof=0, eps=0.1))


@pytest.mark.parametrize("options", [{"low": [0.6]}, {"high": [2.0, 1.2]}, {"step_low": 0.0}])
def test_no_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        OBJECTIVES.build("bapo", options)
