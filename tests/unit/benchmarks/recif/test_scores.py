import json

import pytest
import torch

from genrl.benchmarks.recif.maps import ItemMap
from genrl.benchmarks.recif.rows import TASKS, make_row
from genrl.benchmarks.recif.scores import probability_of_yes, score
from genrl.benchmarks.recif.sids import read_generation
from genrl.errors import DataError
from tests.helpers import assert_same
from tests.unit.benchmarks.recif.files import SAMPLE, sample, sid

A, B, C = sid(0, 0, 1), sid(0, 0, 2), sid(0, 0, 3)


def rows(*answers):
    return [make_row(str(n), [], text, {"answer_pid": ids}, "here") for n, (text, ids) in enumerate(answers)]


def test_each_metric_divides_by_all_rows_and_what_missed_is_counted():
    asked = rows((A + B, [10, 20]), (A, [10]), ("", []), (B + C, [20, 30]))
    texts = {"0": [C, C, B], "1": [], "2": [A], "3": ["no SID", B, B]}
    found = score(TASKS["ad"], asked, texts, k=(1, 3))
    assert found.metrics == {
        "pass@1": 0,
        "position1_pass@1": 0,
        "recall@1": 0,
        "pass@3": 2 / 4,
        "position1_pass@3": 1 / 4,
        "recall@3": (1 / 2 + 1 / 2) / 4,
    }
    assert found.counts == {
        "rows": 4,
        "rows_without_generation": 1,
        "generations": 7,
        "generations_fewest": 0,
        "rows_without_gold": 1,
        "generations_that_name_nothing": 1,
        "generations_repeated": 2,
    }
    text = "\n".join(found.lines())
    assert "mean over rows of |first 3 SIDs and gold| / |gold|, not min(3, |gold|)" in text
    assert "Some rows have fewer than 3 generations" in text


def test_items_are_compared_through_the_map_and_ties_are_told():
    items = ItemMap(torch.tensor([1, 2]), torch.tensor([10, 0]), tied=4)
    asked = rows((A + B, [10, 20]), (C, [0]))
    found = score(TASKS["ad"], asked, {"0": [f"I say {A}"], "1": [C, B]}, kinds=("sid", "pid"), k=(2,), items=items)
    assert {name: value for name, value in found.metrics.items() if "position" not in name} == {
        "pass@2": 1 / 2,  # a SID inside a sentence is none, as the evaluator has it
        "recall@2": 1 / 2,
        "pid_pass@2": 1 / 2,
        "pid_recall@2": 1 / 4,
    }
    assert found.counts["pid_rows_without_gold"] == 1
    assert found.counts["pid_generations_that_name_nothing"] == 2
    assert any("of 4 SIDs with several such items the first of the map is taken" in note for note in found.notes)


def test_label_prediction_leaves_rows_out_and_counts_them():
    asked = [make_row(str(n), [], text, {}, "here") for n, text in enumerate(["是", "否", "是", "否", "?", "是", "否"])]
    says = [(0.9, 0.1), (0.2, 0.2), (0.5, 0.5), (0.1, 0.9), (0.5, 0.5)]
    texts = {str(n): [json.dumps({"是": yes, "否": no})] for n, (yes, no) in enumerate(says)} | {"5": ["yes"]}
    found = score(TASKS["label_pred"], asked, texts)
    assert_same(found.metrics["auc"], (1 + 1 + 1 / 2 + 1) / 4)
    assert found.counts == {
        "rows": 7,
        "rows_scored": 4,
        "rows_yes": 2,
        "rows_without_label": 1,
        "rows_without_generation": 1,
        "rows_unreadable": 1,
        "rows_tied": 1,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "{}", '{"是": 0, "否": 0}', '{"是": "x", "否": 1}', '{"是": NaN, "否": 1}']
)
def test_probabilities_that_cannot_be_read_are_none(text):
    assert probability_of_yes([text]) is None
    assert probability_of_yes(['{"是": 1, "否": 1}', text]) is None


def test_several_generations_of_a_label_are_averaged():
    assert probability_of_yes(['{"是": 1, "否": 3}', '{"是": 3, "否": 1}', '{"是": 1, "否": 1}']) == 0.5
    assert probability_of_yes([]) is None


def test_generations_of_other_rows_or_none_at_all_are_refused():
    with pytest.raises(DataError, match="generations for row '9', which is not among the 1 test rows"):
        score(TASKS["ad"], rows((A, [])), {"9": [A]})
    with pytest.raises(DataError, match="no row has a generation"):
        score(TASKS["ad"], rows((A, [])), {"0": []})


def recorded(name):
    return [json.loads(line) for line in (SAMPLE / name).read_text(encoding="utf-8").splitlines()]


@sample
def test_the_recorded_scores_of_a_thousand_real_rows_are_found_again():
    """Recorded are the first ten generations of each row, and whether any of its 32 was gold: .017 and .158 in all."""
    lines = recorded("ad_test_1000_targets.jsonl")
    asked = rows(*(("".join(each["ground_truth_sids"]), each["ground_truth_pids"]) for each in lines))
    texts = {row.name: each["top10_sids"] for row, each in zip(asked, lines, strict=True)}
    pairs = {
        read_generation(text, whole=True): item
        for each in lines
        for text, item in zip(each["top10_sids"], each["top10_pids"], strict=True)
    }
    sids, items = torch.tensor(sorted((key, item) for key, item in pairs.items() if key is not None)).unbind(1)
    found = score(
        TASKS["ad"], asked, texts, kinds=("sid", "pid"), k=(1, 10), items=ItemMap(sids.contiguous(), items, 0)
    )
    assert round(found.metrics["pass@1"], 3) == 0.017
    assert round(found.metrics["pid_pass@1"], 3) == 0.014
    assert sum(each["passed"] for each in lines) == 158
    missed = [row for row, each in zip(asked, lines, strict=True) if not each["passed"]]
    again = score(TASKS["ad"], missed, {row.name: texts[row.name] for row in missed}, k=(10,))
    assert (again.counts["rows"], again.metrics["pass@10"]) == (842, 0)  # a hit among ten is one among 32


@sample
def test_all_generations_of_a_hundred_real_rows_hit_where_the_evaluator_says_so():
    lines = recorded("ad_test_100.jsonl")
    known = {each["sample_id"]: each["passed"] for each in recorded("ad_test_1000_targets.jsonl")}
    asked = rows(*(("".join(each["ground_truth_sids"]), each["answer_pid"]) for each in lines))
    texts = {row.name: each["onerec_1p7b_generations"] for row, each in zip(asked, lines, strict=True)}
    found = score(TASKS["ad"], asked, texts)
    assert found.counts["generations"] == 3200
    for passed in (True, False):
        some = [row for row, each in zip(asked, lines, strict=True) if known[str(each["row_index"])] == passed]
        own = score(TASKS["ad"], some, {row.name: texts[row.name] for row in some})
        assert own.metrics["pass@32"] == passed
    assert_same(found.metrics["pass@32"], sum(known[str(each["row_index"])] for each in lines) / 100)
    distinct = [(set(each["onerec_1p7b_generations"]), set(each["ground_truth_sids"])) for each in lines]
    assert_same(found.metrics["recall@32"], sum(len(said & gold) / len(gold) for said, gold in distinct) / 100)
