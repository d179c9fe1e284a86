from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Ranking, Requests
from genrl.errors import UnsupportedError
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.items import Items
from genrl.policy import search as searching
from genrl.policy.distribution import RANKING
from genrl.policy.load import load_policy
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.search import merge, search
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import TEXTS, TINY, as_completions, make_prompts, padded

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
    catalogue = Items(Trie.build(codes, SIZES[:levels], torch.arange(len(codes))), policy.first_ids, codes)
    config = BlockedLayoutConfig(**{"budget": 3, **options})
    layout = BlockedLayout(config, catalogue=catalogue, words=policy.words)
    return policy, layout, make_prompts(policy, len(codes)).rows(torch.tensor([1, 3]))


@cache
def logits_behind(policy: Policy, row: tuple[int, ...]) -> Tensor:
    """Logits of the next token by the plain model."""
    with torch.no_grad():
        return policy.model(torch.tensor([row])).logits[0, -1].float()


def follow(
    policy: Policy, layout: BlockedLayout, prompt: Tensor, item: int, noise: Tensor | None = None, warmth: float = 1.0
) -> tuple[float, list[int]]:
    """Write one completion of an item token by token with the plain model.

    Returns the log-probability of its SID tokens (-inf if the thinking failed) and its tokens.
    """
    sid = layout.catalogue.render(torch.tensor(item)).tolist()
    state, tokens, total = layout.start(1), [], 0.0
    while (site := int(state.site)) >= 0:
        legal = layout.legal(site, state)
        if legal.form:
            token = int(legal.token(torch.zeros(1, 1, dtype=torch.int64)))
        else:
            logits = logits_behind(policy, (*prompt.tolist(), *tokens))
            inside = logits[legal.first : legal.first + legal.mask.shape[1]].masked_fill(~legal.mask[0], NEGATIVE)
            if site < layout.steps:
                token = sid[site]
                total += float(inside.log_softmax(0)[token - legal.first])
            elif noise is None:
                token = int(inside.argmax()) + legal.first
            else:
                cumulative = (inside / warmth).softmax(0).cumsum(0)
                token = int((cumulative <= noise[len(tokens)] * cumulative[-1]).sum()) + legal.first
        state = layout.advance(state, torch.tensor([token]))
        tokens.append(token)
    written = torch.tensor([tokens])
    whole = int(layout.read(written, layout.replay(written)).items) == item
    return (total if whole else NEGATIVE), tokens


def brute_force(policy: Policy, layout: BlockedLayout, prompts: Requests, **how: Any) -> Tensor:
    """Scores [P, I] of every item; `noise` may hold a row per prompt."""
    noise = how.pop("noise", None)
    rows = []
    for place in range(len(prompts)):
        prompt = prompts.tokens[place][prompts.mask[place]]
        own = {} if noise is None else {"noise": noise[place]}
        items = range(len(layout.codes))
        rows.append([follow(policy, layout, prompt, item, **own, **how)[0] for item in items])
    return torch.tensor(rows)


def by_item(ranking: Ranking, items: int) -> Tensor:
    """Scores [P, I] of the catalogue, -inf where an item is not listed."""
    found = torch.full((len(ranking.items), items + 1), NEGATIVE)
    columns = torch.where(ranking.items < 0, items, ranking.items)
    return found.scatter(1, columns, ranking.scores)[:, :items]


def run(
    policy: Policy, layout: BlockedLayout, prompts: Requests, width: int, temperature: float = 1.0, **options: Any
) -> tuple[Ranking, Completions]:
    return search(policy, layout, prompts, width, replace(RANKING, thinking_temperature=temperature), **options)


def first_texts(found: Completions) -> list[list[int]]:
    """Tokens of the first completion of each prompt."""
    return [row[real].tolist() for row, real in zip(found.tokens, found.written, strict=True)][:: found.group_size]


@pytest.mark.parametrize("order", ["tail", "interleaved"])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_full_beam_behind_the_likeliest_words_equals_following_every_item(levels, order):
    policy, layout, prompts = make(levels, order=order)
    items = len(CODES[levels])
    ranking, found = run(policy, layout, prompts, items)
    wanted = brute_force(policy, layout, prompts)
    assert_same(by_item(ranking, items), wanted, 1e-4)
    assert_same(ranking.scores, wanted.sort(dim=1, descending=True).values, 1e-4)
    assert bool((ranking.bound == NEGATIVE).all())
    assert found.items.view(2, -1).equal(ranking.items)
    for place, text in enumerate(first_texts(found)):
        prompt = prompts.tokens[place][prompts.mask[place]]
        assert text == follow(policy, layout, prompt, int(ranking.items[place, 0]))[1]


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_full_beam_equals_what_scoring_the_completions_gives(order):
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    ranking, _ = run(policy, layout, prompts, items)
    rows = [
        follow(policy, layout, prompts.tokens[place][prompts.mask[place]], item)[1]
        for place in range(2)
        for item in range(items)
    ]
    completions = as_completions(layout, padded(rows, 0), items)
    completions = replace(completions, chosen=completions.item_mask)
    totals = score(policy, layout, prompts, completions).logps.sum(1).detach().view(2, items)
    assert_same(by_item(ranking, items), totals, 1e-4)


def every_plain(policy: Policy, layout: BlockedLayout, prompts: Requests) -> Tensor:
    """Scores [P, I] of every item without any text."""
    items = len(layout.codes)
    return by_item(search(policy, layout.plain, prompts, items, RANKING)[0], items)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_sampled_trains_of_thought_are_merged_by_mean_probability(order):
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    noise = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(1))
    ranking, found = run(policy, layout, prompts, items, noise=noise, temperature=1.5)
    each = torch.stack([brute_force(policy, layout, prompts, noise=noise[:, one], warmth=1.5) for one in range(2)])
    wanted = each.logsumexp(0) - torch.tensor(2.0).log()
    assert_same(by_item(ranking, items), wanted, 1e-4)
    assert ranking.bound is not None
    assert_same(wanted.exp().sum(1), torch.ones(2), 1e-4)
    top = ranking.items[:, 0]
    best = each[:, torch.arange(2), top].argmax(0)
    for place, text in enumerate(first_texts(found)):
        own, prompt = noise[place, best[place]], prompts.tokens[place][prompts.mask[place]]
        item = int(found.items.view(2, -1)[place, 0])
        assert text == follow(policy, layout, prompt, item, own, 1.5)[1]
    one, _ = run(policy, layout, prompts, items, noise=noise[:, :1], temperature=1.5)
    assert_same(by_item(one, items), each[0], 1e-4)
    assert one.bound is not None


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_no_item_outside_a_narrow_list_is_above_its_bound(order):
    policy, layout, prompts = make(2, order=order)
    wanted = brute_force(policy, layout, prompts)
    for width in (1, 2, 4):
        ranking = run(policy, layout, prompts, width)[0]
        left = wanted.scatter(1, ranking.items, NEGATIVE)
        assert bool((left.amax(1) <= ranking.bound + 1e-4).all())
        assert_same(ranking.scores, wanted.gather(1, ranking.items), 1e-4)


def test_an_exact_ranking_equals_the_best_of_all_items():
    policy, layout, prompts = make(2)
    wanted = brute_force(policy, layout, prompts)
    ranking = run(policy, layout, prompts, 2, exact=2)[0]
    assert ranking.items.tolist() == wanted.topk(2, dim=1).indices.tolist()
    assert bool(ranking.certified(2).all())


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_filter_takes_items_out_and_leaves_thinking_and_scores(order):
    policy, layout, prompts = make(2, order=order)
    items = len(CODES[2])
    whole = by_item(run(policy, layout, prompts, items)[0], items)
    deny = torch.tensor([[0, 1], [3, 3]])
    denied = replace(prompts, deny=deny)
    found, _ = run(policy, layout, denied, items)
    assert_same(by_item(found, items), whole.scatter(1, deny, NEGATIVE), 1e-4)
    keep = torch.arange(items) != 2
    some, _ = run(policy, layout.only(keep), prompts, items)
    assert_same(by_item(some, items), whole.masked_fill(~keep, NEGATIVE), 1e-4)
    noise = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(2))
    merged, _ = run(policy, layout, denied, items, noise=noise)
    everything = by_item(run(policy, layout, prompts, items, noise=noise)[0], items)
    assert_same(by_item(merged, items), everything.scatter(1, deny, NEGATIVE), 1e-4)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_a_prompt_whose_thinking_failed_has_no_item(order):
    policy, layout, prompts = make(2, order=order, on_budget="fail", budget=4)
    items = len(CODES[2])
    uniforms = torch.rand(2, 4, layout.length, generator=torch.Generator().manual_seed(3))
    ended = torch.zeros(2, dtype=torch.bool)
    for sample in range(4):
        noise = uniforms[:, sample : sample + 1]
        found, _ = run(policy, layout, prompts, items, noise=noise, temperature=4.0)
        one, _ = run(
            policy, layout, replace(prompts, deny=torch.tensor([[0], [1]])), items, noise=noise, temperature=4.0
        )
        assert ((one.items < 0).all(1) == (found.items < 0).all(1)).all()
        wanted = brute_force(policy, layout, prompts, noise=noise[:, 0], warmth=4.0)
        assert_same(by_item(found, items), wanted, 1e-4)
        ended |= (wanted == NEGATIVE).all(1)
        assert ((found.items < 0).all(1) == (wanted == NEGATIVE).all(1)).all()
    assert bool(ended.any())  # the case is there


def test_a_policy_that_never_closes_a_block_has_no_items_at_all():
    for order in ("tail", "interleaved"):
        policy, layout, prompts = make(2, order=order, on_budget="fail")
        closing = layout.words.closing
        layout._closing[closing] = False  # nothing but words is ever chosen
        ranking, found = run(policy, layout, prompts, 4)
        assert ranking.items.tolist() == [[-1] * 4] * 2
        assert bool((ranking.scores == NEGATIVE).all())
        assert [len(layout.blocks(row)[0]) for row in found.tokens] == [3, 3]


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_rankings_depend_neither_on_the_batch_nor_on_how_many_beams_think_at_once(order, monkeypatch):
    policy, layout, prompts = make(2, order=order)
    noise = torch.rand(2, 2, layout.length, generator=torch.Generator().manual_seed(4))
    whole, texts = run(policy, layout, prompts, 4, noise=noise)
    for place in range(2):
        rows = torch.tensor([place])
        alone, _ = run(policy, layout, prompts.rows(rows), 4, noise=noise[rows])
        assert alone.items.tolist() == whole.items[rows].tolist()
        assert_same(alone.scores, whole.scores[rows], 1e-4)
    monkeypatch.setattr(searching, "ROWS", 4)
    parts, same = run(policy, layout, prompts, 4, noise=noise)
    assert parts.items.tolist() == whole.items.tolist()
    assert first_texts(same) == first_texts(texts)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
@pytest.mark.parametrize("plain", [False, True])
def test_narrow_lists_are_merged_by_the_true_mean_of_what_any_of_them_holds(order, plain):
    policy, layout, prompts = make(2, order=order)
    noise = torch.rand(2, 3, layout.length, generator=torch.Generator().manual_seed(6))
    each = [brute_force(policy, layout, prompts, noise=noise[:, one], warmth=1.5) for one in range(3)]
    each += [every_plain(policy, layout, prompts)] if plain else []
    wanted = torch.stack(each).logsumexp(0) - torch.tensor(float(len(each))).log()
    for width in (1, 2, 4):
        ranking, _ = run(policy, layout, prompts, width, noise=noise, temperature=1.5, plain=plain)
        assert_same(ranking.scores, wanted.gather(1, ranking.items), 1e-4)
        assert bool((wanted.scatter(1, ranking.items, NEGATIVE).amax(1) <= ranking.bound + 1e-4).all())


@pytest.mark.parametrize("plain", [False, True])
def test_an_exact_ranking_by_several_texts_is_that_of_all_items(plain):
    policy, layout, prompts = make(2)
    noise = torch.rand(2, 3, layout.length, generator=torch.Generator().manual_seed(6))
    each = [brute_force(policy, layout, prompts, noise=noise[:, one], warmth=1.5) for one in range(3)]
    each += [every_plain(policy, layout, prompts)] if plain else []
    wanted = torch.stack(each).logsumexp(0)
    ranking, _ = run(policy, layout, prompts, 2, noise=noise, temperature=1.5, plain=plain, exact=2, beams=2)
    assert ranking.items.tolist() == wanted.topk(2, dim=1).indices.tolist()
    assert bool(ranking.certified(2).all())


def test_what_cannot_be_certified_is_refused():
    policy, layout, prompts = make(2, order="interleaved")
    with pytest.raises(UnsupportedError, match="beams that think between their SID tokens"):
        run(policy, layout, prompts, 2, noise=torch.rand(2, 1, layout.length), exact=1)


def test_interleaved_thinking_for_one_level_is_thinking_in_front():
    policy, layout, prompts = make(1, order="interleaved")
    assert bool(run(policy, layout, prompts, 2, exact=2)[0].certified(2).all())


def test_items_that_share_a_sid_keep_their_order_when_rankings_are_merged():
    nothing = torch.tensor([NEGATIVE])
    one = Ranking(torch.tensor([[4, 2, 0]]), torch.tensor([[0.4, 0.4, 0.2]]).log(), nothing)
    two = Ranking(torch.tensor([[0, 4, 2]]), torch.tensor([[0.5, 0.25, 0.25]]).log(), nothing)
    assert merge([one, two], 3).items.tolist() == [[0, 4, 2]]
    assert merge([replace(one, scores=torch.tensor([[-1.0, -1.0, -9.0]])), two], 3).items.tolist() == [[4, 2, 0]]


def test_merging_counts_what_is_impossible_behind_a_text_and_bounds_what_is_cut_off():
    nothing = torch.tensor([NEGATIVE, NEGATIVE])
    one = Ranking(torch.tensor([[3, 1], [-1, -1]]), torch.tensor([[-1.0, -2.0], [NEGATIVE, NEGATIVE]]), nothing)
    two = Ranking(torch.tensor([[1, 5], [-1, -1]]), torch.tensor([[-400.0, -401.0], [NEGATIVE, NEGATIVE]]), nothing)
    merged = merge([one, two], 2)
    half = torch.tensor(2.0).log()
    assert merged.items.tolist() == [[3, 1], [-1, -1]]
    assert_same(merged.scores[0], torch.tensor([-1.0, -2.0]) - half)
    assert bool((merged.scores[1] == NEGATIVE).all())
    assert_same(merged.bound, torch.tensor([-401.0 - float(half), NEGATIVE]))


def test_blocks_are_read_back_from_what_was_written():
    _, layout, _ = make(2)
    opening, closing = layout.words.opening, layout.words.closing
    tokens = torch.tensor([opening, 7, 8, closing, 5, opening, closing, opening, 9])
    assert layout.blocks(tokens) == [[7, 8], [], [9]]
