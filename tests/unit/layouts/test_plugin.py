"""A layout of two items per completion, written by docs/layouts.md alone: nothing in genrl knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Rewards
from genrl.layouts import LAYOUTS, Items, Layout, Legal, Reading
from genrl.layouts.base import BROKEN, ENDED
from genrl.layouts.items import ItemState
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.objectives import OBJECTIVES
from genrl.policy.distribution import Sampling
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import every_completion, make_codes, make_items, make_policy, make_prompts

CODES = make_codes(9)


@dataclass(frozen=True)
class PairLayoutConfig:
    """Options: none."""


@dataclass(frozen=True, slots=True)
class PairState(ItemState):
    """Where a pair stands."""

    taken: Tensor
    """[n, 1] int64 the first item; -1: not written yet."""


class PairLayout(Layout):
    """Two different items, the SID of one behind that of the other; each item is a step."""

    steps = items = 2

    def __init__(self, config: PairLayoutConfig, *, catalogue: Items, words: Any = None) -> None:
        self.config, self.catalogue = config, catalogue
        self.tokens, self.codes = catalogue.tokens, catalogue.codes
        self.length = 2 * catalogue.levels
        self.kinds = ("item",) * self.length
        self.widest = max(self.tokens.sizes)
        self.completions = catalogue.distinct * (catalogue.distinct - 1)

    @property
    def plain(self) -> SidLayout:
        return SidLayout(SidLayoutConfig(), catalogue=self.catalogue)

    def to(self, device: str | torch.device) -> PairLayout:
        return PairLayout(self.config, catalogue=self.catalogue.to(device))

    def start(self, requests: int, group: int = 1) -> PairState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        zero = torch.zeros_like(owner)
        return PairState(zero, owner, zero, zero[:, None] - 1)

    def legal(self, site: int, state: PairState, requests: Any = None) -> Legal:
        level = site % self.catalogue.levels
        return self.catalogue.legal(level, state.node, state.owner, requests, taken=state.taken)

    def advance(self, state: PairState, tokens: Tensor, site: int | None = None) -> PairState:
        node = self.catalogue.child(site % self.catalogue.levels, state.node, tokens)
        behind = torch.where(node < 0, BROKEN, site + 1 if site + 1 < self.length else ENDED)
        if site + 1 != self.catalogue.levels:
            return replace(state, site=behind, node=node)
        first = self.catalogue.trie.items(node)[:, None]
        return replace(state, site=behind, node=torch.where(node < 0, -1, 0), taken=first)

    def read(self, tokens: Tensor, states: PairState, requests: Any = None) -> Reading:
        levels = self.catalogue.levels
        steps = (torch.arange(self.length) // levels).repeat(len(tokens), 1)
        last = self.catalogue.child(levels - 1, states.node[:, -1], tokens[:, -1])
        items = torch.cat([states.taken[:, -1], self.catalogue.trie.items(last)[:, None]], dim=1)
        codes = tokens.unflatten(1, (2, levels))[:, :, 0] - self.catalogue.first[0]
        return Reading(steps, steps, codes, items)

    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        return self.catalogue.render(items).flatten(1)

    def rank(self, state: PairState, scores: Tensor, width: int, requests: Any = None) -> tuple[Tensor, Tensor]:
        """Pairs by their first item: it stands for what is recommended first."""
        whole = (state.site == ENDED).view(scores.shape)
        items = torch.where(whole, state.taken.view(scores.shape), -1)
        missing = (0, max(0, width - items.shape[1]))
        pad = torch.nn.functional.pad
        return pad(items, missing, value=-1)[:, :width], pad(scores, missing, value=float("-inf"))[:, :width]


@pytest.fixture(scope="module")
def setting() -> tuple[Any, PairLayout, Any]:
    if "pair" not in LAYOUTS.names():
        LAYOUTS.register("pair", config=PairLayoutConfig, title="Two items")(PairLayout)
    policy = make_policy()
    layout = LAYOUTS.build("pair", {}, catalogue=make_items(policy, CODES), words=None)
    assert isinstance(layout, PairLayout)
    return policy, layout, make_prompts(policy, len(CODES))


@torch.no_grad()
def test_all_pairs_of_different_items_are_written_and_their_probabilities_sum_to_one(setting):
    policy, layout, prompts = setting
    written = torch.tensor(every_completion(layout))
    items = layout.read(written, layout.replay(written)).items
    assert sorted(map(tuple, items.tolist())) == [(a, b) for a in range(9) for b in range(9) if a != b]
    assert layout.compose(items).equal(written)
    ranking, beams = search(policy, layout, prompts, layout.completions, Sampling())
    assert_same(ranking.scores.exp().sum(1), torch.ones(5))
    assert_same(score(policy, layout, prompts, beams).logps, beams.logps)
    assert_same(beams.logps.sum(1).view(5, -1), ranking.scores)


def test_samples_are_scored_as_they_were_drawn_and_lists_of_items_hold_for_both(setting):
    policy, layout, prompts = setting
    asked = replace(prompts, deny=torch.tensor([[0], [1], [2], [3], [-1]]), pool=torch.tensor([[0, 1, 2, 3, 4]] * 5))
    noise = torch.rand(5, 30, layout.length, generator=torch.Generator().manual_seed(0))
    drawn = write(policy, layout, asked, 30, noise=noise)
    with torch.no_grad():
        assert_same(score(policy, layout, asked, drawn).logps, drawn.logps, 1e-6)
    for request, group in enumerate(drawn.items.view(5, 30, 2)):
        assert bool((group[:, 0] != group[:, 1]).all())
        assert set(group.flatten().tolist()) == {0, 1, 2, 3, 4} - set(asked.deny[request].tolist())
    assert drawn.item_ids[0].tolist() == drawn.step_ids[0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("objective", ["grpo", "sapo"])
def test_an_update_raises_what_was_rewarded(setting, objective):
    policy, layout, prompts = make_policy(), setting[1], setting[2]
    noise = torch.rand(5, 16, layout.length, generator=torch.Generator().manual_seed(1))
    drawn = write(policy, layout, prompts, 16, noise=noise)
    drawn = replace(drawn, ref_logps=drawn.logps)
    hits = (drawn.items % 2 == 0).float()
    rewards = Rewards({"even": hits}, {"even": 1.0})
    algorithm = OBJECTIVES.build(objective, {})
    experience = algorithm.prepare(drawn, rewards)
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.01)
    before = score(policy, layout, prompts, drawn).logps.detach()
    for _ in range(3):
        optimizer.zero_grad()
        algorithm.loss(score(policy, layout, prompts, drawn), experience).loss.backward()
        optimizer.step()
    risen = (score(policy, layout, prompts, drawn).logps - before).detach()
    credit = experience.advantages * drawn.chosen
    assert float((risen * credit).sum()) > 0
