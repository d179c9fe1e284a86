from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Ranking, Requests
from genrl.errors import UnsupportedError
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.sid import SidLayout
from genrl.policy import reasoning
from genrl.policy.decode import rank
from genrl.policy.load import load_policy
from genrl.policy.model import Policy
from genrl.policy.reasoning import Reasoned, conclude, merge, read_blocks, reason, think
from genrl.policy.score import score
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import TEXTS, TINY, make_prompts

CODES = {
    1: torch.tensor([[0], [2], [3], [5], [4]]),
    2: torch.tensor([[0, 1], [0, 3], [2, 2], [3, 0], [3, 1], [3, 4], [4, 4]]),
}
SIZES = (6, 5)
NEGATIVE = float("-inf")


@cache
def make_policy(levels: int) -> Policy:
    """A thinking policy far from uniform."""
    policy = load_policy(TINY, SIZES[:levels], TEXTS, "", thinking=True).eval()
    with torch.no_grad():
        for value in policy.trainable().values():
            if value.dim() > 1:
                value.mul_(4.0)
    return policy


def make(levels: int, **options: Any) -> tuple[Policy, BlockedLayout, Requests]:
    """A policy, its layout over a few items, prompts of different lengths."""
    policy, codes = make_policy(levels), CODES[levels]
    trie = Trie.build(codes, SIZES[:levels], torch.arange(len(codes)))
    assert policy.words is not None
    config = BlockedLayoutConfig(**{"budget": 3, **options})
    layout = BlockedLayout(config, trie=trie, first_ids=policy.first_ids, codes=codes, words=policy.words)
    return policy, layout, make_prompts(policy, len(codes)).rows(torch.tensor([1, 3]))


@cache
def logits_behind(policy: Policy, row: tuple[int, ...]) -> Tensor:
    """Logits of the next token by the plain model."""
    with torch.no_grad():
        return policy.model(torch.tensor([row])).logits[0, -1].float()


def follow(
    policy: Policy, layout: BlockedLayout, prompt: Tensor, item: int, noise: Tensor | None = None, warmth: float = 1.0
) -> tuple[float, list[int], list[int]]:
    """Write one completion of an item token by token with the plain model.

    Returns the log-probability of its SID tokens (-inf if the thinking failed), its tokens and the states before them.
    """
    sid = layout.items.render(torch.tensor([item]))[0].tolist()
    state, tokens, states, total = layout.start(1), [], [], 0.0
    while not bool(layout.finished(state)):
        site = int(layout.sites(state))
        if site == layout.fixed:
            token = int(layout.forced(state))
        else:
            logits = logits_behind(policy, (*prompt.tolist(), *tokens))
            legal = layout.legal(site, state)
            inside = logits[legal.first : legal.first + legal.mask.shape[1]].masked_fill(~legal.mask[0], NEGATIVE)
            if site < layout.num_steps:
                token = sid[site]
                total += float(inside.log_softmax(0)[token - legal.first])
            elif noise is None:
                token = int(inside.argmax()) + legal.first
            else:
                cumulative = (inside / warmth).softmax(0).cumsum(0)
                token = int((cumulative <= noise[len(tokens)] * cumulative[-1]).sum()) + legal.first
        states.append(int(state))
        state = layout.advance(0, state, torch.tensor([token]))
        tokens.append(token)
    whole = int(layout.decode(torch.tensor([tokens])).items) == item
    return (total if whole else NEGATIVE), tokens, states


def brute_force(policy: Policy, layout: BlockedLayout, prompts: Requests, **how: Any) -> Tensor:
    """Scores [P, I] of every item; `noise` may hold a row per prompt."""
    noise = how.pop("noise", None)
    rows = []
    for place in range(len(prompts)):
        prompt = prompts.tokens[place][prompts.mask[place]]
        own = {} if noise is None else {"noise": noise[place]}
        items = range(len(layout.codes_of_items()))
        rows.append([follow(policy, layout, prompt, item, **own, **how)[0] for item in items])
    return torch.tensor(rows)


def by_item(ranking: Ranking, items: int) -> Tensor:
    """Scores [P, I] of the catalogue, -inf where an item is not listed."""
    found = torch.full((len(ranking.items), items + 1), NEGATIVE)
    columns = torch.where(ranking.items < 0, items, ranking.items)
    return found.scatter(1, columns, ranking.scores)[:, :items]


def run(policy: Policy, layout: BlockedLayout, prompts: Requests, width: int, **options: Any) -> Reasoned:
    return reason(policy, layout, prompts.tokens, prompts.mask, width, **options)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_full_beam_behind_the_likeliest_words_equals_following_every_item(levels: int, order: str) -> None:
    policy, layout, prompts = make(levels, order=order)
    items = len(CODES[levels])
    found = run(policy, layout, prompts, items)
    wanted = brute_force(policy, layout, prompts)
    assert_same(by_item(found.ranking, items), wanted, 1e-4)
    assert_same(found.ranking.scores, wanted.sort(dim=1, descending=True).values, 1e-4)
    assert found.ranking.bound is not None
    assert bool((found.ranking.bound == NEGATIVE).all())
    for place in range(len(prompts)):
        prompt = prompts.tokens[place][prompts.mask[place]]
        _, tokens, _ = follow(policy, layout, prompt, int(found.ranking.items[place, 0]))
        written = found.tokens[place, 0][found.mask[place, 0]].tolist()
        assert written == tokens[: len(written)]
        assert len(tokens) - len(written) == (levels if order == "tail" else 1)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_full_beam_equals_what_scoring_the_completions_gives(order: str) -> None:
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    found = run(policy, layout, prompts, items)
    rows = [
        follow(policy, layout, prompts.tokens[place][prompts.mask[place]], item)[1:]
        for place in range(2)
        for item in range(items)
    ]
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    support = torch.tensor([row + [-1] * (length - len(row)) for _, row in rows])
    mask = layout.item_mask(support) & (support >= 0)
    completions = Completions(
        tokens=tokens,
        chosen=mask,
        step_ids=layout.step_ids(support).contiguous(),
        item_ids=mask.long() - 1,
        support=support,
        codes=CODES[2].repeat(2, 1),
        items=torch.arange(items).repeat(2)[:, None],
        logps=torch.zeros(tokens.shape),
        group_size=items,
        num_steps=2,
    )
    totals = score(policy, layout, prompts, completions).logps.sum(1).detach().view(2, items)
    assert_same(by_item(found.ranking, items), totals, 1e-4)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_sampled_trains_of_thought_are_merged_by_mean_probability(order: str) -> None:
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    uniforms = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(1))
    found = run(policy, layout, prompts, items, uniforms=uniforms, temperature=1.5)
    each = torch.stack(
        [brute_force(policy, layout, prompts, noise=uniforms[:, sample], warmth=1.5) for sample in range(2)]
    )
    wanted = each.logsumexp(0) - torch.tensor(2.0).log()
    assert_same(by_item(found.ranking, items), wanted, 1e-4)
    assert found.ranking.bound is None
    assert_same(wanted.exp().sum(1), torch.ones(2), 1e-4)
    top = found.ranking.items[:, 0]
    assert found.best.tolist() == each[:, torch.arange(2), top].argmax(0).tolist()
    one = run(policy, layout, prompts, items, uniforms=uniforms[:, :1], temperature=1.5)
    assert_same(by_item(one.ranking, items), each[0], 1e-4)
    assert one.ranking.bound is not None


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_no_item_outside_a_narrow_list_is_above_its_bound(order: str) -> None:
    policy, layout, prompts = make(2, order=order)
    wanted = brute_force(policy, layout, prompts)
    for width in (1, 2, 4):
        ranking = run(policy, layout, prompts, width).ranking
        left = wanted.scatter(1, ranking.items, NEGATIVE)
        assert ranking.bound is not None
        assert bool((left.amax(1) <= ranking.bound + 1e-4).all())
        assert_same(ranking.scores, wanted.gather(1, ranking.items), 1e-4)


def test_an_exact_ranking_equals_the_best_of_all_items() -> None:
    policy, layout, prompts = make(2)
    wanted = brute_force(policy, layout, prompts)
    ranking = run(policy, layout, prompts, 2, exact=2).ranking
    assert ranking.items.tolist() == wanted.topk(2, dim=1).indices.tolist()
    assert bool(ranking.certified(2).all())


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_filter_takes_items_out_and_leaves_thinking_and_scores(order: str) -> None:
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    whole = by_item(run(policy, layout, prompts, items).ranking, items)
    deny = torch.tensor([[0, 1], [3, 3]])
    found = run(policy, layout.filtered(deny=deny), prompts, items).ranking
    assert_same(by_item(found, items), whole.scatter(1, deny, NEGATIVE), 1e-4)
    keep = torch.arange(items) != 2
    some = run(policy, layout.only(keep), prompts, items).ranking
    assert_same(by_item(some, items), whole.masked_fill(~keep, NEGATIVE), 1e-4)
    uniforms = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(2))
    merged = run(policy, layout.filtered(deny=deny), prompts, items, uniforms=uniforms).ranking
    everything = by_item(run(policy, layout, prompts, items, uniforms=uniforms).ranking, items)
    assert_same(by_item(merged, items), everything.scatter(1, deny, NEGATIVE), 1e-4)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_prompt_whose_thinking_failed_has_no_item(order: str) -> None:
    policy, layout, prompts = make(2, order=order, on_budget="fail", budget=4)
    items = len(CODES[2])
    uniforms = torch.rand(2, 4, layout.length, generator=torch.Generator().manual_seed(3))
    ended = torch.zeros(2, dtype=torch.bool)
    for sample in range(4):
        noise = uniforms[:, sample : sample + 1]
        found = run(policy, layout, prompts, items, uniforms=noise, temperature=4.0)
        wanted = brute_force(policy, layout, prompts, noise=noise[:, 0], warmth=4.0)
        assert_same(by_item(found.ranking, items), wanted, 1e-4)
        ended |= (wanted == NEGATIVE).all(1)
        assert ((found.ranking.items < 0).all(1) == (wanted == NEGATIVE).all(1)).all()
    assert bool(ended.any())  # the case is there


def test_a_policy_that_never_closes_a_block_has_no_items_at_all() -> None:
    for order in ("tail", "interleaved"):
        policy, layout, prompts = make(2, order=order, on_budget="fail")
        closing = layout.words.closing
        layout._closing[closing] = False  # nothing but words is ever chosen
        found = run(policy, layout, prompts, 4)
        assert found.ranking.items.tolist() == [[-1] * 4] * 2
        assert bool((found.ranking.scores == NEGATIVE).all())
        assert [len(read_blocks(layout.words, row)[0]) for row in found.tokens[:, 0]] == [3, 3]


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_rankings_depend_neither_on_the_batch_nor_on_how_many_beams_think_at_once(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, layout, prompts = make(2, order=order)
    uniforms = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(4))
    whole = run(policy, layout, prompts, 4, uniforms=uniforms)
    for place in range(2):
        rows = torch.tensor([place])
        alone = run(policy, layout, prompts.rows(rows), 4, uniforms=uniforms[rows])
        assert alone.ranking.items.tolist() == whole.ranking.items[rows].tolist()
        assert_same(alone.ranking.scores, whole.ranking.scores[rows], 1e-4)
    monkeypatch.setattr(reasoning, "ROWS", 4)
    parts = run(policy, layout, prompts, 4, uniforms=uniforms)
    assert parts.ranking.items.tolist() == whole.ranking.items.tolist()
    assert torch.equal(parts.tokens.masked_fill(~parts.mask, 0), whole.tokens.masked_fill(~whole.mask, 0))


def test_two_layouts_can_be_ranked_behind_one_thinking() -> None:
    policy, layout, prompts = make(2)
    thoughts = think(policy, layout, prompts.tokens, prompts.mask)
    filtered = layout.filtered(deny=torch.tensor([[0], [1]]))
    assert_same(
        conclude(policy, filtered, thoughts, 4).ranking.scores, run(policy, filtered, prompts, 4).ranking.scores
    )
    behind = torch.cat([prompts.tokens, thoughts.tokens[:, 0]], 1)
    seen = torch.cat([prompts.mask, thoughts.mask[:, 0]], 1)
    assert isinstance(layout.items, SidLayout)
    assert_same(
        conclude(policy, layout, thoughts, 4).ranking.scores, rank(policy, layout.items, behind, seen, 4).scores
    )


@pytest.mark.parametrize(
    ("order", "samples", "cause"), [("interleaved", 1, "beams that think"), ("tail", 2, "2 trains")]
)
def test_what_cannot_be_certified_is_refused(order: str, samples: int, cause: str) -> None:
    policy, layout, prompts = make(2, order=order)
    uniforms = torch.rand(2, samples, layout.length)
    with pytest.raises(UnsupportedError, match=cause):
        run(policy, layout, prompts, 2, uniforms=uniforms, exact=1)


def test_interleaved_thinking_for_one_level_is_thinking_in_front() -> None:
    policy, layout, prompts = make(1, order="interleaved")
    assert bool(run(policy, layout, prompts, 2, exact=2).ranking.certified(2).all())


def test_items_that_share_a_sid_keep_their_order_when_rankings_are_merged() -> None:
    one = Ranking(torch.tensor([[4, 2, 0]]), torch.tensor([[0.4, 0.4, 0.2]]).log())
    two = Ranking(torch.tensor([[0, 4, 2]]), torch.tensor([[0.5, 0.25, 0.25]]).log())
    assert merge([one, two]).items.tolist() == [[0, 4, 2]]
    assert merge([replace(one, scores=torch.tensor([[-1.0, -1.0, -9.0]])), two]).items.tolist() == [[4, 2, 0]]


def test_merging_counts_what_is_not_listed_as_impossible() -> None:
    one = Ranking(torch.tensor([[3, 1], [-1, -1]]), torch.tensor([[-1.0, -2.0], [NEGATIVE, NEGATIVE]]))
    two = Ranking(torch.tensor([[1, 5], [-1, -1]]), torch.tensor([[-400.0, -401.0], [NEGATIVE, NEGATIVE]]))
    merged = merge([one, two])
    half = torch.tensor(2.0).log()
    assert merged.items.tolist() == [[3, 1], [-1, -1]]
    assert_same(merged.scores[0], torch.tensor([-1.0, -2.0]) - half)
    assert bool((merged.scores[1] == NEGATIVE).all())


def test_blocks_are_read_back_from_what_was_written() -> None:
    _, layout, _ = make(2)
    opening, closing = layout.words.opening, layout.words.closing
    tokens = torch.tensor([opening, 7, 8, closing, 5, opening, closing, opening, 9])
    assert read_blocks(layout.words, tokens) == [[7, 8], [], [9]]
