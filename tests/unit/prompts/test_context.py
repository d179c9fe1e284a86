from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.prompts.context import ContextBatches, TemplateContext
from genrl.prompts.packing import PackedBatch
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.prompts.template_traces import Template, template_traces
from genrl.sid.table import make_table
from tests.models import SIZES, make_codes, make_policy

TOY = load_dataset(DataConfig(toy=ToyConfig(users=20, items=60)))
POLICY = make_policy(thinking=True)
CODES = make_codes(len(TOY.catalog))
TABLE = make_table(CODES, SIZES, TOY.catalog)
LEVELS = TABLE.levels
SIDS = PromptTemplate(POLICY.start_id, (), TABLE.codes + torch.tensor(POLICY.first_ids), 0)
CONTEXT = TemplateContext(Template(TOY.catalog, TABLE, 8), POLICY.tokenizer, 5, LEVELS)
PLAIN = PromptMaker(TOY, SIDS, max_history=4)
MAKER = replace(PLAIN, context=CONTEXT)
POSITIONS = TOY.sequences.rows(Role.TRAIN)[:23]
CONFIG = ActivateConfig(examples_per_step=6, pack_length=80)


def written(maker: PromptMaker, histories: torch.Tensor) -> list[list[int]]:
    tokens, mask = maker.render(histories)
    assert mask.int().diff(dim=1).min() >= 0  # padding stands on the left
    assert bool((tokens[~mask] == 0).all())
    return [row[shown].tolist() for row, shown in zip(tokens, mask, strict=True)]


def words(block: str) -> list[int]:
    ids: list[int] = POLICY.tokenizer(block, add_special_tokens=False)["input_ids"]
    return [one for one in ids if one != POLICY.tokenizer.unk_token_id][:5]


def test_it_is_what_a_template_trace_would_say_if_the_latest_item_were_the_target() -> None:
    histories = TOY.sequences.histories(POSITIONS, 4)
    blocks = Template(TOY.catalog, TABLE, 8).blocks(histories[:, -1].clamp(min=0), histories)
    longer = [
        prompt[len(plain) :] for prompt, plain in zip(written(MAKER, histories), written(PLAIN, histories), strict=True)
    ]
    assert any(longer)
    for context, texts, latest in zip(longer, blocks, histories[:, -1].tolist(), strict=True):
        assert context == ([one for text in texts for one in words(text)] if latest >= 0 else [])
        assert len(context) <= CONTEXT.longest == 5 * LEVELS


def test_the_template_says_of_an_item_what_its_trace_says() -> None:
    histories = TOY.sequences.histories(POSITIONS, 4)
    traces = template_traces(TOY, TABLE, POSITIONS, 4, 8)
    targets = TOY.sequences.items[POSITIONS]
    assert Template(TOY.catalog, TABLE, 8).blocks(targets, histories) == [trace.blocks for trace in traces]


def test_it_stands_behind_the_history_and_padding_before_it() -> None:
    histories = torch.tensor([[3, 4, 5, 6], [-1, -1, -1, 7], [-1, -1, -1, -1]])
    prompts, plain = written(MAKER, histories), written(PLAIN, histories)
    assert [prompt[: len(start)] for prompt, start in zip(prompts, plain, strict=True)] == plain
    assert prompts[2] == plain[2]
    assert len(prompts[0]) > len(plain[0])


def test_the_target_does_not_change_the_prompt() -> None:
    position = POSITIONS[(TOY.sequences.histories(POSITIONS, 1) >= 0)[:, 0]][:1]
    sequences = TOY.sequences
    other = sequences.items.clone()
    other[position] = (other[position] + 7) % len(TOY.catalog)
    changed = replace(MAKER, dataset=replace(TOY, sequences=replace(sequences, items=other)))
    assert changed.at(position).tokens.tolist() == MAKER.at(position).tokens.tolist()
    assert changed.at(position).targets.items.tolist() != MAKER.at(position).targets.items.tolist()


def test_without_histories_there_are_no_prompts() -> None:
    tokens, mask = MAKER.render(torch.empty(0, 4, dtype=torch.int64))
    assert len(tokens) == len(mask) == 0


def taught(batch: PackedBatch) -> list[tuple[tuple[int, ...], int]]:
    """Tokens of each segment before its target, and the target."""
    found = []
    for (row, column), item in zip(batch.item_places.tolist(), batch.items.tolist(), strict=True):
        start = column - int(batch.positions[row, column])
        assert batch.segments[row, start : column + LEVELS].unique().numel() == 1
        assert batch.tokens[row, column : column + LEVELS].tolist() == SIDS.sid_tokens[item].tolist()
        found.append((tuple(batch.tokens[row, start:column].tolist()), item))
    return found


def test_a_pass_teaches_every_item_behind_its_prompt_once() -> None:
    prompts = MAKER.at(POSITIONS)
    wanted = [
        (tuple(tokens[mask].tolist()), int(item))
        for tokens, mask, item in zip(prompts.tokens, prompts.mask, prompts.targets.items[:, 0], strict=True)
    ]
    batches = ContextBatches(POSITIONS, MAKER, CONFIG)
    steps = [batches.step(step) for step in range(batches.steps_per_epoch)]
    assert sorted(one for step in steps for one in taught(step)) == sorted(wanted)
    assert batches.steps_per_epoch == 4
    assert all(float(step.share) == LEVELS * len(step.items) for step in steps)
    assert all(step.tokens.shape[1] <= batches.length for step in steps)
    assert taught(batches.step(batches.steps_per_epoch)) != taught(steps[0])  # another order
    assert taught(ContextBatches(POSITIONS, MAKER, CONFIG).step(2)) == taught(steps[2])


def test_ranks_share_a_step() -> None:
    whole = ContextBatches(POSITIONS, MAKER, CONFIG).step(1)
    parts = [ContextBatches(POSITIONS, MAKER, CONFIG, rank, 4).step(1) for rank in range(4)]
    assert sorted(one for part in parts for one in taught(part)) == sorted(taught(whole))
    assert all(part.share == whole.share for part in parts)


def test_segments_may_have_rows_of_their_own() -> None:
    batches = ContextBatches(POSITIONS, MAKER, CONFIG)
    batches.alone = True
    assert bool((batches.step(0).segments <= 0).all())
    assert len(batches.step(0).tokens) == len(batches.step(0).items)


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(DataError, match="every interaction is held out"):
        ContextBatches(POSITIONS[:0], MAKER, CONFIG)
