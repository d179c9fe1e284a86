from __future__ import annotations

from pathlib import Path

import torch

from genrl.objectives import live_prompts
from genrl.policy.score import score
from genrl.runs.session import Session
from tests.helpers import assert_same
from tests.runs import attach
from tests.unit.training.test_rl import Judge, make


def test_dead_groups_are_replaced_from_further_rollouts(session: Session, tmp_path: Path) -> None:
    module = attach(make(session, tmp_path, "objective=dapo"))
    alive = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    first, second = alive.clone(), alive + 10
    first[[0, 3, 6]] = 1.0
    second[1] = 2.0  # takes the place of prompt 3, and is dead itself
    module.verifier = Judge(first.flatten(), second.flatten(), alive.flatten() + 20)  # type: ignore[assignment]
    (part,) = module.experience(0)
    batch, prompts = part.experience, part.requests
    assert bool(live_prompts(batch).all())
    experience, rewards, prompts = module.sampled  # type: ignore[misc]
    drawn = experience.completions
    wanted = alive.clone()
    wanted[0], wanted[6] = second[0], second[2]
    wanted[3] = alive[0] + 20
    assert_same(rewards.outcome.view(8, 4), wanted)
    order = [module.prompts.at(0, attempt) for attempt in range(3)]
    positions = order[0].clone()
    positions[0], positions[6], positions[3] = order[1][0], order[1][2], order[2][0]
    targets = session.dataset.sequences.items[positions]
    assert prompts.targets.items[:, 0].tolist() == targets.tolist()
    assert_same(score(session.policy, session.layout, prompts, drawn).logps.detach(), drawn.logps)


def test_prompts_are_drawn_again_a_limited_number_of_times(session: Session, tmp_path: Path) -> None:
    module = attach(make(session, tmp_path, "objective=dapo", "objective.dynamic_sampling=3"))
    attempts: list[int] = []
    original = module._draw
    module._draw = lambda index, attempt: attempts.append(attempt) or original(index, attempt)  # type: ignore[method-assign]
    module.verifier = Judge(torch.ones(32))  # type: ignore[assignment]
    module.experience(0)
    assert attempts == [0, 1, 2]
