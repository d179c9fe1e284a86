"""SAGE's options, diversity, bounds and gradient form."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from genrl.batches import Rewards, Scores
from genrl.errors import ConfigError
from genrl.objectives import (
    OBJECTIVES,
    ClippedRatio,
    DecoupledCredit,
    Diversity,
    GroupNorm,
    PhiRatio,
    SequenceMean,
    Setting,
)
from genrl.objectives.sage import category_entropy, homogeneity_factor
from genrl.objectives.terms import item_tokens
from genrl.selftest.golden import build, golden_cases, numbers, slate_rollout
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


@pytest.fixture(scope="module")
def golden():
    return golden_cases()


LEVELS = ("token", "item")
# Ratios, lambda and advantages of eight slates are the golden file's (section 16.4 of the methods reference); what a
# rule makes of them, coefficient and value, is written out here case by case.


def clips(r: float, good: bool, strength: float) -> tuple[float, float]:
    """Algorithm 1."""
    if good:
        return (r, r) if r <= 1.3 else (0.0, 1.3)
    return (r, r) if r >= 2 - strength else (0.0, 2 - strength)


def plain_clips(r: float, good: bool, strength: float) -> tuple[float, float]:
    """Equation 2, without the minimum: both bounds of Algorithm 1 act."""
    low, high = (0.8, 1.3) if good else (2 - strength, 1.2)
    return (r, r) if low <= r <= high else (0.0, min(max(r, low), high))


def held(r: float, good: bool, strength: float) -> tuple[float, float]:
    """A good slate keeps min(r, 1.3), a bad one is clipped."""
    return (min(r, 1.3),) * 2 if good else clips(r, good, strength)


def printed(r: float, good: bool, strength: float) -> tuple[float, float]:
    """A good slate is clipped, a bad one keeps r, as equation 5 is printed."""
    return clips(r, good, strength) if good else (r, r)


def no_boost(r: float, good: bool, strength: float) -> tuple[float, float]:
    if good:
        return (r, r) if r <= 1 else (0.0, 1.0)
    return clips(r, good, strength)


def no_entropy(r: float, good: bool, strength: float) -> tuple[float, float]:
    return clips(r, good, 1.0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, clips),
        ({"minimum": False}, plain_clips),
        ({"positive": "resolved"}, held),
        ({"form": "gradient", "negative": "clipped"}, held),
        ({"negative": "literal"}, printed),
        ({"ablation": "no_boost"}, no_boost),
        ({"ablation": "no_entropy"}, no_entropy),
        ({"minimum": False, "advantage": "item"}, plain_clips),  # without rewards per item
    ],
)
def test_value_and_gradient_by_hand(golden, options, rule, level):
    case = build(golden, f"sage_alg1_{level}_ratio")
    common = {"ema_init": 0.9, "diversity": "slate", "ratio_level": level, "floor_tolerance": 0.0}
    objective = OBJECTIVES.build("sage", {**common, **options})
    experience = objective.prepare(case.rollout, case.rewards)
    advantages = case.expected["advantages"]
    assert_same(experience.advantages, numbers(advantages)[:, None] * case.rollout.chosen)
    loss, gradient = replace(case, objective=objective).run(experience, case.logps)
    rows = zip(case.expected["r_slate"], advantages, case.expected["lam"], strict=True)
    rules = [rule(r, a >= 0, strength) for r, a, strength in rows]
    assert_same(loss, -sum(value * a for (_, value), a in zip(rules, advantages, strict=True)) / 8)
    chosen = case.rollout.chosen.double()
    units = chosen.sum(1) if level == "token" else torch.full((8,), 3.0, dtype=torch.float64)
    coefficients = numbers([c for c, _ in rules]) * numbers(advantages)
    assert_same(gradient, -(coefficients / (8 * units))[:, None] * chosen)


def test_summed_rewards_are_one_reward(golden):
    case = build(golden, "sage_alg1_token_ratio")
    one = Rewards({"sum": case.rewards.outcome}, {"sum": 1.0})
    summed, apart = (OBJECTIVES.build("sage", {"ablation": name}) for name in ("summed", "none"))
    found = summed.prepare(case.rollout, case.rewards).advantages
    assert_same(found, apart.prepare(case.rollout, one).advantages)
    assert (found - apart.prepare(case.rollout, case.rewards).advantages).abs().max() > 0.1


def test_one_advantage_per_item(golden):
    """Two users, four slates of three items; a click per item, and a comment per slate."""
    rollout = slate_rollout(golden["slate_setup"])
    clicks = numbers([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 1, 1]])
    comment = numbers([1, 0, 0, 0, 0, 0, 0, 0])
    weights = {"click": 1.0, "comment": 2.0}
    rewards = Rewards({"click": clicks, "comment": comment}, weights, per_item=frozenset({"click"}))
    whole = OBJECTIVES.build("gdpo", {"eps": 0.0}).prepare(rollout, rewards).advantages
    found = OBJECTIVES.build("gdpo", {"eps": 0.0, "advantage": "item"}).prepare(rollout, rewards).advantages
    # One of four: 3/2 and -1/2; three of four: 1/2 and -3/2; none or all: 0. The comment counts twice.
    first = [[4.5, 2.5, 3.0], [-1.5, -1.5, -1.0], [-1.5, 0.5, -1.0], [-1.5, -1.5, -1.0]]
    second = [[1.5, 0.0, 0.5], [-0.5, 0.0, 0.5], [-0.5, 0.0, -1.5], [-0.5, 0.0, 0.5]]
    table = numbers([*first, *second])
    table = table / (table.square().mean(1).sum() / 7).sqrt()
    for row in range(8):
        for place in range(9):
            item = int(rollout.item_ids[row, place])
            wanted = float(table[row, item]) if rollout.chosen[row, place] else 0.0
            assert_same(found[row, place], torch.tensor(wanted, dtype=torch.float64))
    assert not torch.equal(found, whole)
    assert_same(whole, whole[:, :1] * rollout.chosen)


@pytest.mark.parametrize("ratio_level", LEVELS)
def test_items_of_a_slate_keep_its_ratio_and_have_gradients_of_their_own(golden, ratio_level):
    case = build(golden, f"sage_alg1_{ratio_level}_ratio")
    options = {"ema_init": 0.9, "diversity": "slate", "ratio_level": ratio_level, "advantage": "item", "minimum": False}
    objective = OBJECTIVES.build("sage", {**options, "boost": 9.0, "beta": 0.0, "clip": 1.0})
    clicks = numbers([[1, 0, 0], [0, 1, 0]] * 4)
    experience = objective.prepare(
        case.rollout, Rewards({"click": clicks}, {"click": 1.0}, per_item=frozenset({"click"}))
    )
    logps = case.logps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(Scores(logps), experience).loss, logps)
    chosen = case.rollout.chosen.double()
    counts = chosen.sum(1, keepdim=True)
    units = counts if ratio_level == "token" else torch.full((8, 1), 3.0, dtype=torch.float64)
    r = numbers(case.expected["r_slate"])[:, None]
    acts = (experience.advantages >= 0) | ((r >= 1) & (r <= 2))
    assert_same(gradient, -experience.advantages * r * acts / (8 * units) * chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "gradient", "minimum": False}, "nothing is clipped here. Set form=clipped"),
        ({"positive": "literal", "negative": "resolved", "minimum": False}, "nothing is clipped here"),
        ({"form": "gradient", "phi": "gbpo_slate", "ablation": "no_boost"}, "and gbpo_slate has none"),
        ({"form": "gradient", "phi": "literal", "ablation": "no_entropy"}, "leaves out lambda, and literal"),
        ({"negative": "gbpo_slate", "ablation": "no_entropy"}, "leaves out lambda, and gbpo_slate"),
        ({"advantage": "item", "ablation": "summed"}, "Set advantage=completion"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build("sage", options)


def test_a_category_column_must_be_kept():
    objective = OBJECTIVES.build("sage", {"category": "shelve"})
    assert objective.category == "shelve"
    known = {"rewards": ("hit",), "step_rewards": False, "group_size": 4, "categories": False}
    with pytest.raises(ConfigError, match=r"item column 'shelve'.*\[shelf, brand\]. Did you mean 'shelf'\?"):
        objective.check(Setting(**known, attributes=("shelf", "brand")), "sage")
    with pytest.raises(ConfigError, match=r"attributes are \[\]"):
        objective.check(Setting(**known, attributes=()), "sage")
    with pytest.raises(ConfigError, match=r"no item has a value in the column 'shelve' \(objective.category\)"):
        objective.check(Setting(**known, attributes=("shelve",)), "sage")
    objective.check(Setting(**{**known, "categories": True}, attributes=("shelve",)), "sage")
    objective.check(Setting(**{**known, "categories": None}), "sage")
    assert OBJECTIVES.build("sage").category is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "so boost, beta and the diversity"),
        ({"form": "gradient", "phi": "literal"}, "so boost, beta and the diversity"),
        ({"form": "gradient"}, "so boost has no effect"),
        ({"form": "gradient", "phi": "gbpo_slate"}, None),
        ({"positive": "gbpo_slate"}, "so boost, beta and the diversity"),
    ],
)
def test_a_notice_where_bounds_cannot_act(options, said):
    objective = OBJECTIVES.build("sage", options)
    told = list(objective.notices(1))
    assert len(told) == (said is not None)
    assert said is None or said in told[0]
    assert not list(objective.notices(2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, True),
        ({"positive": "gbpo_slate"}, True),
        ({"positive": "literal", "negative": "resolved"}, True),
        ({"advantage": "item"}, True),
        ({"ratio_level": "item"}, False),
        ({"ratio_level": "token"}, False),
        ({"form": "gradient"}, False),
    ],
)
def test_items_in_words_are_told_to_have_a_ratio_of_tokens(options, said):
    objective = OBJECTIVES.build("sage", options)
    told = list(objective.notices(2, in_words=True))
    assert len(told) == said
    assert not said or "Set objective.ratio_level=token for items in words" in told[0]
    assert not list(objective.notices(2))
