from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.prompts.packing import PackedBatch, TraceBatches, known
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.prompts.traces import Trace
from tests.models import SIZES, make_codes, make_policy, make_thinking

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=20, items=60)))
POLICY = make_policy(thinking=True)
CODES = make_codes(len(TOY.catalog))
TEMPLATE = PromptTemplate(POLICY.start_id, (), CODES + torch.tensor(POLICY.first_ids), 0)
MAKER = PromptMaker(TOY, TEMPLATE, max_history=5)
POSITIONS = TOY.sequences.rows(Role.TRAIN)[:23].tolist()
TEXTS = ("red apple", "green pear tart", "blue plum jam sweet cherry pie", "pie")
TRACES = [Trace(position, tuple(TEXTS[(position + step) % 4] for step in range(len(SIZES)))) for position in POSITIONS]
STATE = ("site", "node", "place", "total", "used")
CONFIG = ActivateConfig(examples_per_step=6, pack_length=60, foreign=0, plain=0)


def batches_of(config: ActivateConfig = CONFIG, **options: str) -> TraceBatches:
    return TraceBatches(TRACES, MAKER, make_thinking(POLICY, CODES, **options), POLICY.tokenizer, config)


def segments(batch: PackedBatch) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """Tokens of each trace behind its prompt, the places that are learned, from the start, and the states there."""
    found = []
    assert batch.states is not None
    learned = {place: number for number, place in enumerate(map(tuple, batch.places.tolist()))}
    for row in range(len(batch.tokens)):
        for segment in sorted(set(batch.segments[row].tolist()) - {-1}):
            columns = (batch.segments[row] == segment).nonzero()[:, 0]
            assert columns.tolist() == list(range(int(columns[0]), int(columns[-1]) + 1))
            leaves = columns * 0 if batch.leaves is None else batch.leaves[row, columns]
            for leaf in sorted(set(leaves.tolist()) - {0}) or [0]:
                seen = [
                    *columns[leaves == 0][: leaf or None].tolist(),
                    *(columns[leaves == leaf].tolist() if leaf else ()),
                ]
                assert batch.positions[row, seen].tolist() == list(range(len(seen)))
                own = [(place, learned[row, column]) for place, column in enumerate(seen) if (row, column) in learned]
                if own:
                    rows = [number for _, number in own]
                    states = zip(*(getattr(batch.states, name)[rows].tolist() for name in STATE), strict=True)
                    places = tuple(place for place, _ in own)
                    found.append((tuple(batch.tokens[row, seen].tolist()), places, tuple(states)))
    return found


@cache
def prompt_of(position: int) -> tuple[int, ...]:
    prompt = MAKER.at(torch.tensor([position]))
    return tuple(prompt.tokens[prompt.mask].tolist())


@cache
def read(text: str) -> list[int]:
    return POLICY.tokenizer(text, add_special_tokens=False)["input_ids"]


def wanted(trace: Trace, order: str, other: Trace | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt, blocks and SID of a trace, written down from the documentation; and which of them are learned.

    With another trace, whose blocks are shown instead, that is the SID alone.
    """
    words = POLICY.words
    text = list(prompt_of(trace.position))
    learned = [False] * len(text)
    sid = TEMPLATE.sid_tokens[int(TOY.sequences.items[trace.position])].tolist()
    own = other is None
    for step, block in enumerate((other or trace).blocks):
        ids = read(block)[:6]
        breaks = [] if words.line_break is None else [words.line_break]
        text += [words.opening, *ids, words.closing, *breaks]
        learned += [False, *[own] * len(ids), own and len(ids) < 6, *[False] * len(breaks)]
        if order == "interleaved":
            text.append(sid[step])
            learned.append(True)
    if order == "tail":
        text += sid
        learned += [True] * len(sid)
    return tuple(text), tuple(place for place, is_learned in enumerate(learned) if is_learned)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_every_trace_is_learned_once_per_pass_behind_its_prompt(order):
    batches = batches_of(order=order)
    steps = [batches.step(step) for step in range(batches.steps_per_epoch)]
    assert len(steps) == min(4, len(batches.groups))
    found = Counter((tokens, places) for batch in steps for tokens, places, _ in segments(batch))
    assert found == Counter(wanted(trace, order) for trace in TRACES)
    for batch in steps:
        assert len(batch.places) == (0 if batch.states is None else len(batch.states.site))
        assert int(batch.share) == len(batch.places) + len(SIZES) * len(batch.items)
        assert batch.tokens.shape[1] <= batches.length


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_the_states_are_those_the_tokens_are_drawn_from(order):
    batches = batches_of(order=order)
    layout = make_thinking(POLICY, CODES, order=order)
    for tokens, places, states in segments(batches.step(0)):
        start = min(places) - 1  # `<think>` stands before the first word
        now, seen = layout.start(1), []
        for place in range(start, len(tokens)):
            if place in places:
                seen.append(tuple(int(getattr(now, name)) for name in STATE))
                site = int(now.site)
                legal = layout.legal(site, now)
                assert bool(legal.mask[0, tokens[place] - legal.first])
            now = layout.advance(now, torch.tensor([tokens[place]]))
        assert seen == list(states)
        assert int(now.site) < 0


def test_packed_or_alone_the_same_is_learned_and_a_row_holds_the_longest_trace():
    packed, alone = batches_of(), batches_of(replace(CONFIG, pack_length=2))
    alone.alone = True
    one, two = packed.step(1), alone.step(1)
    assert len(one.tokens) < len(two.tokens) == len(two.segments)
    assert two.leaves is None
    assert sorted(segments(one)) == sorted(segments(two))
    assert max(len(wanted(trace, "tail")[0]) for trace in TRACES) <= alone.length == alone.longest


@pytest.mark.parametrize("alone", [False, True])
def test_items_are_learned_without_thinking_too_once_per_pass(alone):
    batches = batches_of(replace(CONFIG, plain=1))
    batches.alone = alone
    steps = [batches.step(step) for step in range(batches.steps_per_epoch)]
    learned = []
    for batch in steps:
        for (row, column), item in zip(batch.item_places.tolist(), batch.items.tolist(), strict=True):
            own = batch.segments[row] == batch.segments[row, column]
            text = batch.tokens[row, own & (torch.arange(len(own)) < column + len(SIZES))].tolist()
            assert text[-len(SIZES) :] == TEMPLATE.sid_tokens[item].tolist()
            learned.append((tuple(text[: -len(SIZES)]), item))
    items = TOY.sequences.items[POSITIONS].tolist()
    assert Counter(learned) == Counter(
        (prompt_of(position), item) for position, item in zip(POSITIONS, items, strict=True)
    )
    found = Counter((tokens, places) for batch in steps for tokens, places, _ in segments(batch))
    assert found == Counter(wanted(trace, "tail") for trace in TRACES)


def test_two_traces_of_one_position_stand_behind_texts_of_their_own():
    traces = [TRACES[0], Trace(POSITIONS[0], TRACES[1].blocks)]
    batches = TraceBatches(traces, MAKER, make_thinking(POLICY, CODES), POLICY.tokenizer, CONFIG)
    found = {tokens for tokens, _, _ in segments(batches.step(0))}
    assert found == {wanted(trace, "tail")[0] for trace in traces}


def test_characters_that_the_tokenizer_does_not_know_are_left_out():
    plain, odd = known(POLICY.tokenizer, ["red pie", "red\N{SNOWMAN} pie\N{SNOWMAN}"])
    assert POLICY.tokenizer.unk_token_id in POLICY.tokenizer("\N{SNOWMAN}", add_special_tokens=False)["input_ids"]
    assert odd == plain


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_of_the_thinking_of_another_trace_nothing_but_the_sid_is_learned(order):
    batches = batches_of(replace(CONFIG, foreign=0.5), order=order)
    shown: Counter[int] = Counter()
    passes = []
    own = [wanted(trace, order) for trace in TRACES]
    others = {other.blocks: other for other in TRACES}.values()
    foreign = [{wanted(trace, order, other) for other in others} for trace in TRACES]
    for epoch in range(2):
        found = []
        for step in range(4):
            batch = batches.step(4 * epoch + step)
            assert int(batch.share) == len(batch.places)
            found += [(tokens, places) for tokens, places, _ in segments(batch)]
        passes.append(sorted(found))
        left = set(found)
        for number in range(len(TRACES)):
            shown[number] += len(left & foreign[number])
            assert len(left & (foreign[number] | {own[number]})) == 1
    assert passes[0] != passes[1]
    assert 2 * len(TRACES) * 0.2 < shown.total() < 2 * len(TRACES) * 0.8
    assert {0, 1, 2} & set(shown.values()) >= {0, 1}  # drawn anew in each pass


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "no traces: every interaction is held out, or each trace names its target"),
        (("pie", "", "pie"), r"block 2 of trace 1 has 0 words, layout.minimum is 1. Lower it"),
        (("pie", "red <a_1> pie", "pie"), "trace 1 holds a token that no block may hold"),
    ],
)
def test_nothing_to_learn_and_a_trace_that_no_completion_can_hold_are_named(blocks, message):
    traces = [TRACES[0], Trace(POSITIONS[1], blocks)] if blocks else []
    with pytest.raises(DataError, match=message):
        TraceBatches(traces, MAKER, make_thinking(POLICY, CODES), POLICY.tokenizer, CONFIG)
