from __future__ import annotations

from typing import Any

from genrl.compare.table import markdown


def line(**further: Any) -> dict[str, Any]:
    return {"metrics": {"ndcg@10": 0.25, "recall@10": 0.5, "cold_recall@10": None}, "seeds": [], **further}


def report(cold_rows: int | None = None, cold: dict[str, Any] | None = None, **further: Any) -> dict[str, Any]:
    cold = cold or {}
    difference: dict[str, Any] = {
        "effect": 0.01,
        "low": -0.02,
        "high": 0.04,
        "relative": 0.04,
        "p_holm": 0.0001,
        "warnings": ["Few."],
    }
    difference["rows"] = 6
    others = {"recall@10": {**difference, "effect": 0.5, "warnings": ["Few.", "Noisy."]}}
    lines = {
        "item_knn": line(),
        "align": line(),
        "grpo": line(seeds=[0, 1], interval=[0.2, 0.3], differences={"ndcg@10": difference, **others, **cold}),
        "sapo": line(
            seeds=[0],
            interval=[None, None],
            differences={"ndcg@10": {**difference, "relative": None, "p_holm": 0.5}, **others, **cold},
        ),
    }
    return {
        "experiment": "toy",
        "baseline": "align",
        "unfinished": [],
        "notes": [],
        "choices": {},
        "tables": {"test": {"raw": {"k": 10, "users": 6, "cold_rows": cold_rows, "lines": lines}}},
        "cost": {"align": {"seconds": 12.34, "peak_mib": 99.6}, "grpo": {"seconds": 20.0, "peak_mib": 200.0}},
        "data": {"name": "toy", "fingerprint": "f00d"},
        "sid": {"codes": [8, 8], "fingerprint": "cafe"},
        "shared": {"align": "align-1"},
        "versions": {"python": "3"},
        "rows": {
            "grpo": {
                "kind": "objective",
                "title": "Group Relative",
                "name": "grpo",
                "paper": "1234.5",
                "spent": {"tokens": 12345},
            },
            "sapo": {"kind": "objective", "title": "", "name": "sapo", "paper": ""},
        },
        "commands": {"grpo-s0": "python -m genrl fit"},
        **further,
    }


def cells(text: str, name: str) -> list[str]:
    return all_cells(text, name)[0]


def all_cells(text: str, name: str) -> list[list[str]]:
    rows = [row for row in text.splitlines() if row.startswith(f"| {name} |")]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]


def test_a_row_shows_mean_interval_and_difference() -> None:
    text = markdown(report())
    assert "## test, raw (6 users)" in text
    assert "| | seeds | N@10 | N@10 minus align | relative | p | R@10 | Cold@10 |" in text.replace("|  |", "| |")
    assert cells(text, "grpo") == [
        *("grpo", "2", "0.2500 [0.2000, 0.3000]", "+0.0100 [-0.0200, +0.0400]", "+4.0%", "<.001", "0.5000", "-"),
    ]
    assert cells(text, "sapo")[2:6] == ["0.2500", "+0.0100 [-0.0200, +0.0400]", "-", "0.500"]
    assert cells(text, "item-kNN") == ["item-kNN", "", "0.2500", "", "", "", "0.5000", "-"]
    assert "- grpo, sapo, N@10: Few." in text


def test_recall_and_cold_recall_have_a_table_of_their_own() -> None:
    cold = {
        "cold_recall@10": {"effect": -0.25, "low": -0.5, "high": 0.0, "relative": -0.5, "p_holm": 0.25, "warnings": []}
    }
    text = markdown(report(cold_rows=3, cold=cold))
    head = "### test, raw: recall and cold recall against align\n\nOf 6 users, 3 have a cold target.\n\n"
    assert f"{head}|  | R@10 minus align | relative | p | Cold@10 minus align | relative | p |" in text
    assert all_cells(text, "grpo")[1] == [
        *("grpo", "+0.5000 [-0.0200, +0.0400]", "+4.0%", "<.001", "-0.2500 [-0.5000, +0.0000]", "-50.0%", "0.250")
    ]
    assert len(all_cells(text, "item-kNN")) == 1  # it has no difference
    assert "- grpo, sapo, R@10: Noisy." in text
    assert "R@10: Few." not in text  # said of NDCG already


def test_a_table_without_cold_recall_says_why() -> None:
    text = markdown(report(cold_rows=1))
    assert "### test, raw: recall against align\n" in text
    assert "Of 6 users, 1 have a cold target. Too few for a difference of cold recall." in text
    assert "a cold target" not in markdown(report())  # not known: a note of the report says so


def test_what_is_left_out_is_noted_at_the_top() -> None:
    assert "# Comparison: toy\n\n**Note**: Something is missing.\n" in markdown(report(notes=["Something is missing."]))


def test_a_bar_in_a_name_does_not_begin_another_cell() -> None:
    found = report()
    lines = found["tables"]["test"]["raw"]["lines"]
    lines["a|b"] = lines.pop("grpo")
    text = markdown(found)
    assert "| a\\|b | 2 | 0.2500" in text


def test_costs_and_origin_are_shown() -> None:
    text = markdown(report())
    assert cells(text, "align")[0] == "align"
    assert "| align | 12.3 | 100 |  |" in text
    assert "| grpo | 20.0 | 200 | 12,345 |" in text
    assert "- grpo: Group Relative (1234.5)\n- sapo: sapo\n" in text
    for part in ("f00d", "cafe", "align-1", "8 x 8", "python 3", "python -m genrl fit"):
        assert part in text


def test_choices_are_shown_with_their_validation_scores() -> None:
    points = [{"run": "a", "point": {"lr": "1e-5"}, "score": None}, {"run": "b", "point": {"lr": "1e-3"}, "score": 0.5}]
    choice = {"metric": "valid raw ndcg@10", "points": points, "chosen": {"lr": "1e-3"}}
    text = markdown(report(choices={"grpo": choice}))
    assert "| grpo | lr 1e-5 | not finished |  |" in text
    assert "| grpo | lr 1e-3 | 0.5000 | chosen |" in text
    assert "Chosen on validation" not in markdown(report())


def test_baselines_alone_have_no_curves() -> None:
    rows = {"sasrec": {"kind": "baseline", "title": "SASRec", "name": "sasrec", "paper": ""}}
    assert "report.png" in markdown(report())
    assert "report.png" not in markdown(report(rows=rows))
