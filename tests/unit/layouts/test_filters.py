from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.errors import DataError, UnsupportedError
from genrl.layouts.sid import FilteredSidLayout, SidLayout, SidLayoutConfig
from genrl.policy.decode import beam, rank, sample
from genrl.policy.model import Policy
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import SIZES, make_codes, make_layout, make_policy, make_prompts

CATALOGUES: dict[str, tuple[int, tuple[int, ...]]] = {
    "three levels": (60, SIZES),
    "crowded leaves": (40, (3, 4)),
    "four levels": (70, (4, 5, 3, 6)),
    "wide codebooks": (50, (300, 400)),
    "one level": (20, (8,)),
}
each_catalogue = pytest.mark.parametrize("name", CATALOGUES)
each_filter = pytest.mark.parametrize("given", [("allow",), ("deny",), ("allow", "deny")], ids="-".join)
INFINITY = float("inf")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


def make_catalogue(name: str) -> SidLayout:
    """A layout over random items, of which many share prefixes and some a SID."""
    items, sizes = CATALOGUES[name]
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, size, (items,), generator=generator) for size in sizes], dim=1)
    codes[: items // 3] = codes[torch.randint(items // 3, items, (items // 3,), generator=generator)]
    codes[: items // 6, -1] = torch.randint(0, sizes[-1], (items // 6,), generator=generator)
    trie = Trie.build(codes, sizes, torch.randint(0, 5, (items,), generator=generator))
    first_ids = tuple(torch.tensor([100, *sizes[:-1]]).cumsum(0).tolist())
    return SidLayout(SidLayoutConfig(), trie=trie, first_ids=first_ids, codes=codes)


def make_rows(layout: SidLayout, given: tuple[str, ...]) -> dict[str, Tensor]:
    """Lists of six requests, with padding and repetitions: whole subtrees, whole leaves, single items, few, most."""
    generator = torch.Generator().manual_seed(1)
    items = len(layout.codes)
    lists: dict[str, list[Tensor]] = {"allow": [], "deny": []}
    subtree = (layout.codes[:, 0] == layout.codes[0, 0]).nonzero()[:, 0]
    leaf = (layout.codes == layout.codes[0]).all(1).nonzero()[:, 0]
    some = [torch.randperm(items, generator=generator) for _ in range(4)]
    lists["deny"] = [subtree, leaf, some[0][:5], some[1][: items - 1], some[2][: items // 2], some[3][:0]]
    others = torch.tensor([row for row in range(items) if row not in subtree.tolist()])
    lists["allow"] = [
        torch.cat([subtree, others[:1]]),
        torch.cat([leaf, others]),
        some[0][3:7],
        some[1][2:],
        some[3],
        some[2],
    ]
    rows = {}
    for kind in given:
        padded = torch.full((6, items + 9), -1)
        for request, listed in enumerate(lists[kind]):
            repeated = torch.cat([listed, listed[:3]])
            padded[request, : len(repeated)] = repeated
        columns = torch.randperm(items + 9, generator=generator)
        rows[kind] = padded[:, columns]
    return rows


def left_over(layout: SidLayout, rows: dict[str, Tensor]) -> list[list[int]]:
    """Catalogue rows that each request may get, in the order of the trie."""
    order = layout.trie.leaf_items.tolist()
    allow = [set(listed) for listed in rows["allow"].tolist()] if "allow" in rows else [set(order)] * 6
    deny = [set(listed) for listed in rows["deny"].tolist()] if "deny" in rows else [set()] * 6
    return [[row for row in order if row in allow[request] - deny[request]] for request in range(6)]


@each_filter
@each_catalogue
def test_legal_codes_are_those_of_the_items_left_on_every_prefix(name: str, given: tuple[str, ...]) -> None:
    layout = make_catalogue(name)
    rows = make_rows(layout, given)
    filtered = layout.filtered(**rows)
    codes = layout.codes.tolist()
    left = left_over(layout, rows)
    nodes = layout.trie.path(layout.codes)
    for level in range(layout.length):
        prefixes = sorted({tuple(sid[:level]) for sid in codes})
        states = torch.tensor(
            [int(nodes[[sid[:level] for sid in codes].index(list(some)), level]) for some in prefixes]
        )
        found = filtered.legal(level, states.repeat(6))
        assert found.first == layout.first_ids[level]
        unfiltered = layout.legal(level, states).mask
        for row, mask in enumerate(found.mask):
            request, prefix = row // len(prefixes), prefixes[row % len(prefixes)]
            wanted = {codes[item][level] for item in left[request] if tuple(codes[item][:level]) == prefix}
            if not wanted:  # no search gets there
                wanted = set(unfiltered[row % len(prefixes)].nonzero().flatten().tolist())
            assert set(mask.nonzero().flatten().tolist()) == wanted


@each_filter
@each_catalogue
@pytest.mark.parametrize("width", [1, 4, 100])
def test_rank_fills_its_places_with_the_items_left(name: str, given: tuple[str, ...], width: int) -> None:
    layout = make_catalogue(name)
    rows = make_rows(layout, given)
    generator = torch.Generator().manual_seed(2)
    leaves = torch.stack([torch.randperm(layout.trie.leaves, generator=generator) for _ in range(6)])
    leaves[:, -2:] = -1
    scores = torch.randn(leaves.shape, generator=generator).sort(1, descending=True).values
    items, found = layout.filtered(**rows).rank(leaves, scores, width)
    for request, left in enumerate(left_over(layout, rows)):
        wanted = []
        for leaf, score in zip(leaves[request].tolist(), scores[request].tolist(), strict=True):
            bounds = layout.trie.leaf_offsets[max(leaf, 0) : max(leaf, 0) + 2].tolist() if leaf >= 0 else [0, 0]
            wanted += [(row, score) for row in layout.trie.leaf_items[slice(*bounds)].tolist() if row in left]
        wanted = (wanted + [(-1, -INFINITY)] * width)[:width]
        assert items[request].tolist() == [row for row, _ in wanted]
        assert_same(found[request], torch.tensor([score for _, score in wanted]))


@each_filter
@each_catalogue
def test_completions_are_counted_for_the_request_with_most(name: str, given: tuple[str, ...]) -> None:
    layout = make_catalogue(name)
    rows = make_rows(layout, given)
    distinct = [len({tuple(layout.codes[row].tolist()) for row in left}) for left in left_over(layout, rows)]
    filtered = layout.filtered(**rows)
    assert filtered.filter.completions.tolist() == distinct
    assert filtered.completions == max(distinct)


def test_lists_may_hold_nothing() -> None:
    layout = make_catalogue("three levels")
    states = torch.zeros(4, dtype=torch.int64)
    for nothing in (torch.empty(2, 0, dtype=torch.int64), torch.full((2, 1), -1), torch.full((2, 3), -1)):
        filtered = layout.filtered(deny=nothing)
        assert filtered.completions == layout.completions
        assert filtered.legal(0, states).mask.equal(layout.legal(0, states).mask)
        leaves = torch.arange(layout.trie.leaves).repeat(2, 1)
        items, _ = filtered.rank(leaves, torch.zeros(leaves.shape), 60)
        assert items.tolist() == [layout.trie.leaf_items.tolist()] * 2
        with pytest.raises(DataError, match="request 0 of the batch has no item left"):
            layout.filtered(allow=nothing)
        assert layout.filtered(allow=torch.tensor([[3], [4]]), deny=nothing).completions == 1


@pytest.mark.parametrize(
    "rows",
    [
        {"allow": [[0, 1], [2, 3]], "deny": [[1, 5], [3, 2]]},
        {"deny": [[0] * 60, list(range(60))]},
        {"allow": [[0, 1], [-1, -1]]},
    ],
)
def test_a_request_with_nothing_left_is_named(rows: dict[str, list[list[int]]]) -> None:
    with pytest.raises(DataError, match="request 1 of the batch has no item left"):
        make_catalogue("three levels").filtered(**{kind: torch.tensor(listed) for kind, listed in rows.items()})


@pytest.mark.parametrize(("row", "kind"), [(60, "deny"), (-2, "allow")])
def test_rows_outside_the_catalogue_are_named(row: int, kind: str) -> None:
    with pytest.raises(DataError, match=f"filter of request 1 names catalogue row {row}, but rows are 0 .. 59"):
        make_catalogue("three levels").filtered(**{kind: torch.tensor([[1, 2], [3, row]])})


@pytest.mark.parametrize(
    "rows", [{}, {"deny": torch.tensor([1])}, {"allow": torch.ones(2, 1).long(), "deny": torch.ones(3, 1).long()}]
)
def test_lists_of_no_or_other_requests_are_refused(rows: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="give at least one of them"):
        make_catalogue("three levels").filtered(**rows)


def test_rows_of_other_requests_and_a_second_filter_are_refused() -> None:
    filtered = make_catalogue("three levels").filtered(deny=torch.tensor([[1], [2]]))
    with pytest.raises(DataError, match="3 states for a layout that is filtered for 2 requests"):
        filtered.legal(0, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="in one call"):
        filtered.filtered(deny=torch.tensor([[1], [2]]))


@each_filter
def test_some_requests_keep_their_own_items(given: tuple[str, ...]) -> None:
    layout = make_catalogue("three levels")
    rows = make_rows(layout, given)
    some = torch.tensor([4, 1])
    leaves = torch.arange(layout.trie.leaves).repeat(2, 1)
    items, _ = layout.filtered(**rows).requests(some).rank(leaves, torch.zeros(leaves.shape), 60)
    left = left_over(layout, rows)
    assert [[row for row in ranked if row >= 0] for ranked in items.tolist()] == [left[4], left[1]]
    assert layout.requests(some) is layout


@each_filter
def test_request_filters_stay_when_items_leave_the_catalogue(given: tuple[str, ...]) -> None:
    layout = make_catalogue("crowded leaves")
    keep = torch.arange(40) % 3 > 0
    rows = make_rows(layout, given)
    rows["deny"] = rows.get("deny", torch.full((6, 1), -1))[:, :20]  # leaves something to everyone
    filtered = layout.filtered(**rows).only(keep)
    assert isinstance(filtered, FilteredSidLayout)
    leaves = torch.arange(filtered.trie.leaves).repeat(6, 1)
    items, _ = filtered.rank(leaves, torch.zeros(leaves.shape), 40)
    for request, left in enumerate(left_over(layout, rows)):
        assert [row for row in items[request].tolist() if row >= 0] == [row for row in left if keep[row]]


@each_filter
def test_beam_search_under_a_filter_finds_what_scoring_every_item_finds(policy: Policy, given: tuple[str, ...]) -> None:
    codes = make_codes()
    codes[10:20] = codes[:10]
    layout, prompts = make_layout(policy, codes), make_prompts(policy)
    rows = {kind: listed[:5] for kind, listed in make_rows(layout, given).items()}
    filtered = layout.filtered(**rows)
    found = beam(policy, filtered, prompts.tokens, prompts.mask, 60)
    ranked, scores = filtered.rank(found.leaves, found.scores, 60)
    for request, items in enumerate(left_over(layout, {kind: padded(listed) for kind, listed in rows.items()})[:5]):
        assert sorted(row for row in ranked[request].tolist() if row >= 0) == sorted(items)
        hand = hand_scores(policy, prompts.tokens[request][prompts.mask[request]], layout, items)
        by_item = dict(zip(ranked[request].tolist(), scores[request].tolist(), strict=True))
        assert_same(torch.tensor([by_item[row] for row in items]), hand)


def padded(listed: Tensor) -> Tensor:
    """Lists of five requests with one more, as `left_over` takes six."""
    return torch.cat([listed, listed[:1]])


@each_filter
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("exact", [0, 4])
def test_a_filtered_ranking_is_the_whole_one_without_the_other_items(
    policy: Policy, given: tuple[str, ...], shared: bool, exact: int
) -> None:
    codes = make_codes()
    codes[10:20] = codes[:10]
    layout, prompts = make_layout(policy, codes), make_prompts(policy)
    rows = {kind: listed[:5] for kind, listed in make_rows(layout, given).items()}
    rows["deny"] = rows.get("deny", torch.full((5, 1), -1))[:, :30]  # leaves something to everyone
    filtered = layout.filtered(**rows)
    keep = torch.arange(60) % 7 != 2
    if shared:
        filtered = filtered.only(keep)
    width = 5 if exact else 60
    ranking = rank(policy, filtered, prompts.tokens, prompts.mask, width, exact=exact)
    whole = rank(policy, layout, prompts.tokens, prompts.mask, 60)
    for request, left in enumerate(left_over(layout, {kind: padded(listed) for kind, listed in rows.items()})[:5]):
        pairs = zip(whole.items[request].tolist(), whole.scores[request].tolist(), strict=True)
        wanted = [(row, score) for row, score in pairs if row in left and (keep[row] or not shared)]
        places = min(len(wanted), exact or 60)
        assert ranking.items[request, :places].tolist() == [row for row, _ in wanted[:places]]
        assert_same(ranking.scores[request, :places], torch.tensor([score for _, score in wanted[:places]]))
    assert ranking.bound is not None
    assert bool(ranking.certified(exact or 60).all())


def hand_scores(policy: Policy, prompt: Tensor, layout: SidLayout, items: list[int]) -> Tensor:
    """Log-probability of each item's SID, normalised at each token over the codes of `items` alone."""
    sids = layout.codes[items].tolist()
    rows = torch.cat([prompt.expand(len(items), -1), layout.render(torch.tensor(items))], dim=1)
    with torch.no_grad():
        logits = policy.model(input_ids=rows).logits[:, len(prompt) - 1 :].float()
    scores = torch.zeros(len(items))
    for row, sid in enumerate(sids):
        for level, first in enumerate(layout.first_ids):
            follow = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            log_probs = logits[row, level, torch.tensor(follow) + first].log_softmax(-1)
            scores[row] += log_probs[follow.index(sid[level])]
    return scores


@each_filter
def test_samples_and_narrow_beams_stay_inside_the_filter(policy: Policy, given: tuple[str, ...]) -> None:
    layout, prompts = make_layout(policy), make_prompts(policy)
    rows = {kind: listed[:5] for kind, listed in make_rows(layout, given).items()}
    filtered = layout.filtered(**rows)
    left = left_over(layout, {kind: torch.cat([listed, listed[:1]]) for kind, listed in rows.items()})[:5]
    uniforms = torch.rand(5, 50, 3, generator=torch.Generator().manual_seed(0))
    drawn = sample(policy, filtered, prompts.tokens, prompts.mask, uniforms)
    gumbels = -torch.rand(5, 3, 8, 7, generator=torch.Generator().manual_seed(0)).log().neg().log()
    without = beam(policy, filtered, prompts.tokens, prompts.mask, 8, gumbels=gumbels)
    for completions in (drawn, without):
        assert bool(completions.logps.isfinite()[completions.leaves >= 0].all())
        for request, items in enumerate(left):
            leaves = completions.leaves[request]
            assert set(layout.trie.items(leaves[leaves >= 0]).tolist()) <= set(items)
    assert (without.leaves >= 0).sum(1).tolist() == [min(8, len(items)) for items in left]
