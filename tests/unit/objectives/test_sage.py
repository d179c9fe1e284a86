"""The options of sage."""

from __future__ import annotations

import pytest

from genrl.objectives import OBJECTIVES, ClippedRatio, DecoupledCredit, GroupNorm, PhiRatio, SequenceMean


def test_defaults_are_algorithm_1() -> None:
    objective = OBJECTIVES.build("sage")
    surrogate = objective.surrogate
    assert objective.credit == DecoupledCredit(GroupNorm(eps=1e-6), "sequence")
    assert objective.reduction == SequenceMean()
    assert (surrogate.level, surrogate.dual_clip, surrogate.tolerance) == ("item", None, 1e-4)
    bounds = surrogate.bounds
    assert (bounds.boost, bounds.clip, bounds.beta, bounds.floor) == (0.3, 0.2, 0.5, "lambda")
    assert (bounds.diversity.source, bounds.diversity.decay) == ("auto", 0.99)
    assert bounds.diversity.mean.isnan()
    assert list(objective.state) == [bounds.diversity]


@pytest.mark.parametrize(
    ("form", "ratio_level", "level"),
    [
        ("clipped", "auto", "item"),
        ("clipped", "token", "sequence"),
        ("gradient", "auto", "sequence"),
        ("gradient", "item", "item"),
    ],
)
def test_level_of_the_ratio(form: str, ratio_level: str, level: str) -> None:
    objective = OBJECTIVES.build("sage", {"form": form, "ratio_level": ratio_level})
    assert objective.surrogate.level == level
    assert isinstance(objective.surrogate, PhiRatio if form == "gradient" else ClippedRatio)


def test_options() -> None:
    options = {
        "boost": 0.4,
        "clip": 0.1,
        "beta": 0.6,
        "floor": "clip_lambda",
        "floor_tolerance": 0.0,
        "diversity": "group",
    }
    options |= {"ema_decay": 0.5, "ema_init": 1.5, "whiten": "token", "ddof": 0, "eps": 0.1}
    objective = OBJECTIVES.build("sage", options)
    bounds = objective.surrogate.bounds
    assert (bounds.boost, bounds.clip, bounds.beta, bounds.floor) == (0.4, 0.1, 0.6, "clip_lambda")
    assert objective.surrogate.tolerance == 0.0
    assert (bounds.diversity.source, bounds.diversity.decay, float(bounds.diversity.mean)) == ("group", 0.5, 1.5)
    assert objective.credit == DecoupledCredit(GroupNorm(ddof=0, eps=0.1), "token")
    assert "source='group', decay=0.5" in repr(objective)
    literal = OBJECTIVES.build("sage", {"form": "gradient", "phi": "literal", "boost": 0.4, "beta": 0.6})
    assert (literal.surrogate.phi, literal.surrogate.boost, literal.surrogate.beta) == ("literal", 0.4, 0.6)
