from __future__ import annotations

import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import DataConfig, ToyConfig
from genrl.prompts.prompts import EvaluationBatches, PromptMaker, PromptTemplate

TOY = load_dataset(DataConfig(toy=ToyConfig(users=60, items=60)))
SIDS = torch.stack([torch.arange(60) + 100, torch.arange(60) + 200], dim=1)
TEMPLATE = PromptTemplate(start_id=1, prefix_ids=(7, 8), sid_tokens=SIDS, pad_id=0)


def test_a_prompt_is_start_prefix_and_the_sids_of_the_history() -> None:
    tokens, mask = TEMPLATE.render(torch.tensor([[-1, -1, 3], [4, 5, 6], [-1, -1, -1]]))
    assert tokens.tolist() == [
        [0, 0, 0, 0, 1, 7, 8, 103, 203],
        [1, 7, 8, 104, 204, 105, 205, 106, 206],
        [0, 0, 0, 0, 0, 0, 1, 7, 8],
    ]
    assert mask.tolist() == (tokens != 0).tolist()


def test_padding_is_cut_to_the_longest_prompt() -> None:
    tokens, _ = TEMPLATE.render(torch.tensor([[-1, -1, 3]]))
    assert tokens.tolist() == [[1, 7, 8, 103, 203]]


def test_prompts_show_the_latest_items_and_carry_the_whole_history_and_the_target() -> None:
    maker = PromptMaker(TOY, TEMPLATE, max_history=3)
    positions = TOY.sequences.rows(Role.TEST)[:5]
    batch = maker.at(positions)
    for row, position in enumerate(positions.tolist()):
        user = int(TOY.sequences.users(torch.tensor([position])))
        seen = TOY.sequences.items[int(TOY.sequences.offsets[user]) : position].tolist()
        shown = batch.tokens[row][batch.mask[row]].tolist()
        assert shown == [1, 7, 8, *SIDS[seen[-3:]].flatten().tolist()]
        assert [item for item in batch.history[row].tolist() if item >= 0] == seen
        assert batch.targets.items[row].tolist() == [int(TOY.sequences.items[position])]


def test_every_row_is_evaluated_once_whatever_the_number_of_ranks() -> None:
    maker = PromptMaker(TOY, TEMPLATE, max_history=3)
    positions = TOY.sequences.rows(Role.VALID)
    for world in (1, 2, 3):
        parts = [EvaluationBatches(maker, positions, 16, rank, world) for rank in range(world)]
        rows = torch.cat([rows for part in parts for rows in part.rows])
        assert sorted(rows.tolist()) == list(range(positions.numel()))
        assert sum(len(prompts) for part in parts for prompts in part) == positions.numel()
