from dataclasses import replace
from itertools import permutations
from math import perm

import pytest
import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.catalog.items import Catalog
from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.layouts.base import BROKEN, ENDED
from genrl.layouts.sid import SidLayout
from genrl.layouts.slate import Slate, SlateLayoutConfig
from genrl.layouts.text import TextConfig, TextSlate
from genrl.layouts.titles import Titles, name_items
from genrl.policy.distribution import RANKING
from genrl.policy.guide import Masses
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import as_completions, every_completion, make_items, make_policy, make_prompts

TITLES = ("red apple", "red apple pie", "green pear", "blue plum jam", "blue plum", "sweet cherry")
CODES = torch.tensor([[i % 6, i % 5, i % 7] for i in range(len(TITLES))])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="module")
def titles(policy: Policy) -> Titles:
    catalog = Catalog.from_table([f"i{row}" for row in range(len(TITLES))], TITLES)
    names = name_items(catalog, policy.tokenizer)
    return Titles(names, make_items(policy, CODES), policy.tokenizer)


def make(titles: Titles, length: int = 2, **options) -> TextSlate:
    made = Slate(SlateLayoutConfig(length, "text", TextConfig(**options)), catalogue=titles)
    assert isinstance(made, TextSlate)
    return made


def lines(layout: TextSlate, tokens: Tensor) -> list[str]:
    return [layout.names.decode(line).strip() for line in layout.blocks(tokens)]


def padded(layout: TextSlate, texts: list[list[str]]) -> Tensor:
    """Completions of lines, as a model might write them."""
    tokenizer, end = layout.names.tokenizer, layout.names.end
    rows = [
        [t for line in text for t in [*tokenizer(line, add_special_tokens=False)["input_ids"], end]] for text in texts
    ]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def test_the_legal_completions_are_all_ordered_lists_of_different_titles(titles):
    layout = make(titles)
    found = {tuple(lines(layout, torch.tensor(tokens))) for tokens in every_completion(layout)}
    assert found == set(permutations(titles.names.texts, 2))
    assert layout.completions == len(found) == perm(6, 2)


def test_gold_slates_are_read_as_what_they_were_made_of(titles):
    layout = make(titles, 3)
    items = torch.tensor(list(permutations(range(6), 3)))
    tokens = layout.compose(items)
    states = layout.replay(tokens)
    reading = layout.read(tokens, states)
    assert_same(reading.items, items)
    assert_same(reading.codes, items)
    for row in range(0, len(items), 17):
        for place in range(3):
            line = tokens[row][reading.step_ids[row] == place]
            assert int(line[-1]) == titles.end
            assert titles.decode(line[:-1].tolist()).strip() == titles.names.texts[items[row, place]]
    with pytest.raises(DataError, match=r"slate 0 is \[1, 1, 2\]: it must hold 3 different"):
        layout.compose(torch.tensor([[1, 1, 2]]))
    with pytest.raises(DataError, match=r"layout.length=3 items, these rows 2"):
        layout.compose(torch.tensor([[1, 2]]))


def test_samples_hold_only_items_of_the_pool_each_once_and_are_scored_as_they_were_drawn(policy, titles):
    layout, prompts = make(titles, 3), make_prompts(policy, 6)
    pool = torch.tensor([[0, 1, 4, -1], [2, 3, 5, 0], [1, 2, 3, 4], [5, 4, 3, 2], [0, 1, 2, -1]])
    prompts = replace(prompts, pool=pool)
    noise = torch.rand(5, 8, layout.length, generator=torch.Generator().manual_seed(0))
    drawn = write(policy, layout, prompts, 8, noise=noise)
    for row, items in enumerate(drawn.items.tolist()):
        assert len(set(items)) == 3
        assert set(items) <= set(pool[row // 8].tolist()) - {-1}
    found = score(policy, layout, prompts, drawn)
    assert_same(found.logps, drawn.logps, 1e-4)
    assert_same(found.entropy, drawn.entropy, 1e-4)
    assert not drawn.chosen[drawn.step_ids < 0].any()
    assert (drawn.logps[~drawn.chosen] == 0).all()
    again = write(policy, layout, prompts.rows(slice(2, 4)), 8, noise=noise[2:4])
    assert_same(again.items, drawn.items[16:32])


@torch.no_grad()
def enumerated(policy: Policy, layout: TextSlate, prompts: Requests) -> dict[tuple[int, ...], Tensor]:
    """Log-probability [P] of every slate."""
    items = torch.tensor(list(permutations(range(6), layout.items)))
    tokens = layout.compose(items.repeat(len(prompts), 1))
    logps = score(policy, layout, prompts, as_completions(layout, tokens, len(items)), RANKING).logps
    return {tuple(row): logps.sum(1).view(len(prompts), -1)[:, number] for number, row in enumerate(items.tolist())}


def test_probabilities_of_all_slates_sum_to_one_and_wide_beams_find_the_likeliest(policy, titles):
    layout, prompts = make(titles), make_prompts(policy, 6)
    every = enumerated(policy, layout, prompts)
    assert_same(torch.stack(list(every.values())).exp().sum(0), torch.ones(5), 1e-4)
    ranking, beams = search(policy, layout, prompts, 2, beams=60)
    slates = list(every)
    best = torch.stack(list(every.values())).max(0)
    for row in range(5):
        assert ranking.items[row].tolist() == list(slates[best.indices[row]])
    assert_same(ranking.scores[:, 0], best.values, 1e-4)
    ended = beams.items.view(5, -1, 2)
    for row in range(5):
        listed = [tuple(items) for items in ended[row].tolist() if items[0] >= 0]
        assert len(set(listed)) == len(listed) == 30
    sums = beams.logps.sum(1).view(5, -1)[:, :30]
    wanted = torch.stack(list(every.values())).sort(0, descending=True).values.T
    assert_same(sums, wanted, 1e-4)


def test_line_by_line_each_place_has_the_best_item_behind_those_before(policy, titles):
    layout, prompts = make(titles, 3), make_prompts(policy, 6)
    every = enumerated(policy, layout, prompts)
    for filters in ({}, {"deny": torch.tensor([[0], [1], [2], [3], [4]])}):
        ranking, _ = search(policy, layout, replace(prompts, **filters), 3, beams=20, settle=True)
        for row in range(5):
            denied = filters["deny"][row].tolist() if filters else []
            chosen: tuple[int, ...] = ()
            for _ in range(3):
                left = [item for item in range(6) if item not in (*chosen, *denied)]
                mass = {
                    item: torch.stack(
                        [v[row] for k, v in every.items() if k[: len(chosen) + 1] == (*chosen, item)]
                    ).logsumexp(0)
                    for item in left
                }
                chosen = (*chosen, max(mass, key=lambda item: float(mass[item])))
            assert tuple(ranking.items[row].tolist()) == chosen
            if not filters:
                assert_same(ranking.scores[row, 0], every[chosen][row], 1e-4)


def test_free_lines_are_read_deterministically(titles):
    texts = [
        ["red apple", "blue plum jam", "green pear"],
        ["red tart", "green pear", "red apple pie"],
        ["sweet cherry", "sweet cherry", "green pear"],
    ]
    layout = make(titles, 3, constrain=False, tokens=6)
    tokens = padded(layout, texts)
    states = layout.replay(tokens)
    assert not (states.site == BROKEN).any()
    kept = layout.read(tokens, states)
    assert_same(kept.items, [[0, 3, 2], [-1, 2, 1], [5, -1, 2]])
    assert kept.step_ids.max() == 2
    out = make(titles, 3, constrain=False, tokens=6, invalid="discard").read(tokens, states)
    assert_same(out.items, [[0, 3, 2], [2, 1, -1], [5, 2, -1]])
    assert (out.step_ids[1] == -1).sum() > (kept.step_ids[1] == -1).sum()
    assert_same(out.step_ids[2][kept.step_ids[2] == 2].unique(), [1])
    assert_same(out.item_ids, out.step_ids)


def test_free_lines_recommend_nothing_beside_the_filter(titles):
    layout = make(titles, 3, constrain=False, tokens=6)
    tokens, nothing = padded(layout, [["red apple", "green pear", "blue plum"]]), torch.empty(1, 0, dtype=torch.int64)
    states, asked = layout.replay(tokens), Requests(nothing, nothing.bool(), nothing)
    last = layout.advance(states.each(lambda value: value[:, -1]), tokens[:, -1])
    for filters, wanted in (
        ({}, [0, 2, 4]),
        ({"deny": torch.tensor([[0]])}, [2, 4, -1]),
        ({"pool": torch.tensor([[4, 5, 0]])}, [0, 4, -1]),
    ):
        items, scores = layout.rank(last, torch.zeros(1, 1), 3, replace(asked, **filters))
        assert items[0].tolist() == wanted
        assert scores.isfinite().equal(items >= 0)
    some = layout.only(torch.tensor([True, True, False, True, True, True]))
    assert some.rank(last, torch.zeros(1, 1), 3)[0][0].tolist() == [0, 4, -1]


def test_free_lines_end_within_their_budget_and_hold_a_word_at_least(policy, titles):
    layout, prompts = make(titles, 2, constrain=False, tokens=3), make_prompts(policy, 6)
    noise = torch.rand(5, 6, layout.length, generator=torch.Generator().manual_seed(1))
    drawn = write(policy, layout, prompts, 6, noise=noise)
    for row in range(len(drawn.tokens)):
        for place in range(2):
            line = drawn.tokens[row][drawn.step_ids[row] == place].tolist()
            assert 2 <= len(line) <= 4
            assert line[-1] == titles.end
            assert titles.end not in line[:-1]
            assert max(line) < policy.first_ids[0]
    assert_same(score(policy, layout, prompts, drawn).logps, drawn.logps, 1e-4)
    ranking, _ = search(policy, layout, prompts, 2, beams=4, settle=True)
    assert ranking.items.shape == (5, 2)


def test_a_completion_that_breaks_off_names_nothing(titles):
    layout = make(titles)
    tokens = layout.compose(torch.tensor([[0, 1], [0, 1]]))
    tokens[1, 1] = titles.end if int(tokens[1, 1]) != titles.end else 5
    states = layout.replay(tokens)
    assert (states.site[1] == BROKEN).any()
    assert_same(layout.read(tokens, states).items, [[0, 1], [-1, -1]])
    short = tokens[:1, :-1]
    assert_same(layout.read(short, layout.replay(short)).items, [[-1, -1]])


def test_lines_are_those_of_the_slate_without_its_padding(titles):
    layout = make(titles)
    tokens = layout.compose(torch.tensor([[1, 3], [0, 2]]))
    assert [lines(layout, row) for row in tokens] == [["red apple pie", "blue plum jam"], ["red apple", "green pear"]]


def test_an_item_that_was_named_is_broken_the_second_time(titles):
    layout = make(titles)
    once = layout.compose(torch.tensor([[0, 1]]))[0]
    first = once[: int(titles.lengths[0])]
    tokens = torch.cat([first, first])[None]
    state = layout.start(1)
    for token in tokens[0]:
        state = layout.advance(state, token[None])
    assert int(state.site) == BROKEN
    state = layout.start(1)
    for token in once:
        state = layout.advance(state, token[None])
    assert int(state.site) == ENDED


def test_what_cannot_be_written_is_refused(policy, titles):
    with pytest.raises(ConfigError, match=r"layout.length=7 different items is longer than the 6 items"):
        make(titles, 7)
    with pytest.raises(
        DataError, match=r"layout.length=2 .* the 1 items that the filter leaves. Allow 2 items or more"
    ):
        make(titles).only(torch.arange(6) == 3)
    pool = torch.tensor([[0, 1], [0, -1]])
    prompts = replace(make_prompts(policy, 6).rows(slice(0, 2)), pool=pool)
    with pytest.raises(DataError, match="request 1 of the batch has 1 items left, and 2 are to be named"):
        write(policy, make(titles), prompts, 2)
    none = torch.zeros(1, dtype=torch.int64)
    masses = Masses(titles.sids.trie, torch.zeros(3, 6, dtype=torch.int64), torch.zeros(1, 6), none)
    with pytest.raises(UnsupportedError, match="names items by words"):
        masses.behind(titles.legal(0, none, none), none)
    alone = make(titles).plain
    with pytest.raises(UnsupportedError, match="fixed places"):
        alone.pause()


def test_the_layout_alone_is_that_of_the_sids_and_filters_reach_both(titles):
    keep = torch.tensor([True, False, True, True, False, True])
    layout = make(titles).only(keep)
    assert layout.completions == perm(4, 2)
    assert isinstance(layout.plain, SidLayout)
    assert layout.plain.completions == 4
    found = {tuple(lines(layout, torch.tensor(tokens))) for tokens in every_completion(layout)}
    assert found == set(permutations([titles.names.texts[row] for row in (0, 2, 3, 5)], 2))
