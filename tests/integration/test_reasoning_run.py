"""Whole runs of policies that think: align, activate, rl."""

import json
from pathlib import Path

import lightning as L
import pytest

from genrl.cli import main
from genrl.training.checkpoints import ResumePoint
from genrl.training.rl import RLModule
from tests.runs import small

RUNS = {
    "sapo": ("layout.order=tail", "rewards.format.weight=0.2"),
    "grpo": ("layout.order=interleaved",),
    "ce": ("layout.order=tail",),
}
"""Objective -> what else is its own."""
THINKING = (
    "stages=[align,activate,rl]",
    "layout=blocked",
    "layout.budget=6",
    "align.max_epochs=1",
    "activate.examples=24",
    "activate.examples_per_step=12",
    "activate.max_epochs=1",
    "rl.max_steps=2",
    "rl.validate_every=1",
    "rl.select=last",
    "evaluate.beam=10",
    "evaluate.valid_users=6",
    "evaluate.test_users=6",
)


def words(output: Path, objective: str, *overrides: str) -> list[str]:
    return ["fit", *small(output, *THINKING, f"objective={objective}", *RUNS[objective], *overrides)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one experiment."""
    output = tmp_path_factory.mktemp("reasoning")
    for objective in RUNS:
        assert main(words(output, objective)) == 0
    return output


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def notes(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", RUNS)
def test_all_three_stages_are_trained_and_scored(output, objective):
    folder = output / "toy" / f"{objective}-s0"
    metrics = read(folder)
    assert set(metrics["stages"]) == {"align", "activate", "rl"}
    for split in ("valid", "test"):
        assert {"align", "activate", "rl", "item_knn"} <= set(metrics[split])
        assert all(metrics[split][stage]["raw"]["rows"] == 6 for stage in metrics["stages"])
    assert {stage: set(kinds) for stage, kinds in metrics["differences"].items()} == {
        stage: {"raw", "excluded"} for stage in ("activate", "rl")
    }
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "weights.safetensors", "ranks.safetensors", "samples.jsonl"} <= files
    samples = json.loads((folder / "samples.jsonl").read_text().splitlines()[-1])["samples"]
    assert all(completion["thinking"][0] for sample in samples for completion in sample["completions"])


def test_stage_align_is_shared_and_stage_activate_belongs_to_its_layout(output):
    kinds = [path.name.partition("-")[0] for path in (output / "toy").iterdir()]
    assert kinds.count("align") == 1
    assert kinds.count("activate") == 2


def test_thinking_is_logged_under_the_same_tags_for_every_objective(output):
    logged = [{tag for note in notes(output / "toy" / f"{name}-s0") for tag in note} for name in ("sapo", "grpo")]
    steps = ("train/match/step", "train/reward/step", "train/grad_norm/step", "objective/advantage_abs_step")
    numbered = {
        f"{tag}{step}" for tag in (*steps, "rollout/think_length/block", "policy/entropy/level") for step in "123"
    }
    single = {"rollout/budget_hits", "rollout/format_failures", "policy/entropy/thinking", "policy/entropy/sid"}
    shared = logged[0] & logged[1]
    assert numbered | single | {"policy/kl", "rollout/length"} <= shared
    apart = {tag for tag in logged[0] ^ logged[1] if not tag.startswith("val/")}
    assert apart == {"train/reward/format", "rollout/information"}  # which an interleaved order does not define
    for note in notes(output / "toy" / "sapo-s0"):
        if "rollout/budget_hits" in note:
            assert all(1 <= note[f"rollout/think_length/block{block}"] <= 6 for block in (1, 2, 3))
            assert note["rollout/format_failures"] == 0


@pytest.mark.parametrize("objective", RUNS)
def test_a_run_that_thinks_can_be_evaluated_and_asked(output, capsys, objective):
    folder = output / "toy" / f"{objective}-s0"
    capsys.readouterr()
    assert main(["evaluate", "--run", str(folder), "--split", "valid"]) == 0
    shown = capsys.readouterr().out
    assert f"{read(folder)['valid']['rl']['raw']['ndcg@10']:.4f}" in shown
    assert main(["recommend", "--run", str(folder), "--history", "i3,i7", "--top", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["1", "2", "3"]


def test_the_control_learns_targets_behind_thoughts_of_its_own(output):
    learned = [note for note in notes(output / "toy" / "ce-s0") if "objective/nll" in note]
    assert len(learned) == 2
    for note in learned:
        assert note["objective/nll"] == pytest.approx(note["train/loss"], rel=1e-5)
        assert all(note[f"train/match/step{step}"] == 1 for step in (1, 2, 3))
        assert all(1 <= note[f"rollout/think_length/block{block}"] <= 6 for block in (1, 2, 3))
        assert note["rollout/length"] > 6
        assert note["rollout/format_failures"] == 0


class LeftError(Exception):
    """The process ends here."""


def test_a_run_that_is_resumed_ends_with_the_same_bits(output, monkeypatch):
    original = ResumePoint.on_train_epoch_end

    def leave(self: ResumePoint, trainer: L.Trainer, module: L.LightningModule) -> None:
        original(self, trainer, module)
        if isinstance(module, RLModule):
            raise LeftError

    again = words(output, "sapo", "name=again")
    with monkeypatch.context() as patched:
        patched.setattr(ResumePoint, "on_train_epoch_end", leave)
        with pytest.raises(LeftError):
            main(again)
    one, two = output / "toy" / "sapo-s0", output / "toy" / "again-s0"
    assert max(note["step"] for note in notes(two)) == 1
    assert main([*again, "--resume"]) == 0
    for name in ("weights.safetensors", "ranks.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for split in ("valid", "test", "differences"):
        assert read(one)[split] == read(two)[split]
