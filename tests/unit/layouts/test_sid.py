from __future__ import annotations

import pytest
import torch

from genrl.errors import ConfigError, DataError, UnknownComponentError
from genrl.layouts import LAYOUTS
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.sid.trie import Trie
from tests.models import SIZES, make_codes

FIRST = (100, 106, 111)


@pytest.fixture
def layout() -> SidLayout:
    codes = make_codes()
    return SidLayout(SidLayoutConfig(), trie=Trie.build(codes, SIZES), first_ids=FIRST, codes=codes)


def test_rendered_items_decode_to_themselves(layout: SidLayout) -> None:
    items = torch.arange(60)
    decoded = layout.decode(layout.render(items))
    assert decoded.items[:, 0].tolist() == items.tolist()
    assert decoded.codes.tolist() == layout.codes.tolist()


def test_walking_the_automaton_reaches_the_leaf_of_the_item(layout: SidLayout) -> None:
    tokens = layout.render(torch.arange(60))
    states = layout.start(60)
    for position in range(layout.length):
        legal = layout.legal(position, states)
        assert bool(legal.mask.gather(1, (tokens[:, position] - legal.first)[:, None]).all())
        states = layout.advance(position, states, tokens[:, position])
    assert states.tolist() == layout.decode(tokens).leaves.tolist()


def test_a_broken_prefix_has_choices_but_no_item(layout: SidLayout) -> None:
    foreign = torch.tensor([[5, 106, 111], [FIRST[0], FIRST[1] + SIZES[1], FIRST[2]]])
    decoded = layout.decode(foreign)
    assert decoded.items[:, 0].tolist() == [-1, -1]
    assert decoded.codes[0].tolist() == [-1, 0, 0]
    assert decoded.codes[1].tolist() == [0, -1, 0]


def test_every_token_is_a_step_of_its_own(layout: SidLayout) -> None:
    assert layout.step_ids(torch.zeros(2, 3, dtype=torch.int64)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert layout.num_steps == layout.length == 3
    assert layout.completions == 60
    assert layout.widest == max(SIZES)


def test_the_registry_builds_it_and_suggests_names(layout: SidLayout) -> None:
    built = LAYOUTS.build("sid", {}, trie=layout.trie, first_ids=FIRST, codes=layout.codes)
    assert isinstance(built, SidLayout)
    with pytest.raises(UnknownComponentError, match="Did you mean 'sid'"):
        LAYOUTS.entry("sidd")
    with pytest.raises(ConfigError, match="no option 'depth'"):
        LAYOUTS.build("sid", {"depth": 2}, trie=layout.trie, first_ids=FIRST, codes=layout.codes)


def test_a_shared_filter_keeps_catalogue_rows(layout: SidLayout) -> None:
    keep = torch.arange(60) % 4 == 1
    kept = layout.only(keep)
    assert kept.completions == 15
    rows = torch.arange(60)
    assert kept.render(rows).equal(layout.render(rows))
    assert kept.decode(kept.render(rows)).items[:, 0].tolist() == rows.where(keep, -1).tolist()
    with pytest.raises(DataError, match=r"shape \[59\] for 60 items"):
        layout.only(keep[:59])


def test_places_find_each_item_in_the_trie(layout: SidLayout) -> None:
    kept = layout.only(torch.arange(60) > 9)
    assert kept.places[:10].tolist() == [-1] * 10
    assert kept.trie.leaf_items[kept.places[10:].long()].tolist() == list(range(10, 60))


def test_a_layout_moves_with_its_filters(layout: SidLayout) -> None:
    filtered = layout.filtered(allow=torch.tensor([[1, 2], [3, 4]]), deny=torch.tensor([[2], [5]]))
    for moved in (filtered.to("cpu"), layout.to("cpu").filtered(allow=filtered.allow, deny=filtered.deny)):
        states = moved.start(2)
        assert moved.legal(0, states).mask.equal(filtered.legal(0, states).mask)
        assert moved.completions == 2
        assert moved.decode(layout.render(torch.tensor([5]))).items.tolist() == [[5]]
