import pytest
import torch

from genrl.batches import Requests
from genrl.errors import DataError
from genrl.layouts import Items
from genrl.layouts.base import ENDED
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.sid.trie import Trie
from tests.models import SIZES, make_codes

FIRST = (100, 106, 111)


@pytest.fixture
def layout() -> SidLayout:
    codes = make_codes()
    return SidLayout(SidLayoutConfig(), catalogue=Items(Trie.build(codes, SIZES), FIRST, codes))


def test_walking_the_automaton_reaches_the_leaf_of_the_item_and_reading_names_it(layout):
    assert (layout.steps, layout.length, layout.items, layout.completions, layout.widest) == (3, 3, 1, 60, max(SIZES))
    assert (layout.kinds, layout.writes_text, layout.plain) == (("item",) * 3, False, layout)
    tokens = layout.compose(torch.arange(60)[:, None])
    state = layout.start(60)
    for position in range(layout.length):
        assert state.site.tolist() == [position] * 60
        legal = layout.legal(position, state)
        columns = legal.column(tokens[:, position])
        assert bool(legal.mask.gather(1, columns[:, None]).all())
        assert legal.token(columns[:, None])[:, 0].equal(tokens[:, position])
        child = legal.nodes.gather(1, columns[:, None])[:, 0]
        state = layout.advance(state, tokens[:, position], position)
        assert state.node.equal(child)  # the nodes behind the columns are those that are reached
    assert state.site.tolist() == [ENDED] * 60
    assert layout.rank(state, torch.zeros(60, 1), 1)[0][:, 0].tolist() == list(range(60))
    reading = layout.read(tokens, layout.replay(tokens))
    assert reading.items[:, 0].tolist() == list(range(60))
    assert reading.codes.tolist() == layout.codes.tolist()
    assert reading.step_ids.tolist() == [[0, 1, 2]] * 60
    assert not reading.item_ids.any()
    assert reading.closed is None
    assert layout.blocks(tokens[0]) == []


def test_a_broken_prefix_has_codes_but_no_item(layout):
    foreign = torch.tensor([[5, 106, 111], [FIRST[0], FIRST[1] + SIZES[1], FIRST[2]]])
    reading = layout.read(foreign, layout.replay(foreign))
    assert reading.items[:, 0].tolist() == [-1, -1]
    assert reading.codes.tolist() == [[-1, 0, 0], [0, -1, 0]]


def test_a_shared_filter_keeps_catalogue_rows_and_moves_with_the_layout(layout):
    keep = torch.arange(60) % 4 == 1
    kept = layout.only(keep)
    assert kept.completions == 15
    rows = torch.arange(60)[:, None]
    assert kept.compose(rows).equal(layout.compose(rows))
    state = kept.start(60)
    for position, column in enumerate(kept.compose(rows).unbind(1)):
        legal = kept.legal(position, state)
        leads = legal.mask.gather(1, legal.column(column)[:, None])[:, 0]
        assert leads[keep].all()
        state = kept.advance(state, column, position)
    assert kept.rank(state, torch.zeros(60, 1), 1)[0][:, 0].tolist() == rows[:, 0].where(keep, -1).tolist()
    assert kept.catalogue.places[~keep].tolist() == [-1] * 45
    assert kept.catalogue.stock.leaf_items[kept.catalogue.places[keep].long()].equal(keep.nonzero()[:, 0].int())
    nothing = torch.empty(2, 0, dtype=torch.int64)
    lists = {"pool": torch.tensor([[1, 5], [3, 9]]), "deny": torch.tensor([[1], [5]])}
    asked = Requests(nothing, nothing.bool(), nothing, **lists)
    state = kept.start(2)
    assert kept.to("cpu").legal(0, state, asked).mask.equal(kept.legal(0, state, asked).mask)
    with pytest.raises(DataError, match=r"shape \[59\] for 60 items"):
        layout.only(keep[:59])
    with pytest.raises(DataError, match="the filter keeps no item"):
        layout.only(torch.zeros(60, dtype=torch.bool))
