from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.errors import DataError
from genrl.sid import trie as module
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import SIZES, make_codes

CATALOGUES = {
    "two levels": (40, (9, 8)),
    "three levels": (60, SIZES),
    "four levels": (200, (4, 5, 3, 6)),
    "one level": (30, (50,)),
    "one item": (1, (3, 300, 2)),
    "one code": (5, (1, 1)),
    "crowded leaves": (90, (2, 3)),
    "wide codebooks": (60, (300, 33_000, 2)),
    "63 bits": (50, (1 << 31, 1 << 31, 2)),
    "80 bits": (50, (1 << 20,) * 4),
    "sixteen levels, 160 bits": (80, (2,) * 4 + (1 << 13,) * 12),
    "one codebook of 40 bits": (20, (1 << 40, 3)),
}
each_catalogue = pytest.mark.parametrize("name", CATALOGUES)


def make_catalogue(name: str) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Random SIDs [I, K] that often share prefixes and sometimes all codes, their codebooks and popularities."""
    items, sizes = CATALOGUES[name]
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, size, (items,), generator=generator) for size in sizes], dim=1)
    for level in range(len(sizes)):  # half of the items take the beginning of another one's SID
        copied = torch.randint(0, items, (items // 2,), generator=generator)
        codes[: items // 2, : level + 1] = codes[copied, : level + 1]
    codes = codes[torch.randperm(items, generator=generator)]
    return codes, sizes, torch.randint(0, 4, (items,), generator=generator)


def tables(trie: Trie) -> list[list[int] | int | None]:
    """All that a trie holds, as lists."""
    found: list[list[int] | int | None] = [trie.leaf_offsets.tolist(), trie.leaf_items.tolist()]
    for level in trie.levels:
        masks = None if level.masks is None else level.masks.tolist()
        found += [level.size, level.widest, level.offsets.tolist(), level.codes.tolist(), masks]
    return found


@pytest.fixture
def codes() -> Tensor:
    return make_codes(60)


@each_catalogue
def test_legal_and_child_agree_with_a_dictionary_of_prefixes(name):
    codes, sizes, popularity = make_catalogue(name)
    trie = Trie.build(codes, sizes, popularity)
    sids = [tuple(sid) for sid in codes.tolist()]
    prefixes: list[tuple[int, ...]] = [()]
    for level, size in enumerate(sizes):
        below = sorted({sid[: level + 1] for sid in sids})
        nodes = torch.arange(len(prefixes))
        follow = [[prefix[-1] for prefix in below if prefix[:-1] == parent] for parent in prefixes]
        assert trie.levels[level].offsets.diff().tolist() == [len(some) for some in follow]
        passing = [sum(sid[:level] == prefix for sid in sids) for prefix in prefixes]
        assert trie.items_below(level, nodes).tolist() == passing
        if size <= 33_000:
            for mask in (trie.legal(level, nodes), replace(trie.levels[level], masks=None).legal(nodes)):
                assert [row.nonzero().flatten().tolist() for row in mask] == follow
                assert mask.shape == (len(prefixes), size)
        tried = sorted({code for some in follow for code in (*some, some[0] - 1, some[-1] + 1)} | {-1, size})
        found = trie.child(level, nodes[:, None].expand(-1, len(tried)), torch.tensor(tried).expand(len(prefixes), -1))
        number = {prefix: index for index, prefix in enumerate(below)}
        assert found.tolist() == [[number.get((*prefix, code), -1) for code in tried] for prefix in prefixes]
        prefixes = below
    assert trie.leaves == len(prefixes)
    shared = [[row for row, sid in enumerate(sids) if sid == leaf] for leaf in prefixes]
    ranked = [sorted(rows, key=lambda row: (-int(popularity[row]), row)) for rows in shared]
    assert trie.items(torch.arange(trie.leaves)).tolist() == [rows[0] for rows in ranked]
    assert trie.leaf_items.tolist() == [row for rows in ranked for row in rows]
    assert trie.items_below(trie.depth, torch.arange(trie.leaves)).tolist() == [len(rows) for rows in ranked]


@each_catalogue
def test_ancestors_are_the_nodes_on_the_path_and_the_tables_take_little_memory(name):
    codes, sizes, popularity = make_catalogue(name)
    trie = Trie.build(codes, sizes, popularity)
    *path, leaves = trie.ancestors(torch.arange(len(codes)).view(1, -1))
    assert torch.stack(path, dim=2)[0].tolist() == trie.path(codes[trie.leaf_items.long()]).tolist()
    assert trie.leaf_offsets[leaves[0]].le(torch.arange(len(codes))).all()
    assert trie.leaf_offsets[leaves[0] + 1].gt(torch.arange(len(codes))).all()
    nodes = torch.zeros(1, dtype=torch.int64)
    found = [trie.child(0, nodes, codes[:1, 0]), trie.items_below(0, nodes), trie.items(nodes), leaves, *path]
    found += [trie.expand(nodes[None], torch.zeros(1, 1), width=1)[0], trie.path(codes)]
    assert {table.dtype for table in found} == {torch.int64}  # whatever the tables are kept in

    held = [trie.leaf_offsets, trie.leaf_items]
    for level in trie.levels:
        held += [level.offsets, level.codes, *([] if level.masks is None else [level.masks])]
    assert trie.nbytes() == sum(table.numel() * table.element_size() for table in held)
    assert_same(trie.bytes_per_item_level, trie.nbytes() / codes.numel())
    assert trie.nbytes() <= 20 * codes.numel() + 8 * (len(sizes) + 1)


@each_catalogue
def test_chunks_build_the_same_trie_as_the_whole(name, monkeypatch):
    codes, sizes, popularity = make_catalogue(name)
    whole = tables(Trie.build(codes, sizes, popularity))
    parts = [codes[:3], codes[3:3], codes[3:]]
    assert tables(Trie.build(iter(parts), sizes, popularity)) == whole
    monkeypatch.setattr(module, "CHUNK", 7)
    assert tables(Trie.build(codes, sizes, popularity)) == whole


def test_items_that_share_a_sid_come_most_popular_first_as_many_as_are_asked_for():
    codes = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 0]])
    trie = Trie.build(codes, (2, 1), popularity=torch.tensor([1, 5, 9, 3]))
    leaves = torch.tensor([[0, 1, -1]])
    items, scores = trie.expand(leaves, torch.tensor([[-1.0, -2.0, float("-inf")]]), width=6)
    assert items.tolist() == [[2, 3, 0, 1, -1, -1]]
    assert_same(scores, [[-1.0, -1.0, -1.0, -2.0, float("-inf"), float("-inf")]])
    assert trie.expand(leaves, torch.zeros(1, 3), width=2)[0].tolist() == [[2, 3]]
    assert trie.items(torch.tensor([0])).tolist() == [2]


def test_path_lists_the_nodes_before_each_code_and_unknown_prefixes_have_none(codes):
    trie = Trie.build(codes, SIZES)
    assert trie.child(0, torch.tensor([0, 0, -1]), torch.tensor([-1, SIZES[0], 0])).tolist() == [-1, -1, -1]
    assert trie.items(torch.tensor([-1])).tolist() == [-1]
    path = trie.path(codes)
    for level in range(3):
        legal = trie.legal(level, path[:, level])
        assert bool(legal.gather(1, codes[:, level : level + 1]).all())
    absent = next(c for c in range(SIZES[2]) if [*codes[0, :2].tolist(), c] not in codes.tolist())
    with pytest.raises(DataError, match="not in the catalogue's trie"):
        trie.path(torch.tensor([[*codes[0, :2].tolist(), absent]]))


@pytest.mark.parametrize(
    ("given", "sizes", "message"),
    [
        ([], (2, 5), "no items with a SID"),
        (torch.empty(0, 2, dtype=torch.int64), (2, 5), "no items with a SID"),
        ([torch.tensor([[1, 1]]), torch.tensor([[0, 5]])], (2, 5), "level 2 has code 5, outside its codebook of 5"),
        ([torch.tensor([[1, 1]]), torch.tensor([[0, -1]])], (2, 5), "level 2 has code -1, outside its codebook of 5"),
        (torch.tensor([[1, 1, 1]]), (2, 5), "3 codes for 2 codebooks"),
        (torch.tensor([[1, 1]]), (2, 5), "popularity of 59 items for 1 SIDs"),
    ],
)
def test_what_makes_no_trie_is_refused(given, sizes, message):
    with pytest.raises(DataError, match=message):
        Trie.build(given, sizes, torch.ones(59) if "popularity" in message else None)


def test_a_long_build_counts_its_items_in_a_progress_bar(codes, monkeypatch):
    counted: list[int] = []

    @contextmanager
    def bar(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        assert (name, total, unit) == ("building the trie", 60, "items")
        yield counted.append

    monkeypatch.setattr(module, "progress_bar", bar)
    monkeypatch.setattr(module, "CHUNK", 25)
    Trie.build(codes, SIZES)
    assert counted == []
    monkeypatch.setattr(module, "SLOW", 60)
    Trie.build(codes, SIZES)
    assert counted == [25, 25, 10]


def test_tables_use_the_smallest_integers():
    sizes = (256, 257, 1 << 15, (1 << 15) + 1, (1 << 31) + 1)
    trie = Trie.build(torch.tensor([[255, 256, 32767, 32768, 1 << 31]]), sizes)
    smallest = [torch.uint8, torch.int16, torch.int16, torch.int32, torch.int64]
    assert [level.codes.dtype for level in trie.levels] == smallest
    assert [int(level.codes[0]) for level in trie.levels] == [255, 256, 32767, 32768, 1 << 31]
    assert {level.offsets.dtype for level in trie.levels} | {trie.leaf_items.dtype} == {torch.int32}


def test_masks_are_kept_only_where_they_are_small():
    generator = torch.Generator().manual_seed(0)
    trie = Trie.build(torch.randint(0, 64, (500, 3), generator=generator), (64,) * 3)
    assert [level.masks is not None for level in trie.levels] == [True, False, False]
    trie = Trie.build(torch.arange(100)[:, None] * torch.tensor([1, 0, 0]), (500, 2, 2))  # 200 bytes each from level 1
    assert [level.masks is not None for level in trie.levels] == [True, False, False]
