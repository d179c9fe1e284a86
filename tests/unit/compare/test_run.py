import json

import pytest

from genrl.compare import run as comparison
from genrl.compare.plan import Run
from genrl.compare.run import choose, completion_length, environment, latest_step, run_comparison
from genrl.config import RunConfig
from genrl.config.schema import TrainerConfig
from genrl.errors import CheckpointError, ConfigError, GenRLError
from genrl.files import write_json
from genrl.runs.session import Session
from tests.comparisons import finish, plan_of
from tests.runs import small_config

RANKS = (0, 1, 2, 20, 20, 20)


class Process:
    """Ends at the second look."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.looks = 0

    @property
    def ended(self) -> bool:
        return self.looks > 1

    def poll(self) -> int | None:
        self.looks += 1
        return self.code if self.ended else None


class Workers:
    """Stands for the processes: finishes a run at once, and notes what was started and how many were at work."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.started: list[str] = []
        self.at_work: list[Process] = []
        self.most = 0

    def __call__(self, run: Run, slot: int) -> Process:
        name = run.folder.name
        self.started.append(name)
        run.folder.mkdir(parents=True, exist_ok=True)
        if name == self.failing:
            (run.folder / comparison.LOG).write_text("one\nout of memory\n")
        elif "rl" not in run.config.stages:
            write_json(run.folder / "metrics.json", {})
        else:
            finish(run, RANKS, valid=run.config.rl.learning_rate)
        self.at_work = [process for process in self.at_work if not process.ended]
        self.at_work.append(Process(code=int(name == self.failing)))
        self.most = max(self.most, len(self.at_work))
        return self.at_work[-1]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(comparison, "start", found)
    monkeypatch.setattr(comparison, "LOOK", 0.01)
    return found


def test_align_comes_first_and_then_jobs_at_a_time(tmp_path, workers):
    plan = plan_of(tmp_path, "grpo,sapo", seeds=(0, 1))
    assert run_comparison(plan, jobs=2) == []
    assert workers.started[0] == plan.shared.folder.name
    assert workers.started[1:] == ["grpo-s0", "sapo-s0", "grpo-s1", "sapo-s1"]
    assert workers.most == 2


def test_finished_runs_are_not_started_again(tmp_path, workers, capsys):
    plan = plan_of(tmp_path, "grpo", seeds=(0, 1))
    finish(plan.runs[1], RANKS)
    run_comparison(plan, jobs=1)
    assert workers.started[1:] == ["grpo-s0"]
    assert "[2/2] grpo-s0 finished" in capsys.readouterr().err


def test_the_best_point_on_validation_gets_the_other_seeds(tmp_path, workers):
    plan = plan_of(tmp_path, "grpo,ce", seeds=(0, 1, 2), grids=("grpo:lr=1e-5,1e-3,1e-4",))
    assert run_comparison(plan, jobs=3) == []
    firsts = ["grpo-lr1e-5-s0", "grpo-lr1e-3-s0", "grpo-lr1e-4-s0", "ce-s0"]
    assert workers.started[1:] == [*firsts, "grpo-lr1e-3-s1", "grpo-lr1e-3-s2", "ce-s1", "ce-s2"]
    assert choose(plan.rows["grpo"]) == ([1e-5, 1e-3, 1e-4], plan.rows["grpo"][1])


def test_nothing_is_chosen_before_all_points_are_finished(tmp_path):
    (candidates,) = plan_of(tmp_path, "grpo", grids=("lr=1e-5,1e-3",)).rows.values()
    finish(candidates[1].runs[0], RANKS, valid=0.3)
    assert choose(candidates) == ([None, 0.3], None)
    finish(candidates[0].runs[0], RANKS, valid=0.3)
    assert choose(candidates) == ([0.3, 0.3], candidates[0])  # the first of equal ones


def test_the_score_is_that_of_the_largest_k_the_run_has(tmp_path):
    (candidates,) = plan_of(tmp_path, "grpo", "evaluate.k=[5,20]", seeds=(0,)).rows.values()
    finish(candidates[0].runs[0], RANKS, valid=0.3)  # scored at 5 and 10
    assert choose(candidates) == ([0.3], candidates[0])


def test_a_failed_run_is_shown_and_the_others_go_on(tmp_path, workers, capsys):
    workers.failing = "grpo-s0"
    plan = plan_of(tmp_path, "grpo,sapo", seeds=(0, 1))
    assert [run.folder.name for run in run_comparison(plan, jobs=1)] == ["grpo-s0"]
    assert workers.started[1:] == ["grpo-s0", "sapo-s0", "grpo-s1", "sapo-s1"]
    shown = capsys.readouterr().err
    assert "grpo-s0 failed with code 1" in shown
    assert "out of memory" in shown


def test_without_what_all_begin_with_nothing_else_is_tried(tmp_path, workers):
    plan = plan_of(tmp_path, "grpo", "layout=blocked", "stages=[align,activate,rl]", seeds=(0,))
    workers.failing = plan.shared.folder.name
    with pytest.raises(GenRLError, match="stage align and activate failed"):
        run_comparison(plan, jobs=2)
    assert workers.started == [plan.shared.folder.name]


def test_a_folder_of_another_configuration_is_refused_before_anything_runs(tmp_path, workers):
    finish(plan_of(tmp_path, "grpo", "rl.max_steps=3").runs[0], RANKS)
    with pytest.raises(
        ConfigError, match=r"grpo-s0 already holds another configuration; it differs in rl\.max_steps\."
    ):
        run_comparison(plan_of(tmp_path, "grpo"), jobs=1)
    assert workers.started == []


def test_a_finished_run_that_is_damaged_or_a_folder_with_links_is_refused_before_anything_runs(tmp_path, workers):
    plan = plan_of(tmp_path, "grpo,sapo")
    finish(plan.runs[1], RANKS)
    (plan.runs[1].folder / "ranks.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"grpo-s1 is damaged: ranks\.safetensors has another"):
        run_comparison(plan, jobs=1)
    finish(plan.runs[1], RANKS)
    plan.runs[0].folder.mkdir()
    (plan.runs[0].folder / comparison.LOG).symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"grpo-s0 holds links, which are not followed: log\.txt"):
        run_comparison(plan, jobs=1)
    assert workers.started == []


def test_threads_and_the_log_level_make_no_other_run(tmp_path, workers):
    finish(plan_of(tmp_path, "grpo", "trainer.threads=3", seeds=(0,)).runs[0], RANKS)
    run_comparison(plan_of(tmp_path, "grpo", "trainer.log_every=1", seeds=(0,)), jobs=1)
    assert workers.started == []


@pytest.mark.parametrize(
    ("devices", "accelerator", "visible", "expected"),
    [
        (1, "auto", ["0", "1", "2"], ["0", "1", "2", "0"]),
        (2, "gpu", ["4", "5", "6", "7"], ["4,5", "6,7", "4,5", "6,7"]),
        (1, "auto", ["3"], [None] * 4),
        (1, "cpu", ["0", "1"], [None] * 4),
    ],
)
def test_each_run_at_work_gets_gpus_of_its_own(devices, accelerator, visible, expected):
    config = RunConfig(trainer=TrainerConfig(devices=devices, accelerator=accelerator, threads=0))
    found = [environment(config, slot, visible) for slot in range(4)]
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == expected
    assert "OMP_NUM_THREADS" not in found[0]


def test_the_latest_step_of_a_run_whose_notes_are_being_written(tmp_path):
    (run,) = plan_of(tmp_path, "grpo", seeds=(0,)).runs
    assert latest_step(run) == 0
    run.folder.mkdir(parents=True)
    (run.folder / "history.jsonl").write_text(json.dumps({"step": 5}) + "\n" + '{"step": 10, "tra')
    assert latest_step(run) == 5


def test_a_completion_is_as_long_as_the_layout_says(tmp_path):
    assert completion_length(small_config(tmp_path)) == 3
    session = Session.build(small_config(tmp_path, "layout=blocked", "layout.budget=5"))
    words = session.policy.words
    assert words is not None
    marks = 2 + (words.line_break is not None)
    assert completion_length(session.config) == 3 * (marks + 5 + 1)
