from dataclasses import replace
from typing import Any

import pytest
import torch

from genrl.batches import Ranking, Requests
from genrl.errors import ConfigError, DataError
from genrl.layouts.base import Layout
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout
from genrl.metrics.functional import exclude_history
from genrl.policy import search as searching
from genrl.policy.distribution import Sampling
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import (
    every_item,
    local_config,
    make_codes,
    make_layout,
    make_policy,
    make_prompts,
    save_local_model,
)


def rank(policy: Policy, layout: Layout, prompts: Requests, width: int, exact: int = 0) -> Ranking:
    return search(policy, layout, prompts, width, exact=exact)[0]


@pytest.fixture(scope="module")
def everything() -> tuple:
    policy = make_policy()
    layout = make_layout(policy)
    prompts = make_prompts(policy)
    batch = every_item(layout, prompts)
    with torch.no_grad():
        exact = score(policy, layout, prompts, batch).logps.sum(1).view(5, 60)
    return policy, layout, prompts, exact


def test_a_beam_of_full_width_enumerates_the_catalogue(everything):
    policy, layout, prompts, exact = everything
    ranking = rank(policy, layout, prompts, 60)
    wanted = exact.sort(dim=1, descending=True)
    assert_same(ranking.scores, wanted.values)
    assert ranking.items.tolist() == wanted.indices.tolist()


def test_a_narrow_beam_returns_distinct_items_best_first(everything):
    policy, layout, prompts, exact = everything
    ranking = rank(policy, layout, prompts, 7)
    for row in range(5):
        assert len(set(ranking.items[row].tolist())) == 7
        assert_same(ranking.scores[row], exact[row][ranking.items[row]])
    assert bool((ranking.scores.diff(dim=1) <= 0).all())


def test_more_beams_than_items_leave_the_rest_empty(everything):
    policy, layout, prompts, _ = everything
    ranking = rank(policy, layout, prompts, 80)
    assert (ranking.items >= 0).sum(1).tolist() == [60] * 5
    assert bool((ranking.items[:, 60:] == -1).all())
    assert bool(torch.isinf(ranking.scores[:, 60:]).all())


def test_samples_follow_the_distribution(everything):
    policy, layout, prompts, exact = everything
    uniforms = torch.rand(5, 4000, 3, generator=torch.Generator().manual_seed(0))
    drawn = write(policy, layout, prompts, 4000, noise=uniforms)
    items = drawn.items.view(5, 4000)
    assert bool((items >= 0).all())
    frequency = torch.stack([torch.bincount(row, minlength=60) for row in items]) / 4000
    deviation = (exact.exp() * (1 - exact.exp()) / 4000).sqrt()
    assert bool(((frequency - exact.exp()).abs() < 5 * deviation + 1e-3).all())
    assert_same(drawn.logps.sum(1).view(5, -1), exact.gather(1, items))


def test_uniform_numbers_at_the_ends_never_draw_illegal_tokens(everything):
    policy, layout, prompts, _ = everything
    ends = torch.tensor([0.0, 1.0 - 2**-24]).repeat(5, 8)[:, :16, None].expand(-1, -1, 3)
    drawn = write(policy, layout, prompts, 16, noise=ends)
    assert bool((drawn.items >= 0).all())
    assert bool(torch.isfinite(drawn.logps).all())


def test_sampling_without_replacement_includes_items_as_theory_says(everything):
    policy, layout, prompts, exact = everything
    rounds, group = 1500, 3
    one = slice(0, 1)
    noise = torch.rand(rounds, 3, group, 7, generator=torch.Generator().manual_seed(1))
    gumbels = -(-noise.clamp(min=1e-20).log()).log()
    ranking, drawn = search(policy, layout, prompts.rows(one).repeat(rounds), group, Sampling(), gumbels=gumbels)
    items = drawn.items.view(rounds, group)
    assert ranking.items.equal(items)
    assert all(len(set(row)) == group for row in items.tolist())
    p = exact[0].exp().double()
    first = torch.bincount(items[:, 0], minlength=60) / rounds  # the first of the group is an ordinary sample
    assert bool(((first - p).abs() < 5 * (p * (1 - p) / rounds).sqrt() + 2e-3).all())
    second = (p[:, None] * p[None, :] / (1 - p[:, None])).fill_diagonal_(0).sum(0)  # draw without replacement
    seen = torch.bincount(items[:, 1], minlength=60) / rounds
    assert bool(((seen - second).abs() < 5 * (second * (1 - second) / rounds).sqrt() + 2e-3).all())
    assert_same(drawn.logps.sum(1).view(rounds, group), exact[0][items])


def test_the_bound_tells_which_rankings_are_those_of_the_whole_catalogue(everything):
    policy, layout, prompts, exact = everything
    order = exact.argsort(dim=1, descending=True, stable=True)
    seen = set()
    for width in (3, 5, 9, 15, 30, 60):
        ranking = rank(policy, layout, prompts, width)
        outside = exact.scatter(1, ranking.items, float("-inf")).amax(1)
        assert bool((ranking.bound >= outside - 1e-5).all())
        for k in (1, 3):
            certified = ranking.certified(k)
            right = (ranking.items[:, :k] == order[:, :k]).all(1)
            assert bool(right[certified].all())
            seen |= {(bool(c), bool(r)) for c, r in zip(certified, right, strict=True)}
    assert (True, True) in seen
    assert (False, False) in seen  # a narrow beam was wrong, and said so
    assert bool((ranking.bound == float("-inf")).all())


@pytest.mark.parametrize("width", [4, 7])
def test_an_exact_ranking_is_that_of_exhaustive_scoring(everything, width):
    policy, layout, prompts, exact = everything
    narrow = rank(policy, layout, prompts, width)
    ranking = rank(policy, layout, prompts, width, exact=4)
    assert not bool(narrow.certified(4).all())
    assert bool(ranking.certified(4).all())
    wanted = exact.sort(dim=1, descending=True, stable=True)
    assert ranking.items.shape == (5, width)
    assert ranking.items[:, :4].tolist() == wanted.indices[:, :4].tolist()
    assert_same(ranking.scores[:, :4], wanted.values[:, :4])


def test_certificates_hold_where_items_share_a_sid():
    policy = make_policy()
    codes = make_codes(40).repeat_interleave(3, dim=0)[:100]
    layout = make_layout(policy, codes)
    prompts = make_prompts(policy)
    scored = rank(policy, layout, prompts, 100)
    ranking = rank(policy, layout, prompts, 5, exact=5)
    assert ranking.items.tolist() == scored.items[:, :5].tolist()


def test_a_layout_of_another_tokenizer_is_refused(everything):
    policy, layout, prompts, _ = everything
    shifted = tuple(first + 1 for first in layout.tokens.first_ids)
    other = SidLayout(layout.config, catalogue=Items(layout.catalogue.trie, shifted, layout.codes))
    wide = make_codes()
    wide[0, 2] = 8
    larger = SidLayout(layout.config, catalogue=Items(Trie.build(wide, (6, 5, 9)), layout.tokens.first_ids, wide))
    with pytest.raises(
        DataError, match=r"levels of \[6, 5, 9\] codes .* the policy's tokenizer has levels of \[6, 5, 7\]"
    ):
        search(policy, larger, prompts, 3)
    for act in (
        lambda: search(policy, other, prompts, 3),
        lambda: write(policy, other, prompts, 2, noise=torch.rand(5, 2, 3)),
        lambda: score(policy, other, prompts, every_item(layout, prompts)),
    ):
        with pytest.raises(DataError, match=r"the trie belongs to another tokenizer\. Build the layout"):
            act()


def test_a_prompt_longer_than_the_positions_is_refused(tmp_path):
    policy = make_policy(local_config(save_local_model(tmp_path, max_position_embeddings=12)))
    prompts = make_prompts(policy)
    short = replace(prompts, tokens=prompts.tokens[:, 1:], mask=prompts.mask[:, 1:])
    rank(policy, make_layout(policy), short, 3)
    with pytest.raises(ConfigError, match=r"prompt of 11 tokens with 2 more does not fit into the 12 positions"):
        rank(policy, make_layout(policy), prompts, 3)


def test_more_exact_items_than_places_are_refused(everything):
    policy, layout, prompts, _ = everything
    with pytest.raises(ConfigError, match="the first 5 of 4 places cannot be exact"):
        rank(policy, layout, prompts, 4, exact=5)


def test_a_search_that_may_not_get_wider_leaves_rankings_uncertified(everything, monkeypatch):
    policy, layout, prompts, _ = everything
    monkeypatch.setattr("genrl.policy.search.WIDEST", 5)
    ranking = rank(policy, layout, prompts, 4, exact=4)
    assert not bool(ranking.certified(4).all())
    with pytest.raises(ValueError, match="top 5 of a ranking with 4 places and a bound is not certifiable"):
        ranking.certified(5)


def test_items_that_do_not_count_are_listed_and_the_others_certified(everything):
    policy, layout, prompts, exact = everything
    seen = exact.topk(6, dim=1).indices[:, [0, 2, 3, 5]]
    ranking = search(policy, layout, prompts, 8, exact=4, besides=seen, beams=4)[0]
    wanted = exact.sort(dim=1, descending=True, stable=True)
    assert ranking.items.tolist() == wanted.indices[:, :8].tolist()
    left = exclude_history(ranking, seen)
    assert bool(left.certified(4).all())
    filtered = search(policy, layout, replace(prompts, deny=seen), 4, exact=4)[0]
    assert left.items[:, :4].tolist() == filtered.items.tolist()
    assert_same(left.scores[:, :4], filtered.scores)


def test_a_wider_beam_follows_nothing_that_is_out_of_reach(everything, monkeypatch):
    policy, layout, prompts, exact = everything
    grown = []

    def counted(*arguments: Any, **options: Any) -> Any:
        parents = widen(*arguments, **options)
        beams, floor = arguments[1], arguments[-1]
        if floor is not None:
            grown.append((beams.totals, floor))
        return parents

    widen = searching._widen
    monkeypatch.setattr(searching, "_widen", counted)
    ranking = rank(policy, layout, prompts, 4, exact=4)
    assert ranking.items.tolist() == exact.topk(4, dim=1).indices.tolist()
    assert grown
    assert all(bool((totals[totals > float("-inf")].min() >= floor.min()).all()) for totals, floor in grown)
    assert max(totals.shape[1] for totals, _ in grown) < 60
