import math

import pytest
import torch

from genrl.policy.encoder import Block, ItemEncoder, length_groups
from tests.helpers import assert_same

ITEMS = 9


def encoder(seed: int = 0, max_length: int = 6) -> ItemEncoder:
    generator = torch.Generator().manual_seed(seed)
    made = ItemEncoder(ITEMS, hidden=8, blocks=2, heads=2, dropout=0.4, max_length=max_length).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return made


def slow_block(block: Block, states: torch.Tensor) -> torch.Tensor:
    """One row [L, hidden] with loops over heads and places; every place sees those up to it."""
    normed = block.attention_norm(states)
    query, key, value = (normed @ block.project.weight.T + block.project.bias).chunk(3, dim=1)
    size = states.shape[1] // block.heads
    mixed = torch.zeros_like(states)
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        for place in range(len(states)):
            scores = key[: place + 1, part] @ query[place, part] / math.sqrt(size)
            mixed[place, part] = scores.softmax(dim=0) @ value[: place + 1, part]
    states = states + block.join(mixed)
    return states + block.network(block.network_norm(states))


def test_an_encoder_is_its_definition():
    model = encoder()
    row = [3, 8, 0, 3]
    states = torch.stack([model.items.weight[item + 1] * math.sqrt(8) for item in row])
    states = states + torch.stack([model.positions.weight[age] for age in (3, 2, 1, 0)])
    for block in model.blocks:
        states = slow_block(block, states)
    assert_same(model(torch.tensor([row]))[0][0], model.norm(states))
    assert torch.equal(model.table, model.items.weight[1:])


def test_padding_changes_nothing_and_is_finite():
    model = encoder()
    bare, padded = torch.tensor([[5, 2]]), torch.tensor([[-1, -1, 5, 2]])
    assert_same(model(padded)[0][:, 2:], model(bare)[0])
    assert model(torch.full((2, 3), -1))[0].isfinite().all()


def test_memory_stands_for_what_was_read():
    model = encoder()
    states, memory = model(torch.tensor([[-1, 4, 2]]))
    inputs = torch.randn(1, 2, 8, dtype=torch.float64)
    seen = torch.tensor([[False, True, True, True, True]])
    one, memory = model.read(inputs[:, :1], seen[:, None, None, :4], memory)
    two, _ = model.read(inputs[:, 1:], seen[:, None, None], memory)
    embedded = model.items(torch.tensor([[5, 3]])) * math.sqrt(8) + model.positions(torch.tensor([1, 0]))
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    whole, _ = model.read(torch.cat([embedded, inputs], dim=1), causal)
    assert_same(torch.cat([states[:, 1:], one, two], dim=1), whole)


def test_dropout_is_for_training_only():
    model, items = encoder(), torch.tensor([[1, 2, 3]])
    assert_same(model(items)[0], model(items)[0])
    model.train()
    assert (model(items)[0] - model(items)[0]).abs().max() > 0.01


@pytest.mark.parametrize("most", [1, 3, 20])
def test_groups_hold_every_row_once_and_are_wide_enough(most):
    lengths = [4, 0, 2, 6, 1, 1, 3]
    items = torch.tensor([[-1] * (6 - length) + [7] * length for length in lengths])
    groups = length_groups(items, most, least_rows=1)
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(7))
    for rows, width in groups:
        assert width == max(1, *(lengths[row] for row in rows.tolist()))
    assert len(groups) == min(most, 7)
    if most == 20:
        assert sum(width * len(rows) for rows, width in groups) == sum(max(1, length) for length in lengths)
    small = torch.zeros(40, 3, dtype=torch.int64)
    assert [len(length_groups(small[:rows])) for rows in (1, 31, 32, 40)] == [1, 1, 2, 2]
    assert [(rows.tolist(), width) for rows, width in length_groups(small[:0])] == [([], 3)]
