from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from genrl.errors import UnsupportedError
from genrl.layouts import LAYOUTS, Decoded, Layout, Legal
from genrl.policy.decode import rank, sample
from tests.helpers import assert_same
from tests.models import make_policy, make_prompts


class Pairs(Layout):
    """A grammar without a trie: a token A + a, then a token B + b with b <= a; items are the pairs in order."""

    num_steps = length = 2
    items = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))

    def __init__(self, first_ids: tuple[int, ...] = (10, 20), sizes: tuple[int, ...] = (3, 3)) -> None:
        self.first_ids = first_ids
        self.sizes = sizes

    def to(self, device: str) -> Pairs:
        return self

    def start(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def legal(self, position: int, states: Tensor) -> Legal:
        if position == 0:
            return Legal(self.first_ids[0], torch.ones(len(states), 3, dtype=torch.bool))
        return Legal(self.first_ids[1], torch.arange(3) <= states[:, None])

    def advance(self, position: int, states: Tensor, tokens: Tensor) -> Tensor:
        codes = tokens - self.first_ids[position]
        return codes if position == 0 else states * (states + 1) // 2 + codes

    def decode(self, tokens: Tensor) -> Decoded:
        first, second = (tokens - torch.tensor(self.first_ids[:2])).unbind(1)
        leaves = first * (first + 1) // 2 + second
        return Decoded(torch.stack([first, second], 1), leaves[:, None], leaves)

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        missing = (0, max(0, width - leaves.shape[1]))
        return pad(leaves[:, :width], missing, value=-1), pad(scores[:, :width], missing, value=float("-inf"))

    def render(self, items: Tensor) -> Tensor:
        return torch.tensor(self.items)[items] + torch.tensor(self.first_ids[:2])

    def codes_of_items(self) -> Tensor:
        return torch.tensor(self.items)

    def step_ids(self) -> Tensor:
        return torch.arange(2)

    @property
    def widest(self) -> int:
        return 3

    @property
    def completions(self) -> int:
        return 6


def test_a_layout_says_everything_or_is_none() -> None:
    abstract = set(Layout.__abstractmethods__)
    assert {"legal", "advance", "decode", "render", "rank"} <= abstract
    for name in abstract:
        lacking = type("Lacking", (Pairs,), {name: getattr(Layout, name)})
        with pytest.raises(TypeError, match=name):
            lacking()
    assert Pairs().thinking is False


def test_a_layout_without_filters_says_so() -> None:
    layout = Pairs()
    with pytest.raises(UnsupportedError, match="Pairs has no filters of items"):
        layout.filtered(deny=torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="Pairs has no filters of items"):
        layout.only(torch.ones(6, dtype=torch.bool))
    assert layout.requests(torch.tensor([1])) is layout


def test_what_a_layout_answers_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Legal(0, torch.ones(1, 1, dtype=torch.bool)).first = 1  # type: ignore[misc]


def test_a_layout_is_found_by_its_name() -> None:
    assert "sid" in LAYOUTS.names()
    assert issubclass(LAYOUTS.entry("sid").factory, Layout)  # type: ignore[arg-type]


def test_sampling_and_beam_search_follow_any_grammar() -> None:
    policy = make_policy()
    layout = Pairs(policy.first_ids, policy.sizes)
    prompts = make_prompts(policy)
    uniforms = torch.rand(5, 400, 2, generator=torch.Generator().manual_seed(0))
    drawn = sample(policy, layout, prompts.tokens, prompts.mask, uniforms)
    decoded = layout.decode(drawn.tokens.flatten(0, 1))
    assert bool((decoded.codes[:, 1] <= decoded.codes[:, 0]).all())
    assert set(decoded.leaves.tolist()) == set(range(6))
    ranking = rank(policy, layout, prompts.tokens, prompts.mask, 6)
    assert_same(ranking.scores.exp().sum(1), torch.ones(5))
    scores = torch.zeros(5, 6).scatter(1, ranking.items, ranking.scores)
    assert_same(drawn.logps.sum(2).flatten(), scores.repeat_interleave(400, 0).gather(1, decoded.items)[:, 0])
