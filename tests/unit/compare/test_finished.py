import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genrl.compare.finished import (
    Finished,
    cold_rows,
    comparable,
    describe,
    found_rows,
    planned_rows,
    read_samples,
    row_facts,
    with_shared_stages,
)
from genrl.compare.plan import UNLIMITED, Plan
from genrl.compare.record import Row
from genrl.errors import CheckpointError, DataError
from genrl.files import read_json
from genrl.manifest import seal
from genrl.recommenders.bundle import SIDS
from tests.comparisons import ALIGNED, COLD, finish, finish_baseline, plan_of
from tests.runs import resealed

RANKS = (0, 1, 2, 20, 4, 20)


def read(folder: Path) -> Finished:
    return Finished.read(folder)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One row with two finished seeds."""
    plan = plan_of(tmp_path, "grpo", seeds=(0, 1))
    for run in plan.runs:
        finish(run, RANKS)
    return plan


def test_runs_are_found_by_what_they_are_about(plan, tmp_path):
    folder = plan.shared.folder.parent
    for seed in (2, 10, 1):
        finish_baseline(tmp_path, "sasrec", RANKS, seed)
    (folder / "half-s0").mkdir()
    seal(folder / "half-s0", {"stages": {"rl": {}}, "name": "half", "seed": 0})
    baselines = found_rows(folder, "baseline")
    assert {row: [run.seed for run in found] for row, found in baselines.items()} == {"sasrec": [1, 2, 10]}
    assert {row: [run.seed for run in found] for row, found in found_rows(folder, "align", "rl").items()} == {
        "grpo": [0, 1]
    }
    assert with_shared_stages({"grpo": [], **planned_rows(plan)}) == planned_rows(plan)
    assert with_shared_stages({"sasrec": baselines["sasrec"]}) == {}
    assert baselines["sasrec"][0].scores("test") == baselines["sasrec"][0].metrics["test"]["baseline"]
    assert planned_rows(plan)["grpo"][1].scores("test") == read(plan.runs[1].folder).metrics["test"]["rl"]
    assert list(planned_rows(plan)["grpo"][0].references("test")) == ["most_popular"]


def test_a_baseline_with_the_name_of_a_reference_line_and_other_numbers_has_a_row_of_its_own(tmp_path):
    assert read(finish_baseline(tmp_path, "most_popular", ALIGNED, 0)).row == "most_popular"
    assert read(finish_baseline(tmp_path, "most_popular", RANKS, 1)).row == "most_popular (run)"
    assert read(finish_baseline(tmp_path, "sasrec", RANKS)).row == "sasrec"


def test_baselines_of_other_data_or_rows_are_left_out_and_named(plan, tmp_path):
    finish_baseline(tmp_path, "sasrec", RANKS, 0)
    finish_baseline(tmp_path, "sasrec", RANKS, 1, data="beef")
    finish_baseline(tmp_path, "tiger", RANKS[:4], aligned=ALIGNED[:4], cold=COLD[:4])
    baselines = found_rows(plan.shared.folder.parent, "baseline")
    kept, notes = comparable(baselines, planned_rows(plan))
    assert {row: [run.seed for run in found] for row, found in kept.items()} == {"sasrec": [0]}
    assert [note.split(" ")[0] for note in notes] == ["sasrec-s1", "tiger-s0"]
    assert all("grpo-s0" in note for note in notes)
    assert list(comparable(baselines, {})[0]) == ["sasrec"]  # the first baseline says what the others are held against
    assert comparable({}, planned_rows(plan)) == ({}, [])


def test_a_baseline_that_counts_other_hits_is_left_out(plan, tmp_path):
    folder = finish_baseline(tmp_path, "sasrec", RANKS)
    path = folder / "config.yaml"
    text = path.read_text()
    assert text.count("level: item") == 1
    path.write_text(text.replace("level: item", "level: sid"))
    resealed(folder)
    kept, (note,) = comparable(found_rows(plan.shared.folder.parent, "baseline"), planned_rows(plan))
    assert kept == {}
    assert "another evaluate.level than grpo-s0" in note


def test_a_copy_of_a_run_does_not_count_twice(plan):
    run = plan.runs[0].folder
    shutil.copytree(run, run.with_name("grpo-s0-copy"))
    with pytest.raises(DataError, match=r"grpo-s0 and .*grpo-s0-copy are both grpo with seed 0"):
        found_rows(run.parent, "align", "rl")


def test_a_baseline_may_not_have_the_name_of_an_objective(plan, tmp_path):
    finish_baseline(tmp_path, "grpo", RANKS, seed=5)
    with pytest.raises(DataError, match=r"grpo is a baseline and an objective: .*grpo-s5.*grpo-s0"):
        comparable(found_rows(plan.shared.folder.parent, "baseline"), planned_rows(plan))


def test_baselines_need_no_align_stage_to_be_described(plan, tmp_path):
    baseline = read(finish_baseline(tmp_path, "sasrec", RANKS))
    runs = planned_rows(plan)["grpo"]
    assert describe([*runs, baseline]) == describe(runs)
    assert describe(runs)["shared"] == {"align": "align-1"}
    alone = describe([baseline])
    assert alone["shared"] == {}
    assert alone["data"] == {"name": "toy", "fingerprint": "f00d"}


def test_the_sids_of_a_comparison_are_those_that_its_runs_keep(plan):
    runs = planned_rows(plan)["grpo"]
    assert not describe(runs)["sid"]["fingerprint"]
    found = []
    for code in (1, 1, 2):
        save_file({"codes": torch.tensor([[0, code]])}, runs[0].folder / SIDS)
        found.append(describe(runs)["sid"]["fingerprint"])
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 16


def test_which_targets_are_cold_is_known_from_any_run_of_the_same_rows(plan, tmp_path):
    finish(plan.runs[0], RANKS, cold=None)
    found = cold_rows(planned_rows(plan)["grpo"], "test")
    assert found.tolist() == [bool(value) for value in COLD]
    assert found.dtype == torch.bool
    finish(plan.runs[1], RANKS, cold=None)
    assert cold_rows(planned_rows(plan)["grpo"], "valid") is None


def test_runs_with_other_cold_targets_are_not_on_the_same_rows(plan, tmp_path):
    finish_baseline(tmp_path, "sasrec", RANKS, cold=(*COLD[::-1][1:], 1))
    runs = [*planned_rows(plan)["grpo"], *found_rows(plan.shared.folder.parent, "baseline")["sasrec"]]
    with pytest.raises(DataError, match=r"sasrec-s0 and .*grpo-s0 are not scored on the same test rows"):
        cold_rows(runs, "test")


def test_facts_of_an_objective_say_what_it_is_and_what_was_spent(tmp_path):
    common = ("rollout.prompts=8", "rollout.group_size=4", "rollout.minibatches=2", "rl.max_steps=10")
    plan = plan_of(tmp_path, "grpo,ce", *common, "grpo:objective.clip_low=0.1")
    for run in plan.runs:
        finish(run, RANKS)
    facts = {row: row_facts(found, {}) for row, found in planned_rows(plan).items()}
    grpo = facts["grpo"]
    assert (grpo.kind, grpo.name, grpo.title, grpo.paper) == ("objective", "grpo", "An Objective", "Someone 2026")
    assert (grpo.seeds, grpo.runs) == ([0, 1], ["grpo-s0", "grpo-s1"])
    assert grpo.options["clip_low"] == 0.1
    assert "name" not in grpo.options
    assert "surrogate = ClippedRatio(level='token', bounds=FixedBounds(low=0.1, high=0.2)" in str(grpo.pieces)
    assert grpo.rewards["level_match"]["weight"] == 1.0
    # 5 rollouts of 2 steps each; SIDs have 2 levels
    assert grpo.spent == {"steps": 10, "prompts": 40, "completions": 160, "tokens": 320}
    assert facts["ce"].spent == {"steps": 10, "prompts": 40, "completions": 40, "tokens": 80}


def test_a_run_by_the_clock_has_spent_what_its_notes_say(tmp_path):
    plan = plan_of(tmp_path, "grpo", "rollout.prompts=8", seeds=(0,), budget="seconds=1")
    assert plan.runs[0].config.rl.max_steps == UNLIMITED
    finish(plan.runs[0], RANKS)
    notes = {"train/reward": {5: 1.0, 10: 1.0}, "val/ndcg@10": {0: 0.1, 8: 0.1}}
    spent = row_facts(planned_rows(plan)["grpo"], notes).spent
    assert (spent["steps"], spent["prompts"]) == (10, 80)


def test_facts_of_a_baseline(tmp_path):
    facts = row_facts([read(finish_baseline(tmp_path, "sasrec", RANKS, seed)) for seed in (0, 1)], {})
    runs = ["sasrec-s0", "sasrec-s1"]
    assert facts == Row("baseline", "sasrec", "A Baseline", "", {"window": 3}, seeds=[0, 1], runs=runs)


def test_samples_are_those_of_the_last_rollout(tmp_path):
    assert read_samples(tmp_path) == []
    records = [{"step": 5, "samples": [{"target": "a"}]}, {"step": 10, "samples": [{"target": "b"}, {"target": "c"}]}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [sample["target"] for sample in read_samples(tmp_path)] == ["b", "c"]


def _spoil(folder, name):
    """Damage a file of a run: as a disk does, or as somebody who seals it again."""
    if name.endswith(".jsonl") or name in ("ranks.safetensors", "versions.json"):
        (folder / name).write_bytes(b"no such thing")
        seal(folder, read_json(folder / "metrics.json"))
    elif name == "sealed":
        seal(folder, None)
    elif name.startswith("no_"):
        metrics = read_json(folder / "metrics.json")
        del metrics[name[3:]]
        seal(folder, metrics)
    else:
        (folder / name).write_bytes(b"\0" * 9)


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        "manifest.json",
        "ranks.safetensors",
        "history.jsonl",
        "samples.jsonl",
        "sealed",
        "no_test",
        "no_stages",
        "no_command",
        "no_data",
        "no_seed",
    ],
)
def test_of_damaged_runs_it_is_said_what_is_wrong(plan, tmp_path, name):
    baseline, run = finish_baseline(tmp_path, "tiger", RANKS), plan.runs[1].folder
    damaged = {}
    for spoilt in (baseline, run):
        _spoil(spoilt, name)
    assert found_rows(baseline.parent, "baseline", damaged=damaged) == {}
    assert [run.seed for run in found_rows(run.parent, "align", "rl", damaged=damaged)["grpo"]] == [0]
    assert [run.seed for run in planned_rows(plan, damaged=damaged)["grpo"]] == [0]
    assert sorted(damaged) == ["grpo-s1", "tiger-s0"]
    assert all("damaged" in reason for reason in damaged.values())
    with pytest.raises(CheckpointError):
        found_rows(baseline.parent, "baseline")
