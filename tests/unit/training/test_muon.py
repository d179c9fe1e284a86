"""Muon against that of torch, and two optimisers as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genrl.training import muon
from genrl.training.muon import Side, make_optimiser, orthogonal
from tests.helpers import assert_same


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (8, 8)])
def test_steps_are_those_of_torch_up_to_its_rounding(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(numbers(*shape)) for _ in range(2))
    mine = make_optimiser([{"params": [ours], "weight_decay": 0.1}], {id(ours)}, lr=0.02, betas=(0.9, 0.98))
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for value in (ours, theirs):
            value.grad = numbers(*shape, seed=step + 1)
        mine.step()
        peer.step()
    assert_same(ours, theirs, 2e-3)
    assert not torch.equal(ours, numbers(*shape))


def test_singular_values_come_near_one() -> None:
    found = torch.linalg.svdvals(orthogonal(numbers(3, 12, 7).double()))
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3
    assert not bool(torch.isnan(orthogonal(torch.zeros(1, 3, 3))).any())


def two() -> tuple[nn.Parameter, nn.Parameter, torch.optim.Optimizer]:
    matrix, vector = nn.Parameter(numbers(4, 5)), nn.Parameter(numbers(5))
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    return matrix, vector, make_optimiser(groups, {id(matrix)}, lr=0.01, betas=(0.9, 0.98))


def advance(matrix: nn.Parameter, vector: nn.Parameter, optimiser: torch.optim.Optimizer, seed: int) -> None:
    matrix.grad, vector.grad = numbers(4, 5, seed=seed), numbers(5, seed=seed)
    optimiser.step()


def test_rates_and_saved_states_reach_both_parts() -> None:
    """A schedule that is set on the whole moves both; a loaded state goes on to the same bits, rates included."""
    matrix, vector, optimiser = two()
    assert isinstance(optimiser, Side)
    advance(matrix, vector, optimiser, 1)
    for group in optimiser.param_groups:
        group["lr"] = 0.5
    before, state = (matrix.detach().clone(), vector.detach().clone()), optimiser.state_dict()
    state = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)
    advance(matrix, vector, optimiser, 2)
    other_matrix, other_vector, other = two()
    with torch.no_grad():
        other_matrix.copy_(before[0])
        other_vector.copy_(before[1])
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5]
    advance(other_matrix, other_vector, other, 2)
    assert torch.equal(matrix, other_matrix)
    assert torch.equal(vector, other_vector)


def test_the_loss_of_a_closure_is_given_back_and_asked_for_once() -> None:
    *_, optimiser = two()
    calls: list[int] = []
    assert optimiser.step(lambda: calls.append(1) or 7.0) == 7.0  # type: ignore[func-returns-value]
    assert calls == [1]


def test_without_matrices_it_is_adamw() -> None:
    value = nn.Parameter(numbers(3, 3))
    assert type(make_optimiser([{"params": [value]}], set(), lr=0.1)) is torch.optim.AdamW


@pytest.mark.parametrize(("kind", "bits", "apart"), [("paged_adamw_8bit", 8, 0.02), ("paged_adamw_32bit", 32, 1e-6)])
def test_optimisers_of_bitsandbytes_step_like_adamw_and_go_on_from_a_saved_state(tmp_path, kind, bits, apart) -> None:
    pytest.importorskip("bitsandbytes")

    def made(kind: str, start: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        value = nn.Parameter(start.clone())
        groups = [{"params": [value], "weight_decay": 0.1}]
        return value, make_optimiser(groups, set(), kind, lr=0.01, betas=(0.9, 0.95))

    def advance(value: nn.Parameter, optimiser: torch.optim.Optimizer, seed: int) -> None:
        value.grad = numbers(64, 80, seed=seed)
        optimiser.step()

    begin = numbers(64, 80)
    (value, ours), (other, theirs) = made(kind, begin), made("adamw", begin)
    for seed in (1, 2, 3):
        advance(value, ours, seed)
        advance(other, theirs, seed)
    assert_same(value, other, apart)
    assert float((value.detach() - begin).abs().mean()) > 0.01
    assert ours.state[value]["state1"].element_size() * 8 == bits
    torch.save({"value": value.data, "state": ours.state_dict()}, tmp_path / "point")
    point = torch.load(tmp_path / "point", weights_only=True)
    resumed, again = made(kind, point["value"])
    again.load_state_dict(point["state"])
    advance(value, ours, 4)
    advance(resumed, again, 4)
    assert torch.equal(value, resumed)


def test_matrices_alone_take_a_closure_too_and_a_few_at_a_time(monkeypatch):
    """Lightning steps with a closure; how many matrices are made orthogonal at a time changes nothing."""

    def stepped() -> list[torch.Tensor]:
        values = [nn.Parameter(numbers(4, 6, seed=seed)) for seed in range(3)]
        optimiser = make_optimiser([{"params": values, "weight_decay": 0.1}], {*map(id, values)}, lr=0.1)
        for seed, value in enumerate(values):
            value.grad = numbers(4, 6, seed=9 + seed)
        assert optimiser.step(lambda: 1.0) == 1.0
        return [value.detach() for value in values]

    whole = stepped()
    monkeypatch.setattr(muon, "TOGETHER", 50)
    for one, other in zip(whole, stepped(), strict=True):
        assert_same(one, other)
