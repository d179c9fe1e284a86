"""Losses and gradients from loops over plain numbers, for objectives that the golden file does not have."""

from typing import Any

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards, Scores
from genrl.objectives import OBJECTIVES
from tests.helpers import assert_same


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
