from dataclasses import replace

import pytest
import torch
from tokenizers import pre_tokenizers

from genrl.batches import Requests
from genrl.catalog.items import Catalog
from genrl.errors import ConfigError, DataError
from genrl.layouts.items import Items, check_left
from genrl.layouts.titles import Titles, end_mark, name_items, normal
from genrl.policy.tiny import train_tokenizer
from genrl.sid.trie import Trie
from tests.helpers import assert_same

NAMES = (
    "Red",
    "Red Pen",
    "Red Pencil",
    "Blue Pen",
    "Blue Pen Refill",
    "red  pen",
    "Blue Pen",
    "Blue Pen (2)",
    "",
    "Olive Wok Pro",
)
TOKENIZER = train_tokenizer([*NAMES, "i8 (2) (3) (4) | Kitchen Office"], 300)


def make_catalog(titles=NAMES, **columns) -> Catalog:
    return Catalog.from_table([f"i{row}" for row in range(len(titles))], titles, **columns)


def make_titles(titles=NAMES, **options) -> Titles:
    names = name_items(make_catalog(titles), TOKENIZER, **options)
    codes = torch.arange(len(titles))[:, None]
    sids = Items(Trie.build(codes, (len(titles),)), (len(TOKENIZER),), codes)
    return Titles(names, sids, TOKENIZER)


@pytest.fixture(scope="module")
def titles() -> Titles:
    return make_titles()


def asking(**rows: torch.Tensor) -> Requests:
    nothing = torch.empty(len(next(iter(rows.values()))), 0, dtype=torch.int64)
    return Requests(nothing, nothing.bool(), nothing, **rows)


def every_name(titles: Titles, owner: int = 0, requests: Requests | None = None, taken=None) -> list[int]:
    """Items that can be written, by following every legal token; no set may be empty."""
    front, found = [(torch.zeros(1, dtype=torch.int64), ())], []
    while front:
        node, path = front.pop()
        if titles.whole(node):
            found.append(int(titles.item(node)))
            assert list(path) == titles.written[found[-1], : titles.lengths[found[-1]]].tolist()
            continue
        rows = None if taken is None else torch.tensor([taken])
        legal = titles.legal(0, node, torch.tensor([owner]), requests, rows)
        columns = legal.mask[0].nonzero()[:, 0]
        assert len(columns)
        for column in columns:
            token = legal.token(column[None, None])[:, 0]
            child = titles.child(0, node, token)
            assert int(child) == int(legal.nodes[0, column])
            front.append((child, (*path, int(token))))
    return sorted(found)


def test_exactly_the_names_of_the_catalogue_can_be_written(titles):
    assert every_name(titles) == list(range(len(NAMES)))
    assert titles.distinct == len(NAMES)


def test_a_name_that_another_one_begins_with_is_closed_by_the_end_mark(titles):
    tokens = titles.names.tokens[0]
    node = torch.zeros(1, dtype=torch.int64)
    for token in tokens:
        node = titles.child(0, node, torch.tensor([token]))
    assert not titles.whole(node)
    assert not titles.single(node)
    assert int(titles.item(titles.child(0, node, torch.tensor([titles.end])))) == 0
    further = titles.child(0, node, torch.tensor([titles.names.tokens[1][len(tokens)]]))
    assert int(further) >= 0


def test_equal_names_get_numbers_that_no_other_name_has(titles):
    assert titles.names.texts[:8] == (
        "Red",
        "Red Pen",
        "Red Pencil",
        "Blue Pen",
        "Blue Pen Refill",
        "red pen (2)",
        "Blue Pen (3)",
        "Blue Pen (2)",
    )
    assert titles.names.numbered == (5, 6)
    assert titles.names.untitled == 1
    assert titles.names.texts[8] == "i8"
    assert any("2 names that an earlier item has got a number" in line for line in titles.names.lines())


def test_long_names_are_cut_and_told_apart_within_the_length():
    titles = make_titles(("Olive Wok Pro", "Olive Wok Pro Red Pen", "Olive Wok Pro Red Pencil"), longest=4)
    assert titles.longest == 5
    assert titles.names.cut == 2
    assert titles.names.texts == ("Olive Wok Pro", "Olive Wok Pro Red", "Olive (2)")
    assert every_name(titles) == [0, 1, 2]
    with pytest.raises(ConfigError, match="no room for the number 2"):
        make_titles(("Olive Wok Pro", "Olive Wok Pro"), longest=1)


@pytest.mark.parametrize("drawn", range(4))
def test_pools_denied_items_and_items_named_before_leave_exactly_the_others(titles, drawn):
    generator = torch.Generator().manual_seed(drawn)
    rows = torch.randint(-1, len(NAMES), (3, 6), generator=generator)
    rows[:, 0], rows[:, 1] = torch.tensor([0, 1, 2]), 9
    deny = torch.randint(-1, 8, (3, 3), generator=generator)
    keep = torch.rand(len(NAMES), generator=generator) < 0.7
    keep[9] = True
    taken = [0, 3, -1, 0]
    kept = set(keep.nonzero()[:, 0].tolist())
    some = titles.only(keep)
    for owner in range(3):
        pool, denied = set(rows[owner].tolist()) - {-1}, set(deny[owner].tolist())
        every = set(range(len(NAMES)))
        assert every_name(titles, owner, asking(pool=rows)) == sorted(pool)
        assert every_name(titles, owner, asking(deny=deny)) == sorted(every - denied)
        assert every_name(titles, owner, asking(pool=rows, deny=deny)) == sorted(pool - denied)
        assert every_name(titles, owner, asking(pool=rows), taken) == sorted(pool - {0, 3})
        assert every_name(titles, owner, asking(deny=deny), taken) == sorted(every - denied - {0, 3})
        assert every_name(some, owner, asking(pool=rows, deny=deny), taken) == sorted((pool & kept) - denied - {0, 3})
        assert every_name(some, owner, None, taken) == sorted(kept - {0, 3})
        leaves = some.open_leaves(asking(pool=rows, deny=deny))
        assert set(some.items[leaves[owner]].tolist()) == (pool & kept) - denied
    assert_same(titles.left(asking(pool=rows)), [len(set(row.tolist()) - {-1}) for row in rows])


def test_a_filter_leaves_what_was_legal_without_it_beside_what_is(titles):
    pool = torch.tensor([[3, 9]])
    legal = titles.legal(0, torch.zeros(1, dtype=torch.int64), torch.tensor([0]), asking(pool=pool))
    whole = titles.legal(0, torch.zeros(1, dtype=torch.int64), torch.tensor([0]))
    assert_same(legal.within, whole.mask)
    assert int(legal.mask.sum()) < int(whole.mask.sum())


def test_legal_sets_are_as_wide_as_nodes_have_edges(titles):
    legal = titles.legal(0, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert legal.mask.shape[1] == titles.widest < 10
    ended = titles.child(0, titles.child(0, torch.zeros(1, dtype=torch.int64), torch.tensor([-5])), torch.tensor([3]))
    assert int(ended) == -1


def test_requests_without_enough_items_are_refused(titles):
    with pytest.raises(DataError, match="request 1 of the batch has no item left"):
        titles.legal(0, torch.zeros(1, dtype=torch.int64), torch.tensor([0]), asking(pool=torch.tensor([[1], [-1]])))
    with pytest.raises(DataError, match="request 0 of the batch has 1 items left, and 3 are to be named"):
        check_left(titles.left(asking(pool=torch.tensor([[1]]))), 3)
    with pytest.raises(DataError, match="names catalogue row 99"):
        titles.left(asking(pool=torch.tensor([[99]])))
    with pytest.raises(DataError, match="keeps no item"):
        titles.only(torch.zeros(len(NAMES), dtype=torch.bool))
    with pytest.raises(DataError, match="one bool per item"):
        titles.only(torch.ones(2, dtype=torch.bool))


def test_ranked_nodes_are_items_and_unfinished_names_are_none(titles):
    nodes = []
    for row in (4, 0):
        node = torch.zeros(1, dtype=torch.int64)
        for token in titles.written[row, : titles.lengths[row]]:
            node = titles.child(0, node, token[None])
        nodes.append(int(node))
    items, scores = titles.rank(
        torch.tensor([[nodes[0], -1, 1, nodes[1]]]), torch.tensor([[-1.0, -2.0, -3.0, -4.0]]), 3, None
    )
    assert_same(items, [[4, 0, -1]])
    assert_same(scores, torch.tensor([[-1.0, -4.0, float("-inf")]]))


def test_lines_are_read_without_case_blanks_and_list_marks(titles):
    assert [titles.parse(line) for line in ("red pen", " 2. RED  pen", "- Blue Pen (3)", "Red Pe", "")] == [
        1,
        1,
        6,
        -1,
        -1,
    ]


def test_names_show_the_columns_that_are_asked_for():
    catalog = make_catalog(("Red Pen", ""), categories=["Office", "Kitchen"], attributes={"brand": ["Blue", ""]})
    names = name_items(catalog, TOKENIZER, ("title", "brand", "category"))
    assert names.texts == ("Red Pen | Blue | Office", "Kitchen")
    with pytest.raises(ConfigError, match=r"cannot show 'colour'.*title, category, brand"):
        name_items(catalog, TOKENIZER, ("title", "colour"))
    with pytest.raises(ConfigError, match="no column"):
        name_items(catalog, TOKENIZER, ())


def test_a_tokenizer_that_cannot_write_a_title_is_refused_with_the_first_of_them():
    with pytest.raises(DataError, match=r"cannot write the names of 1 of 2 items; it reads 'i1' '紅い筆'"):
        make_titles(("Red Pen", "紅い筆"))
    with pytest.raises(DataError, match="cannot write the names of 1 of 1 items"):
        make_titles(("Red </s> Pen",))


def test_a_tokenizer_without_an_end_mark_is_refused():
    other = train_tokenizer(NAMES, 300)
    assert end_mark(other) == other.eos_token_id
    other.eos_token = None
    with pytest.raises(ConfigError, match="neither one token for a line break nor an end token"):
        end_mark(other)
    breaking = train_tokenizer(["a\n b\n", "c\n d\n"], 300)
    breaking.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert breaking.convert_ids_to_tokens(end_mark(breaking)) == "Ċ"


def test_normal_texts_are_compared_in_one_form():
    assert normal("ＲＥＤ  pen") == "red pen"


def test_names_are_the_same_however_often_they_are_made(titles):
    assert name_items(make_catalog(), TOKENIZER) == titles.names
    assert replace(titles.names) == titles.names
