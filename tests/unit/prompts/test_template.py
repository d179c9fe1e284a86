from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import AlignConfig, DataConfig, ToyConfig
from genrl.prompts.packing import HistoryBatches
from genrl.prompts.template import EvaluationBatches, PromptMaker, PromptTemplate

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=60, items=60)))
SIDS = torch.stack([torch.arange(60) + 100, torch.arange(60) + 200], dim=1)
TEMPLATE = PromptTemplate(start_id=1, prefix_ids=(7, 8), sid_tokens=SIDS, pad_id=0)


def test_a_prompt_is_start_prefix_and_the_sids_of_the_history():
    tokens, mask = TEMPLATE.render(torch.tensor([[-1, -1, 3], [4, 5, 6], [-1, -1, -1]]))
    assert tokens.tolist() == [
        [0, 0, 0, 0, 1, 7, 8, 103, 203],
        [1, 7, 8, 104, 204, 105, 205, 106, 206],
        [0, 0, 0, 0, 0, 0, 1, 7, 8],
    ]
    assert mask.tolist() == (tokens != 0).tolist()
    assert TEMPLATE.render(torch.tensor([[-1, -1, 3]]))[0].tolist() == [[1, 7, 8, 103, 203]]  # the longest decides


def test_prompts_show_the_latest_items_and_carry_the_whole_history_and_the_target_with_its_feedback():
    feedback = {"watched": torch.arange(len(TOY.sequences)).float()}
    told = replace(TOY, sequences=replace(TOY.sequences, feedback=feedback))
    positions = TOY.sequences.rows(Role.TEST)[:5]
    batch = PromptMaker(told, TEMPLATE, max_history=3).at(positions)
    for row, position in enumerate(positions.tolist()):
        user = int(TOY.sequences.users(torch.tensor([position])))
        seen = TOY.sequences.items[int(TOY.sequences.offsets[user]) : position].tolist()
        shown = batch.tokens[row][batch.mask[row]].tolist()
        assert shown == [1, 7, 8, *SIDS[seen[-3:]].flatten().tolist()]
        assert [item for item in batch.history[row].tolist() if item >= 0] == seen
        assert batch.targets.items[row].tolist() == [int(TOY.sequences.items[position])]
    assert batch.targets.feedback["watched"].tolist() == positions.float()[:, None].tolist()
    assert not PromptMaker(TOY, TEMPLATE, max_history=3).at(positions).targets.feedback


def test_every_row_is_evaluated_once_whatever_the_number_of_ranks():
    maker = PromptMaker(TOY, TEMPLATE, max_history=3)
    positions = TOY.sequences.rows(Role.VALID)
    for world in (1, 2, 3):
        parts = [EvaluationBatches(maker, positions, 16, rank, world) for rank in range(world)]
        rows = torch.cat([rows for part in parts for rows in part.rows])
        assert sorted(rows.tolist()) == list(range(positions.numel()))
        assert sum(len(prompts) for part in parts for prompts in part) == positions.numel()


class Spaced(PromptTemplate):
    """A template of a user's own: a separator before every item."""

    def write(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = torch.cat([torch.full((len(items), 1), 9), self.sid_tokens[items]], dim=1).flatten()
        return torch.cat([self.head, parts]), len(self.head) + 1 + torch.arange(len(items)) * (1 + self.levels)

    def longest(self, items: int) -> int:
        return len(self.head) + items * (1 + self.levels)


@pytest.mark.parametrize("kind", [PromptTemplate, Spaced])
def test_prompts_and_packed_histories_follow_the_template_whatever_it_writes(kind):
    template = kind(1, (7, 8), SIDS, 0)
    items = torch.tensor([3, 4, 5])
    text, starts = template.write(items)
    assert [text[start : start + 2].tolist() for start in starts.tolist()] == SIDS[items].tolist()
    assert len(text) == template.longest(3)
    tokens, mask = template.render(torch.tensor([[-1, 3], [3, 4]]))
    assert tokens[mask].tolist() == [*template.write(items[:1])[0].tolist(), *template.write(items[:2])[0].tolist()]
    batches = HistoryBatches(TOY, template, AlignConfig(items_per_step=30), max_history=50)
    batch = batches.step(0)
    assert batch.tokens.shape[1] <= batches.length
    for (row, column), item in zip(batch.item_places.tolist(), batch.items.tolist(), strict=True):
        assert batch.tokens[row, column : column + 2].tolist() == SIDS[item].tolist()
        assert kind is PromptTemplate or batch.tokens[row, column - 1] == 9
