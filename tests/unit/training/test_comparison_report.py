from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from genrl.errors import ConfigError, DataError
from genrl.metrics.comparison import holm, paired_difference
from genrl.metrics.functional import ndcg_at_k
from genrl.training.comparison_plan import Plan
from genrl.training.comparison_report import write_report
from tests.comparisons import ALIGNED, finish, plan_of
from tests.helpers import assert_same

FOUND = {"grpo-s0": (0, 1, 2, 20, 4, 20), "grpo-s1": (0, 1, 3, 9, 4, 20), "sapo-s0": (1, 5, 20, 20, 5, 20)}


def outcomes(*ranks: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([ndcg_at_k(torch.tensor(places)[:, None], 10) for places in ranks])


def report_of(plan: Plan, baseline: str = "align") -> Any:
    folder = plan.shared.folder.parent
    write_report(folder, plan, baseline)
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two rows with two seeds, of which the last run is not finished."""
    plan = plan_of(tmp_path, "grpo,sapo", seeds=(0, 1))
    for run in plan.runs[:3]:
        finish(run, FOUND[run.folder.name])
    return plan


def test_a_row_is_the_mean_over_its_seeds_and_its_paired_difference(plan: Plan) -> None:
    table = report_of(plan)["tables"]["test"]["raw"]
    assert (table["k"], table["users"]) == (10, 6)
    assert list(table["lines"]) == ["most_popular", "align", "grpo", "sapo"]
    grpo = table["lines"]["grpo"]
    ours = outcomes(FOUND["grpo-s0"], FOUND["grpo-s1"])
    assert_same(grpo["metrics"]["ndcg@10"], float(ours.mean()), 1e-6)
    assert_same(grpo["by_seed"], ours.mean(1).tolist(), 1e-6)
    assert grpo["seeds"] == [0, 1]
    wanted = paired_difference(ours, outcomes(ALIGNED))
    for name in ("effect", "low", "high", "relative", "seed_noise"):
        assert_same(grpo["difference"][name], getattr(wanted, name), 1e-7)
    sapo = paired_difference(outcomes(FOUND["sapo-s0"]), outcomes(ALIGNED))
    corrected = holm(torch.tensor([wanted.p_value, sapo.p_value], dtype=torch.float64)).tolist()
    assert_same([table["lines"][row]["difference"]["p_holm"] for row in ("grpo", "sapo")], corrected, 1e-7)
    assert grpo["metrics"]["cold_recall@10"] is None


def test_one_seed_has_no_interval_but_a_warning(plan: Plan) -> None:
    sapo = report_of(plan)["tables"]["test"]["raw"]["lines"]["sapo"]
    assert sapo["interval"] == [None, None]
    assert sapo["difference"]["seed_noise"] is None
    assert any("One training seed" in text for text in sapo["difference"]["warnings"])


def test_a_partial_report_names_what_is_missing(plan: Plan) -> None:
    assert report_of(plan)["unfinished"] == ["sapo-s1"]
    folder = plan.shared.folder.parent
    assert "**Partial**: 1 run(s) are not finished: sapo-s1." in (folder / "report.md").read_text()
    finish(plan.runs[3], FOUND["sapo-s0"])
    assert report_of(plan)["unfinished"] == []
    assert "Partial" not in (folder / "report.md").read_text()


def test_another_baseline_is_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grpo,sapo", seeds=(0, 1, 2))
    ranks = [(seed, 1, 2, 20, 4, 20) for seed in range(6)]
    for run, places in zip(plan.runs, ranks, strict=True):
        finish(run, places)
    (plan.runs[1].folder / "metrics.json").unlink()
    lines = report_of(plan, "grpo")["tables"]["valid"]["excluded"]["lines"]
    assert "difference" not in lines["grpo"]
    wanted = paired_difference(outcomes(ranks[3], ranks[5]), outcomes(ranks[0], ranks[2]))
    assert_same(lines["sapo"]["difference"]["effect"], wanted.effect, 1e-7)
    assert_same(lines["sapo"]["difference"]["low"], wanted.low, 1e-7)


def test_the_same_runs_under_two_names_differ_by_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "a=grpo,b=grpo")
    for run in plan.runs:
        finish(run, FOUND[f"grpo-s{run.config.seed}"])
    difference = report_of(plan, "a")["tables"]["test"]["raw"]["lines"]["b"]["difference"]
    assert difference["low"] <= 0 <= difference["high"]
    assert difference["p_holm"] == 1


def test_of_a_grid_only_the_chosen_point_is_in_the_tables(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grpo", seeds=(0, 1), grids=("lr=1e-5,1e-3",))
    loser, winner = plan.rows["grpo"]
    finish(loser.runs[0], (0, 0, 0, 0, 0, 0), valid=0.1)  # far better on test
    for run in winner.runs:
        finish(run, FOUND["grpo-s0"], valid=0.2)
    report = report_of(plan)
    mean = report["tables"]["test"]["raw"]["lines"]["grpo"]["metrics"]["ndcg@10"]
    assert_same(mean, float(outcomes(FOUND["grpo-s0"]).mean()), 1e-6)
    assert report["choices"] == {
        "grpo": {
            "metric": "valid raw ndcg@10",
            "points": [
                {"run": "grpo-lr1e-5-s0", "point": {"lr": "1e-5"}, "score": 0.1},
                {"run": "grpo-lr1e-3-s0", "point": {"lr": "1e-3"}, "score": 0.2},
            ],
            "chosen": {"lr": "1e-3"},
        }
    }
    assert list(report["commands"]) == ["grpo-lr1e-3-s0", "grpo-lr1e-3-s1"]


def test_a_row_whose_grid_is_not_finished_waits(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grpo,ce", seeds=(0,), grids=("grpo:lr=1e-5,1e-3",))
    finish(plan.runs[0], FOUND["grpo-s0"])
    finish(plan.runs[2], FOUND["sapo-s0"])
    report = report_of(plan)
    assert "grpo" not in report["tables"]["test"]["raw"]["lines"]
    assert report["choices"]["grpo"]["chosen"] is None
    assert report["unfinished"] == ["grpo-lr1e-3-s0"]


def test_a_folder_without_a_plan_is_reported_by_name(plan: Plan) -> None:
    folder = plan.shared.folder.parent
    (folder / "shared-1-s0").mkdir()
    (folder / "shared-1-s0" / "metrics.json").write_text('{"stages": {"align": {}}}')
    write_report(folder, None, "grpo")
    lines = json.loads((folder / "report.json").read_text())["tables"]["test"]["raw"]["lines"]
    assert {name: line["seeds"] for name, line in lines.items() if line["seeds"]} == {"grpo": [0, 1], "sapo": [0]}


def test_costs_are_means_over_seeds_and_the_largest_memory(plan: Plan) -> None:
    cost = report_of(plan)["cost"]
    assert cost["grpo"] == {"seconds": statistics.mean([2.0, 3.0]), "peak_mib": 101.0}
    assert list(cost) == ["align", "grpo", "sapo"]


def test_runs_that_began_with_other_weights_do_not_stand_in_one_table(plan: Plan) -> None:
    finish(plan.runs[3], FOUND["sapo-s0"], align="align-2")
    with pytest.raises(DataError, match="do not share"):
        report_of(plan)


def test_an_experiment_that_was_moved_is_still_reported(plan: Plan, tmp_path: Path) -> None:
    before = report_of(plan)
    moved = plan.shared.folder.parent.rename(tmp_path / "moved")
    write_report(moved, None, "align")
    assert json.loads((moved / "report.json").read_text())["tables"] == before["tables"]


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        write_report(tmp_path, None, "align")
    with pytest.raises(DataError, match="nothing to report"):
        report_of(plan_of(tmp_path, "grpo"))


def test_a_baseline_that_is_no_row(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'grpo'"):
        report_of(plan, "grppo")


def test_the_report_shows_its_curves(plan: Plan) -> None:
    report_of(plan)
    assert (plan.shared.folder.parent / "report.png").read_bytes().startswith(b"\x89PNG")
