import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.sparse import csr_matrix

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError
from genrl.policy.load import sid_token
from genrl.prompts.template_traces import OWN, RANKS, SHARE, _telling_features, template_traces
from genrl.prompts.traces import leaks, words_of
from genrl.sid.table import make_table
from tests.unit.recommenders.problems import dataset_of

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=60, items=144)))
ROWS = torch.arange(144)
TABLE = make_table(torch.stack([ROWS // 12, ROWS % 12 // 3, torch.zeros_like(ROWS)], 1), (12, 4, 1), TOY.catalog)
"""Level 1 is the second-level category, level 2 part of it, level 4 tells colliding items apart."""
POSITIONS = TOY.sequences.rows(Role.TRAIN)

TITLES = ["Red Rose Soap", "Red Pine Soap", "Blue Rose Soap", "Blue Pine Soap"]
TITLES += ["Iron Pan", "Iron Pot", "Cast Lid", "Lid"]
CATEGORIES = ["Bath"] * 4 + ["Kitchen"] * 4
CODES = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])


def shop(history: list[int], **columns: list[str]) -> Dataset:
    """One user who chose these rows, the last one as a training target."""
    return dataset_of([history], size=8, train_counts=torch.arange(9, 1, -1), **columns)


def blocks(history: list[int], words: int = 8, max_history: int = 20, **columns: Any) -> tuple[str, ...]:
    dataset = shop(history, **columns)
    table = make_table(CODES, (2, 2, 2), dataset.catalog)
    (trace,) = template_traces(dataset, table, [len(history) - 1], max_history, words)
    assert trace.position == len(history) - 1
    return trace.blocks


KNOWN = {"titles": TITLES, "categories": CATEGORIES}
MIXED = ["Bath"] * 3 + ["Kitchen", "Bath"] + ["Kitchen"] * 3
SOAPS = ["Soap Bars"] * 3 + [""] + ["Kitchen"] * 4
SAME = ["Rose Soap"] * 2 + ["Pine Soap"] * 2 + ["Iron Pan"] * 4


@pytest.mark.parametrize(
    ("history", "options", "said"),
    [
        ([4, 3, 1, 0], KNOWN, ["Bath Soap: 2 of 3, last Red", "Red: 1 of 3", "favourite: new"]),
        ([4, 5, 2], KNOWN, ["Bath Soap: new", "Blue: new", "favourite: new"]),
        ([6, 4, 0], {"titles": TITLES, "categories": MIXED}, ["Soap Bath: new, 1 Bath"]),  # without the first code
        ([4, 3, 1, 0], {"titles": TITLES, "categories": SOAPS}, ["Soap Bars: 2 of 3, last Red"]),  # no "Soap" again
        ([4, 3, 1, 0], {**KNOWN, "words": 4}, ["Bath: 2 of 3"]),
        ([4, 3, 1, 0], {**KNOWN, "words": 5}, ["Bath Soap: 2 of 3"]),
        ([4, 3, 1, 0], {**KNOWN, "words": 7}, ["Bath Soap: 2 of 3"]),
        ([1, 4, 5, 0], {"titles": TITLES, "max_history": 2}, ["Soap: new"]),
        ([1, 4, 5, 0], {"titles": TITLES, "max_history": 3}, ["Soap: 1 of 3, last Red"]),
        ([3, 5, 0, 1], {}, ["favourite: 2 of 3", "favourite: 1 of 3", "usual: new"]),
        ([3, 7, 7], {}, ["usual: 1 of 2"] * 3),
        ([4, 1, 0], {"titles": ["Popular", *TITLES[1:]], "texts": TITLES}, ["1 of 2", "1 of 2", "0 of 2"]),
    ],
)
def test_blocks_say_what_each_prefix_stands_for_and_what_in_the_history_shares_it(history, options, said):
    assert list(blocks(history, **options))[: len(said)] == said


@pytest.mark.parametrize(
    ("titles", "left_out"), [(SAME, "Rose"), (["Soap", *TITLES[1:]], "Soap")], ids=["some words", "all words"]
)
def test_words_that_would_name_the_title_are_left_out(titles, left_out):
    said = " ".join(blocks([4, 3, 1, 0], titles=titles, texts=TITLES if left_out == "Soap" else titles))
    assert left_out not in said
    assert ("Soap" in said) == (left_out == "Rose")
    with pytest.raises(ConfigError, match="at least 4 words per block, not 3"):
        blocks([4, 0], words=3)


def test_a_cluster_alone_among_its_siblings_is_the_only_one():
    dataset = shop([3, 0])
    table = make_table(torch.tensor([[row, 0] for row in range(8)]), (8, 1), dataset.catalog)
    assert template_traces(dataset, table, [1], 20)[0].blocks == ("favourite: new", "only: new")


def test_ranks_are_the_first_and_thirds_of_the_siblings():
    dataset = shop([7, *range(8)])
    table = make_table(torch.arange(8)[:, None], (8,), dataset.catalog)
    said = [trace.blocks[0].split(":")[0] for trace in template_traces(dataset, table, range(1, 9), 1)]
    assert said == [RANKS[place] for place in (0, 1, 1, 2, 2, 2, 3, 3)]


def test_evidence_equals_a_plain_count():
    for trace in template_traces(TOY, TABLE, POSITIONS, 6):
        target = TABLE.codes[int(TOY.sequences.items[trace.position])].tolist()
        user = int(TOY.sequences.users(torch.tensor([trace.position])))
        start = max(int(TOY.sequences.offsets[user]), trace.position - 6)
        history = [TABLE.codes[row].tolist() for row in TOY.sequences.items[start : trace.position].tolist()]
        for level, block in enumerate(trace.blocks):
            same = sum(codes[: level + 1] == target[: level + 1] for codes in history)
            found = re.search(r"(\d+) of (\d+)", block)
            assert (int(found[1]), int(found[2])) == (same, len(history)) if found else same == 0 and "new" in block


@pytest.mark.parametrize("words", [4, 5, 6, 8, 12])
def test_no_trace_leaks_or_says_more_of_a_title_than_three_words_and_no_block_is_longer_than_allowed(words):
    traces = template_traces(TOY, TABLE, POSITIONS, 10, words)
    report = leaks(traces, TOY, TABLE, sid_token)
    assert report.checked == len(POSITIONS)
    assert not report.leaking
    assert not report.unchecked
    assert max(len(words_of(block)) for trace in traces for block in trace.blocks) <= words
    for trace in traces:
        title = set(words_of(TOY.catalog.titles[int(TOY.sequences.items[trace.position])]))
        shared = title & (set(words_of(" ".join(trace.blocks))) | OWN)
        assert len(shared) <= min(3, len(title) - 1)


def test_a_trace_depends_on_its_position_alone():
    whole = template_traces(TOY, TABLE, POSITIONS, 10)
    assert template_traces(TOY, TABLE, POSITIONS.flip(0), 10)[::-1] == whole
    assert template_traces(TOY, TABLE, POSITIONS[7:8], 10) == whole[7:8]
    assert template_traces(TOY, TABLE, POSITIONS[:0], 10) == []


def test_telling_features_are_those_of_a_plain_computation():
    generator = torch.Generator().manual_seed(0)
    above = torch.randint(0, 3, (40,), generator=generator)
    _, groups = torch.unique(above * 4 + torch.randint(0, 4, (40,), generator=generator), return_inverse=True)
    parents = torch.zeros(int(groups.max()) + 1, dtype=torch.int64).scatter_(0, groups, above)
    has = torch.rand(40, 9, generator=generator) < torch.linspace(0.1, 0.9, 9)
    for group, found in enumerate(_telling_features(csr_matrix(has.double().numpy()), groups, above, parents)):
        inside, around = has[groups == group], has[above == parents[group]]
        scores = {}
        for column in range(9):
            share, outer = float(inside[:, column].float().mean()), float(around[:, column].float().mean())
            if share > SHARE and share > outer and around[:, column].sum() >= 2:
                scores[column] = share * math.log(share / outer)
        assert sorted(found.tolist()) == sorted(scores)
        ordered = [scores[column] for column in found.tolist()]
        assert all(first >= second - 1e-6 for first, second in pairwise(ordered))
