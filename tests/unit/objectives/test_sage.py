"""SAGE's options, diversity, bounds and gradient form."""

import math
from typing import Any

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import OBJECTIVES, ClippedRatio, DecoupledCredit, Diversity, GroupNorm, PhiRatio, SequenceMean
from genrl.objectives.sage import category_entropy, homogeneity_factor
from genrl.objectives.terms import item_tokens
from tests.helpers import assert_same
from tests.property.rollouts import sample

Options = dict[str, Any]
OPTIONS = {"boost": 0.4, "clip": 0.1, "beta": 0.6, "floor": "clip_lambda", "floor_tolerance": 0.0, "diversity": "group"}
OPTIONS |= {"ema_decay": 0.5, "ema_init": 1.5, "whiten": "token", "ddof": 0, "eps": 0.1}


USUAL = DecoupledCredit(GroupNorm(eps=1e-6), "sequence")
OTHER = DecoupledCredit(GroupNorm(ddof=0, eps=0.1), "token")


@pytest.mark.parametrize(
    ("options", "credit", "tolerance", "limits", "mean"),
    [
        ({}, USUAL, 1e-4, (0.3, 0.2, 0.5, "lambda", "auto", 0.99), -1.0),
        (OPTIONS, OTHER, 0.0, (0.4, 0.1, 0.6, "clip_lambda", "group", 0.5), 1.5),
    ],
)
def test_options(options, credit, tolerance, limits, mean):
    objective = OBJECTIVES.build("sage", options)
    surrogate, bounds = objective.surrogate, objective.surrogate.bounds
    assert (objective.credit, objective.reduction) == (credit, SequenceMean())
    assert (surrogate.level, surrogate.dual_clip, surrogate.tolerance) == ("item", None, tolerance)
    diversity = bounds.diversity
    assert (bounds.boost, bounds.clip, bounds.beta, bounds.floor, diversity.source, diversity.decay) == limits
    assert f"source={diversity.source!r}, decay={diversity.decay}" in repr(objective)
    assert_same(diversity.mean.nan_to_num(-1.0), mean)  # not a number before the first rollout
    assert list(objective.state) == [diversity]


@pytest.mark.parametrize(
    ("form", "ratio_level", "level"),
    [
        ("clipped", "auto", "item"),
        ("clipped", "token", "sequence"),
        ("gradient", "auto", "sequence"),
        ("gradient", "item", "item"),
    ],
)
def test_level_of_the_ratio(form, ratio_level, level):
    others = {"phi": "literal", "boost": 0.4, "beta": 0.6}
    objective = OBJECTIVES.build("sage", {"form": form, "ratio_level": ratio_level, **others})
    assert objective.surrogate.level == level
    assert isinstance(objective.surrogate, PhiRatio if form == "gradient" else ClippedRatio)
    if form == "gradient":
        assert (objective.surrogate.phi, objective.surrogate.boost, objective.surrogate.beta) == ("literal", 0.4, 0.6)


def test_entropy_by_hand():
    categories = torch.tensor(
        [[0, 0, 1, 1], [5, 5, 5, 5], [0, 1, 2, 3], [4, -1, -1, 4], [4, -1, 2, -1], [-1, -1, -1, -1]]
    )
    expected = [math.log(2), 0.0, math.log(4), 0.0, math.log(2), 0.0]
    assert_same(category_entropy(categories, torch.float64), expected)


def test_lambda_grows_only_below_the_mean():
    diversity = torch.tensor([0.2, 1.0, 1.5], dtype=torch.float64)
    found = homogeneity_factor(diversity, torch.tensor(1.0, dtype=torch.float64), 0.5)
    assert_same(found, [1 + 0.5 * math.tanh(0.8), 1.0, 1.0])


@pytest.mark.parametrize(("layout", "source"), [("slate", "slate"), ("sid", "group"), ("blocked", "group")])
def test_auto_looks_at_the_slate_if_there_is_one(layout, source):
    rollout = sample(layout).rollout
    assert_same(Diversity("auto").measure(rollout), Diversity(source).measure(rollout))


def test_group_diversity_is_that_of_all_completions_of_the_prompt():
    rollout = sample("slate").rollout
    measured = Diversity("group").measure(rollout)
    expected = category_entropy(rollout.categories.view(4, -1), torch.float64)
    assert_same(measured, expected.repeat_interleave(4))


def test_policy_diversity_is_the_mean_entropy_of_chosen_tokens():
    rollout = sample("blocked").rollout
    measured = Diversity("policy").measure(rollout)
    assert_same(measured[0], rollout.entropy[0][rollout.chosen[0]].mean())
    assert_same(measured[1], 0.0)


def test_the_mean_starts_at_the_first_rollout_and_moves_after_the_step():
    diversity = Diversity("slate", decay=0.9)
    first, second = sample("slate", seed=0).rollout, sample("slate", seed=1).rollout
    measured, mean = diversity.prepare(first)
    assert_same(mean, measured.mean())
    diversity.after_step()
    assert_same(diversity.mean, measured.mean())
    later, unmoved = diversity.prepare(second)
    assert_same(unmoved, measured.mean())
    diversity.after_step()
    expected = 0.9 * measured.mean() + 0.1 * later.mean()
    assert_same(diversity.mean, expected)
    diversity.after_step()
    assert_same(diversity.mean, expected)


def test_state_survives_a_checkpoint_and_half_precision():
    batch = sample("slate")
    objective = OBJECTIVES.build("sage", {"ema_init": 0.9})
    objective.prepare(batch.rollout, batch.rewards)
    saved = objective.state_dict()
    assert len(saved) == 2
    other = OBJECTIVES.build("sage")
    other.load_state_dict(saved)
    other.to(torch.bfloat16)
    objective.after_step()
    other.after_step()
    for key, value in objective.state_dict().items():
        if key.endswith("mean"):
            assert value.dtype == other.state_dict()[key].dtype == torch.float64
            assert_same(other.state_dict()[key], value)
            assert value != 0.9


def test_bounds_of_algorithm_1():
    batch = sample("slate")
    objective = OBJECTIVES.build("sage", {"boost": 0.4, "clip": 0.1, "beta": 0.5})
    experience = batch.experience(objective)
    low, high = objective.surrogate.bounds(experience)
    good = experience.advantages >= 0
    floor = (2 - experience.extras["lambda"])[:, None].expand_as(low)
    assert_same(low, torch.where(good, 0.9, floor))
    assert_same(high, 1.1 + 0.3 * good.double())
    assert (experience.extras["lambda"] > 1).any()


def test_the_other_floor_is_lower_by_the_clip():
    batch = sample("slate")
    bounds = [
        objective.surrogate.bounds(batch.experience(objective))[0]
        for objective in (
            OBJECTIVES.build("sage", {"floor": floor, "clip": 0.15}) for floor in ("lambda", "clip_lambda")
        )
    ]
    bad = batch.experience(OBJECTIVES.build("sage")).advantages < 0
    assert_same((bounds[0] - bounds[1])[bad], torch.full_like(bounds[0][bad], 0.15))
    assert_same(bounds[0][~bad], bounds[1][~bad])


@pytest.mark.parametrize("level", ["token", "item"])
@pytest.mark.parametrize("phi", ["literal", "resolved", "gbpo_slate"])
def test_coefficients_of_the_gradient_form(phi, level):
    """Section 10.2 of the methods reference, as a table of coefficients."""
    batch = sample("slate", spread=1.0)
    objective = OBJECTIVES.build("sage", {"form": "gradient", "phi": phi, "ratio_level": level})
    experience = batch.experience(objective)
    ratios, divisors = objective.surrogate.ratios(Scores(batch.logps), experience)
    first = batch.rollout.chosen.to(torch.int64).argmax(1, keepdim=True)
    found = (ratios / divisors).gather(1, first)[:, 0]
    rows, mask = batch.rollout, batch.rollout.chosen
    count = mask.sum(1).clamp(min=1) if level == "token" else (item_tokens(rows) > 0).sum(1).clamp(min=1)
    r = ((batch.logps - rows.logps).sum(1) / count).exp()
    chance = (batch.logps.sum(1) / count).exp()
    odds = chance / (1 - chance)
    strength = experience.extras["lambda"]
    positive = {"literal": torch.where(r > 1.3, r * 1.3, r), "resolved": r.clamp(max=1.3), "gbpo_slate": r.clamp(max=1)}
    negative = {"literal": r, "resolved": torch.minimum(r, strength * odds), "gbpo_slate": torch.minimum(r, odds)}
    good = experience.advantages.sum(1) >= 0
    some = mask.any(1)
    assert_same(found[some], torch.where(good, positive[phi], negative[phi])[some])
