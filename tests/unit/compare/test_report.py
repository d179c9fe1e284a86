import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from genrl.cli import main
from genrl.compare.page import html, markdown
from genrl.compare.plan import Plan
from genrl.compare.report import differences, make_report, write_report
from genrl.errors import ConfigError, DataError
from genrl.files import read_json
from genrl.manifest import seal
from genrl.metrics.comparison import holm, paired_difference
from genrl.metrics.functional import ndcg_at_k, recall_at_k
from tests.comparisons import ACTIVATED, ALIGNED, COLD, finish, finish_baseline, plan_of
from tests.helpers import assert_same
from tests.pages import samples
from tests.runs import content

FOUND = {"grpo-s0": (0, 1, 2, 20, 4, 20), "grpo-s1": (0, 1, 3, 9, 4, 20), "sapo-s0": (1, 5, 20, 20, 5, 20)}


def outcomes(*ranks: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([ndcg_at_k(torch.tensor(places)[:, None], 10) for places in ranks])


def hits(*ranks: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([recall_at_k(torch.tensor(places)[:, None], 10) for places in ranks])


def report_of(plan: Plan, baseline: str | None = "align") -> Any:
    """As report.json holds it."""
    return found_in(plan.shared.folder.parent, plan, baseline)


def found_in(folder: Path, plan: Plan | None, baseline: str | None) -> Any:
    return make_report(folder, plan, baseline).to_json()


def told(plan: Plan, baseline: str | None = "align") -> tuple[Any, str]:
    """As report.json and as report.md hold it."""
    report = make_report(plan.shared.folder.parent, plan, baseline)
    return report.to_json(), markdown(report)


def two_rows(output: Path) -> Plan:
    """Two rows with two seeds, of which the last run is not finished."""
    plan = plan_of(output, "grpo,sapo", seeds=(0, 1))
    for run in plan.runs[:3]:
        finish(run, FOUND[run.folder.name])
    return plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return two_rows(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of such rows."""
    return report_of(two_rows(tmp_path_factory.mktemp("rows")))


def test_a_row_is_the_mean_over_its_seeds_and_its_paired_difference(reported):
    table = reported["tables"]["test"]["raw"]
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
    assert grpo["difference"] == grpo["differences"]["ndcg@10"]
    cold = torch.tensor(COLD).bool()
    assert_same(
        grpo["metrics"]["cold_recall@10"], float(hits(FOUND["grpo-s0"], FOUND["grpo-s1"])[:, cold].mean()), 1e-6
    )


def test_recall_is_compared_on_all_rows_and_cold_recall_on_those_with_a_cold_target(reported):
    table = reported["tables"]["valid"]["excluded"]
    assert table["cold_rows"] == sum(COLD)
    every, cold = torch.ones(6, dtype=torch.bool), torch.tensor(COLD).bool()
    for metric, rows in (("recall@10", every), ("cold_recall@10", cold)):
        theirs = hits(ALIGNED)[:, rows]
        ours = {"grpo": hits(FOUND["grpo-s0"], FOUND["grpo-s1"])[:, rows], "sapo": hits(FOUND["sapo-s0"])[:, rows]}
        wanted = {row: paired_difference(found, theirs) for row, found in ours.items()}
        corrected = holm(torch.tensor([found.p_value for found in wanted.values()], dtype=torch.float64)).tolist()
        for (row, found), p_value in zip(wanted.items(), corrected, strict=True):
            shown = table["lines"][row]["differences"][metric]
            assert_same([shown["effect"], shown["low"], shown["high"]], [found.effect, found.low, found.high], 1e-7)
            assert_same(shown["p_holm"], p_value, 1e-7)
            assert shown["rows"] == int(rows.sum())


def rescored(folder: Path, **values: float | None) -> None:
    """Add metrics to all rows of a finished run; `_` stands for @10."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for split in ("valid", "test"):
        for scored in metrics[split].values():
            for kind in scored.values():
                kind |= {name.replace("_10", "@10"): value for name, value in values.items()}
    seal(folder, metrics)


def test_tied_and_untied_targets_are_means_over_seeds_of_the_rows_that_were_scored_on_them_apart(
    plan: Plan, tmp_path: Path
) -> None:
    finish_baseline(tmp_path, "sasrec", ALIGNED)
    assert "ties" not in report_of(plan)["tables"]["test"]["raw"]
    counts = {"tied_rows": 2.0, "untied_rows": 4.0}
    for run, tied in zip(plan.runs[:3], (0.25, 0.5, 0.125), strict=True):
        rescored(run.folder, **counts, tied_ndcg_10=tied, untied_ndcg_10=1.0, tied_recall_10=0.5, untied_recall_10=None)
    for kind in ("raw", "excluded"):
        table = report_of(plan)["tables"]["test"][kind]
        assert table["ties"] == {"tied": 2, "untied": 4}
        found = {row: line.get("ties") for row, line in table["lines"].items()}
        untied = {"ndcg@10": 1.0, "recall@10": None}
        assert found["grpo"] == {"tied": {"ndcg@10": 0.375, "recall@10": 0.5}, "untied": untied}
        assert found["align"] == {"tied": {"ndcg@10": 0.25, "recall@10": 0.5}, "untied": untied}
        assert found["sasrec"] is None  # its run was not
        assert "tied_ndcg@10" not in table["lines"]["grpo"]["metrics"]
    text = told(plan)[1]
    assert "| sapo | 0.1250 | 0.5000 | 1.0000 | - |" in text
    assert "| sasrec | - | - | - | - |" in text


def test_lists_that_are_short_or_not_certified_are_told_in_a_note(plan: Plan, tmp_path: Path) -> None:
    finish_baseline(tmp_path, "tiger", ALIGNED)
    assert report_of(plan)["notes"] == []
    for run, certified in zip(plan.runs[:3], (0.5, 1.0, 1.0), strict=True):
        rescored(run.folder, short_10=0.0, certified_10=certified)
    rescored(tmp_path / "toy" / "tiger-s0", certified_10=0.25, target_seen=0.125)
    notes = report_of(plan)["notes"]
    assert notes == [
        "most popular, align: the lists of 50.0% of the users are not proven to hold the best 10 items of the "
        "catalogue (evaluate.exact).",
        "grpo: the lists of 25.0% of the users are not proven to hold the best 10 items of the catalogue "
        "(evaluate.exact).",
        "tiger: the lists of 75.0% of the users are not proven to hold the best 10 items of the catalogue "
        "(evaluate.exact).",
        "The targets of 12.5% of the users are items of their own history: with the history excluded they are misses "
        "for every row.",
    ]
    assert f"**Note**: {notes[1]}" in told(plan)[1]


def planted(rows: int, cold: int, gain: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Places before and after, and who is cold: `gain` targets more are found among the cold ones, none elsewhere."""
    flags = tuple(int(place < cold) for place in range(rows))
    before = tuple(3 if place % 5 == 0 else 20 for place in range(rows))
    missed = [place for place in range(cold) if before[place] == 20][:gain]
    return before, tuple(3 if place in missed else rank for place, rank in enumerate(before)), flags


def test_what_was_planted_among_cold_targets_is_found_there(tmp_path):
    before, after, cold = planted(rows=2000, cold=200, gain=60)
    plan = plan_of(tmp_path, "grpo,sapo", seeds=(0, 1, 2))
    for run in plan.runs:
        finish(run, after if run.config.objective["name"] == "grpo" else before, aligned=before, cold=cold)
    lines = report_of(plan)["tables"]["test"]["raw"]["lines"]
    grpo, sapo = lines["grpo"]["differences"], lines["sapo"]["differences"]
    assert_same(grpo["cold_recall@10"]["effect"], 60 / 200, 1e-8)
    assert_same(grpo["recall@10"]["effect"], 60 / 2000, 1e-8)
    assert grpo["cold_recall@10"]["low"] > 0.2
    assert grpo["cold_recall@10"]["p_holm"] < 0.001
    assert [sapo["cold_recall@10"][name] for name in ("effect", "low", "high", "p_holm")] == [0, 0, 0, 1]


def test_too_few_cold_rows_are_warned_about_and_enough_are_not(tmp_path):
    warned = {}
    for count in (20, 1900):
        before, after, cold = planted(rows=2000, cold=count, gain=4)
        plan = plan_of(tmp_path / str(count), "grpo", seeds=(0, 1, 2))
        for run in plan.runs:
            finish(run, after, aligned=before, cold=cold)
        differences = report_of(plan)["tables"]["test"]["raw"]["lines"]["grpo"]["differences"]
        warned[count] = differences["cold_recall@10"]["warnings"]
        assert differences["recall@10"]["warnings"] == []
    assert [text.partition(" and these seeds")[0] for text in warned[20]] == ["20 rows"]
    assert warned[1900] == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_cold_rows_give_no_difference(tmp_path, count):
    plan = plan_of(tmp_path, "grpo")
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"], cold=(1,) * count + (0,) * (6 - count))
    found, text = told(plan)
    table = found["tables"]["test"]["raw"]
    assert table["cold_rows"] == count
    assert list(table["lines"]["grpo"]["differences"]) == ["ndcg@10", "recall@10"]
    assert found["notes"] == []
    assert "Too few for a difference of cold recall." in text


def test_runs_that_did_not_keep_cold_targets_are_reported_with_a_note(tmp_path):
    plan = plan_of(tmp_path, "grpo")
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"], cold=None)
    found = report_of(plan)
    assert found["tables"]["test"]["raw"]["cold_rows"] is None
    assert list(found["tables"]["test"]["raw"]["lines"]["grpo"]["differences"]) == ["ndcg@10", "recall@10"]
    (note,) = found["notes"]
    assert "did not keep which targets are cold" in note
    finish_baseline(tmp_path, "most_popular", ALIGNED)  # as the note advises
    found = report_of(plan)
    assert found["notes"] == []
    assert "cold_recall@10" in found["tables"]["test"]["raw"]["lines"]["grpo"]["differences"]


def slow_holm(p_values: list[float]) -> list[float]:
    """Each p-value times the number of those not smaller, and never below the adjusted one of a smaller."""
    ordered = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, worst = [0.0] * len(p_values), 0.0
    for done, place in enumerate(ordered):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def test_each_metric_is_a_family_of_its_own():
    generator = torch.Generator().manual_seed(0)
    rows = {f"row{number}": 0.1 * number + torch.randn(3, 40, generator=generator) for number in range(4)}
    found = differences({row: dict(enumerate(table)) for row, table in rows.items()}, "row0")
    plain = [paired_difference(rows[row], rows["row0"]).p_value for row in found]
    assert list(found) == ["row1", "row2", "row3"]
    assert_same([found[row].p_holm for row in found], slow_holm(plain), 1e-7)


def test_holms_correction_is_over_the_rows_asked_for_and_over_the_others():
    generator = torch.Generator().manual_seed(0)
    rows = {name: 0.1 * place + torch.randn(3, 40, generator=generator) for place, name in enumerate("abcde")}
    found = differences({row: dict(enumerate(table)) for row, table in rows.items()}, "a", asked=["e", "c"])
    assert list(found) == ["b", "c", "d", "e"]
    for family in ("ce", "bd"):
        plain = [paired_difference(rows[row], rows["a"]).p_value for row in family]
        assert_same([found[row].p_holm for row in family], slow_holm(plain), 1e-7)


def test_every_pair_of_rows_asked_for_is_compared_but_those_with_the_baseline(tmp_path):
    plan = plan_of(tmp_path, "grpo,sapo,sage,ce", seeds=(0, 1))
    ranks = [tuple((place * seed + place) % 12 for place in range(1, 7)) for seed in range(8)]
    for run, places in zip(plan.runs, ranks, strict=True):
        finish(run, places)
    finish_baseline(tmp_path, "sasrec", SASREC[0])
    of_row = {row: outcomes(*ranks[2 * place : 2 * place + 2]) for place, row in enumerate(plan.rows)}
    table = report_of(plan)["tables"]["test"]["raw"]
    named = [(pair["row"], pair["other"]) for pair in table["pairs"]]
    assert named == [
        *(("sapo", "grpo"), ("sage", "grpo"), ("ce", "grpo"), ("sage", "sapo"), ("ce", "sapo"), ("ce", "sage"))
    ]
    wanted = [paired_difference(of_row[row], of_row[other]) for row, other in named]
    shown = [pair["differences"]["ndcg@10"] for pair in table["pairs"]]
    for name in ("effect", "low", "high"):
        assert_same([one[name] for one in shown], [getattr(one, name) for one in wanted], 1e-7)
    assert_same([one["p_holm"] for one in shown], slow_holm([one.p_value for one in wanted]), 1e-7)
    assert list(table["pairs"][0]["differences"]) == ["ndcg@10", "recall@10", "cold_recall@10"]
    others = report_of(plan, "grpo")["tables"]["test"]["raw"]["pairs"]
    assert [(pair["row"], pair["other"]) for pair in others] == named[3:]


def test_seeds_are_paired_only_where_both_rows_have_two_of_them():
    table = torch.randn(6, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = {0: table[0], 1: table[1], 2: table[2]}
    apart = differences({"ours": ours, "theirs": {2: table[3], 7: table[4]}}, "theirs")["ours"]
    assert_same(apart.low, paired_difference(table[:3], table[3:5]).low, 1e-7)  # independent seeds, none dropped
    shared = differences({"ours": ours, "theirs": {2: table[3], 0: table[4], 9: table[5]}}, "theirs")["ours"]
    assert_same(shared.low, paired_difference(table[[0, 2]], table[[4, 3]]).low, 1e-7)


def test_seeds_that_only_one_row_has_are_left_out_with_a_warning():
    table = torch.randn(6, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = {"ours": dict(enumerate(table[:3])), "theirs": {0: table[3], 2: table[4]}, "other": dict(enumerate(table))}
    found = differences({name: rows[name] for name in ("ours", "theirs")}, "theirs")["ours"].warnings
    assert sum("Compared on the seeds that both have, 0, 2;" in text for text in found) == 1
    same = differences({"ours": rows["ours"], "theirs": dict(enumerate(table[3:]))}, "theirs")["ours"].warnings
    assert not any("Compared on" in text for text in same)


def test_of_what_no_seed_changes_no_seeds_are_asked_for():
    table = torch.randn(4, 30, generator=torch.Generator().manual_seed(2)) + 5
    outcomes = {
        "align": {0: table[0]},
        "item_knn": {0: table[1]},
        "grpo": {0: table[2]},
        "sapo": dict(enumerate(table)),
    }
    fixed = {"align", "item_knn"}
    found = differences(outcomes, "align", fixed)
    assert not any("seed" in text for text in found["item_knn"].warnings)
    assert any("One training seed: " in text for text in found["grpo"].warnings)
    assert [found[row].seeds_covered for row in ("item_knn", "grpo", "sapo")] == [True, False, True]
    assert not any("One training seed" in text for text in found["sapo"].warnings)
    found = differences(outcomes, "grpo", fixed)
    assert any("One training seed of grpo" in text for text in found["sapo"].warnings)
    assert not any(found[row].seeds_covered for row in found)  # grpo was trained once
    assert not any("One training seed of" in text for text in found["align"].warnings)


SASREC = ((0, 2, 1, 3, 20, 20), (0, 1, 1, 2, 20, 20))


def beside_baselines(output: Path) -> Plan:
    """The rows with two seeds of a baseline and one of a reference line beside them."""
    for seed, ranks in enumerate(SASREC):
        finish_baseline(output, "sasrec", ranks, seed)
    finish_baseline(output, "most_popular", ALIGNED)
    return two_rows(output)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Tests leave it as it is."""
    return beside_baselines(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def mixed_report(mixed: Plan) -> tuple[Any, str]:
    return told(mixed)


def test_baselines_are_rows_with_seeds_and_differences(mixed_report):
    found, _ = mixed_report
    table = found["tables"]["test"]["raw"]
    assert list(table["lines"]) == ["most_popular", "sasrec", "align", "grpo", "sapo"]
    sasrec = table["lines"]["sasrec"]
    assert sasrec["seeds"] == [0, 1]
    assert_same(sasrec["by_seed"], outcomes(*SASREC).mean(1).tolist(), 1e-6)
    assert sasrec["interval"][0] < sasrec["metrics"]["ndcg@10"] < sasrec["interval"][1]
    wanted = {
        "most_popular": paired_difference(outcomes(ALIGNED), outcomes(ALIGNED)),
        "sasrec": paired_difference(outcomes(*SASREC), outcomes(ALIGNED)),
        "grpo": paired_difference(outcomes(FOUND["grpo-s0"], FOUND["grpo-s1"]), outcomes(ALIGNED)),
        "sapo": paired_difference(outcomes(FOUND["sapo-s0"]), outcomes(ALIGNED)),
    }
    families = [list(wanted)[:2], list(wanted)[2:]]  # Holm's correction is over the rows asked for
    corrected = [p for rows in families for p in slow_holm([wanted[row].p_value for row in rows])]
    for (row, difference), p_value in zip(wanted.items(), corrected, strict=True):
        shown = table["lines"][row]["difference"]
        assert_same(
            [shown["effect"], shown["high"], shown["p_holm"]], [difference.effect, difference.high, p_value], 1e-7
        )
    assert found["cost"]["sasrec"] == {"seconds": 2.5, "peak_mib": 101.0}
    assert {row: facts["kind"] for row, facts in found["rows"].items()} == {
        "most_popular": "baseline",
        "sasrec": "baseline",
        "grpo": "objective",
        "sapo": "objective",
    }
    assert found["commands"]["sasrec-s1"] == "fit --baseline sasrec"


def test_a_reference_line_stands_there_once_with_its_difference(mixed_report):
    found, text = mixed_report
    line = found["tables"]["test"]["raw"]["lines"]["most_popular"]
    assert line["seeds"] == []
    assert "interval" not in line
    assert line["difference"]["effect"] == 0
    assert not any("seed" in text for text in line["difference"]["warnings"])
    assert text.count("| most popular |  | ") == 4  # one line in each table


@pytest.mark.parametrize("baseline", ["sasrec", "most_popular"])
def test_a_baseline_run_may_be_what_the_others_are_compared_with(mixed, baseline):
    theirs = outcomes(*SASREC) if baseline == "sasrec" else outcomes(ALIGNED)
    lines = report_of(mixed, baseline)["tables"]["test"]["raw"]["lines"]
    assert "difference" not in lines[baseline]
    wanted = paired_difference(outcomes(FOUND["grpo-s0"], FOUND["grpo-s1"]), theirs)
    assert_same(lines["grpo"]["difference"]["effect"], wanted.effect, 1e-7)
    assert_same(lines["grpo"]["difference"]["low"], wanted.low, 1e-7)
    assert "difference" in lines["align"]


def test_a_baseline_of_other_data_is_left_out_with_a_note(plan, tmp_path):
    finish_baseline(tmp_path, "tiger", SASREC[0], data="beef")
    found, text = told(plan)
    assert "tiger" not in found["tables"]["test"]["raw"]["lines"]
    assert "tiger-s0" not in found["commands"]
    assert [note.partition(" ")[0] for note in found["notes"]] == ["tiger-s0"]
    assert "**Note**: tiger-s0 is left out" in text


def test_a_damaged_run_is_named_and_left_out_and_the_others_are_reported(plan):
    (plan.runs[1].folder / "history.jsonl").write_text("no note")
    report = make_report(plan.shared.folder.parent, None, "align")
    assert list(report.damaged) == ["grpo-s1"]
    assert list(report.rows) == ["grpo", "sapo"]
    assert "grpo-s1 is left out: it is damaged. `genrl verify --run` says how." in report.notes
    for run in plan.runs[:3:2]:
        (run.folder / "metrics.json").write_text("null")
    with pytest.raises(DataError, match=r"nothing to report\.\n.*grpo-s0"):
        make_report(plan.shared.folder.parent, plan, None)


def test_a_baseline_of_other_candidate_pools_is_left_out_and_pools_are_said(plan, tmp_path):
    folder = finish_baseline(tmp_path, "tiger", SASREC[0])
    metrics = read_json(folder / "metrics.json")
    seal(folder, metrics | {"data": {**metrics["data"], "pool": {"size": 100}}})
    found, text = told(plan)
    assert "tiger" not in found["tables"]["test"]["raw"]["lines"]
    assert "other candidate pools" in text
    assert "Ranked inside pools" not in text
    for run in tmp_path.glob("**/*-s*/metrics.json"):
        values = read_json(run)
        for split in ("valid", "test"):
            for one in values.get(split, {}).values():
                for kind in ("raw", "excluded"):
                    one[kind] |= {"pool_size": 100.0, "pool_ceiling": 0.9}
        seal(run.parent, values)
    assert "Ranked inside pools of 100 candidates, among them 90.0% of the targets" in told(plan)[1]


def test_a_folder_of_mixed_runs_is_reported_without_a_plan(mixed, mixed_report):
    assert found_in(mixed.shared.folder.parent, None, "align")["tables"] == mixed_report[0]["tables"]


def test_the_last_shared_stage_is_what_the_others_are_compared_with(tmp_path):
    plan = plan_of(tmp_path, "grpo,sapo", "layout=blocked", "stages=[align,activate,rl]")
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"])
    folder = plan.shared.folder.parent
    report = make_report(folder, plan, None)
    found = report.to_json()
    assert found["baseline"] == "activate"
    assert found["shared"] == {"align": "align-1", "activate": "activate-1"}
    lines = found["tables"]["test"]["raw"]["lines"]
    assert list(lines) == ["most_popular", "align", "activate", "grpo", "sapo"]
    assert "difference" not in lines["activate"]
    for row, ranks in (("align", ALIGNED), ("grpo", FOUND["grpo-s0"])):
        wanted = float((outcomes(ranks) - outcomes(ACTIVATED)).mean())
        assert_same(lines[row]["difference"]["effect"], wanted, 1e-7)
    assert list(found["cost"]) == ["align", "activate", "grpo", "sapo"]
    text = markdown(report)
    assert "N@10 minus activate" in text
    assert "align-1; activate-1" in text
    assert "align-1, activate-1" in html(report, {}, {})
    assert found_in(folder, None, None)["baseline"] == "activate"


def test_without_thinking_no_stage_teaches_it(tmp_path):
    plan = plan_of(tmp_path, "grpo", "stages=[align,activate,rl]")
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"])
    assert list(report_of(plan, None)["tables"]["test"]["raw"]["lines"]) == ["most_popular", "align", "grpo"]
    with pytest.raises(ConfigError, match="no such row"):
        report_of(plan, "activate")


def test_runs_that_began_with_other_thinking_do_not_stand_in_one_table(tmp_path):
    for stages, name in (("align,activate,rl", "taught"), ("align,rl", "untaught")):
        finish(plan_of(tmp_path, f"{name}=grpo", "layout=blocked", f"stages=[{stages}]").runs[0], ALIGNED)
    with pytest.raises(DataError, match="do not share"):
        make_report(tmp_path / "toy", None, None)


def test_baselines_alone_are_reported(tmp_path):
    folder = finish_baseline(tmp_path, "sasrec", SASREC[0]).parent
    finish_baseline(tmp_path, "tiger", SASREC[1])
    write_report(make_report(folder, None, "align"), folder, folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["shared"] == {}
    assert list(report["tables"]["test"]["raw"]["lines"]) == ["most_popular", "sasrec", "tiger"]
    assert report["notes"] == ["align has no finished run, or is the only row: no row has a difference to it."]
    assert "difference" in found_in(folder, None, "tiger")["tables"]["test"]["raw"]["lines"]["sasrec"]
    assert not (folder / "report.png").exists()  # no curves of stage rl


def test_one_seed_has_no_interval_but_a_warning(reported):
    sapo = reported["tables"]["test"]["raw"]["lines"]["sapo"]
    assert sapo["interval"] == [None, None]
    assert sapo["difference"]["seed_noise"] is None
    assert any("One training seed" in text for text in sapo["difference"]["warnings"])


def test_a_partial_report_names_what_is_missing(plan, reported):
    assert reported["unfinished"] == ["sapo-s1"]
    finish(plan.runs[3], FOUND["sapo-s0"])
    assert report_of(plan)["unfinished"] == []


def test_another_baseline_is_compared_on_the_seeds_that_both_have(tmp_path):
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


def test_the_same_runs_under_two_names_differ_by_nothing(tmp_path):
    plan = plan_of(tmp_path, "a=grpo,b=grpo")
    for run in plan.runs:
        finish(run, FOUND[f"grpo-s{run.config.seed}"])
    difference = report_of(plan, "a")["tables"]["test"]["raw"]["lines"]["b"]["difference"]
    assert difference["low"] <= 0 <= difference["high"]
    assert difference["p_holm"] == 1


def test_of_a_grid_only_the_chosen_point_is_in_the_tables(tmp_path):
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
            "metric": "valid excluded ndcg@10",
            "points": [
                {"run": "grpo-lr1e-5-s0", "point": {"lr": "1e-5"}, "score": 0.1},
                {"run": "grpo-lr1e-3-s0", "point": {"lr": "1e-3"}, "score": 0.2},
            ],
            "chosen": {"lr": "1e-3"},
        }
    }
    assert list(report["commands"]) == ["grpo-lr1e-3-s0", "grpo-lr1e-3-s1"]


def test_a_row_whose_grid_is_not_finished_waits(tmp_path):
    plan = plan_of(tmp_path, "grpo,ce", seeds=(0,), grids=("grpo:lr=1e-5,1e-3",))
    finish(plan.runs[0], FOUND["grpo-s0"])
    finish(plan.runs[2], FOUND["sapo-s0"])
    report = report_of(plan)
    assert "grpo" not in report["tables"]["test"]["raw"]["lines"]
    assert report["choices"]["grpo"]["chosen"] is None
    assert report["unfinished"] == ["grpo-lr1e-3-s0"]


def test_a_folder_without_a_plan_is_reported_by_name(plan):
    folder = plan.shared.folder.parent
    (folder / "shared-1-s0").mkdir()
    seal(folder / "shared-1-s0", {"stages": {"align": {}}})
    lines = found_in(folder, None, "grpo")["tables"]["test"]["raw"]["lines"]
    assert {name: line["seeds"] for name, line in lines.items() if line["seeds"]} == {"grpo": [0, 1], "sapo": [0]}


def test_a_folder_without_a_plan_lists_what_is_not_finished(plan):
    folder = plan.shared.folder.parent
    (folder / "slow-s0").mkdir()
    (folder / "slow-s0" / "config.yaml").write_text("experiment: toy\n")
    found = found_in(folder, None, "align")
    assert (found["unfinished"], found["planned"]) == (["slow-s0"], False)  # what was never begun is not known


def test_a_run_of_an_older_version_lacks_a_metric(plan):
    folder = plan.runs[0].folder
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("align", "rl", "most_popular"):
        for kind in ("raw", "excluded"):
            del metrics["test"][name][kind]["top1pct_share@10"]
    seal(folder, metrics)
    lines = report_of(plan)["tables"]["test"]["raw"]["lines"]
    assert lines["align"]["metrics"]["top1pct_share@10"] is None
    assert lines["grpo"]["metrics"]["top1pct_share@10"] == 0.1  # of the other seed


def test_rows_that_kept_the_weights_they_began_with_are_told_in_words(plan):
    folder = plan.shared.folder.parent
    for number, path in enumerate(sorted(folder.glob("grpo-s*/metrics.json"))):
        assert not any("no validation beat" in note for note in found_in(folder, None, "align")["notes"]), number
        metrics = json.loads(path.read_text())
        metrics["stages"]["rl"] |= {"best_step": 0, **({"notes": ["One.", "Two."]} if number == 1 else {})}
        seal(path.parent, metrics)
    assert "grpo-s1: One. Two." in found_in(folder, None, "align")["notes"]
    told = "grpo: no validation beat the start in any run, and its weights were kept."
    assert told in found_in(folder, None, "align")["notes"]


def test_seeds_with_other_options_are_noted(tmp_path):
    finish(plan_of(tmp_path, "grpo", seeds=(0,)).runs[0], FOUND["grpo-s0"])
    other = plan_of(tmp_path, "grpo", "rl.learning_rate=0.5", "objective.clip_low=0.1", seeds=(1,))
    finish(other.runs[0], FOUND["grpo-s1"])
    folder = other.shared.folder.parent
    (note,) = found_in(folder, None, "align")["notes"]
    assert note.startswith("grpo-s1 and grpo-s0 stand in one row but differ in objective.clip_low, rl.learning_rate:")


def test_costs_are_means_over_seeds_and_the_largest_memory(reported):
    cost = reported["cost"]
    assert cost["grpo"] == {"seconds": statistics.mean([2.0, 3.0]), "peak_mib": 101.0}
    assert list(cost) == ["align", "grpo", "sapo"]


def test_runs_that_began_with_other_weights_do_not_stand_in_one_table(plan):
    finish(plan.runs[3], FOUND["sapo-s0"], align="align-2")
    with pytest.raises(DataError, match="do not share"):
        report_of(plan)


def test_an_experiment_that_was_moved_is_still_reported(plan, tmp_path, reported):
    moved = plan.shared.folder.parent.rename(tmp_path / "moved")
    assert found_in(moved, None, "align")["tables"] == reported["tables"]


def test_nothing_to_report(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        make_report(tmp_path, None, "align")
    plan = plan_of(tmp_path, "grpo", seeds=(0, 1))
    with pytest.raises(DataError, match=r"nothing to report\.$"):
        report_of(plan)
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"])
        (run.folder / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"nothing to report\.\nnot finished: grpo-s0, grpo-s1. Go on with each by"):
        report_of(plan)


def test_a_baseline_that_is_no_row(plan):
    with pytest.raises(ConfigError, match="Did you mean 'grpo'"):
        report_of(plan, "grppo")


def test_all_files_are_written_with_worked_examples_and_the_curves_of_objectives(tmp_path):
    mixed = beside_baselines(tmp_path)
    (mixed.runs[0].folder / "samples.jsonl").write_text(json.dumps({"step": 2, "samples": samples()["grpo"]}) + "\n")
    folder = mixed.shared.folder.parent
    report = make_report(folder, mixed, "align")
    write_report(report, folder, folder)
    assert markdown(report) == (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Blue Pan" in page
    assert "Green Pan" in page
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "grpo: 1.5 at step 1, 2.5 at step 2; sapo: 1 at step 1, 2 at step 2" in page
    assert json.loads((folder / "report.json").read_text()) == found_in(folder, mixed, "align")
    assert not [path.name for path in folder.glob(".*") if "report" in path.name]  # nothing temporary is left


def test_a_report_that_cannot_be_written_is_shown_and_goes_elsewhere(tmp_path, read_only, capsys):
    folder, place = finish_baseline(tmp_path / "runs", "sasrec", SASREC[0]).parent, tmp_path / "elsewhere"
    command = ["compare", "--report-only", "--experiment", folder.name, "--output", str(folder.parent)]
    before = content(folder)
    read_only(folder)
    assert main(command) == 2
    shown, said = capsys.readouterr()
    assert "sasrec" in shown
    assert "report.html" not in shown
    (line,) = said.splitlines()
    assert line.startswith(f"genrl: the report cannot be written into {folder} (Read-only file system)")
    assert "Give --report FOLDER" in line
    assert content(folder) == before
    (tmp_path / "file").touch()
    assert main([*command, "--report", str(tmp_path / "file")]) == 2
    assert f"cannot be written into {tmp_path / 'file'} (File exists)" in capsys.readouterr().err
    assert main([*command, "--report", str(place)]) == 0
    assert str(place / "report.html") in capsys.readouterr().out
    assert {"report.json", "report.html", "report.md"} <= {path.name for path in place.iterdir()}
    assert content(folder) == before


def test_rows_that_saw_other_numbers_of_prompts_are_noted(tmp_path):
    plan = plan_of(tmp_path, "grpo,sage", seeds=(0,))  # sage makes two passes over each rollout
    for run in plan.runs:
        finish(run, FOUND["grpo-s0"])
    prompts = {name: row["spent"]["prompts"] for name, row in report_of(plan)["rows"].items()}
    assert prompts["grpo"] == 2 * prompts["sage"]
    assert [
        note for note in report_of(plan)["notes"] if note.startswith("Rows saw different numbers of prompts (grpo ")
    ]
    alike = plan_of(tmp_path / "alike", "grpo,sage", "sage:rollout.epochs=1", seeds=(0,))
    for run in alike.runs:
        finish(run, FOUND["grpo-s0"])
    assert not [note for note in report_of(alike)["notes"] if "prompts" in note]
