import pytest
import torch

from genrl.policy import catalogue_loss
from genrl.policy.catalogue_loss import catalogue_cross_entropy
from tests.helpers import assert_same


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [2, 7, 100])
def test_cross_entropy_and_its_gradient_are_those_of_a_loop(chunk, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "CHUNK", chunk)
    states, table = numbers(7, 3).requires_grad_(), (5 * numbers(11, 3, seed=1)).requires_grad_()
    targets = torch.tensor([0, 10, 4, 4, 2, 0, 9])
    total = sum(
        torch.stack([(state @ item).exp() for item in table]).sum().log() - state @ table[target]
        for state, target in zip(states, targets, strict=True)
    )
    loss = catalogue_cross_entropy(states, table, targets)
    assert_same(loss, total.detach())
    expected = torch.autograd.grad(3 * total, [states, table])
    for found, wanted in zip(torch.autograd.grad(3 * loss, [states, table]), expected, strict=True):
        assert_same(found, wanted)


def test_cross_entropy_of_huge_scores_is_finite():
    states, table = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = catalogue_cross_entropy(states, table, torch.tensor([0, 0]))
    assert loss.item() == 2e4
    loss.backward()
    assert states.grad.tolist() == [[0.0], [-2.0]]


def test_no_target_is_no_loss():
    states, table = torch.zeros(0, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    loss = catalogue_cross_entropy(states, table, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not table.grad.any()


def test_autocast_does_not_round_the_scores():
    states, table, targets = numbers(4, 3).float(), numbers(9, 3, seed=1).float(), torch.tensor([1, 2, 3, 8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = catalogue_cross_entropy(states, table, targets)
    assert torch.equal(rounded, catalogue_cross_entropy(states, table, targets))
