"""Comparisons through the command line: killed and continued, placebo, report only."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrl.cli import main
from genrl.compare import report as writing
from genrl.compare import run as comparison
from genrl.compare.plan import Run
from genrl.training.checkpoints import points
from tests.comparisons import ALIGNED, finish, finish_baseline, plan_of
from tests.integration.processes import LIMIT, start
from tests.runs import small

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("--objectives", "sage,same=sage", "--seeds", "0", "--jobs", "1")
STEPS = "rl.max_steps=6"


def words(output: Path, *flags: str) -> list[str]:
    return ["compare", *ROWS, *small(output, STEPS), *flags]


def report(output: Path) -> Any:
    """The report without what differs between runs that are the same: their costs and what they were started with."""
    found = json.loads((output / "toy" / "report.json").read_text())
    assert found.pop("cost").keys() == {"align", "sage", "same"}
    assert found.pop("commands").keys() == {"sage-s0", "same-s0"}
    return found


def kill_when(reached: Callable[[], bool], command: list[str], log: Path) -> None:
    """Start a comparison and kill it, and all its runs, at some moment."""
    process = start(command, log, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + LIMIT
    while not reached():
        assert process.is_alive(), log.read_text()[-2000:]
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


class Ended:
    """A run that was made in this process."""

    def __init__(self, run: Run, slot: int) -> None:
        self.code = main(run.words)

    def poll(self) -> int:
        return self.code


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison that nobody disturbed: its runs one by one, in this process, and then the report."""
    output = tmp_path_factory.mktemp("whole")
    for row in ("sage", "same"):
        name = [] if row == "sage" else [f"name={row}"]
        assert main(["fit", *small(output, STEPS), "--objective", "sage", *name]) == 0
    assert main(words(output)) == 0
    return output


@pytest.fixture(autouse=True)
def without_pictures(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first report has its page and curves; the others leave them out, which takes most of their time."""
    monkeypatch.setattr(writing, "draw", lambda *_: None)
    monkeypatch.setattr(writing, "html", lambda *_: "")


@pytest.mark.slow
def test_a_comparison_that_is_killed_ends_with_the_same_report(whole, tmp_path, monkeypatch):
    toy = tmp_path / "toy"
    kill_when(lambda: bool(points(toy / "sage-s0")), words(tmp_path), tmp_path / "log.txt")
    assert not (toy / "report.json").exists()
    monkeypatch.setattr(comparison, "start", Ended)  # what is left goes on in this process, which has loaded all
    assert main(words(tmp_path)) == 0
    assert report(tmp_path) == report(whole)
    assert len(list(toy.glob("align-*"))) == 1


def test_one_objective_under_two_names_does_not_differ(whole, capsys):
    before = (whole / "toy" / "report.json").read_bytes()
    assert main(words(whole, "--report-only", "--baseline", "same")) == 0
    shown = capsys.readouterr().out
    assert "No difference to same is shown" in shown
    assert "minus same, 95% interval" in shown
    for kinds in report(whole)["tables"].values():
        for table in kinds.values():
            difference = table["lines"]["sage"]["difference"]
            assert difference["low"] <= 0 <= difference["high"]
    assert main(words(whole, "--report-only")) == 0
    assert (whole / "toy" / "report.json").read_bytes() == before


def test_runs_that_fit_has_made_are_reused(whole, capsys):
    assert main(words(whole)) == 0
    assert "started" not in capsys.readouterr().err
    assert not list(whole.rglob("log.txt"))


def test_the_folder_alone_is_reported_by_name(whole, capsys):
    assert main(["compare", "--report-only", "--output", str(whole)]) == 0
    assert re.search(r"^ +same +1 +0\.", capsys.readouterr().out, re.MULTILINE)
    assert main(words(whole, "--report-only")) == 0


def test_a_report_with_other_options_of_evaluation_scores_the_runs_again(whole):
    runs = [whole / "toy" / name / "metrics.json" for name in ("sage-s0", "same-s0")]
    before = (whole / "toy" / "report.json").read_bytes(), [path.read_bytes() for path in runs]
    for flags in ((), ("--objectives", "sage", "--seeds", "0")):
        command = ["compare", "--report-only", *small(whole, STEPS), *flags, "evaluate.k=[3]", "evaluate.test_users=20"]
        assert main(command) == 0
        found = json.loads((whole / "toy" / "report.json").read_text())
        table = found["tables"]["test"]["raw"]
        assert (table["k"], table["users"]) == (3, 20)
        assert set(table["lines"]["sage"]["differences"]) >= {"ndcg@3", "recall@3"}
        (note,) = (note for note in found["notes"] if "scored again with" in note)
        assert "evaluate.k=[3], evaluate.test_users=20" in note
    assert main(words(whole, "--report-only")) == 0
    assert ((whole / "toy" / "report.json").read_bytes(), [path.read_bytes() for path in runs]) == before


def test_a_run_of_another_objective_is_no_baseline_and_that_is_said_before_anything_runs(tmp_path, capsys):
    finish(plan_of(tmp_path, "same=sage", seeds=(0,)).runs[0], ALIGNED)
    finish_baseline(tmp_path, "sasrec", ALIGNED)
    command = ["compare", "--layout", "sid", "--output", str(tmp_path), "--objectives"]
    assert main([*command, "grpo", "--baseline", "same"]) == 2
    assert "--baseline same: no such row. Did you mean 'sasrec'? Rows: align, grpo, sasrec." in capsys.readouterr().err
    assert main([*command, "sasrec=grpo", "--seeds", "1"]) == 2
    assert "sasrec is a baseline that was run in this experiment" in capsys.readouterr().err
    assert not list((tmp_path / "toy").glob("*/log.txt"))


def test_a_budget_in_seconds_ends_the_rl_stage_alone(whole):
    timed = ("name=timed", "rl.select=last", "rl.max_steps=1000000000", "trainer.extra.max_time.seconds=1")
    assert main(["fit", *small(whole, *timed)]) == 0
    metrics = json.loads((whole / "toy" / "timed-s0" / "metrics.json").read_text())
    (align,) = (whole / "toy").glob("align-*")
    assert metrics["stages"]["align"]["folder"].endswith(align.name)
    assert 0 < metrics["stages"]["rl"]["best_step"] < 1000000000
