import json
from pathlib import Path
from typing import Any

import pytest

from genrl.cli import main
from genrl.compare import report as writing
from genrl.compare import run as comparison
from genrl.compare.finished import Finished, spent
from genrl.compare.page import html, markdown
from genrl.compare.plan import Plan, Run, parse_budget
from genrl.compare.record import Expense, Request
from genrl.compare.report import make_report
from genrl.compare.studies import requests as asking
from genrl.compare.studies import thinking as module
from genrl.compare.studies.thinking import Match, Question, compare_thinking, matched, plain_plan, thinking_plan
from genrl.errors import ConfigError
from genrl.runs.fit import fit
from tests.comparisons import configure, finish
from tests.runs import small

PLAIN, THINKING = (0, 1, 2, 20, 4, 20), (1, 5, 20, 20, 5, 20)
MATCH = Match(epochs=7, steps=30, validate_every=15, beam=25)


def question(output: Path, *overrides: str, **further: Any) -> Question:
    known = {"objective": "sapo", "seeds": (0,), "budget": None, "flags": ["--output", str(output)]}
    return Question(**{**known, "overrides": overrides, "compose": configure, **further})


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Question:
    """A question whose runs are finished as soon as they are asked for, and whose match is known."""

    def run_all(plan: Plan, jobs: int) -> list[Run]:
        for run in plan.runs:
            finish(run, PLAIN if run.config.name == "plain" else THINKING)
        return []

    monkeypatch.setattr(module, "run_comparison", run_all)
    monkeypatch.setattr(module, "_match", lambda runs, config: MATCH)
    return question(tmp_path)


def test_the_row_with_thinking_has_a_layout_that_thinks_and_is_taught_to(tmp_path):
    runs = thinking_plan(question(tmp_path, "layout.budget=6", "thinking:layout.minimum=2")).runs
    assert [run.folder.name for run in runs] == ["thinking-s0"]
    config = runs[0].config
    assert config.stages == ["align", "activate", "rl"]
    assert [config.layout[name] for name in ("name", "budget", "minimum")] == ["blocked", 6, 2]
    named = thinking_plan(question(tmp_path, "layout=sid", "layout.budget=6")).runs[0].config
    assert (named.layout["name"], named.layout["budget"]) == ("blocked", 6)
    given = thinking_plan(question(tmp_path, "layout=blocked", "layout.order=interleaved")).runs[0].config
    assert given.layout["order"] == "interleaved"


def test_the_row_without_has_all_else_alike(tmp_path):
    asked = question(
        tmp_path, "layout=blocked", "layout.budget=6", "rl.learning_rate=0.5", "thinking:rollout.prompts=64"
    )
    plain, thinking = plain_plan(asked, None).runs[0].config, thinking_plan(asked).runs[0].config
    assert plain.stages == ["align", "rl"]
    assert plain.layout == {"name": "sid"}
    assert thinking.rollout.prompts == 64 != plain.rollout.prompts
    same = ("objective", "rewards", "data", "sid", "model", "align", "rl", "evaluate", "trainer", "seed", "experiment")
    assert all(getattr(plain, section) == getattr(thinking, section) for section in same)
    found = plain_plan(asked, MATCH).runs[0].config
    assert (found.align.max_epochs, found.align.patience, found.evaluate.beam) == (7, 0, 25)
    assert (found.rl.max_steps, found.rl.validate_every) == (30, 15)


def test_a_budget_is_that_of_the_row_with_thinking(tmp_path):
    asked = question(tmp_path, budget=parse_budget("steps=12"))
    assert thinking_plan(asked).runs[0].max_steps == 12
    assert plain_plan(asked, MATCH).runs[0].max_steps == MATCH.steps


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("thinking:model.hidden=8", "must be the same for all rows"),
        ("thinkin:rl.max_steps=3", "Did you mean 'thinking'"),
        ("stages=[align,rl]", "--thinking sets stages itself"),
        ("layout.bugdet=3", "Did you mean 'budget'"),
        ("rl.max_steps=4", "trainer.log_every=5 is more than rl.max_steps=4: no rollout would be noted"),
        ("rollout.method=beam", "searches over SID tokens alone"),
    ],
)
def test_what_cannot_be_asked(tmp_path, override, reason):
    with pytest.raises(ConfigError, match=reason):
        thinking_plan(question(tmp_path, override))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--objectives", "grpo,sapo"), "compares the rows plain, thinking of one"),
        (("--objectives", "a=grpo"), "compares the rows plain, thinking of one"),
        (("--grid", "lr=1,2"), "--thinking chooses nothing"),
        (("--baseline", "align"), "Rows: plain, thinking"),
        (("--report-only",), "nothing to report"),
    ],
)
def test_flags_that_do_not_go_with_it(tmp_path, capsys, flags, reason):
    assert main(["compare", "--thinking", "--output", str(tmp_path), *flags]) == 2
    assert reason in capsys.readouterr().err


def test_the_match_is_measured_once_for_each_setting(asked, monkeypatch):
    plan, plain = thinking_plan(asked), plain_plan(asked, None)
    for run in plan.runs:
        finish(run, THINKING)
    assert matched(plan, plain) == MATCH
    monkeypatch.setattr(module, "_match", lambda runs, config: Match(1, 1, 1, 1))
    assert matched(plan, plain) == MATCH
    other = Question(**{**vars(asked), "overrides": ["plain:rl.learning_rate=0.5"]})
    assert matched(plan, plain_plan(other, None)) == Match(1, 1, 1, 1)


def test_the_row_without_thinking_waits_for_the_other(asked, monkeypatch):
    plan, failed = compare_thinking(asked, None)  # runs nothing
    assert (list(plan.rows), failed) == (["thinking"], [])
    plan, failed = compare_thinking(asked, 1)
    assert (list(plan.rows), failed) == (list(module.ROWS), [])
    assert plan.rows["plain"][0].runs[0].max_steps == MATCH.steps
    monkeypatch.setattr(module, "run_comparison", lambda plan, jobs: pytest.fail("all runs are finished"))
    assert compare_thinking(asked, None)[0].rows.keys() == plan.rows.keys()


def cost(row: str, *, rl: int, time: float) -> Expense:
    training = {"align": 1000, "rl": rl} | ({} if row == "plain" else {"activate": 500})
    return Expense(25, training, rl // 10, Request(61.5, 2_000_000, time))


def test_rows_that_began_apart_stand_in_one_table_with_what_they_cost(asked):
    plan, _ = compare_thinking(asked, 1)
    folder = plan.shared.folder.parent
    facts = {"plain": cost("plain", rl=4000, time=2.0), "thinking": cost("thinking", rl=4100, time=5.0)}
    report = make_report(folder, plan, "plain", lambda rows: {row: facts[row] for row in rows})
    assert report.thinking == facts
    assert report.shared == {}
    lines = report.tables["test"]["raw"].lines
    assert list(lines) == ["most_popular", "plain", "thinking"]
    assert list(report.cost) == [
        *("plain, align", "plain", "thinking, align", "thinking, activate", "thinking"),
    ]
    section = markdown(report).partition("## Does thinking pay?")[2].partition("\n## ")[0]
    effect = lines["thinking"].differences["recall@10"].effect
    assert f"{effect:+.4f}" in section
    assert "**thinking**: " in section
    assert "| plain | 1,000 | 4,000 | 400 | 25 | 61.5 | 2,000,000 | 2.0 | 1.00 |" in section
    assert "| thinking | 1,500 | 4,100 | 410 | 25 | 61.5 | 2,000,000 | 5.0 | 2.50 |" in section
    page = html(report, {}, {})
    assert 'id="does-thinking-pay"' in page
    assert "from the same start" not in page


def test_without_the_question_such_rows_are_refused(asked, tmp_path, capsys):
    compare_thinking(asked, 1)
    assert main(["compare", "--report-only", "--output", str(tmp_path)]) == 2
    assert "do not share" in capsys.readouterr().err


class Ended:
    def poll(self) -> int:
        return 0


@pytest.mark.filterwarnings("ignore:stage activate")  # which learns next to nothing here
def test_a_real_comparison_spends_alike(tmp_path, monkeypatch):
    def start(run: Run, slot: int) -> Ended:
        fit(run.config, resume=True)
        return Ended()

    monkeypatch.setattr(comparison, "start", start)
    monkeypatch.setattr(comparison, "LOOK", 0.01)
    monkeypatch.setattr(writing, "draw", lambda *arguments: None)
    monkeypatch.setattr(writing, "html", lambda *arguments: "")
    monkeypatch.setattr(asking, "COUNTED", 1)
    monkeypatch.setattr(asking, "TIMED", 2)
    words = ["compare", "--thinking", "--seeds", "0", *small(tmp_path, "layout.budget=3", "evaluate.beam=10")]
    words = [word for word in words if not word.startswith("stages=")]
    words += ["activate.max_epochs=1", "activate.examples=50", "rl.max_steps=2", "data.toy.users=30"]
    words += ["evaluate.valid_users=10", "evaluate.test_users=10", "align.max_epochs=1"]
    assert main(words) == 0
    folder = tmp_path / "toy"
    report = json.loads((folder / "report.json").read_text())
    plain, thinking = (report["thinking"][row] for row in module.ROWS)
    assert plain["training"].keys() == {"align", "rl"}
    runs = {row: Finished.read(folder / f"{row}-s0") for row in module.ROWS}
    passes = runs["plain"].config.align.max_epochs
    supervised = thinking["training"]["align"] + thinking["training"]["activate"]
    assert abs(plain["training"]["align"] - supervised) <= 0.5 * plain["training"]["align"] / passes  # whole passes
    rollout = 8 * 4 * 3
    assert thinking["training"]["rl"] - rollout < plain["training"]["rl"] <= thinking["training"]["rl"]
    assert plain["training"]["rl"] == spent(runs["plain"], {})["tokens"]
    assert thinking["request"]["tokens"] > plain["request"]["tokens"]
    assert 10 < plain["beam"] <= 60
