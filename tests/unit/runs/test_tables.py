import json
import re
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO, StringIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from safetensors.torch import save_file
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl.objectives import OBJECTIVES
from genrl.runs import tables as report
from genrl.runs.fit import build_objective
from tests.helpers import assert_same
from tests.runs import curves_drawn

PNG = b"\x89PNG\r\n\x1a\n"


def make_console(width: int = 80) -> tuple[Console, StringIO]:
    shown = StringIO()
    return Console(file=shown, width=width), shown


def make_metrics(cold: float | None, k: Sequence[int] = (5, 10), **changes: float | None) -> dict[str, float | None]:
    values: dict[str, float | None] = {"rows": 12345.0, "cold_rows": 0.0 if cold is None else 7.0}
    for cut in k:
        values |= {f"recall@{cut}": 0.1234, f"ndcg@{cut}": 0.0567, f"entropy@{cut}": 2.5, f"coverage@{cut}": 0.75}
        values |= {f"cold_recall@{cut}": cold, f"mrr@{cut}": 0.04}
    return values | changes


def cells(lines: list[str]) -> list[list[str]]:
    """Of each row that has some, its title among them and rules not."""
    return [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip(" ─")]


def test_the_table_fits_a_terminal_and_shows_what_does_not_exist_as_a_dash():
    console, shown = make_console()
    results: dict[str, Any] = {
        name: {"raw": make_metrics(None), "excluded": make_metrics(0.5)}
        for name in ("most_popular", "repeat_last", "item_knn", "align", "rl (dr_grpo)")
    }
    report.ranking_table(console, "test", results, [5, 10])
    lines = shown.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "…" not in shown.getvalue()
    assert lines[0].strip() == "test (12345 users, 7 with a cold target)"
    words = next(number for number, line in enumerate(lines) if line.startswith("Cold@10: "))
    assert " ".join(" ".join(lines[words:]).split()) == (
        "Cold@10: recall of the 7 users whose target is a cold item, one of those with the fewest training "
        "interactions (data.cold_fraction, data.cold_rule); Cov@10: share of the catalogue that the lists of all users "
        "hold together; Ent@10: entropy of the categories in each list, to base 2 (bits), mean over the lists that "
        "have some."
    )
    rows = cells(lines[:words])[2:]
    rest = ["0.0567", "0.0567", "0.1234", "0.0400"]
    raw = [
        [name, *rest, "-", "0.7500", "2.5000"]
        for name in ("most popular", "repeat last", "item-kNN", "align", "rl (dr_grpo)")
    ]
    excluded = [
        [row[0], *rest, "0.5000", "0.7500", "2.5000"] for row in raw if row[0] != "repeat last"
    ]  # it is most popular there
    assert rows == [["history excluded"], *excluded, ["raw ranking"], *raw]


def test_tied_and_untied_targets_have_rows_of_their_own_where_they_were_scored_apart():
    console, shown = make_console()
    parts = {"tied_ndcg@10": 0.25, "untied_ndcg@10": 0.125, "tied_recall@10": 0.5, "tied_rows": 3.0, "untied_rows": 4.0}
    results = {"align": {"raw": make_metrics(None, **parts)}, "kept": 1, "item_knn": {"raw": make_metrics(None)}}
    report.ranking_table(console, "test", report.with_ties(results), [10])
    rows = cells(shown.getvalue().splitlines())[3:7]
    assert [row[0] for row in rows] == ["align", "align, tied", "align, untied", "item-kNN"]
    assert [row[1:3] for row in rows[1:3]] == [["0.2500", "0.5000"], ["0.1250", "-"]]
    assert rows[1][3:] == ["-", "-", "-", "-"]
    assert " ".join(shown.getvalue().split()).endswith(
        "tied: the 3 users whose target has the time of the interaction before it; untied: the other 4."
    )
    assert "pass@8" not in report.with_ties({"align": {"raw": {**parts, "pass@8": 0.5}}})["align, tied"]["raw"]


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (80, "N@1 N@5 N@10 R@10 R@20 R@50 MRR"),
        (100, "N@1 N@5 N@10 R@10 R@20 R@50 MRR Cold@10 Cov@10 Ent@10"),
        (40, "N@10 R@10"),
        (160, "N@1 N@5 N@10 N@20 N@50 R@1 R@5 R@10 R@20 R@50 MRR Cold@10 Cov@10 Ent@10"),
    ],
)
def test_all_cut_offs_stand_in_a_terminal_and_the_rest_where_there_is_room(width, heads):
    console, shown = make_console(width)
    k = [1, 5, 10, 20, 50]
    report.ranking_table(console, "test", {"rl (dr_grpo)": {"raw": make_metrics(0.5, k)}}, k)
    assert "…" not in shown.getvalue() or width < 80
    assert next(line for line in shown.getvalue().splitlines() if "N@10" in line).split() == heads.split()


def test_lists_that_are_short_or_not_certified_are_told_in_words():
    console, shown = make_console(200)
    bad = {"short@10": 0.123, "certified@10": 0.9999}
    results = {
        "item_knn": {"raw": make_metrics(0.5)},
        "align": {"raw": make_metrics(0.5, **bad)},
        "rl": {"raw": make_metrics(0.5, **bad)},
        "exact": {"raw": make_metrics(0.5, **{"short@10": 0.0, "certified@10": 1.0})},
    }
    report.ranking_table(console, "test", results, [5, 10])
    assert shown.getvalue().splitlines()[-1] == (
        "align, rl: the lists of 12.3% of the users have fewer than 10 items; the lists of less than 0.1% of the users "
        "are not proven to hold the best 10 items of the catalogue (evaluate.exact)."
    )
    assert shown.getvalue().count("fewer than") == 1


def test_shares_that_differ_between_the_kinds_of_ranking_say_which_one_they_are_of() -> None:
    console, shown = make_console(200)
    values = [make_metrics(0.5, **{"short@10": share, "target_seen": 0.25}) for share in (0.5, 0.2)]
    results = {"align": dict(zip(("excluded", "raw"), values, strict=True))}
    report.ranking_table(console, "test", results, [5, 10])
    assert shown.getvalue().splitlines()[-3:] == [
        "History excluded: align: the lists of 50.0% of the users have fewer than 10 items.",
        "Raw ranking: align: the lists of 20.0% of the users have fewer than 10 items.",
        "The targets of 25.0% of the users are items of their own history: with the history excluded they are misses "
        "for every row.",
    ]


def test_narrow_tables_define_no_columns_that_they_do_not_show() -> None:
    console, shown = make_console()
    report.ranking_table(console, "test", {"align": {"raw": make_metrics(0.5, [1, 5, 10, 20, 50])}}, [1, 5, 10, 20, 50])
    assert "catalogue" not in shown.getvalue()


def test_other_readings_of_the_same_weights_and_passes_have_rows_of_their_own() -> None:
    console, shown = make_console(120)
    read = {"plain": {"raw": make_metrics(0.5)}, "marginal": {"raw": make_metrics(0.5)}}
    results = {
        "align": {"raw": make_metrics(0.5)},
        "rl": {"raw": make_metrics(0.5, **{"pass@8": 0.25}), "readings": read},
    }
    report.ranking_table(console, "test", results, [5, 10])
    rows = {row[0]: row[1:] for row in cells(shown.getvalue().splitlines())}
    assert rows["rl, plain"] == rows["rl, marginal"]
    assert [rows[name][-1] for name in ("align", "rl", "rl, plain")] == ["-", "0.2500", "-"]
    assert "pass@8" in shown.getvalue()


def test_models_without_a_ranking_of_a_kind_are_left_out():
    console, shown = make_console()
    report.ranking_table(console, "test", {"align": {"raw": make_metrics(0.5)}, "rows": 3}, [5, 10])
    assert "history excluded" not in shown.getvalue()


def run_of(best_step: int, *gains: tuple[float, float, float]) -> dict[str, Any]:
    """Metrics of a run whose stages behind `align` brought something."""
    names = ["align", *("activate", "rl")[-len(gains) :]]
    scored = {"raw": make_metrics(0.5), "excluded": make_metrics(0.5)}
    stage = {"seconds": 12.34, "peak_mib": 567.8, "best_step": 40}
    gained = {name: {"excluded": {"ndcg@10": gain}} for name, gain in zip(names[1:], gains, strict=True)}
    return {
        "objective": {"name": "grpo"},
        "valid": {name: scored for name in names},
        "test": {name: scored for name in names},
        "differences": gained,
        "stages": {**dict.fromkeys(names, stage), "rl": {**stage, "best_step": best_step}},
    }


def test_a_finished_run_is_shown_in_one_table_with_what_its_stages_brought():
    console, shown = make_console(100)
    metrics = run_of(40, (-0.44, -0.46, -0.42), (0.0123, -0.001, 0.02))
    report.show(console, metrics)
    text = shown.getvalue()
    assert text.count("R@10") == 1
    assert "rl (grpo)" in text
    said = " ".join(text[text.index("What each stage") :].split())
    cost = "(12.3 s, 568 MiB, weights of step 40)"
    assert said == (
        "What each stage brought, with the history excluded; 95% intervals, for other users: "
        f"align {cost} "
        f"activate {cost}: NDCG@10 −0.4400 [−0.4600, −0.4200] against align; worse than align. "
        f"rl {cost}: NDCG@10 +0.0123 [−0.0010, +0.0200] against activate; nothing was learned that these users can "
        "tell apart from activate."
    )
    assert list(metrics["test"]) == ["align", "activate", "rl"]  # what is shown is not renamed in what was read


@pytest.mark.parametrize(
    ("best_step", "gain", "said"),
    [
        (40, (0.0123, 0.001, 0.02), "NDCG@10 +0.0123 [+0.0010, +0.0200] against align; better than align."),
        (0, (0.0, 0.0, 0.0), "no validation beat align; its weights were kept."),
    ],
)
def test_the_closing_words_say_what_rl_brought(best_step, gain, said):
    console, shown = make_console(200)
    report.show(console, run_of(best_step, gain))
    assert shown.getvalue().splitlines()[-1] == f"  rl (12.3 s, 568 MiB, weights of step {best_step}): {said}"


def test_differences_are_paired_over_the_users_of_both_runs(tmp_path):
    ranks = {"before": [0, 3, 20, 20], "after": [1, 3, 2, 20]}
    for name, values in ranks.items():
        (tmp_path / name).mkdir()
        places = torch.tensor(values)
        save_file({"test/raw": places, "test/excluded": places.flip(0)}, tmp_path / name / "ranks.safetensors")
    found = report.paired_differences(tmp_path / "before", tmp_path / "after", [5, 10])
    gain = 1 / torch.tensor([2.0, 3.0, 4.0]).log2()  # of ranks 0, 1 and 2
    for kind in ("raw", "excluded"):
        assert set(found[kind]) == {"recall@10", "ndcg@10"}
        mean, low, high = found[kind]["recall@10"]
        assert mean == 0.25
        assert low <= mean <= high
        assert_same(found[kind]["ndcg@10"][0], float(gain[1] + gain[2] - gain[0]) / 4, 1e-6)


def test_each_stage_is_compared_with_the_one_before_it(tmp_path):
    ranks = {"align": [20, 20, 0], "activate": [20, 0, 0], "run": [0, 0, 0]}
    for name, values in ranks.items():
        (tmp_path / name).mkdir()
        places = torch.tensor(values)
        save_file({"test/raw": places, "test/excluded": places.clone()}, tmp_path / name / "ranks.safetensors")
    stages = {name: {"evaluation": str(tmp_path / name)} for name in ("align", "activate")}
    found = report.stage_differences({**stages, "rl": {}}, tmp_path / "run", [10])
    assert list(found) == ["activate", "rl"]
    assert [found[name]["raw"]["recall@10"][0] for name in found] == [0.333333, 0.333333]


def test_the_interval_of_one_run_is_that_of_the_paired_t_test(tmp_path):
    generator = torch.Generator().manual_seed(0)
    places = {name: torch.randint(20, (300,), generator=generator) for name in ("before", "after")}
    for name, ranks in places.items():
        (tmp_path / name).mkdir()
        save_file({"test/raw": ranks, "test/excluded": ranks + 1}, tmp_path / name / "ranks.safetensors")
    found = report.paired_differences(tmp_path / "before", tmp_path / "after", [10])["raw"]["recall@10"]
    hits = {name: (ranks < 10).double().numpy() for name, ranks in places.items()}
    expected = stats.ttest_rel(hits["after"], hits["before"])
    assert_same(found[0], float((hits["after"] - hits["before"]).mean()), 1e-6)
    assert_same(list(found[1:]), list(expected.confidence_interval(0.95)), 1e-6)


def test_a_baseline_is_shown_under_its_name():
    console, shown = make_console()
    scored = {"raw": make_metrics(0.5), "excluded": make_metrics(0.5)}
    part = {"item_knn": scored, "baseline": scored}
    stages = {"baseline": {"seconds": 1.0, "peak_mib": 2.0, "best_step": 0}}
    report.show(console, {"baseline": {"name": "sasrec"}, "valid": part, "test": part, "stages": stages})
    rows = [row[0] for row in cells(shown.getvalue().splitlines())[2:8]]
    assert rows == ["history excluded", "item-kNN", "sasrec", "raw ranking", "item-kNN", "sasrec"]
    assert "  baseline (1.0 s, 2 MiB, weights of step 0)" in shown.getvalue().splitlines()


def test_curves_are_drawn_from_the_notes(tmp_path):
    notes = [
        {"step": 0, "val/ndcg@10": 0.1, "val/recall@10": 0.2},
        {"step": 1, "train/reward": 0.5, "policy/entropy": 1.0, "objective/dead_groups": 0.0, "train/grad_norm": 1.0},
        {"step": 2, "train/reward": 0.7, "val/ndcg@10": 0.3, "policy/entropy": 0.9},
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    with curves_drawn(True):
        report.curves(tmp_path, "grpo, seed 0")
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 10_000
    (events,) = tmp_path.glob("events.out.*")
    (shown,) = EventAccumulator(str(events)).Reload().Images("curves")
    assert np.array_equal(imread(BytesIO(shown.encoded_image_string)), imread(tmp_path / "curves.png"))


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "other": 2}\n'])
def test_without_notes_there_are_no_curves(tmp_path, text):
    if text is not None:
        (tmp_path / "history.jsonl").write_text(text)
    with curves_drawn(True):
        report.curves(tmp_path, "title")
    assert not (tmp_path / "curves.png").exists()


def test_the_header_says_what_is_about_to_run(session):
    console, shown = make_console(200)
    report.header(console, session, build_objective(session.config))
    text = shown.getvalue()
    for words in (
        "Step-Aligned Policy Optimization (sapo, arXiv:2605.17648), experiment toy, seed 0",
        "80 users, 60 items",
        "3 cold items",
        "distinct SIDs in the table: 60",
        "policy tiny",
        "PolicyObjective(",
    ):
        assert words in text
    assert "\n  credit    = " in text  # a line for each piece
    assert "\\n" not in text


@pytest.mark.parametrize(("epochs", "said"), [(1, True), (2, False)])
def test_the_header_says_which_options_cannot_act(session, epochs, said):
    console, shown = make_console(200)
    config = replace(session.config, rollout=replace(session.config.rollout, epochs=epochs))
    report.header(console, replace(session, config=config), OBJECTIVES.build("sage"))
    assert ("every ratio is 1, so boost, beta and the diversity" in shown.getvalue()) == said


def test_paths_and_commands_are_never_broken_into_lines(tmp_path):
    folder = tmp_path / ("long " * 20).strip() / "sapo-s0"
    console, shown = make_console(40)
    report.places(console, {"run folder": folder, "curves": folder / "curves.png"})
    assert shown.getvalue().splitlines() == [
        f"run folder: {folder}",
        f"curves: {folder / 'curves.png'}",
        f"all curves of the experiment: tensorboard --logdir {folder.parent}",
    ]


def test_random_weights_are_said(thinking):
    for stages, said in ((["rl"], True), (["align", "rl"], False)):
        console, shown = make_console(200)
        config = replace(thinking.config, stages=stages)
        report.header(console, replace(thinking, config=config), build_objective(config))
        assert ("starts from random weights" in shown.getvalue()) == said


@pytest.mark.parametrize(
    ("model", "rate", "said"), [("pre-trained", 8e-3, 1), ("pre-trained", 2e-4, 0), ("tiny", 8e-3, 0)]
)
def test_a_rate_too_high_for_pre_trained_weights_is_said(session, model, rate, said):
    console, shown = make_console(200)
    config = session.config
    changed = replace(config, model=replace(config.model, name=model), align=replace(config.align, learning_rate=rate))
    report.header(console, replace(session, config=changed), build_objective(config))
    assert shown.getvalue().count("align.learning_rate=0.008 is one for weights that start at random") == said


def test_numbers_inside_pools_say_so_in_their_row_and_below_the_table():
    console, shown = make_console(width=120)
    inside = {kind: make_metrics(0.5, pool_size=100.0, pool_ceiling=0.934) for kind in ("raw", "excluded")}
    results: dict[str, Any] = {"item_knn": {kind: make_metrics(0.5) for kind in inside}, "align": inside}
    report.ranking_table(console, "test", results, [5, 10])
    lines = cells(shown.getvalue().splitlines())
    assert lines[1][-2:] == ["Pool", "Ceiling"]
    assert [line[-2:] for line in lines if line[0] == "item-kNN"] == [["all", "1.0000"]] * 2
    assert [line[-2:] for line in lines if line[0] == "align"] == [["100", "0.9340"]] * 2
    said = " ".join(shown.getvalue().split())
    assert said.count("Ranked inside pools of 100 candidates, among them 93.4% of the targets") == 1
    console, shown = make_console(width=120)
    report.ranking_table(console, "test", {"item_knn": results["item_knn"]}, [5, 10])
    assert "Pool" not in shown.getvalue()
