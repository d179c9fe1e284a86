"""A policy beside the language model: it has no decode passes, and writing, searching and scoring do not know."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from genrl.batches import Requests
from genrl.layouts.base import Legal
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.distribution import Sampling
from genrl.policy.protocol import Generative, Next, Say
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import as_completions

T = TypeVar("T")
SIZES, CODES = (2, 3), torch.tensor([[0, 0], [0, 2], [1, 0], [1, 1], [1, 2]])
CHANCES = torch.tensor([[0.3, 0.1, 0.12, 0.18, 0.3], [0.05, 0.45, 0.2, 0.2, 0.1]])
"""Of each item for two users."""


@dataclass(frozen=True)
class Row:
    """Logits of the edges of each state's user."""

    edges: Tensor
    """[..., nodes] of both levels, one behind the other."""
    level: Tensor
    """[...] of the next token."""
    first, narrow = 10, True

    def logits(self, legal: Legal | None) -> Tensor:
        assert legal is not None  # a table has no vocabulary
        starts = torch.tensor([0, 2])[self.level][..., None]
        return self.edges.gather(-1, (legal.nodes.clamp(min=0) + starts).expand(*self.level.shape, -1))

    def __getitem__(self, index: Any) -> Row:
        return Row(self.edges[index], self.level[index])

    def __len__(self) -> int:
        return len(self.level)


class Growing:
    def __init__(self, edges: Tensor) -> None:
        self.edges, self.level = edges, 0

    def begin(self, say: Say[T]) -> T:
        return say(Row(self.edges, torch.zeros(len(self.edges), dtype=torch.int64)))

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        self.level += 1
        edges = self.edges.repeat_interleave(tokens.shape[1], 0)
        return say(Row(edges, torch.full((len(edges),), self.level)))


class Table(nn.Module):
    """One logit per user and trie node."""

    first_ids, sizes = (10, 12), SIZES

    def __init__(self) -> None:
        super().__init__()
        coarse = torch.stack([CHANCES[:, :2].sum(1), CHANCES[:, 2:].sum(1)], dim=1)
        self.edges = nn.Parameter(torch.cat([coarse, CHANCES], dim=1).log())

    def grow(self, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False) -> Growing:
        return Growing(self.edges[requests.tokens[:, 0]])

    def follow(
        self,
        requests: Requests,
        written: Tensor,
        chosen: Tensor,
        say: Callable[[Next, Next], T],
        rows: str = "legal",
    ) -> T:
        edges = self.edges[requests.tokens[:, 0]]
        inner = edges.repeat_interleave(len(written) // len(edges), 0)[:, None]
        zeros = torch.zeros(len(edges), dtype=torch.int64)
        return say(Row(edges, zeros), Row(inner, torch.ones(len(inner), 1, dtype=torch.int64)))


@pytest.fixture
def made() -> tuple[Table, SidLayout, Requests]:
    users = torch.tensor([[0], [1]])
    layout = SidLayout(SidLayoutConfig(), catalogue=Items(Trie.build(CODES, SIZES), Table.first_ids, CODES))
    return Table(), layout, Requests(users, torch.ones_like(users).bool(), users[:, :0])


def test_beams_find_the_probabilities_of_the_table(made):
    policy: Generative
    policy, layout, requests = made
    ranking, _ = search(policy, layout, requests, 5)
    assert_same(ranking.scores.exp(), CHANCES.gather(1, ranking.items))
    assert_same(ranking.scores.exp(), CHANCES.sort(1, descending=True).values)
    narrow, _ = search(policy, layout, requests, 2, exact=2)
    assert narrow.items.equal(ranking.items[:, :2]) or bool(narrow.certified(2).all())
    denied, _ = search(policy, layout, replace(requests, deny=torch.tensor([[4], [1]])), 4)
    assert not (denied.items == torch.tensor([[4], [1]])).any()
    assert_same(denied.scores.exp(), CHANCES.gather(1, denied.items))


@torch.no_grad()
def test_samples_follow_the_table_and_say_their_probability(made):
    policy, layout, requests = made
    noise = torch.rand(2, 20_000, 2, generator=torch.Generator().manual_seed(0))
    drawn = write(policy, layout, requests, 20_000, noise=noise)
    items = drawn.items.view(2, -1)
    assert_same(drawn.logps.sum(1).view(2, -1).exp(), CHANCES.gather(1, items))
    seen = torch.stack([torch.bincount(row, minlength=5) for row in items]) / 20_000
    assert float((seen - CHANCES).abs().max()) < 5 * math.sqrt(0.25 / 20_000)
    assert_same(score(policy, layout, requests, drawn).logps, drawn.logps)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scores_are_those_of_the_table_with_gradient(made, temperature):
    policy, layout, requests = made
    tokens = layout.compose(torch.arange(5).repeat(2)[:, None])
    completions = as_completions(layout, tokens, 5, torch.ones_like(tokens, dtype=torch.bool))
    logps = score(policy, layout, requests, completions, Sampling(temperature)).logps.sum(1).view(2, 5)
    assert_same(logps.exp().sum(1), torch.ones(2))
    if temperature == 1.0:
        assert_same(logps.exp(), CHANCES)
    logps[0, 3].backward()
    assert bool(policy.edges.grad[0].any())
    assert not policy.edges.grad[1].any()
