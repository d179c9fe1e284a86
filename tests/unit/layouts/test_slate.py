from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Requests, concatenate
from genrl.errors import ConfigError, DataError
from genrl.layouts import LAYOUTS
from genrl.layouts.base import BROKEN, ENDED
from genrl.layouts.sid import SidLayout
from genrl.layouts.slate import SlateLayout, sequences
from genrl.policy.distribution import RANKING, Sampling
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import targets_as_completions, write
from tests.helpers import assert_same
from tests.models import every_completion, make_codes, make_items, make_policy, make_prompts, make_thinking, padded

ITEMS, LENGTH = 6, 3
DENY = torch.tensor([[0, -1], [5, 2], [-1, -1], [1, 3], [4, -1]])
POOL = torch.tensor([[0, 1, 2, 3, 5], [0, 1, 3, 4, -1], [1, 2, 3, -1, -1], [0, 2, 4, 5, 1], [0, 1, 2, 3, 5]])
each_filter = pytest.mark.parametrize("filters", [{}, {"pool": POOL}, {"deny": DENY}, {"pool": POOL, "deny": DENY}])


def make_slates(policy: Policy, codes: Tensor, length: int = LENGTH) -> SlateLayout:
    layout = LAYOUTS.build("slate", {"length": length}, catalogue=make_items(policy, codes), words=policy.words)
    assert isinstance(layout, SlateLayout)
    return layout


def shared_codes() -> Tensor:
    """SIDs of which two are those of two items each: 0 and 1, 2 and 5."""
    codes = make_codes(ITEMS)
    codes[1], codes[5] = codes[0], codes[2]
    return codes


@pytest.fixture(scope="module")
def setting() -> tuple[Policy, SlateLayout, Requests]:
    policy = make_policy()
    return policy, make_slates(policy, make_codes(ITEMS)), make_prompts(policy, ITEMS)


@pytest.fixture(scope="module")
def table(setting: Any) -> tuple[Tensor, Tensor]:
    """Every slate [S, L], and the exact log-probability [5, S] of each behind each prompt."""
    policy, layout, prompts = setting
    slates = torch.tensor(list(permutations(range(ITEMS), LENGTH)))
    return slates, scored(policy, layout, prompts, slates)


@torch.no_grad()
def scored(policy: Policy, layout: SlateLayout, prompts: Requests, slates: Tensor) -> Tensor:
    """Log-probabilities [P, S] of slates."""
    each = replace(prompts.repeat(len(slates)), targets=replace(prompts.wanted, items=slates.repeat(len(prompts), 1)))
    gold = replace(targets_as_completions(layout, each), group_size=len(slates))
    return score(policy, layout, prompts, gold).logps.sum(1).view(len(prompts), -1)


def draw(
    policy: Policy, layout: SlateLayout, prompts: Requests, group: int = 8, sampling: Sampling | None = None
) -> Completions:
    noise = torch.rand(len(prompts), group, layout.length, generator=torch.Generator().manual_seed(3))
    return write(policy, layout, prompts, group, sampling or Sampling(), noise)


def test_completions_are_the_ordered_lists_of_different_items(setting):
    _, layout, _ = setting
    assert (layout.items, layout.steps, layout.length, layout.levels) == (3, 3, 9, 3)
    assert (layout.writes_slates, layout.writes_text, layout.in_step) == (True, False, True)
    assert isinstance(layout.plain, SidLayout)
    written = torch.tensor(every_completion(layout))
    reading = layout.read(written, layout.replay(written))
    assert sorted(map(tuple, reading.items.tolist())) == list(permutations(range(ITEMS), LENGTH))
    assert len(written) == layout.completions
    assert layout.compose(reading.items).equal(written)
    assert reading.codes.equal(reading.items)
    assert reading.item_ids.equal(reading.step_ids)
    assert reading.step_ids[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [layout.ends_item(site) for site in range(9)] == [False, False, True] * 2 + [False] * 3


def test_items_that_share_a_sid_are_named_most_popular_first():
    policy = make_policy()
    layout = make_slates(policy, shared_codes(), 4)
    written = torch.tensor(every_completion(layout))
    items = layout.read(written, layout.replay(written)).items
    rows = list(map(tuple, items.tolist()))
    wanted = {row for row in permutations(range(ITEMS), 4) if in_order(row, 1, 0) and in_order(row, 5, 2)}
    assert set(rows) == wanted
    assert len(rows) == len(wanted) == layout.completions
    assert layout.compose(torch.tensor([[0, 1, 2, 3]])).equal(layout.compose(torch.tensor([[1, 0, 5, 3]])))


def in_order(row: tuple[int, ...], first: int, second: int) -> bool:
    """Whether the second of two items stands in a list behind the first, if at all."""
    return second not in row or (first in row and row.index(first) < row.index(second))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1, 2], [0, 2, 2]])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_lists_of_sids_are_counted(sizes, length):
    named = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert sequences(torch.tensor(sizes), length) == len(set(permutations(named, length)))


@torch.no_grad()
def test_probabilities_sum_to_one_and_a_search_over_whole_slates_enumerates_them(setting, table):
    policy, layout, prompts = setting
    slates, exact = table
    assert_same(exact.exp().sum(1), torch.ones(5))
    ranking, beams = search(policy, layout, prompts, layout.completions, Sampling())
    order = exact.sort(dim=1, descending=True)
    assert_same(beams.logps.sum(1).view(5, -1), order.values)
    assert beams.items.view(5, -1, LENGTH).equal(slates[order.indices])
    assert ranking.items[:, :LENGTH].equal(slates[order.indices[:, 0]])
    assert_same(ranking.scores[:, :LENGTH], order.values[:, :1].expand(-1, LENGTH))
    assert bool((ranking.items[:, LENGTH:] == -1).all())
    assert_same(score(policy, layout, prompts, beams).logps, beams.logps)
    as_ranked = search(policy, layout, prompts, layout.completions, RANKING)[1]  # what is taken is no filter
    assert_same(as_ranked.logps, beams.logps)


def test_item_by_item_each_place_has_the_best_item_given_those_before(setting, table):
    policy, layout, prompts = setting
    slates, exact = table
    ranking, beams = search(policy, layout, prompts, 5, beams=ITEMS, settle=True)
    for prompt, joint in enumerate(exact):
        left = torch.ones(len(slates), dtype=torch.bool)
        for place in range(LENGTH):
            masses = torch.zeros(ITEMS).index_add(0, slates[left, place], joint[left].exp())
            best = int(masses.argmax())
            assert int(ranking.items[prompt, place]) == best
            left &= slates[:, place] == best
        assert_same(ranking.scores[prompt, 0], joint[left][0])
    likeliest = search(policy, layout, prompts, 5, beams=layout.completions)[0]
    assert not likeliest.items.equal(ranking.items)  # the likeliest slate is another one for some prompt
    assert bool((likeliest.scores[:, 0] >= ranking.scores[:, 0] - 1e-6).all())
    assert ranking.items[:, LENGTH:].tolist() == [[-1, -1]] * 5
    assert beams.group_size == ITEMS


def test_samples_have_the_frequencies_of_their_probabilities(setting, table):
    policy, layout, prompts = setting
    slates, exact = table
    drawn = draw(policy, layout, prompts.rows(slice(0, 2)), 6000)
    numbers = {tuple(slate): number for number, slate in enumerate(slates.tolist())}
    for prompt, group in enumerate(drawn.items.view(2, 6000, LENGTH).tolist()):
        counts = Counter(numbers[tuple(slate)] for slate in group)
        frequency = torch.tensor([counts[number] / 6000 for number in range(len(slates))])
        p = exact[prompt].exp()
        assert bool(((frequency - p).abs() < 5 * (p * (1 - p) / 6000).sqrt() + 1e-3).all())


@pytest.mark.parametrize("way", ["auto", "tree", "expand", "naive"])
@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@each_filter
@torch.no_grad()
def test_slates_are_scored_as_they_were_drawn(setting, way, normalize, filters):
    policy, layout, prompts = setting
    policy.branching = way
    asked, sampling = replace(prompts, **filters), Sampling(0.8, normalize=normalize)
    drawn = draw(policy, layout, asked, 6, sampling)
    assert_same(
        score(policy, layout, asked, drawn, sampling).logps, drawn.logps, 1e-6 if normalize == "legal" else 1e-5
    )
    policy.branching = "auto"
    assert allowed_only(drawn.items.view(5, 6, -1), filters)
    assert bool((drawn.logps[~drawn.chosen] == 0).all())


def allowed_only(items: Tensor, filters: dict[str, Tensor]) -> bool:
    """Whether slates [P, G, L] hold different items that their request may get."""
    return all(
        len(set(slate)) == len(slate) and set(slate) <= allowed_items(request, filters)
        for request, slates in enumerate(items.tolist())
        for slate in slates
    )


def allowed_items(request: int, filters: dict[str, Tensor]) -> set[int]:
    allowed = set(filters["pool"][request].tolist()) if "pool" in filters else set(range(ITEMS))
    return allowed - {-1} - (set(filters["deny"][request].tolist()) if "deny" in filters else set())


@each_filter
@pytest.mark.parametrize("settle", [False, True])
def test_searches_stay_inside_the_filter_also_where_items_share_a_sid(filters, settle):
    policy = make_policy()
    for codes in (make_codes(ITEMS), shared_codes()):
        layout, prompts = make_slates(policy, codes), replace(make_prompts(policy, ITEMS), **filters)
        found = search(policy, layout, prompts, LENGTH, beams=9, settle=settle)[0]
        assert allowed_only(found.items[:, None], filters)


def test_rollouts_name_of_a_shared_sid_the_item_that_the_pool_holds():
    policy = make_policy()
    codes = shared_codes()
    prompts = replace(
        make_prompts(policy, ITEMS), pool=torch.tensor([[0, 2, 3, 4, -1], [1, 5, 3, 4, -1]] * 2 + [[0] * 5])
    )
    prompts = prompts.rows(torch.arange(4))
    slate = make_slates(policy, codes)
    sid = LAYOUTS.build("sid", {}, catalogue=make_items(policy, codes), words=policy.words)
    for layout in (slate, sid):
        drawn = draw(policy, layout, prompts, 16)
        ranking, beams = search(policy, layout, prompts, 3)
        pools = prompts.pool.repeat_interleave(16, 0)
        assert bool((drawn.items[:, :, None] == pools[:, None]).any(2).all())
        assert drawn.items.view(4, -1)[::2].unique().tolist() == [0, 2, 3, 4]
        assert drawn.items.view(4, -1)[1::2].unique().tolist() == [1, 3, 4, 5]
        found = beams.items.view(4, 3, -1)[:, 0] if layout is slate else beams.items.view(4, 3)
        assert found.equal(ranking.items[:, :3])
    thinker = make_policy(thinking=True)
    blocked = make_thinking(thinker, codes, budget=2, on_budget="close")
    drawn = draw(thinker, blocked, prompts, 16)
    assert drawn.items.view(4, -1)[::2].unique().tolist() == [0, 2, 3, 4]
    assert drawn.items.view(4, -1)[1::2].unique().tolist() == [1, 3, 4, 5]
    target = replace(prompts.wanted, items=torch.tensor([[0, 2, 3], [1, 5, 3]] * 2))
    gold = targets_as_completions(slate, replace(prompts, targets=target))
    assert gold.items.equal(target.items)


def test_a_filter_that_all_requests_share_is_that_of_their_pools(setting):
    policy, layout, prompts = setting
    keep = torch.tensor([True, False, True, True, True, False])
    kept = layout.only(keep)
    assert kept.completions == 24
    asked = replace(prompts, pool=keep.nonzero()[:, 0].expand(5, -1))
    for sampling in (Sampling(), RANKING):
        one, two = search(policy, kept, prompts, 24, sampling), search(policy, layout, asked, 24, sampling)
        assert one[0].items.equal(two[0].items)
        assert_same(one[1].logps, two[1].logps)


def test_order_padding_and_division_of_the_batch_change_neither_scores_nor_gradients(setting):
    policy, layout, prompts = setting
    drawn = draw(policy, layout, prompts, 4)
    factors = torch.linspace(-1, 1, drawn.logps.numel()).view_as(drawn.logps)

    def gradient(parts: list[tuple[Requests, Completions, Tensor]]) -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        found = []
        for asked, written, weights in parts:
            scores = score(policy, layout, asked, written)
            found.append(scores.logps.detach())
            (scores.logps * weights).sum().backward()
        return torch.cat(found), torch.cat([value.grad.flatten() for value in policy.trainable().values()])

    logps, wanted = gradient([(prompts, drawn, factors)])
    assert_same(logps, drawn.logps, 1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    members = (order[:, None] * 4 + torch.arange(4)).flatten()
    turned, grown = gradient([(prompts.rows(order), drawn.groups(order), factors[members])])
    assert_same(turned, logps[members])
    assert_same(grown, wanted)
    wide = replace(
        prompts,
        tokens=torch.nn.functional.pad(prompts.tokens, (5, 0)),
        mask=torch.nn.functional.pad(prompts.mask, (5, 0)),
    )
    shown, grown = gradient([(wide, drawn, factors)])
    assert_same(shown, logps)
    assert_same(grown, wanted)
    cuts = [slice(0, 2), slice(2, 3), slice(3, 5)]
    parts = [(prompts.rows(cut), drawn.groups(cut), factors.view(5, -1, 9)[cut].flatten(0, 1)) for cut in cuts]
    divided, grown = gradient(parts)
    assert_same(divided, logps)
    assert_same(grown, wanted)
    joined = concatenate(drawn.groups(slice(0, 2)), drawn.groups(slice(2, 5)))
    assert joined.states.leaves.equal(drawn.states.leaves)


def test_forced_tokens_have_no_log_probability_and_a_last_item_without_a_choice_is_settled():
    policy = make_policy()
    codes = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 2, 3], [4, 4, 4]])
    layout, prompts = make_slates(policy, codes, 4), make_prompts(policy, 4)
    drawn = draw(policy, layout, prompts)
    assert sorted(drawn.items[0].tolist()) == [0, 1, 2, 3]
    last = drawn.chosen[:, -3:]
    assert not bool(last.any())  # one item is left for the last place
    assert bool((drawn.logps[:, -3:] == 0).all())
    state = layout.replay(drawn.tokens)
    assert not bool(layout.settled(state.each(lambda value: value[:, 5]), 5).any())
    settled = layout.settled(state.each(lambda value: value[:, 11]), 11)
    assert settled.equal(drawn.items[:, 3] >= 2)  # 0 and 1 differ in their last code alone


def test_slates_longer_than_what_is_left_are_refused(setting):
    policy, layout, prompts = setting
    with pytest.raises(ConfigError, match=r"layout\.length=7 different items is longer than the 6 items .*length=6"):
        make_slates(policy, make_codes(ITEMS), 7)
    with pytest.raises(DataError, match=r"the 2 items that the filter leaves. Allow 3 items or more"):
        layout.only(torch.tensor([True, True, False, False, False, False]))
    asked = replace(prompts, pool=POOL, deny=torch.tensor([[4], [4], [2], [4], [4]]))
    for act in (lambda: draw(policy, layout, asked), lambda: search(policy, layout, asked, 3)):
        with pytest.raises(DataError, match=r"request 2 of the batch has 2 items left, .* layout\.length=3 different"):
            act()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1]], r"slates have layout\.length=3 items, these rows 2"),
        ([[0, 1, 2], [3, 1, 3]], r"slate 1 is \[3, 1, 3\]: it must hold 3 different items"),
        ([[0, 1, -1]], r"slate 0 is \[0, 1, -1\]"),
    ],
)
def test_gold_slates_that_are_none_are_refused(setting, rows, message):
    with pytest.raises(DataError, match=message):
        setting[1].compose(torch.tensor(rows))


def test_tokens_that_repeat_an_item_or_name_none_are_no_slate(setting):
    _, layout, _ = setting
    tokens = layout.compose(torch.tensor([[0, 1, 2]] * 3))
    tokens[0, 3:6] = tokens[0, :3]
    tokens[1, 4] = 3
    states = layout.replay(tokens)
    assert states.site[0].tolist() == [0, 1, 2, 3, 4, 5, BROKEN, BROKEN, BROKEN]
    assert layout.read(tokens, states).items.tolist() == [[-1] * 3, [-1] * 3, [0, 1, 2]]
    final = states.each(lambda value: value[:, -1])
    final = layout.advance(final, tokens[:, -1], 8)
    assert final.site.tolist() == [BROKEN, BROKEN, ENDED]
    items, scores = layout.rank(final, torch.zeros(3, 1), 4)
    assert items.tolist() == padded([[-1], [-1], [0, 1, 2, -1]], -1).tolist()
    assert scores[:, 3].tolist() == [float("-inf")] * 3
