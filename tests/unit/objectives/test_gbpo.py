"""The options of gbpo."""

from __future__ import annotations

from genrl.objectives import OBJECTIVES, GradientBounded, GroupNorm, KLPenalty, OutcomeCredit, SignCredit


def test_defaults_differ_from_grpo_by_the_surrogate_alone() -> None:
    gbpo, grpo = OBJECTIVES.build("gbpo"), OBJECTIVES.build("grpo", {"kl_coef": 0.0})
    assert gbpo.surrogate == GradientBounded("token")
    assert (gbpo.credit, gbpo.reduction, gbpo.penalties) == (grpo.credit, grpo.reduction, grpo.penalties)


def test_options() -> None:
    options = {"level": "item", "advantage": "sign", "positive_quantile": 0.5, "negative_reward": -1.0, "kl_coef": 0.2}
    objective = OBJECTIVES.build("gbpo", options)
    assert objective.credit == SignCredit(0.5, -1.0)
    assert objective.surrogate == GradientBounded("item")
    assert objective.penalties == (KLPenalty(0.2),)
    assert OBJECTIVES.build("gbpo", {"ddof": 0, "eps": 0.1}).credit == OutcomeCredit(GroupNorm(ddof=0, eps=0.1))
