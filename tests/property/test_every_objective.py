"""What holds for every objective on every layout."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from genrl.batches import Experience
from genrl.objectives import live_prompts, renormalized
from tests.helpers import assert_same
from tests.property.rollouts import OBJECTIVE_OPTIONS, Outcome, Sample, assert_outcome, layouts, make, sample

every = pytest.mark.parametrize("name", OBJECTIVE_OPTIONS)
Summands = Callable[[tuple[int, ...], torch.Generator], list[Tensor]]
COMPARING = [name for name in OBJECTIVE_OPTIONS if name not in ("ce", "gbpo-sign", "opd")]


@cache
def drawn(name: str, layout: str, seed: int = 0) -> tuple[Sample, Experience, Outcome]:
    """A sample, what the objective prepares of it, and its loss and gradient."""
    batch, objective = sample(layout, seed=seed), make(name)
    experience = batch.experience(objective)
    return batch, experience, batch.run(objective, experience)


@every
@layouts
@pytest.mark.parametrize("seed", [0, 1])
def test_finite_loss_and_gradient_only_on_chosen_tokens(name, layout, seed):
    batch, experience, (loss, gradient) = drawn(name, layout, seed)
    assert loss.dtype == torch.float64
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient[~batch.rollout.chosen] == 0).all()
    assert (experience.weights >= 0).all()
    assert (experience.weights[~batch.rollout.chosen] == 0).all()
    assert (experience.advantages[~batch.rollout.chosen] == 0).all()
    if not (name == "sapo-fork" and layout != "blocked"):
        assert gradient.abs().sum() > 0


@every
def test_no_chosen_token_at_all(name):
    batch = sample("sid")
    batch = replace(batch, rollout=replace(batch.rollout, chosen=torch.zeros_like(batch.rollout.chosen)))
    assert_outcome(batch.outcome(make(name)), (torch.tensor(0.0), torch.zeros_like(batch.logps)))


@every
@layouts
def test_float32_agrees_with_float64(name, layout):
    batch, _, expected = drawn(name, layout)
    single = Sample(*(part.to(torch.float32) for part in (batch.rollout, batch.rewards, batch.logps, batch.entropy)))
    found = single.outcome(make(name))
    assert found[0].dtype == torch.float32
    assert_outcome(found, expected)


@every
@layouts
def test_micro_batches_add_up(name, layout):
    (batch, experience, expected), objective = drawn(name, layout), make(name)
    shuffled = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    for sizes in ([1, 3], [3, 1], [1, 1, 1, 1], [2, 2]):
        total, parts = torch.zeros_like(expected[0]), torch.zeros_like(expected[1])
        for prompts in shuffled.split(sizes):
            rows = torch.arange(16).view(4, 4)[prompts].flatten()
            part_loss, part_gradient = batch.run(objective, experience.groups(prompts), rows)
            total = total + part_loss
            parts[rows] += part_gradient
        assert_outcome((total, parts), expected)


@every
@layouts
def test_neither_more_padding_nor_the_order_within_a_group_matters(name, layout):
    batch, _, (loss, gradient) = drawn(name, layout)
    assert_outcome(batch.padded(3).outcome(make(name)), (loss, torch.nn.functional.pad(gradient, (0, 3))))
    draw = torch.Generator().manual_seed(2)
    order = torch.cat([group * 4 + torch.randperm(4, generator=draw) for group in range(4)])
    assert_outcome(batch.rows(order).outcome(make(name)), (loss, gradient[order]))


@pytest.mark.parametrize("name", [name for name in COMPARING if name not in ("sapo-prefix", "sapo-nested")])
@layouts
def test_a_constant_added_to_all_rewards_changes_nothing(name, layout):
    batch, _, expected = drawn(name, layout)
    assert_outcome(batch.shifted(3.0).outcome(make(name)), expected)


@pytest.mark.parametrize("name", [name for name in COMPARING if name not in ("grpo-dual", "grpo-best", "dr_grpo")])
def test_the_unit_of_rewards_hardly_matters(name):
    """Not for advantages that are differences of rewards and no more: they have the unit of the reward."""
    batch, _, (_, gradient) = drawn(name, "blocked")
    _, scaled = batch.shifted(0.0, scale=8.0).outcome(make(name))
    assert_same(scaled, gradient, tolerance=1e-4)  # eps is added to a deviation of another size


@pytest.mark.parametrize("name", COMPARING)
@layouts
def test_equal_rewards_give_no_gradient(name, layout):
    batch = sample(layout)
    objective = make(name)
    if objective.gradient_without_advantage:
        objective.penalties = ()
    same = batch.with_rewards({key: torch.full_like(value, 0.1) for key, value in batch.rewards.values.items()})
    experience = same.experience(objective)
    assert not live_prompts(experience).any()
    _, gradient = same.run(objective, experience)
    assert (gradient == 0).all()


def cancelling(shape: tuple[int, ...], draw: torch.Generator) -> list[Tensor]:
    """Two float32 rewards that differ much from row to row, and add up to .3 but for rounding."""
    good = 10 + 10 * torch.rand(shape, generator=draw)
    return [good, 0.3 - good]


def permuted(shape: tuple[int, ...], draw: torch.Generator) -> list[Tensor]:
    """Seven float32 rewards, the same numbers under other names in each row."""
    numbers = torch.tensor([10.1, -7.3, 0.1, 3.7, -6.5, 0.7, 0.3])
    return list(numbers[torch.rand(*shape, 7, generator=draw).argsort(-1)].unbind(-1))


@pytest.mark.parametrize("name", [name for name in COMPARING if not name.startswith(("gdpo", "sage"))])
@pytest.mark.parametrize("summands", [cancelling, permuted])
@pytest.mark.parametrize("seed", range(3))
def test_sums_equal_up_to_rounding_give_no_gradient(name, summands, seed):
    """Whatever the summands; those that normalise rewards one by one compare none of these sums."""
    batch, objective = sample("blocked"), make(name)
    objective.penalties = ()
    parts = summands((16, 2), torch.Generator().manual_seed(seed))
    values = {f"reward{place}": part for place, part in enumerate(parts)}
    even = batch.with_rewards({"exact_match": torch.full((16,), 0.1), **values})
    assert len(even.rewards.outcome.unique()) > 1
    experience = even.experience(objective)
    assert not live_prompts(experience).any()
    assert (even.run(objective, experience)[1] == 0).all()
    apart = {**values, "reward0": values["reward0"] + torch.arange(16.0)[:, None]}
    assert live_prompts(even.with_rewards({"exact_match": torch.arange(16.0), **apart}).experience(objective)).all()


@pytest.mark.parametrize(
    "name", [name for name in COMPARING if name not in ("sapo-fork", "gdpo-token", "sage-item-token")]
)
@layouts
def test_a_dead_group_can_be_left_out(name, layout):
    batch, objective = sample(layout), make(name)
    objective.penalties = ()
    experience = batch.experience(objective)
    assert not live_prompts(experience)[2]
    assert not objective.gradient_without_advantage
    _, gradient = batch.run(objective, experience)
    alive = live_prompts(experience)
    rows = alive.repeat_interleave(4)
    _, kept = batch.run(objective, experience.groups(alive), rows)
    assert_same(kept, gradient[rows])
    assert (gradient[~rows] == 0).all()


@every
def test_an_optimiser_step_on_half_the_prompts_weighs_as_much(name):
    batch, objective = sample("blocked"), make(name)
    whole = batch.experience(objective)
    half = renormalized(whole.groups(slice(0, 2)))
    assert_same(whole.mass.sum(), 1.0)
    assert_same(half.mass.sum(), 1.0)
    again = renormalized(half)
    assert_same(again.weights, half.weights)
    first = whole.weights[:8]
    assert_same(half.weights, first * (1 / whole.mass[:8].sum()))


@every
def test_loss_is_pure_and_asks_nothing_of_rewards_or_old_gradients(name):
    batch, objective = sample("slate"), make(name)
    experience = batch.experience(objective)
    assert not any(value.requires_grad for value in (experience.advantages, experience.weights))
    assert not any(value.requires_grad for value in experience.extras.values())
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    first = batch.run(objective, experience)
    assert_outcome(batch.run(objective, experience.to("cpu")), first)
    for key, value in objective.state_dict().items():
        assert_same(value, before[key])
    assert not list(objective.parameters())


@pytest.mark.gpu
def test_all_of_them_on_a_gpu():
    batch = sample("slate")
    moved = Sample(batch.rollout.to("cuda"), batch.rewards.to("cuda"), batch.logps.cuda(), batch.entropy.cuda())
    for name in OBJECTIVE_OPTIONS:
        found = moved.outcome(make(name).to("cuda"))
        assert found[0].is_cuda
        assert_outcome(found, batch.outcome(make(name)))
