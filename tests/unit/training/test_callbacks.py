import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from genrl.files import read_metadata, save_weights
from genrl.recommenders.policy import decoding
from genrl.runs.session import Session
from genrl.training.callbacks import BestWeights, History, RolloutSamples, StageProgress, StopPoint
from genrl.training.checkpoints import ResumePoint
from genrl.training.rl import RLModule
from tests.helpers import assert_same
from tests.runs import attach, changed, rl_module, sft_module, small_config, train


def make_trainer(**values: Any) -> Any:
    known = {"sanity_checking": False, "global_step": 0, "is_global_zero": True, "should_stop": False, "logger": None}
    return SimpleNamespace(**{**known, "callback_metrics": {}, **values})


def note(trainer: Any, callback: History, step: int, **values: float) -> None:
    """A training step, as Lightning tells it."""
    trainer.global_step = step
    trainer.callback_metrics |= {f"train/{name}": torch.tensor(value) for name, value in values.items()}
    callback.on_train_batch_end(trainer, None)


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_weights_are_kept_and_training_stops_when_none_are_better(session, tmp_path):
    module = sft_module(session, tmp_path)
    best = BestWeights(tmp_path / "weights.safetensors", "val/ndcg@10", patience=2)
    trainer = make_trainer()
    name, parameter = next(iter(session.policy.trainable().items()))
    stopped = []
    for step, value in enumerate([0.1, 0.3, 0.2, 0.3]):
        with torch.no_grad():
            parameter.fill_(float(step))
        trainer.global_step, trainer.callback_metrics = 10 * step, {"val/ndcg@10": torch.tensor(value)}
        best.on_validation_end(trainer, module)
        stopped.append(trainer.should_stop)
    assert stopped == [False, False, False, True]
    assert best.best_step == 10
    saved = load_file(tmp_path / "weights.safetensors")
    assert set(saved) == set(session.policy.trainable())
    assert bool((saved[name] == 1.0).all())


def test_what_was_best_survives_a_restart(session, tmp_path):
    module = sft_module(session, tmp_path)
    old = BestWeights(tmp_path / "a", "val/ndcg@10", patience=1)
    for step, value in enumerate([0.5, 0.4]):
        metrics = {"val/ndcg@10": torch.tensor(value)}
        old.on_validation_end(make_trainer(global_step=step, callback_metrics=metrics), module)
    new = BestWeights(tmp_path / "b", "val/ndcg@10", patience=1)
    new.load_state_dict(old.state_dict())
    trainer = make_trainer()
    new.on_train_start(trainer, module)
    assert trainer.should_stop
    metrics = {"val/ndcg@10": torch.tensor(0.45)}
    new.on_validation_end(make_trainer(global_step=2, callback_metrics=metrics), module)
    assert new.best_step == 0
    assert not (tmp_path / "b").exists()


def test_without_a_monitor_the_latest_weights_are_kept_and_without_patience_nothing_stops(session, tmp_path):
    module = sft_module(session, tmp_path)
    latest, patient = BestWeights(tmp_path / "a", None), BestWeights(tmp_path / "b", "val/ndcg@10")
    trainer = make_trainer()
    name, parameter = next(iter(session.policy.trainable().items()))
    for step, value in enumerate([0.5, 0.4, 0.3, 0.2]):
        with torch.no_grad():
            parameter.fill_(float(step))
        trainer.global_step, trainer.callback_metrics = step, {"val/ndcg@10": torch.tensor(value)}
        latest.on_validation_end(trainer, module)
        patient.on_validation_end(trainer, module)
    assert (latest.best_step, patient.best_step, trainer.should_stop) == (3, 0, False)
    assert float(load_file(tmp_path / "a")[name].flatten()[0]) == 3.0
    assert float(load_file(tmp_path / "b")[name].flatten()[0]) == 0.0


def test_weights_say_how_they_are_decoded(session, tmp_path):
    best = BestWeights(tmp_path / "a", None)
    best.on_validation_end(make_trainer(), sft_module(session, tmp_path))
    wanted = decoding(session.policy, session.layout, session.config.data.max_history, session.config.evaluate)
    assert json.loads(read_metadata(tmp_path / "a")["decoding"]) == wanted


def test_lightnings_own_check_of_validation_counts_for_nothing(session, tmp_path):
    best = BestWeights(tmp_path / "a", "val/ndcg@10")
    best.on_validation_end(make_trainer(sanity_checking=True), sft_module(session, tmp_path))
    assert not list(tmp_path.iterdir())


def test_other_ranks_write_nothing(session, tmp_path):
    trainer = make_trainer(is_global_zero=False, callback_metrics={"val/ndcg@10": torch.tensor(0.1)}, global_step=5)
    best = BestWeights(tmp_path / "a", "val/ndcg@10")
    best.on_validation_end(trainer, sft_module(session, tmp_path))
    assert best.best_step == 5
    history = History(tmp_path / "history.jsonl", 1)
    history.on_validation_end(trainer, None)
    assert not list(tmp_path.iterdir())


def test_weights_replace_the_file_before_in_one_move(tmp_path):
    path = tmp_path / "weights.safetensors"
    for value in (1.0, 2.0):
        save_weights({"a": torch.full((2,), value)}, path)
    assert load_file(path)["a"].tolist() == [2.0, 2.0]
    assert read_metadata(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_values_are_noted_at_every_so_many_steps_and_at_each_validation(tmp_path):
    history = History(tmp_path / "history.jsonl", every=2)
    trainer = make_trainer()
    history.on_train_start(trainer, None)
    for step in (1, 2, 3, 4):
        note(trainer, history, step, reward=step / 8)
        note(trainer, history, step, reward=step / 8)  # another micro-batch of the next step, say
    trainer.callback_metrics["val/ndcg@10"] = torch.tensor(0.5)
    history.on_validation_end(trainer, None)
    wanted = [{"step": 2, "train/reward": 0.25}, {"step": 4, "train/reward": 0.5}, {"step": 4, "val/ndcg@10": 0.5}]
    assert read(history.path) == wanted


def test_a_resumed_run_drops_the_notes_of_steps_it_makes_again(tmp_path):
    path = tmp_path / "history.jsonl"
    steps = [0, 1, 2, 2, 3, 4]
    path.write_text("".join(json.dumps({"step": step, "x": number}) + "\n" for number, step in enumerate(steps)))
    with path.open("a") as file:
        file.write('{"step": 2, "x"')  # a full disk cut this line
    trainer = make_trainer(global_step=2)
    history = History(path, 1)
    with pytest.warns(UserWarning, match="damaged line"):
        history.on_train_start(trainer, None)
    note(trainer, history, 3, reward=1.0)
    assert [line["step"] for line in read(path)] == [0, 1, 2, 2, 3]
    assert read(path)[-1] == {"step": 3, "train/reward": 1.0}


def test_each_step_is_noted_with_its_own_values(session, tmp_path):
    module = rl_module(changed(session, tmp_path, "rollout.micro_batch=3"), tmp_path)
    rewards: dict[int, float] = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *arguments: object) -> None:
            rewards.setdefault(trainer.global_step, float(module.sampled[1].outcome.mean()))

    train(module, 4, Watch(), History(tmp_path / "history.jsonl", 1))
    del rewards[0]  # before the first step was complete
    noted = {line["step"]: line["train/reward"] for line in read(tmp_path / "history.jsonl") if "train/reward" in line}
    assert noted == pytest.approx(rewards)
    assert len(set(rewards.values())) > 1


class Ends(L.Callback):
    """Optimiser steps at which rounds ended, and those of them that were validated."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.validated: list[int] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.ended.append(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validated.append(trainer.global_step)


ENDS = [
    ((), StopPoint(), [4, 8]),
    ((), StopPoint(3), [3, 4, 7, 8]),  # counted from the last checkpoint, which one behind a validation is, too
    ((), StopPoint(minutes=1e-9), [1, 2, 3, 4, 5, 6, 7, 8]),
    ((), StopPoint(5, 60), [4, 8]),
    (("rollout.minibatches=2",), StopPoint(1), [2, 4, 6, 8]),  # behind the last update of each rollout
]


@pytest.mark.parametrize(("options", "stop", "ended"), ENDS)
def test_a_round_ends_where_a_checkpoint_is_due_and_is_validated_where_it_always_was(
    session, tmp_path, options, stop, ended
):
    options = ("rl.max_steps=8", "rl.validate_every=4", "rollout.micro_batch=3", *options)
    ends = Ends()
    train(rl_module(changed(session, tmp_path, *options), tmp_path), 8, stop, ends)
    assert ends.ended == ended
    assert ends.validated == [4, 8]


@pytest.mark.parametrize("size", [0, 3])
def test_what_remains_of_a_round_is_validated_at_its_end_and_steps_as_before(tmp_path, size):
    options = ("objective=grpo", "rl.max_steps=8", "rl.validate_every=4", "evaluate.valid_users=4")

    def module(size: int) -> RLModule:
        return rl_module(Session.build(small_config(tmp_path, *options, f"rollout.micro_batch={size}")), tmp_path)

    train(module(0), 5, ResumePoint(tmp_path))
    whole, rest, ends = module(0), module(size), Ends()
    train(whole, 8)
    (point,) = tmp_path.glob("resume-00000005-*.ckpt")
    train(rest, 8, ResumePoint(tmp_path), ends, start=point)
    assert (ends.ended, ends.validated) == ([8], [8])
    for name, value in whole.state().items():
        assert_same(rest.state()[name], value, tolerance=1e-6 if size else 0.0)


def test_each_validation_gives_a_line_where_there_is_no_terminal(session, tmp_path, capsys):
    progress = StageProgress("align", 4)
    train(sft_module(changed(session, tmp_path, "align.validate_every=0.01"), tmp_path), 4, progress)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("align: ")]
    assert lines[0].endswith(" trained parameters")
    assert [line.partition(" steps")[0] for line in lines[1:]] == [f"align: {step} of 4" for step in (1, 2, 3, 4)]
    assert all("loss " in line and "val ndcg@10 0." in line for line in lines[1:])
    assert progress.display is None


def test_the_bar_closes_before_an_error_is_shown(session, tmp_path):
    class Fails(L.Callback):
        def on_train_batch_end(self, *arguments: object) -> None:
            raise RuntimeError("on purpose")

    progress = StageProgress("align", 4)
    with pytest.raises(RuntimeError, match="on purpose"):
        train(sft_module(session, tmp_path), 4, progress, Fails())
    assert progress.display is None


def test_samples_go_into_the_run_folder_and_into_tensorboard(session, tmp_path):
    module = attach(rl_module(session, tmp_path))
    module.experience(0)
    written: list[tuple[str, str, int]] = []
    board = SimpleNamespace(experiment=SimpleNamespace(add_text=lambda *values: written.append(values)))
    samples = RolloutSamples(session.dataset.catalog, tmp_path / "samples.jsonl", prompts=2, completions=3)
    samples.on_validation_end(make_trainer(logger=board, global_step=7), module)
    ((tag, text, step),) = written
    assert (tag, step) == ("rollouts", 7)
    record = json.loads((tmp_path / "samples.jsonl").read_text())
    assert record["step"] == 7
    assert [len(sample["completions"]) for sample in record["samples"]] == [3, 3]
    for sample in record["samples"]:
        assert f"**target** {sample['target']}" in text
        assert all(f"| {row['item']} |" in text for row in sample["completions"])


def test_a_resumed_run_drops_samples_of_steps_that_it_makes_again(session, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 2, "samples": []}\n{"step": 4, "samples": []}\n{"step": 6, "sam')
    samples = RolloutSamples(session.dataset.catalog, path)
    with pytest.warns(UserWarning, match="damaged line"):
        samples.on_train_start(make_trainer(global_step=3), rl_module(session, tmp_path))
    assert path.read_text() == '{"step": 2, "samples": []}\n'


def test_there_are_no_samples_before_the_first_rollout_or_of_another_stage(session, tmp_path):
    samples = RolloutSamples(session.dataset.catalog, tmp_path / "samples.jsonl")
    samples.on_validation_end(make_trainer(logger=SimpleNamespace()), attach(rl_module(session, tmp_path)))
    samples.on_validation_end(make_trainer(logger=SimpleNamespace()), sft_module(session, tmp_path))
    assert not (tmp_path / "samples.jsonl").exists()


def test_without_a_logger_samples_still_go_into_the_run_folder(session, tmp_path):
    module = attach(rl_module(session, tmp_path))
    module.experience(0)
    RolloutSamples(session.dataset.catalog, tmp_path / "samples.jsonl").on_validation_end(make_trainer(), module)
    assert (tmp_path / "samples.jsonl").exists()
