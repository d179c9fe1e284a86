"""SAGE's bounds and gradient form."""

from __future__ import annotations

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import OBJECTIVES
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_bounds_of_algorithm_1() -> None:
    batch = sample("slate")
    objective = OBJECTIVES.build("sage", {"boost": 0.4, "clip": 0.1, "beta": 0.5})
    experience = batch.experience(objective)
    low, high = objective.surrogate.bounds(experience)
    good = experience.advantages >= 0
    floor = (2 - experience.extras["lambda"])[:, None].expand_as(low)
    assert_same(low, torch.where(good, 0.9, floor))
    assert_same(high, 1.1 + 0.3 * good.double())
    assert (experience.extras["lambda"] > 1).any()


def test_the_other_floor_is_lower_by_the_clip() -> None:
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
def test_coefficients_of_the_gradient_form(phi: str, level: str) -> None:
    """Section 10.2 of the methods reference, as a table of coefficients."""
    batch = sample("slate", spread=1.0)
    objective = OBJECTIVES.build("sage", {"form": "gradient", "phi": phi, "ratio_level": level})
    experience = batch.experience(objective)
    ratios, divisors = objective.surrogate.ratios(Scores(batch.logps), experience)
    first = batch.rollout.chosen.to(torch.int64).argmax(1, keepdim=True)
    found = (ratios / divisors).gather(1, first)[:, 0]
    rows, mask = batch.rollout, batch.rollout.chosen
    count = (
        mask.sum(1).clamp(min=1)
        if level == "token"
        else torch.tensor(
            [
                max(1, len(set(row[chosen & (row >= 0)].tolist())))
                for row, chosen in zip(rows.item_ids, mask, strict=True)
            ]
        )
    )
    r = ((batch.logps - rows.logps).sum(1) / count).exp()
    chance = (batch.logps.sum(1) / count).exp()
    odds = chance / (1 - chance)
    strength = experience.extras["lambda"]
    positive = {"literal": torch.where(r > 1.3, r * 1.3, r), "resolved": r.clamp(max=1.3), "gbpo_slate": r.clamp(max=1)}
    negative = {"literal": r, "resolved": torch.minimum(r, strength * odds), "gbpo_slate": torch.minimum(r, odds)}
    good = experience.advantages.sum(1) >= 0
    some = mask.any(1)
    assert_same(found[some], torch.where(good, positive[phi], negative[phi])[some])
