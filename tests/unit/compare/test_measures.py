from __future__ import annotations

from genrl.compare.measures import MEASURES, TESTED, titled
from genrl.runs.tables import COLUMNS


def test_every_metric_of_the_tables_of_a_run_has_the_same_head_here() -> None:
    assert {name: MEASURES[name].head for name in COLUMNS} == COLUMNS


def test_differences_are_tested_in_what_each_user_has_an_outcome_of() -> None:
    assert TESTED == ["ndcg", "recall", "cold_recall"]
    assert [name for name in TESTED if MEASURES[name].cold] == ["cold_recall"]
    assert titled("ndcg@10") == "NDCG@10"
