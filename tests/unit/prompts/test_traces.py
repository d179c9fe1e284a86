from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.policy.load import sid_token
from genrl.prompts.traces import Trace, leaks, read_traces, split_text, trace_positions
from genrl.sid.table import make_table
from tests.helpers import write_lines
from tests.unit.recommenders.problems import dataset_of

TITLES = ["OPI Nail Lacquer, Red", "It", "Soap", "The Very Best of Rose Water, 4 oz", "", "Moroccanoil"]
TITLES += [f"Soap {number}" for number in range(12)]
IDS = ["B00X7", "12", "red", "134567", "i4", "x", *(f"s{number}" for number in range(12))]


ROWS = torch.arange(len(IDS))
ACTIONS = dataset_of([[0, 1, 2, 1, 3, 4, 5], [0, 1, 1]], ["htttrve", "tte"], size=len(IDS))
CATALOG = Catalog.from_table(IDS, TITLES)
DATASET = Dataset(CATALOG, replace(ACTIONS.sequences, user_ids=("ann", "7")), "shop")
EVERY_ITEM = Dataset(CATALOG, dataset_of([ROWS.tolist()]).sequences, "all")
"""One user with the whole catalogue, so that item i is the target at position i."""
TABLE = make_table(torch.stack([ROWS // 6, ROWS % 6], 1), (3, 6), DATASET.catalog)


def test_a_line_names_the_latest_training_position_of_a_user_and_an_item(tmp_path):
    path = write_lines(
        tmp_path / "traces.jsonl",
        {"user": "ann", "item": "12", "blocks": ["liked\n soap", ""], "model": "a teacher"},
        "",
        {"user": 7, "item": 12, "text": "Reads. Writes! Thinks?"},
    )
    assert trace_positions(DATASET).tolist() == [2, 3, 7, 8]
    assert read_traces(path, DATASET, 2) == [Trace(3, ("liked soap", "")), Trace(8, ("Reads. Writes!", "Thinks?"))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'user': 1}", "not JSON .*, column 2"),
        ("[1]", "a list, not an object"),
        ({"item": "12", "text": ""}, "'user' is None, not an id"),
        ({"user": "ann", "item": 1.5, "text": ""}, "'item' is 1.5, not an id"),
        ({"user": "ann", "item": "12"}, "neither 'blocks' nor 'text'"),
        ({"user": "ann", "item": "12", "text": "", "blocks": ["", ""]}, "both 'blocks' and 'text'"),
        ({"user": "ann", "item": "12", "blocks": "ab"}, "must be a list of texts"),
        ({"user": "ann", "item": "12", "text": ["ab"]}, "'text' a text"),
        ({"user": "ann", "item": "12", "blocks": ["a"]}, "1 blocks, but the SID table has 2 levels. Give 2 blocks"),
        ({"user": "ann", "item": "12", "blocks": ["a", "b </think>"]}, "holds '</think>', which the layout writes"),
        ({"user": "anna", "item": "12", "text": "a"}, "user 'anna' is not in the data .* Did you mean 'ann'"),
        ({"user": "ann", "item": "B00X8", "text": "a"}, "item 'B00X8' is not in the catalogue .* Did you mean 'B00X7'"),
        ({"user": "ann", "item": "134567", "text": "a"}, "is held out .part rl.: a trace for it would leak"),
        ({"user": "ann", "item": "x", "text": "a"}, "is held out .part test."),
        ({"user": "ann", "item": "B00X7", "text": "a"}, "is only shown as history, never a target"),
        ({"user": "7", "item": "red", "text": "a"}, "item 'red' of user '7' is not in the user's history"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_place(tmp_path, line, message):
    path = write_lines(tmp_path / "traces.jsonl", {"user": "ann", "item": "12", "text": "fine"}, line)
    with pytest.raises(DataError, match=f"traces.jsonl:2: .*{message}"):
        read_traces(path, DATASET, 2)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: no such file, given by activate.path"):
        read_traces(tmp_path / "none.jsonl", DATASET, 2)
    with pytest.raises(DataError, match=r"traces.jsonl: no traces. Write one per line"):
        read_traces(write_lines(tmp_path / "traces.jsonl", ""), DATASET, 2)
    (tmp_path / "traces.jsonl").write_bytes(b'{"user": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_traces(tmp_path / "traces.jsonl", DATASET, 2)


@pytest.mark.parametrize("sentences", [0, 1, 5, 8])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_sentences_are_shared_out_equally_and_in_order(sentences, blocks):
    text = " ".join(f"Sentence {number}." for number in range(sentences))
    parts = split_text(text, blocks)
    counts = [part.count(".") for part in parts]
    assert len(parts) == blocks
    assert " ".join(filter(None, parts)) == text
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_sentences_end_at_marks_and_line_breaks_but_not_inside_numbers():
    assert split_text("Costs 1.5 dollars\n\nGood?! 好。坏。", 5) == ("Costs 1.5 dollars", "Good?!", "好。", "坏。", "")


@pytest.mark.parametrize(
    ("row", "blocks", "named"),
    [
        (0, ["buys opi NAIL lacquer: red!"], "title"),  # whatever its case and punctuation
        (0, ["Opi nail-lacquer (red)"], "title"),
        (0, ["An OPI nail", "lacquer red"], "title"),  # across blocks, but not in part or inside words
        (0, ["OPI nail lacquer", "is red"], None),
        (5, ["moroccanoils are oils"], None),
        (5, ["likes Moroccanoil"], "title"),
        (3, ["it is best of rose water"], "title"),  # half of a long title in a row
        (3, ["of rose water", "the very best"], None),
        (0, ["asks for b00x7."], "item id"),  # ids that are no words anywhere, others behind a name
        (0, ["asks for b00x77"], None),
        (3, ["number 134567 again"], "item id"),
        (1, ["12 of 20, for 12 dollars"], None),
        (1, ["next is item 12"], "item id"),
        (1, ["next is #12"], "item id"),
        (2, ["a red one"], None),
        (2, ["the product id: red"], "item id"),
        (8, ["then <a_1>"], "SID token"),  # on every level
        (8, ["then", "<b_2>!"], "SID token"),
        (8, ["before: <a_2><b_1>"], None),
    ],
)
def test_what_of_a_target_a_trace_names(row, blocks, named):
    report = leaks([Trace(row, tuple(blocks))], EVERY_ITEM, TABLE, sid_token)
    assert {kind for kind, places in report.found.items() if places} == ({named} if named else set())


def test_the_report_counts_and_shows_the_first_leak():
    traces = [Trace(0, ("fine", "")), Trace(0, ("B00X7 is OPI nail lacquer red", "")), Trace(4, ("<a_0>", ""))]
    report = leaks(traces, EVERY_ITEM, TABLE, sid_token)
    assert report.checked == 3
    assert report.found == {"title": (1,), "item id": (1,), "SID token": (2,)}
    assert report.leaking == (1, 2)
    assert report.line() == (
        "2 of 3 traces name their target (title: 1, item id: 1, SID token: 1; first: title of 'OPI Nail Lacquer, Red' "
        "in 'B00X7 is OPI nail lacquer red | '); 1 titles unknown or too common to look for"
    )
    common = leaks([Trace(row, ("it is soap",)) for row in (1, 2, 4)], EVERY_ITEM, TABLE, sid_token)
    assert (common.leaking, common.unchecked) == ((), 3)  # titles of one common word, and none
    assert leaks(traces[:1], EVERY_ITEM, TABLE, sid_token).line() == "0 of 1 traces name their target"
