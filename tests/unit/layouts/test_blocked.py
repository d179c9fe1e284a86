from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from genrl.batches import Requests
from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.layouts import LAYOUTS
from genrl.layouts.base import BROKEN, ENDED, Words
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.items import Items
from genrl.sid.trie import Trie
from tests.models import every_completion, make_policy, make_thinking, padded

OPEN, CLOSE, BREAK = 1, 2, 3
SPOKEN = (4, 5)
FIRST = 6
Token = tuple[int, str, int, bool]
"""Id, kind (open, word, close, break or sid), step, chosen by the policy."""


def layout_of(codes: list[list[int]], line_break: int | None = None, **options: Any) -> BlockedLayout:
    """A layout of SIDs with two words besides the marks; every level has as many codes as it needs."""
    sids = torch.tensor(codes)
    sizes = tuple(int(column.max()) + 1 for column in sids.unbind(1))
    first_ids = tuple(FIRST + sum(sizes[:level]) for level in range(len(sizes)))
    legal = torch.zeros(FIRST, dtype=torch.bool)
    legal[list(SPOKEN)] = True
    words = Words(OPEN, CLOSE, line_break, legal)
    config = BlockedLayoutConfig(**{"budget": 2, **options})
    return BlockedLayout(config, catalogue=Items(Trie.build(sids, sizes), first_ids, sids), words=words)


def thoughts(layout: BlockedLayout, step: int, left: int) -> Iterator[list[tuple[list[Token], bool]]]:
    """The blocks from `step` on with `left` words for all, each with whether it was ended by choice.

    A block of words alone failed; it is the last.
    """
    config = layout.config
    if step == layout.steps:
        yield []
        return
    least = config.minimum + (config.on_budget == "fail")
    limit = min(config.budget, left - least * (layout.steps - 1 - step))
    opening: list[Token] = [(OPEN, "open", step, False)]
    behind: list[Token] = [] if layout.words.line_break is None else [(BREAK, "break", step, False)]
    for count in range(config.minimum, limit + 1):
        for spoken in product(SPOKEN, repeat=count):
            block = [*opening, *((word, "word", step, True) for word in spoken)]
            if config.on_budget == "fail" and count == limit:
                yield [(block, False)]
                continue
            closing: Token = (CLOSE, "close", step, count < limit)
            for rest in thoughts(layout, step + 1, left - count):
                yield [([*block, closing, *behind], count < limit), *rest]


def woven(order: str, texts: list[list[Token]], codes: list[Token]) -> list[Token]:
    """One completion of blocks and the codes that were written."""
    if order == "tail":
        return [token for text in texts for token in text] + codes
    return [token for step, text in enumerate(texts) for token in [*text, *codes[step : step + 1]]]


def grammar(layout: BlockedLayout) -> Iterator[tuple[list[Token], list[bool], int]]:
    """Every completion by the words of the documentation: tokens, blocks ended by choice, item or -1."""
    config, depth = layout.config, layout.steps
    rendered = layout.catalogue.render(torch.arange(len(layout.codes))).tolist()
    total = depth * config.budget if config.total is None else config.total
    for written in thoughts(layout, 0, total):
        ended = [own for _, own in written] + [False] * (depth - len(written))
        texts = [text for text, _ in written]
        failed = texts[-1][-1][1] == "word"
        codes = 0 if failed and config.order == "tail" else len(texts) - failed
        for item, sid in enumerate(rendered):
            if failed and sid[:codes] in [other[:codes] for other in rendered[:item]]:
                continue
            spelt: list[Token] = [(token, "sid", level, True) for level, token in enumerate(sid[:codes])]
            yield woven(config.order, texts, spelt), ended, -1 if failed else item


CASES: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
    "defaults": ([[0, 0], [0, 1], [1, 0]], {}),
    "may stay silent": ([[0, 0], [0, 1], [1, 0]], {"minimum": 0}),
    "exactly two words": ([[0, 0], [1, 0]], {"minimum": 2}),
    "words of all blocks": ([[0, 0], [0, 1]], {"minimum": 0, "total": 2}),
    "the minimum of later blocks is kept": ([[0], [1]], {"budget": 3, "total": 3}),
    "little in all": ([[0, 0, 0], [0, 0, 1]], {"budget": 2, "total": 4}),
    "one block": ([[0], [1], [2]], {"budget": 3}),
}


@pytest.mark.parametrize("line_break", [None, BREAK])
@pytest.mark.parametrize("on_budget", ["close", "fail"])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
@pytest.mark.parametrize("case", CASES)
def test_the_automaton_writes_what_the_grammar_says(case, order, on_budget, line_break):
    codes, options = CASES[case]
    if on_budget == "fail" and options.get("minimum") == options.get("budget", 2):
        options = {**options, "budget": 3}
    if on_budget == "fail" and "total" in options:
        options = {**options, "total": options["total"] + len(codes[0])}
    layout = layout_of(codes, line_break, order=order, on_budget=on_budget, **options)
    wanted = {tuple(token[0] for token in tokens): (tokens, ended, item) for tokens, ended, item in grammar(layout)}
    written = every_completion(layout)
    assert set(written) == wanted.keys()

    marked = [wanted[row][0] for row in written]
    tokens = padded([list(row) for row in written], 0)
    states = layout.replay(tokens)
    reading = layout.read(tokens, states)
    items = [wanted[row][2] for row in written]
    assert reading.items[:, 0].tolist() == items
    assert reading.codes.tolist() == [[-1] * len(codes[0]) if item < 0 else codes[item] for item in items]
    assert reading.step_ids.tolist() == padded([[token[2] for token in row] for row in marked], -1).tolist()
    sids = padded([[token[1] == "sid" for token in row] for row in marked], 0).bool()
    assert (reading.item_ids == 0).equal(sids)
    assert reading.closed.tolist() == [wanted[row][1] for row in written]
    chosen = padded([[token[3] for token in row] for row in marked], 0).bool()
    kinds = torch.tensor([kind != "form" for kind in layout.kinds])
    assert (kinds[states.site.clamp(min=0)] & (states.site >= 0)).equal(chosen)


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_there_are_one_to_eight_blocks(order, levels):
    codes = torch.randint(2, (6, levels), generator=torch.Generator().manual_seed(0)).unique(dim=0).tolist()
    codes[-1] = [1] * levels  # so that every level has two codes
    layout = layout_of(codes, order=order, minimum=0, budget=1, total=levels)
    assert layout.steps == levels
    assert layout.length == levels * (1 + 1 + 1) + levels
    blocks = [[[SPOKEN[(row + step) % 2]] * ((row + step) % 2) for step in range(levels)] for row in range(len(codes))]
    tokens = layout.compose(torch.arange(len(codes))[:, None], blocks)
    reading = layout.read(tokens, layout.replay(tokens))
    assert reading.codes.tolist() == codes
    assert sorted(set(reading.step_ids.flatten().tolist()) - {-1}) == list(range(levels))
    wanted = [[len(block) == 0 for block in row] for row in blocks]
    assert reading.closed.tolist() == wanted


@pytest.mark.parametrize("on_budget", ["close", "fail"])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_what_is_composed_could_have_been_sampled(order, on_budget):
    layout = layout_of([[0, 0], [0, 1], [1, 0]], BREAK, order=order, on_budget=on_budget, minimum=1, budget=3, total=5)
    written = every_completion(layout)
    blocks = [[[4], [5, 5]], [[4, 4, 5, 5, 5], [4] * 9], [[5, 4], [4]]]
    tokens = layout.compose(torch.arange(3)[:, None], blocks)
    assert all(tuple(token for token in row if token) in written for row in tokens.tolist())
    states = layout.replay(torch.nn.functional.pad(tokens, (0, 1)))
    assert states.site[:, -1].tolist() == [ENDED] * 3
    assert layout.read(tokens, layout.replay(tokens)).items[:, 0].tolist() == [0, 1, 2]
    longest = max(layout.config.budget - (on_budget == "fail"), 0)
    assert tokens[1].tolist()[1 : 1 + longest + 1] == [*[4, 4, 5][:longest], CLOSE]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[[4], [4]], [[4]]], "trace 1 has 1 blocks, SIDs have 2 levels"),
        ([[[4], [4, 4]], [[4], []]], r"block 2 of trace 1 has 0 words, layout\.minimum is 1"),
        ([[[4], [4]], [[4], [OPEN]]], "trace 1 holds a token that no block may hold"),
        ([[[-1], [4]], [[4], [4]]], "trace 0 holds a token that no block may hold"),
    ],
)
def test_a_trace_that_does_not_fit_is_named(blocks, message):
    with pytest.raises(DataError, match=message):
        layout_of([[0, 0], [0, 1]]).compose(torch.arange(2)[:, None], blocks)


def test_broken_completions_have_no_item():
    layout = layout_of([[0, 0], [0, 1], [1, 0]], BREAK, budget=3)
    whole = layout.compose(torch.tensor([[1]]), [[[4], [5]]])[0].tolist()
    codes = {level: first for level, first in enumerate(layout.tokens.first_ids)}
    broken = {
        "nothing": [0] * len(whole),
        "ends early": [*whole[:-1], 0],
        "no opening": [4, *whole[1:]],
        "no line break": [*whole[:3], *whole[4:], 0],
        "a mark inside": [OPEN, OPEN, *whole[2:]],
        "closed at once": [OPEN, CLOSE, *whole[3:], 0],
        "too many words": [OPEN, 4, 4, 4, 4, 4, 4, 4],
        "no such item": [*whole[:-2], codes[0] + 1, codes[1] + 1],
        "token of another level": [*whole[:-1], codes[0]],
        "a negative token": [-1, *whole[1:]],
        "a token beyond all": [10**6, *whole[1:]],
    }
    tokens = padded([whole, *broken.values()], 0)
    reading = layout.read(tokens, layout.replay(tokens))
    assert reading.items.tolist() == [[1], *[[-1]] * len(broken)]
    assert reading.codes[1:].tolist() == [[-1, -1]] * len(broken)
    assert BROKEN in layout.replay(tokens[1:]).site


def test_filters_change_the_codes_alone():
    layout = layout_of([[0, 0], [0, 1], [1, 0], [1, 1]])
    kept = layout.only(torch.tensor([True, False, False, True]))
    written = every_completion(kept)
    assert {row[:-2] for row in written} == {row[:-2] for row in every_completion(layout)}
    tokens = padded([list(row) for row in written], 0)
    assert set(kept.read(tokens, kept.replay(tokens)).items[:, 0].tolist()) == {0, 3}
    assert kept.completions == 2

    nothing = torch.empty(2, 0, dtype=torch.int64)
    asked = Requests(nothing, nothing.bool(), nothing, pool=torch.tensor([[0, 1], [2, -1]]))
    written = layout.compose(torch.tensor([[0], [0]]), [[[4], [4]]] * 2)
    state = replace(layout.replay(written).each(lambda value: value[:, -2]), owner=torch.arange(2))
    assert layout.legal(0, state, asked).mask.tolist() == [[True, False], [False, True]]
    assert layout.legal(0, state.rows(torch.tensor([1])), asked).mask.tolist() == [[False, True]]
    assert layout.legal(layout.word, state, asked).mask.tolist() == [[c in (*SPOKEN, CLOSE) for c in range(6)]]


def test_it_says_what_it_is():
    layout = layout_of([[0, 0], [0, 1], [0, 1]])
    assert layout.writes_text
    assert not layout.plain.writes_text
    assert layout.plain.compose(torch.tensor([[1]])).tolist() == [[FIRST, FIRST + 1 + 1]]
    assert (layout.completions, layout.widest, layout.steps) == (2, FIRST, 2)
    assert layout.codes.tolist() == [[0, 0], [0, 1], [0, 1]]
    with pytest.raises(UnsupportedError, match="layout blocked has no completion for an item alone"):
        layout.compose(torch.tensor([[0]]))
    nothing = layout.compose(torch.empty(0, 1, dtype=torch.int64), [])
    assert (nothing.shape[0], nothing.dtype) == (0, torch.int64)
    assert layout.to("cpu") is layout
    legal = layout.legal(layout.fixed, layout.start(2))
    assert legal.form
    assert legal.token(torch.zeros(2, 1, dtype=torch.int64)).tolist() == [[OPEN], [OPEN]]
    words = Words(OPEN, CLOSE, None, torch.zeros(FIRST, dtype=torch.bool))
    with pytest.raises(ConfigError, match="no words to think with"):
        BlockedLayout(BlockedLayoutConfig(), catalogue=layout.catalogue, words=words)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (2, {"minimum": -1}, r"layout\.minimum=-1 must be 0 or more"),
        (2, {"budget": 3, "minimum": 4}, r"layout\.budget=3 is smaller than the 4 words .*layout\.minimum=4"),
        (2, {"budget": 3, "minimum": 3, "on_budget": "fail"}, r"layout\.budget=3 is smaller than the 4 words"),
        (2, {"budget": 4, "minimum": 2, "total": 3}, r"layout\.total=3 is smaller than the 4 words that 2 blocks need"),
        (2, {"budget": 4, "minimum": 0, "total": 1}, r"layout\.total=1 is smaller than the 2 words"),
        (2, {"budget": 4, "total": 3, "on_budget": "fail"}, r"layout\.total=3 is smaller than the 4 words"),
        (9, {}, r"1 to 8 blocks, but the SID table has 9 levels\. Lower sid\.levels"),
    ],
)
def test_budgets_and_levels_that_fit_no_block_are_refused(levels, options, message):
    with pytest.raises(ConfigError, match=message):
        layout_of([[0] * levels, [1] * levels], **options)


def test_the_registry_builds_it_for_the_tokens_of_a_policy():
    policy = make_policy(thinking=True)
    layout = make_thinking(policy)
    built = LAYOUTS.build("blocked", {"budget": 6}, catalogue=layout.catalogue, words=policy.words)
    tokens = built.compose(torch.tensor([[7]]), [[[10, 11], [12], [13] * 9]])
    assert built.read(tokens, built.replay(tokens)).items.tolist() == [[7]]
    assert layout.read(tokens, layout.replay(tokens)).items.tolist() == [[7]]
