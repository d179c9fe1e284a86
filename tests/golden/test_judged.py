"""Objectives and credit beyond the golden file: losses and gradients from loops over plain numbers."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Rewards, Scores
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, PassAtK, Setting, live_prompts
from tests.helpers import assert_same

GROUPS = {
    "one hit": [[0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]],
    "graded": [[0.3, 2.0, 0.3, 1.1, -0.4], [0.7, 0.7, 0.1, 2.5, 2.5]],
    "dead": [[0.1, 0.1, 0.1, 0.1, 0.1], [5.0, 1.0, 2.0, 3.0, 4.0]],
}
"""Rewards of two prompts with five completions each."""


def rollout(seed: int = 0) -> tuple[Completions, Tensor]:
    """Ten completions of three tokens, some forced, as float64, and what the policy says of them now."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(10, 3, generator=draw) < 0.8
    steps = torch.arange(3).expand(10, 3).clone()

    def logs(width: float) -> Tensor:
        return -0.1 - width * torch.rand(10, 3, generator=draw, dtype=torch.float64)

    old = logs(2.0).masked_fill(~chosen, 0)
    new = (old + 0.8 * torch.rand(10, 3, generator=draw, dtype=torch.float64) - 0.4).masked_fill(~chosen, 0)
    known: dict[str, Any] = {"codes": steps, "items": steps[:, :1], "group_size": 5, "num_steps": 3}
    gap, kl = 2 * logs(2.0) + 2, -logs(1.0)
    judged = {"teacher_gap": gap.masked_fill(~chosen, 0), "teacher_kl": kl.masked_fill(~chosen, 0)}
    return Completions(steps, chosen, steps, torch.zeros_like(steps), logps=old, **known, **judged), new


def clipped_loss(drawn: Completions, new: Tensor, advantages: list[list[float]], reduction: str) -> Tensor:
    """-sum of w min(r A, clip(r) A), token by token; its gradient by autograd on plain scalars."""
    total: Any = 0.0
    live = sum(1 for row in drawn.chosen.tolist() if any(row))
    count = int(drawn.chosen.sum())
    for i, row in enumerate(drawn.chosen.tolist()):
        for t, chosen in enumerate(row):
            if not chosen:
                continue
            ratio = (new[i, t] - drawn.logps[i, t]).exp()
            advantage = advantages[i][t]
            value = float(ratio.detach())
            held = min(max(value, 0.8), 1.2)
            term = ratio * advantage if value * advantage <= held * advantage else held * advantage
            total = total - term / (count if reduction == "token" else live * sum(row))
    return total


def assert_as_in_the_loop(
    name: str, options: dict[str, Any], rewards: Rewards, advantages: list[list[float]], reduction: str
) -> None:
    drawn, new = rollout()
    objective = OBJECTIVES.build(name, {"kl_coef": 0.0, **options})
    experience = objective.prepare(drawn, rewards)
    assert_same(experience.advantages, torch.tensor(advantages, dtype=torch.float64) * drawn.chosen)
    logps, plain = (new.clone().requires_grad_() for _ in range(2))
    found, wanted = objective.loss(Scores(logps), experience).loss, clipped_loss(drawn, plain, advantages, reduction)
    assert_same(found, wanted)
    assert_same(torch.autograd.grad(found, logps)[0], torch.autograd.grad(wanted, plain)[0])


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_opd(reduction: str) -> None:
    drawn, _ = rollout()
    assert drawn.teacher_gap is not None
    assert drawn.teacher_kl is not None
    pairs = zip(drawn.teacher_gap.tolist(), drawn.teacher_kl.tolist(), strict=True)
    advantages = [[gap + kl for gap, kl in zip(*row, strict=True)] for row in pairs]
    nothing = Rewards({"none": torch.zeros(10, dtype=torch.float64)}, {"none": 1.0})
    assert_as_in_the_loop("opd", {"reduction": reduction}, nothing, advantages, reduction)


def test_opd_has_no_dead_groups_and_needs_a_teacher() -> None:
    drawn, _ = rollout()
    objective = OBJECTIVES.build("opd")
    nothing = Rewards({"none": torch.zeros(10, dtype=torch.float64)}, {"none": 1.0})
    assert live_prompts(objective.prepare(drawn, nothing)).all()
    with pytest.raises(ConfigError, match=r"objective 'opd' needs a teacher; .* Add teacher\.run=FOLDER"):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=1, teacher=False), "opd")
    objective.check(Setting(("exact_match",), step_rewards=False, group_size=1, teacher=True), "opd")


def pass_at_k(values: list[float], k: int) -> list[float]:
    """By all subsets."""
    subsets = list(combinations(range(len(values)), k))
    best = [max(values[i] for i in subset) for subset in subsets]
    mean, deviation = fmean(best), pstdev(best)
    own = [fmean(b for b, subset in zip(best, subsets, strict=True) if i in subset) for i in range(len(values))]
    return [0.0 if deviation < 1e-12 else (value - mean) / (deviation + 1e-6) for value in own]


def best_of(values: list[float]) -> list[float]:
    first, second = sorted(values, reverse=True)[:2]
    return [first - second if value == first else 0.0 for value in values]


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k(case: str, k: int) -> None:
    rewards = Rewards({"r": torch.tensor(GROUPS[case], dtype=torch.float64).flatten()}, {"r": 1.0})
    wanted = [[value] * 3 for group in GROUPS[case] for value in pass_at_k(group, k)]
    assert_as_in_the_loop("grpo", {"compare": "pass_at_k", "k": k}, rewards, wanted, "sequence")


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize(("name", "reduction"), [("grpo", "sequence"), ("grpo", "token")])
def test_best_of_the_group(case: str, name: str, reduction: str) -> None:
    rewards = Rewards({"r": torch.tensor(GROUPS[case], dtype=torch.float64).flatten()}, {"r": 1.0})
    wanted = [[value] * 3 for group in GROUPS[case] for value in best_of(group)]
    assert_as_in_the_loop(name, {"compare": "best", "reduction": reduction}, rewards, wanted, reduction)


@pytest.mark.parametrize(("misses", "k"), [(7, 4), (6, 2), (1, 4), (5, 3), (4, 4)])
def test_rewards_of_zero_and_one_get_the_analytical_advantages(misses: int, k: int) -> None:
    size = 8
    values = torch.tensor([0.0] * misses + [1.0] * (size - misses), dtype=torch.float64)
    found = PassAtK(k, eps=0.0)(values, size)
    mean = 1 - math.comb(misses, k) / math.comb(size, k)
    if mean == 1:  # every subset has a hit
        assert (found == 0).all()
        return
    deviation = math.sqrt(mean * (1 - mean))
    assert_same(found[-1], (1 - mean) / deviation)
    missed = math.comb(misses - 1, k - 1) / math.comb(size - 1, k - 1)
    assert_same(found[0], (1 - mean - missed) / deviation)


@pytest.mark.parametrize("compare", ["pass_at_k", "best"])
def test_rewards_that_are_equal_but_for_rounding_are_equal(compare: str) -> None:
    drawn, _ = rollout()
    parts = 10 + 10 * torch.rand(2, 10, generator=torch.Generator().manual_seed(4))
    rewards = Rewards({"a": parts[0], "b": 0.3 - parts[0]}, {"a": 1.0, "b": 1.0})
    objective = OBJECTIVES.build("grpo", {"compare": compare, "kl_coef": 0.0})
    experience = objective.prepare(drawn.to(torch.float32), rewards)
    assert float(rewards.outcome.std()) > 0
    assert (experience.advantages == 0).all()


@pytest.mark.parametrize(
    ("options", "size", "remedy"),
    [
        ({"compare": "pass_at_k", "k": 4}, 4, r"more than objective\.k=4 completions .* rollout\.group_size is 4\."),
        ({"compare": "best"}, 1, r"compare=best; rollout\.group_size is 1"),
    ],
)
def test_groups_that_are_too_small_are_told(options: dict[str, Any], size: int, remedy: str) -> None:
    objective = OBJECTIVES.build("grpo", options)
    with pytest.raises(ConfigError, match=remedy):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=size), "grpo")
