"""Whole runs through the command line: every objective, what a run folder holds, and what can be done with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl.cli import main
from genrl.training.checkpoints import latest, points
from tests.models import save_local_model
from tests.runs import curves_drawn, small

METHODS = {"grpo": "beam", "gbpo": "gumbel", "sage": "gumbel", "dapo": "beam"}
"""Rollout methods other than `sample`, to have each of them run."""
NAMES = ["grpo", "gbpo", "sapo", "sage", "dapo", "bapo", "ce"]
"""Those that ask something of their own of a run; tests/unit/training/test_rl.py takes a step with every one."""
SHORT = ("align.max_epochs=1", "rl.max_steps=2", "rl.validate_every=1")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All objectives in one experiment."""
    output = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        method = f"rollout.method={METHODS.get(name, 'sample')}"
        with curves_drawn(name == "sapo"):
            assert main(["fit", *small(output, *SHORT, method), "--objective", name]) == 0
    return output


def read(folder: Path, name: str = "metrics.json") -> dict:
    return json.loads((folder / name).read_text())


def tags(folder: Path) -> set[str]:
    """Every tag of the event files, scalars and texts."""
    found: set[str] = set()
    for path in folder.glob("events.out.*"):
        events = EventAccumulator(str(path)).Reload()
        found |= {*events.Tags()["scalars"], *events.Tags()["tensors"]}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_and_is_scored(output, name):
    folder = output / "toy" / f"{name}-s0"
    metrics = read(folder)
    assert metrics["objective"]["name"] == name
    for split in ("valid", "test"):
        assert set(metrics[split]) == {"most_popular", "repeat_last", "item_knn", "align", "rl"}
        for scored in metrics[split].values():
            assert scored["raw"]["rows"] == 80
            assert 0 <= scored["raw"]["recall@10"] <= 1
            assert scored["excluded"]["ndcg@10"] is not None
    assert set(metrics["stages"]) == {"align", "rl"}
    notes = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    passes = 2 if name == "sage" else 1  # a rollout is used up before a validation
    assert [note["step"] for note in notes if "val/ndcg@10" in note] == list(range(0, 3, passes))
    trained = [note for note in notes if "train/loss" in note]
    assert [note["step"] for note in trained] == [1, 2]
    assert all(torch.isfinite(torch.tensor(list(note.values()))).all() for note in trained)
    assert any(note["train/grad_norm"] > 0 for note in trained)


def test_a_run_folder_explains_itself(output):
    folder = output / "toy" / "sapo-s0"
    files = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.")}
    wanted = {"config.yaml", "versions.json", "command.txt", "metrics.json", "curves.png", "history.jsonl"}
    assert wanted | {"weights.safetensors", "ranks.safetensors"} <= files
    assert [latest(folder)] == points(folder)[:1]
    assert not [name for name in files if name.endswith(".writing") or name.startswith(".metrics")]
    assert read(folder, "versions.json")["torch"] == torch.__version__
    command = (folder / "command.txt").read_text()
    assert command.startswith("python -m genrl fit ")
    assert " data.toy.users=80 " in command
    assert "--objective sapo" in command
    assert f"--config {folder / 'config.yaml'}" in command
    ranks = load_file(folder / "ranks.safetensors")
    names = [f"{split}/{kind}" for split in ("valid", "test") for kind in ("raw", "excluded")]
    assert {name: value.numel() for name, value in ranks.items()} == dict.fromkeys(
        [*names, "cold/valid", "cold/test"], 80
    )
    hits = float((ranks["test/raw"] < 10).float().mean())
    assert read(folder)["test"]["rl"]["raw"]["recall@10"] == pytest.approx(hits, abs=1e-6)


def test_all_runs_share_sids_alignment_and_reference_lines(output):
    kinds = [path.name.partition("-")[0] for path in (output / "toy").iterdir()]
    assert kinds.count("align") == 1
    assert kinds.count("sid") == 1
    assert kinds.count("reference") == 2
    scored = [read(output / "toy" / f"{name}-s0") for name in NAMES]
    for split in ("valid", "test"):
        for line in ("most_popular", "repeat_last", "item_knn", "align"):
            assert all(metrics[split][line] == scored[0][split][line] for metrics in scored)


def test_tensorboard_shows_the_same_tags_for_every_objective(output):
    found = {name: tags(output / "toy" / f"{name}-s0") for name in ("grpo", "gbpo", "sapo", "sage", "ce")}
    shared = set.intersection(*found.values())
    assert {
        "train/loss",
        "train/reward",
        "train/reward/exact_match",
        "train/match/step1",
        "train/valid_rate",
        "train/grad_norm",
        "train/learning_rate",
        "policy/entropy",
        "objective/dead_groups",
        "rollout/length",
        "rollout/distinct",
        "time/rollout",
        "val/ndcg@10",
        "val/cold_recall@10",
        "rollouts/text_summary",
        "objective/text_summary",
        "config/text_summary",
    } <= shared
    levels = json.loads((output / "toy" / "grpo-s0" / "metrics.json").read_text())["sid"]["levels"]
    for name, every in found.items():
        own = {tag for tag in every - shared if not tag.startswith("objective/")}
        drawn = {"policy/sampling_gap", "policy/sampling_gap_max"}
        drawn |= {f"policy/entropy/level{level}" for level in range(1, levels + 1)}
        expected = set() if name == "ce" else drawn
        assert own - {"policy/kl"} == expected, name
        assert ("policy/kl" in own) == (name in ("grpo", "sapo")), name  # those with a reference by default


def test_tensorboard_holds_the_values_of_the_history(output):
    folder = output / "toy" / "grpo-s0"
    notes = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    wanted = [note["train/reward"] for note in notes if "train/reward" in note]
    written = []
    for path in sorted(folder.glob("events.out.*")):
        events = EventAccumulator(str(path)).Reload()
        if "train/reward" in events.Tags()["scalars"]:
            written += [event.value for event in events.Scalars("train/reward")]
    assert written == pytest.approx(wanted)


def test_the_saved_configuration_repeats_the_run(output, tmp_path):
    first = output / "toy" / "sapo-s0"
    assert main(["fit", "--config", str(first / "config.yaml"), f"output={tmp_path}"]) == 0
    second = tmp_path / "toy" / "sapo-s0"
    one, two = read(first), read(second)
    for part in ("valid", "test", "differences", "data", "sid", "seed"):
        assert one[part] == two[part]
    for name in ("weights.safetensors", "ranks.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_another_seed_shares_alignment_and_trains_otherwise(output):
    assert main(["fit", *small(output, *SHORT), "--objective", "sapo", "--seed", "1"]) == 0
    one, two = (output / "toy" / f"sapo-s{seed}" for seed in (0, 1))
    assert len(list((output / "toy").glob("align-*"))) == 1
    assert (one / "weights.safetensors").read_bytes() != (two / "weights.safetensors").read_bytes()


def test_evaluate_scores_a_folder_or_a_configuration(output, capsys):
    folder = output / "toy" / "grpo-s0"
    value = read(folder)["valid"]["rl"]["raw"]["ndcg@10"]
    capsys.readouterr()
    assert main(["evaluate", "--run", str(folder), "--split", "valid"]) == 0
    by_folder = capsys.readouterr().out
    assert "valid (80 users" in by_folder
    assert "raw ranking" in by_folder
    assert f"{value:.4f}" in by_folder
    assert main(["evaluate", *small(output, *SHORT), "--objective", "grpo", "--split", "valid"]) == 0
    assert capsys.readouterr().out == by_folder


@pytest.mark.parametrize(("architecture", "objective", "rank"), [("qwen3", "sapo", 4), ("llama", "sage", 0)])
def test_a_downloaded_model_is_aligned_and_trained(tmp_path, architecture, objective, rank):
    model = save_local_model(tmp_path / "model", architecture, hidden_size=64, intermediate_size=128)
    options = [f"model.name={model}", f"model.lora.rank={rank}", "data.max_history=20", "data.toy.users=30"]
    options += ["prompt.prefix='red apple: '", "rollout.micro_batch=4", "rl.select=last"]
    assert main(["fit", *small(tmp_path, *SHORT, *options), "--objective", objective]) == 0
    folder = tmp_path / "toy" / f"{objective}-s0"
    (align,) = (tmp_path / "toy").glob("align-*")
    before, after = (load_file(path / "weights.safetensors") for path in (align, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    if rank:
        assert all("lora_" in name or "trainable_tokens" in name for name in after)
    notes = [json.loads(line) for line in (align / "history.jsonl").read_text().splitlines()]
    assert any(note.get("train/loss", 0) > 2 for note in notes)  # words over the whole vocabulary count, too
    assert main(["recommend", "--run", str(folder), "--history", "i3", "--top", "3"]) == 0
