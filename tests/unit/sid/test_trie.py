from __future__ import annotations

import pytest
import torch

from genrl.errors import DataError
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import SIZES, make_codes


@pytest.fixture
def codes() -> torch.Tensor:
    return make_codes(60)


def test_legal_and_child_agree_with_a_dictionary_of_prefixes(codes: torch.Tensor) -> None:
    trie = Trie.build(codes, SIZES)
    nodes = {(): 0}
    for level, size in enumerate(SIZES):
        reached = {}
        for prefix, node in nodes.items():
            follow = {sid[level] for sid in map(tuple, codes.tolist()) if sid[:level] == prefix}
            mask = trie.legal(level, torch.tensor([node]))[0]
            assert set(mask.nonzero().flatten().tolist()) == follow
            assert int(trie.children(level, torch.tensor([node]))) == len(follow)
            below = trie.child(level, torch.full((size,), node), torch.arange(size)).tolist()
            assert {code for code in range(size) if below[code] >= 0} == follow
            reached |= {(*prefix, code): below[code] for code in follow}
        nodes = reached
    assert len(nodes) == trie.leaves == len(codes)
    for sid, leaf in nodes.items():
        assert codes[trie.items(torch.tensor([leaf]))[0]].tolist() == list(sid)


def test_unknown_prefixes_have_no_child_and_no_item(codes: torch.Tensor) -> None:
    trie = Trie.build(codes, SIZES)
    assert trie.child(0, torch.tensor([0, 0, -1]), torch.tensor([-1, SIZES[0], 0])).tolist() == [-1, -1, -1]
    assert trie.items(torch.tensor([-1])).tolist() == [-1]


def test_items_that_share_a_sid_come_most_popular_first() -> None:
    codes = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 0]])
    trie = Trie.build(codes, (2, 1), popularity=torch.tensor([1, 5, 9, 3]))
    leaves = torch.tensor([[0, 1, -1]])
    items, scores = trie.expand(leaves, torch.tensor([[-1.0, -2.0, float("-inf")]]), width=6)
    assert items.tolist() == [[2, 3, 0, 1, -1, -1]]
    assert_same(scores, [[-1.0, -1.0, -1.0, -2.0, float("-inf"), float("-inf")]])
    assert trie.items(torch.tensor([0])).tolist() == [2]


def test_expand_cuts_at_the_width() -> None:
    trie = Trie.build(torch.tensor([[0], [0], [1]]), (2,))
    items, _ = trie.expand(torch.tensor([[0, 1]]), torch.zeros(1, 2), width=2)
    assert items.tolist() == [[0, 1]]


def test_path_lists_the_nodes_before_each_code(codes: torch.Tensor) -> None:
    trie = Trie.build(codes, SIZES)
    path = trie.path(codes)
    for level in range(3):
        legal = trie.legal(level, path[:, level])
        assert bool(legal.gather(1, codes[:, level : level + 1]).all())
    absent = next(c for c in range(SIZES[2]) if [*codes[0, :2].tolist(), c] not in codes.tolist())
    with pytest.raises(DataError, match="not in the catalogue's trie"):
        trie.path(torch.tensor([[*codes[0, :2].tolist(), absent]]))


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(DataError, match="no items with a SID"):
        Trie.build(torch.empty(0, 3, dtype=torch.int64), SIZES)


def test_a_code_outside_its_codebook_is_refused() -> None:
    with pytest.raises(DataError, match="level 2 has code 9"):
        Trie.build(torch.tensor([[0, 9]]), (2, 5))


def test_the_tables_take_little_memory(codes: torch.Tensor) -> None:
    assert Trie.build(codes, SIZES).nbytes() <= 24 * codes.numel() + 64 * len(SIZES)
