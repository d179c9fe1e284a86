from __future__ import annotations

import torch

from genrl.policy.tree import ancestry_mask, branch_mask, causal_mask, left_padded, packed_mask, prompt_positions

MASK = torch.tensor([[False, True, True], [True, True, True]])


def test_positions_count_from_the_first_real_token() -> None:
    assert prompt_positions(MASK).tolist() == [[0, 0, 1], [0, 1, 2]]


def test_padding_sees_itself_only() -> None:
    assert causal_mask(MASK)[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]


def test_branches_do_not_see_each_other() -> None:
    branch, place = torch.tensor([[0, 0, 1, 1]] * 2), torch.tensor([[0, 1, 0, 1]] * 2)
    mask = branch_mask(MASK, branch, place)[0, 0]
    assert mask[3].tolist() == [False, True, True, True, False, False, False]
    assert mask[4].tolist() == [False, True, True, True, True, False, False]
    assert mask[6].tolist() == [False, True, True, False, False, True, True]
    assert not mask[:3, 3:].any()


def test_segments_of_a_packed_row_do_not_see_each_other() -> None:
    mask = packed_mask(torch.tensor([[0, 0, 1, -1]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_a_beam_sees_its_ancestors() -> None:
    ancestors = [torch.tensor([[1, 0]]), torch.tensor([[0, 1]])]
    mask = ancestry_mask(MASK[:1], ancestors, [3, 2])[0, 0]
    assert mask.tolist() == [
        [False, True, True, False, True, False, True, False],
        [False, True, True, True, False, False, False, True],
    ]


def test_padding_moves_to_the_left_and_empty_columns_go() -> None:
    tokens = torch.tensor([[7, 0, 8, 0, 0], [1, 2, 0, 3, 0]])
    moved, mask = left_padded(tokens, tokens > 0)
    assert moved.tolist() == [[0, 7, 8], [1, 2, 3]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
