import json
from dataclasses import replace

from genrl.compare.record import Expense, Request
from tests.pages import line, report, table


def test_what_a_row_does_not_have_is_left_out_and_what_is_not_known_is_null():
    tree = report(tables={"test": {"raw": replace(table(), cold_rows=None)}}).to_json()
    lines = tree["tables"]["test"]["raw"]["lines"]
    assert lines["align"].keys() == {"metrics", "seeds"}
    assert lines["align"]["metrics"]["cold_recall@10"] is None
    assert lines["sapo"].keys() == {"metrics", "seeds", "by_seed", "interval", "differences", "difference"}
    assert lines["sapo"]["difference"] == lines["sapo"]["differences"]["ndcg@10"]
    assert lines["sapo"]["difference"]["warnings"] == []
    assert tree["tables"]["test"]["raw"]["cold_rows"] is None
    assert "thinking" not in tree
    assert tree["rows"]["sasrec"].keys() == {"kind", "name", "title", "paper", "options", "seeds", "runs"}
    json.dumps(tree, allow_nan=False)
    expense = Expense(25, {"align": 1000, "activate": 50, "rl": 4000}, 400, Request(61.5, 2_000_000, 2.5))
    assert report(thinking={"plain": expense}).to_json()["thinking"]["plain"]["request"]["tokens"] == 61.5
    assert expense.supervised == 1050


def test_an_interval_has_ends_if_both_are_known():
    assert line(0.5, 0).ends == (0.49, 0.51)
    assert line(0.5, 0, interval=[None, None]).ends is None
    assert line(0.5).ends is None
