from __future__ import annotations

from typing import Any

from genrl.training.comparison_table import markdown


def line(**further: Any) -> dict[str, Any]:
    return {"metrics": {"ndcg@10": 0.25, "recall@10": 0.5, "cold_recall@10": None}, "seeds": [], **further}


def report(**further: Any) -> dict[str, Any]:
    difference = {"effect": 0.01, "low": -0.02, "high": 0.04, "relative": 0.04, "p_holm": 0.0001, "warnings": ["Few."]}
    lines = {
        "item_knn": line(),
        "align": line(),
        "grpo": line(seeds=[0, 1], interval=[0.2, 0.3], difference=difference),
        "sapo": line(seeds=[0], interval=[None, None], difference={**difference, "relative": None, "p_holm": 0.5}),
    }
    return {
        "experiment": "toy",
        "baseline": "align",
        "unfinished": [],
        "choices": {},
        "tables": {"test": {"raw": {"k": 10, "users": 6, "lines": lines}}},
        "cost": {"align": {"seconds": 12.34, "peak_mib": 99.6}},
        "data": {"name": "toy", "fingerprint": "f00d"},
        "sid": {"codes": [8, 8], "fingerprint": "cafe"},
        "align": "align-1",
        "versions": {"python": "3"},
        "commands": {"grpo-s0": "python -m genrl fit"},
        **further,
    }


def cells(text: str, name: str) -> list[str]:
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {name} |") and "**" not in row][:1]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_row_shows_mean_interval_and_difference() -> None:
    text = markdown(report())
    assert "## test, raw (6 users)" in text
    assert "| | seeds | N@10 | N@10 minus align | relative | p | R@10 | Cold@10 |" in text.replace("|  |", "| |")
    assert cells(text, "grpo") == [
        *("grpo", "2", "0.2500 [0.2000, 0.3000]", "+0.0100 [-0.0200, +0.0400]", "+4.0%", "<.001", "0.5000", "-"),
    ]
    assert cells(text, "sapo")[2:6] == ["0.2500", "+0.0100 [-0.0200, +0.0400]", "-", "0.500"]
    assert cells(text, "item-kNN") == ["item-kNN", "", "0.2500", "", "", "", "0.5000", "-"]
    assert "- grpo: Few." in text


def test_costs_and_origin_are_shown() -> None:
    text = markdown(report())
    assert cells(text, "align")[0] == "align"
    assert "| align | 12.3 | 100 |" in text
    for part in ("f00d", "cafe", "align-1", "8 x 8", "python 3", "python -m genrl fit"):
        assert part in text


def test_choices_are_shown_with_their_validation_scores() -> None:
    points = [{"run": "a", "point": {"lr": "1e-5"}, "score": None}, {"run": "b", "point": {"lr": "1e-3"}, "score": 0.5}]
    choice = {"metric": "valid raw ndcg@10", "points": points, "chosen": {"lr": "1e-3"}}
    text = markdown(report(choices={"grpo": choice}))
    assert "| grpo | lr 1e-5 | not finished |  |" in text
    assert "| grpo | lr 1e-3 | 0.5000 | chosen |" in text
    assert "Chosen on validation" not in markdown(report())
