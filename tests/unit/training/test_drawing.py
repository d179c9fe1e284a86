from dataclasses import replace

import torch

from genrl.batches import Rewards
from genrl.objectives import live_prompts
from genrl.policy.score import score
from genrl.training.drawing import hopeless
from tests.helpers import assert_same
from tests.runs import attach
from tests.unit.training.test_rl import Judge, make


def test_dead_groups_are_replaced_from_further_rollouts(session, tmp_path):
    module = attach(make(session, tmp_path, "objective=dapo"))
    alive = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    first, second = alive.clone(), alive + 10
    first[[0, 3, 6]] = 1.0
    second[1] = 2.0  # takes the place of prompt 3, and is dead itself
    module.verifier = Judge(first.flatten(), second.flatten(), alive.flatten() + 20)
    (part,) = module.experience(0)
    batch, prompts = part.experience, part.requests
    assert bool(live_prompts(batch).all())
    experience, rewards, prompts = module.sampled
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


def test_prompts_are_drawn_again_a_limited_number_of_times(session, tmp_path):
    module = attach(make(session, tmp_path, "objective=dapo", "objective.dynamic_sampling=3"))
    attempts: list[int] = []
    original = module._draw
    module._draw = lambda index, attempt: attempts.append(attempt) or original(index, attempt)
    module.verifier = Judge(torch.ones(32))
    module.experience(0)
    assert attempts == [0, 1, 2]


def test_the_target_repairs_groups_that_earn_the_same_without_it(session, tmp_path):
    exact = ("objective=grpo", "rewards.level_match=null")
    module = attach(make(session, tmp_path, *exact, "objective.repair=true"))
    drawn = attach(make(session, tmp_path, *exact))._draw(0, 0)
    whole = module._draw(0, 0)
    wanted = drawn.requests.wanted.items[:, 0]
    items = drawn.completions.items.view(8, 4).clone()
    hit = (items == wanted[:, None]).any(1)
    assert not hit.all()
    items[~hit, 3] = wanted[~hit]
    assert torch.equal(whole.completions.items.view(8, 4), items)
    assert torch.equal(whole.rewards.outcome.view(8, 4), (items == wanted[:, None]).float())
    assert torch.equal(whole.completions.tokens, session.layout.compose(items.flatten()[:, None]))
    found = score(session.policy, session.layout, whole.requests, whole.completions)
    assert_same(found.logps.detach(), whole.completions.logps)
    assert_same(found.entropy.detach(), whole.completions.entropy)
    live = live_prompts(module.objective.prepare(whole.completions, whole.rewards))
    assert torch.equal(live, ~hit | live_prompts(module.objective.prepare(drawn.completions, drawn.rewards)))
    assert_same(module.journal.close()["rollout/repaired"], float((~hit).float().mean()))


def test_groups_that_name_the_target_or_earn_differently_are_not_hopeless(session, tmp_path):
    drawn = attach(make(session, tmp_path, "objective=grpo"))._draw(0, 0)
    items = torch.full((8, 4), -1)
    items[1] = drawn.requests.wanted.items[1, 0]
    outcome = torch.ones(8, 4)
    outcome[2, 1] = 0.5
    completions = replace(drawn.completions, items=items.view(32, 1))
    judged = replace(drawn, completions=completions, rewards=Rewards({"judge": outcome.flatten()}, {"judge": 1.0}))
    assert hopeless(judged).tolist() == [True, False, False, True, True, True, True, True]


def test_drawn_and_useful_completions_are_counted(session, tmp_path):
    module = attach(make(session, tmp_path, "objective=dapo", "objective.dynamic_sampling=3"))
    alive = torch.arange(32.0).view(8, 4)
    first = alive.clone()
    first[0] = 1.0
    module.verifier = Judge(first.flatten(), torch.ones(32), torch.ones(32))
    module.experience(0)
    logged = module.journal.close()
    assert logged["rollout/drawn"] == 96
    assert_same(logged["rollout/useful"], 28 / 32)
