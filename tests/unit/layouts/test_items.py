from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.errors import DataError
from genrl.layouts.base import ENDED
from genrl.layouts.items import Items, ItemState
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.distribution import Sampling
from genrl.policy.model import Policy
from genrl.policy.search import search
from genrl.policy.write import write
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
each_filter = pytest.mark.parametrize("given", [("pool",), ("deny",), ("pool", "deny")], ids="-".join)
CROWDED = make_codes()
CROWDED[10:20] = CROWDED[:10]


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
    return SidLayout(SidLayoutConfig(), catalogue=Items(trie, first_ids, codes))


def make_rows(layout: SidLayout, given: tuple[str, ...]) -> dict[str, Tensor]:
    """Lists of six requests, with padding and repetitions: whole subtrees, whole leaves, single items, few, most."""
    generator = torch.Generator().manual_seed(1)
    items = len(layout.codes)
    below = layout.codes[:, 0] == layout.codes[0, 0]
    subtree, others = below.nonzero()[:, 0], (~below).nonzero()[:, 0]
    leaf = (layout.codes == layout.codes[0]).all(1).nonzero()[:, 0]
    some = [torch.randperm(items, generator=generator) for _ in range(4)]
    lists = {
        "deny": [subtree, leaf, some[0][:5], some[1][: items - 1], some[2][: items // 2], some[3][:0]],
        "pool": [torch.cat([subtree, others[:1]]), torch.cat([leaf, others]), some[0][3:7], some[1][2:], *some[:1:-1]],
    }
    rows = {}
    for kind in given:
        padded = torch.full((6, items + 9), -1)
        for request, listed in enumerate(lists[kind]):
            padded[request, : len(listed) + len(listed[:3])] = torch.cat([listed, listed[:3]])
        rows[kind] = padded[:, torch.randperm(items + 9, generator=generator)]
    return rows


def asking(**rows: Tensor) -> Requests:
    """Requests with lists of their own."""
    nothing = torch.empty(len(next(iter(rows.values()))), 0, dtype=torch.int64)
    return Requests(nothing, nothing.bool(), nothing, **rows)


def standing(site: int, nodes: Tensor, requests: int) -> ItemState:
    """States at nodes [n], all of them for each request."""
    owner = torch.arange(requests).repeat_interleave(len(nodes))
    return ItemState(torch.full_like(owner, site), owner, nodes.repeat(requests))


def left_over(layout: SidLayout, rows: dict[str, Tensor]) -> list[list[int]]:
    """Catalogue rows that each request may get, in the order of the trie."""
    order = layout.catalogue.trie.leaf_items.tolist()
    requests = len(next(iter(rows.values())))
    pools, denied = (rows[kind].tolist() if kind in rows else [None] * requests for kind in ("pool", "deny"))
    return [
        [row for row in order if row in (pool or order) and row not in (deny or ())]
        for pool, deny in zip(pools, denied, strict=True)
    ]


def few_denied(layout: SidLayout, given: tuple[str, ...], requests: int = 6, denied: int = 20) -> dict[str, Tensor]:
    """Lists that leave something to everyone."""
    rows = {kind: listed[:requests] for kind, listed in make_rows(layout, given).items()}
    rows["deny"] = rows.get("deny", torch.full((requests, 1), -1))[:, :denied]
    return rows


@each_filter
@each_catalogue
def test_legal_codes_are_those_of_the_items_left_on_every_prefix(name, given):
    layout = make_catalogue(name)
    rows = make_rows(layout, given)
    requests = asking(**rows)
    codes = layout.codes.tolist()
    left = left_over(layout, rows)
    nodes = layout.catalogue.trie.path(layout.codes)
    for level in range(layout.length):
        prefixes = sorted({tuple(sid[:level]) for sid in codes})
        node_of = {tuple(sid[:level]): int(node) for sid, node in zip(codes, nodes[:, level], strict=True)}
        states = torch.tensor([node_of[prefix] for prefix in prefixes])
        found = layout.legal(level, standing(level, states, 6), requests)
        assert found.first == layout.tokens.first_ids[level]
        unfiltered = layout.legal(level, standing(level, states, 1)).mask
        assert found.within.equal(unfiltered.repeat(6, 1))
        for row, mask in enumerate(found.mask):
            request, prefix = row // len(prefixes), prefixes[row % len(prefixes)]
            wanted = {codes[item][level] for item in left[request] if tuple(codes[item][:level]) == prefix}
            if not wanted:  # no search gets there
                wanted = set(unfiltered[row % len(prefixes)].nonzero().flatten().tolist())
            assert set(mask.nonzero().flatten().tolist()) == wanted


@each_filter
@each_catalogue
def test_rank_fills_its_places_with_the_items_left(name, given):
    layout = make_catalogue(name)
    rows, trie = make_rows(layout, given), layout.catalogue.trie
    generator = torch.Generator().manual_seed(2)
    leaves = torch.stack([torch.randperm(trie.leaves, generator=generator) for _ in range(6)])
    leaves[:, -2:] = -1
    scores = torch.randn(leaves.shape, generator=generator).sort(1, descending=True).values
    state = standing(ENDED, leaves.flatten(), 1)
    ranked = {width: layout.rank(state, scores, width, asking(**rows)) for width in (1, 4, 100)}
    for request, left in enumerate(left_over(layout, rows)):
        wanted = []
        for leaf, score in zip(leaves[request].tolist(), scores[request].tolist(), strict=True):
            start, stop = trie.leaf_offsets[leaf : leaf + 2].tolist() if leaf >= 0 else (0, 0)
            wanted += [(row, score) for row in trie.leaf_items[start:stop].tolist() if row in left]
        wanted += [(-1, -float("inf"))] * 100
        for width, (items, found) in ranked.items():
            assert items[request].tolist() == [row for row, _ in wanted[:width]]
            assert_same(found[request], torch.tensor([score for _, score in wanted[:width]]))


def test_lists_may_hold_nothing():
    layout = make_catalogue("three levels")
    root = standing(0, torch.zeros(2, dtype=torch.int64), 2)
    leaves = torch.arange(layout.catalogue.trie.leaves).repeat(2, 1)
    for nothing in (torch.empty(2, 0, dtype=torch.int64), torch.full((2, 1), -1), torch.full((2, 3), -1)):
        requests = asking(deny=nothing)
        assert layout.legal(0, root, requests).mask.equal(layout.legal(0, root).mask)
        items, _ = layout.rank(standing(ENDED, leaves.flatten(), 1), torch.zeros(leaves.shape), 60, requests)
        assert items.tolist() == [layout.catalogue.trie.leaf_items.tolist()] * 2
        with pytest.raises(DataError, match="request 0 of the batch has no item left"):
            layout.legal(0, root, asking(pool=nothing))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"pool": [[0, 1], [2, 3]], "deny": [[1, 5], [3, 2]]}, "request 1 of the batch has no item left"),
        ({"deny": [[0] * 60, list(range(60))]}, "request 1 of the batch has no item left"),
        ({"pool": [[0, 1], [-1, -1]]}, "request 1 of the batch has no item left"),
        ({"deny": [[1, 2], [3, 60]]}, r"filter of request 1 names catalogue row 60, but rows are 0 \.\. 59"),
        ({"pool": [[1, 2], [3, -2]]}, r"filter of request 1 names catalogue row -2, but rows are 0 \.\. 59"),
    ],
)
def test_a_request_with_nothing_left_or_rows_outside_the_catalogue_is_named(rows, message):
    asked = asking(**{kind: torch.tensor(listed) for kind, listed in rows.items()})
    with pytest.raises(DataError, match=message):
        make_catalogue("three levels").legal(0, standing(0, torch.tensor([0]), 2), asked)


@each_filter
def test_what_a_completion_has_named_is_taken_out_with_the_rest(given):
    layout = make_catalogue("crowded leaves")
    rows = few_denied(layout, given)
    left = left_over(layout, rows)
    owner = torch.tensor([0, 0, 2, 5])
    taken = torch.tensor([[left[0][0], -1], [-1, left[0][-1]], [left[2][0], left[2][-1]], [-1, -1]])
    node = torch.zeros_like(owner)
    found = layout.catalogue.legal(0, node, owner, asking(**rows), taken).mask
    for row, request in enumerate(owner.tolist()):
        wanted = {int(layout.codes[item, 0]) for item in left[request] if item not in taken[row].tolist()}
        if wanted:
            assert set(found[row].nonzero()[:, 0].tolist()) == wanted


@each_filter
def test_request_filters_stay_when_items_leave_the_catalogue(given):
    layout = make_catalogue("crowded leaves")
    keep = torch.arange(40) % 3 > 0
    rows = few_denied(layout, given)
    leaves = torch.arange(layout.catalogue.trie.leaves).repeat(6, 1)
    state = standing(ENDED, leaves.flatten(), 1)
    items, _ = layout.only(keep).rank(state, torch.zeros(leaves.shape), 40, asking(**rows))
    for request, left in enumerate(left_over(layout, rows)):
        assert [row for row in items[request].tolist() if row >= 0] == [row for row in left if keep[row]]


@each_filter
def test_beam_search_under_a_filter_finds_what_scoring_every_item_finds(policy, given):
    layout, prompts = make_layout(policy, CROWDED), make_prompts(policy)
    rows = {kind: listed[:5] for kind, listed in make_rows(layout, given).items()}
    found, _ = search(policy, layout, replace(prompts, **rows), 60, Sampling())
    for request, items in enumerate(left_over(layout, rows)):
        assert sorted(row for row in found.items[request].tolist() if row >= 0) == sorted(items)
        by_item = dict(zip(found.items[request].tolist(), found.scores[request].tolist(), strict=True))
        prompt = prompts.tokens[request][prompts.mask[request]]
        sids = layout.codes[items].tolist()
        tokens = torch.cat([prompt.expand(len(items), -1), layout.compose(torch.tensor(items)[:, None])], dim=1)
        with torch.no_grad():
            logits = policy.model(input_ids=tokens).logits[:, len(prompt) - 1 :].float()
        wanted = torch.zeros(len(items))
        for row, sid in enumerate(sids):  # normalised at each token over the codes of what is left alone
            for level, first in enumerate(layout.tokens.first_ids):
                follow = sorted({other[level] for other in sids if other[:level] == sid[:level]})
                log_probs = logits[row, level, torch.tensor(follow) + first].log_softmax(-1)
                wanted[row] += log_probs[follow.index(sid[level])]
        assert_same(torch.tensor([by_item[row] for row in items]), wanted)


@each_filter
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("exact", [0, 4])
def test_a_filtered_ranking_is_the_whole_one_without_the_other_items(policy, given, shared, exact):
    layout, prompts = make_layout(policy, CROWDED), make_prompts(policy)
    rows = few_denied(layout, given, requests=5, denied=30)
    keep = torch.arange(60) % 7 != 2
    some = layout.only(keep) if shared else layout
    ranking: Ranking = search(policy, some, replace(prompts, **rows), 5 if exact else 60, exact=exact)[0]
    whole: Ranking = search(policy, layout, prompts, 60)[0]
    for request, left in enumerate(left_over(layout, rows)):
        pairs = zip(whole.items[request].tolist(), whole.scores[request].tolist(), strict=True)
        wanted = [(row, score) for row, score in pairs if row in left and (keep[row] or not shared)]
        places = min(len(wanted), exact or 60)
        assert ranking.items[request, :places].tolist() == [row for row, _ in wanted[:places]]
        assert_same(ranking.scores[request, :places], torch.tensor([score for _, score in wanted[:places]]))
    assert ranking.bound is not None
    assert bool(ranking.certified(exact or 60).all())


@each_filter
def test_samples_and_narrow_beams_stay_inside_the_filter(policy, given):
    layout, prompts = make_layout(policy), make_prompts(policy)
    rows = {kind: listed[:5] for kind, listed in make_rows(layout, given).items()}
    requests = replace(prompts, **rows)
    drawn = write(policy, layout, requests, 50, noise=torch.rand(5, 50, 3, generator=torch.Generator().manual_seed(0)))
    gumbels = -torch.rand(5, 3, 8, 7, generator=torch.Generator().manual_seed(0)).log().neg().log()
    ranking, without = search(policy, layout, requests, 8, Sampling(), gumbels=gumbels)
    assert bool((drawn.items >= 0).all())
    assert bool(drawn.logps.isfinite().all())
    for request, items in enumerate(left_over(layout, rows)):
        allowed = {tuple(layout.codes[item].tolist()) for item in items}
        own = slice(request, request + 1)
        assert {tuple(row) for row in drawn.groups(own).codes.tolist()} <= allowed
        found, beams = ranking.items[request], without.groups(own).items[:, 0]
        assert {item for item in found.tolist() if item >= 0} <= set(items)
        assert int((found >= 0).sum()) == min(8, len(items))
        assert beams[min(8, len(items)) :].eq(-1).all()  # what does not exist names no item
        assert {tuple(layout.codes[item].tolist()) for item in beams[beams >= 0].tolist()} <= allowed


@each_filter
def test_leaves_name_the_items_that_are_left_one_after_the_other(given):
    layout = make_catalogue("crowded leaves")
    rows, catalogue = few_denied(layout, given), layout.catalogue
    left = left_over(layout, rows)
    assert catalogue.left(asking(**rows)).tolist() == [len(items) for items in left]
    assert catalogue.left(None).tolist() == [len(layout.codes)]
    leaf_of = {row: leaf for leaf in range(catalogue.trie.leaves) for row in items_at(layout, leaf)}
    for request, items in enumerate(left):
        leaves = torch.tensor([[leaf_of[item] for item in items] + [-1]])
        named = catalogue.named(leaves, torch.tensor([request]), asking(**rows))
        assert named.tolist() == [[*items, -1]]
        further = torch.tensor([[leaf_of[items[0]]] * (1 + len(items_at(layout, leaf_of[items[0]])))])
        assert catalogue.named(further, torch.tensor([request]), asking(**rows))[0, -1] == -1  # there are no more


def items_at(layout: SidLayout, leaf: int) -> list[int]:
    """Catalogue rows of a SID, most popular first."""
    start, stop = layout.catalogue.trie.leaf_offsets[leaf : leaf + 2].tolist()
    return layout.catalogue.trie.leaf_items[start:stop].tolist()
