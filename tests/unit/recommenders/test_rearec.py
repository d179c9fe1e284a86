import math
from typing import Any

import pytest
import torch

from genrl.recommenders.rearec import ReaRec, divergence
from tests.helpers import assert_same
from tests.unit.recommenders.problems import ITEMS, model_of, rows_of

ROWS = rows_of([1, 2, 3], [4, 0], [7, 0, 1, 11, 2], per="target")
HISTORIES, TARGETS = [[1, 2], [4], [7, 0, 1, 11]], [3, 0, 2]


def rearec(**options: Any) -> ReaRec:
    model: ReaRec = model_of("rearec", **{"temperature": 0.5, **options})
    return model


def slow_thoughts(model: ReaRec, history: list[int]) -> torch.Tensor:
    """All K + 1 states of one history, everything read anew for each step: [K + 1, hidden]."""
    encoder = model.encoder
    ages = torch.arange(len(history) - 1, -1, -1)
    inputs = encoder.items(torch.tensor([history]) + 1) * math.sqrt(8) + encoder.positions(ages)
    found = []
    for step in range(model.config.steps + 1):
        length = inputs.shape[1]
        states, _ = encoder.read(inputs, torch.ones(length, length, dtype=torch.bool).tril())
        found.append(states[0, -1])
        if step < model.config.steps:
            inputs = torch.cat([inputs, (states[:, -1:] + model.steps[step])], dim=1)
    return torch.stack(found)


def test_steps_read_the_items_and_the_steps_before_them():
    model = rearec(steps=3)
    for history in HISTORIES:
        padded = torch.tensor([[-1, *history]])
        assert_same(model.reason(padded)[0], slow_thoughts(model, history))


@pytest.mark.parametrize("method", ["ensemble", "progressive"])
def test_ranks_come_from_the_mean_or_the_last_state(method):
    model = rearec(method=method)
    ranking = model.best(torch.tensor([[-1, -1, 1, 2], [-1, -1, -1, 4], [7, 0, 1, 11]]), ITEMS)
    for row, history in enumerate(HISTORIES):
        thoughts = slow_thoughts(model, history)
        state = thoughts.mean(dim=0) if method == "ensemble" else thoughts[-1]
        assert_same(ranking.scores[row], (state @ model.encoder.table.T)[ranking.items[row]])
        assert (ranking.scores[row].diff() <= 0).all()


def test_the_ensemble_loss_is_its_definition():
    model = rearec(kl_weight=0.3)
    expected = torch.zeros(())
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        thoughts = slow_thoughts(model, history)
        logs = (thoughts @ model.encoder.table.T / 0.5).log_softmax(dim=1)
        mean = (thoughts.mean(dim=0) @ model.encoder.table.T / 0.5).log_softmax(dim=0)
        apart = [(logs[j].exp() * (logs[j] - logs[i].detach())).sum() for i in range(3) for j in range(3) if i != j]
        expected = expected - mean[target] - 0.3 * torch.stack(apart).mean()
    assert_same(model.loss(ROWS), expected.detach(), tolerance=1e-4)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for found, grad in zip(torch.autograd.grad(model.loss(ROWS), parameters), wanted, strict=True):
        assert_same(found, grad, tolerance=1e-4)


def test_divergence_is_the_same_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 3, 4, generator=generator, dtype=torch.float64)
    table = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    whole = divergence(states, table)
    monkeypatch.setattr("genrl.policy.catalogue_loss.CHUNK", 6)
    assert_same(divergence(states, table), whole)
    assert whole > 0
    assert_same(divergence(states[:, :1].expand(-1, 3, -1), table), 0.0)


def test_the_progressive_loss_is_its_definition():
    model = rearec(method="progressive", annealing=3.0, noise=0.0, progressive_weight=0.7, contrast_weight=0.2)
    thoughts = torch.stack([slow_thoughts(model, history) for history in HISTORIES])
    expected = 0.0
    for row, target in enumerate(TARGETS):
        losses = [
            -(thoughts[row, step] @ model.encoder.table.T / (0.5 * 3.0 ** (2 - step))).log_softmax(dim=0)[target]
            for step in range(3)
        ]
        contrasts = [
            -torch.stack([thoughts[row, step] @ thoughts[other, step] / 0.5 for other in range(3)]).log_softmax(0)[row]
            for step in (1, 2)
        ]
        expected += (losses[2] + 0.7 * (losses[0] + losses[1]) / 2 + 0.2 * (contrasts[0] + contrasts[1]) / 2).item()
    assert_same(model.loss(ROWS), expected, tolerance=1e-4)


def test_the_second_view_starts_from_the_clean_states_with_noise():
    model = rearec(method="progressive", noise=0.5)
    items = torch.tensor([[1, 2], [3, 4]])
    plain = model.reason(items)
    torch.manual_seed(1)
    views = model.reason(items, noise=0.5)
    assert_same(views[:2], plain)
    assert_same(views[2:, 0], plain[:, 0])
    assert (views[2:, 1:] - plain[:, 1:]).abs().amax(dim=2).min() > 0.01
    assert_same(model.reason(items, noise=0.0)[2:], plain)


@pytest.mark.parametrize("method", ["ensemble", "progressive"])
def test_no_steps_are_sasrec(method):
    sasrec = model_of("sasrec")
    model = rearec(steps=0, temperature=1.0, method=method)
    sasrec.load_state_dict({name: value for name, value in model.state_dict().items() if name != "steps"})
    histories = torch.tensor([[-1, 4], [2, 3], [-1, -1]])
    assert torch.equal(model.best(histories, 5).items, sasrec.best(histories, 5).items)
    assert_same(model.loss(ROWS), sasrec.loss(ROWS).detach())
