"""The recipe of 4-bit weights with adapters runs as it is written, from align to export, on a model small enough."""

import itertools
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from genrl.cli import main
from tests.models import save_local_model
from tests.runs import curves_drawn

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "model" / "qwen3_1p7b_qlora.yaml"
SIZES = (
    "data.toy.users=60",
    "data.toy.items=60",
    "data.max_history=8",
    "sid.codes=8",
    "layout=blocked",
    "layout.budget=2",
    "align.max_epochs=1",
    "align.items_per_step=256",
    "align.text_tasks=off",
    "activate.max_epochs=1",
    "activate.examples=64",
    "rollout.prompts=4",
    "rollout.group_size=4",
    "rl.max_steps=2",
    "rl.validate_every=2",
    "rl.select=last",
    "objective=grpo",
    "evaluate.beam=5",
    "evaluate.k=[1,5]",
    "evaluate.valid_users=4",
    "evaluate.test_users=4",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
)


def test_every_stage_trains_in_bfloat16_and_what_was_learned_is_served(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "tie_word_embeddings": True}
    folder = save_local_model(tmp_path / "model", "qwen3", **sizes)
    options = (*SIZES, f"model.name={folder}", f"output={tmp_path}")
    run = tmp_path / "toy" / "grpo-s0"
    with warnings.catch_warnings(), curves_drawn(False):
        warnings.filterwarnings("ignore", "<think> and </think> were added")
        assert main(["fit", "--config", str(RECIPE), *options]) == 0
        _check_training(run)
        capsys.readouterr()
        assert main(["evaluate", "--run", str(run), "--split", "valid"]) == 0
        found = json.loads((run / "metrics.json").read_text())["valid"]["rl"]["excluded"]["ndcg@5"]
        assert f"{found:.4f}" in capsys.readouterr().out
        assert main(["recommend", "--run", str(run), "--history", "i3,i4", "--top", "2"]) == 0
        assert len([line for line in capsys.readouterr().out.splitlines() if "  i" in line]) == 2
        assert main(["export", "--run", str(run), "--out", str(tmp_path / "served")]) == 0
    said = capsys.readouterr().out
    assert "the 4-bit weights that were trained stand in it as the numbers that they mean" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "served", dtype="auto")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _check_training(run: Path) -> None:
    """Adapters and new rows moved in every stage, by finite numbers; ratios of a first update are 1."""
    stages = [next(run.parent.glob("align-*")), next(run.parent.glob("activate-*")), run]
    weights = [load_file(stage / "weights.safetensors") for stage in stages]
    for before, after in itertools.pairwise(weights):
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert any("lora_B" in name for name in moved)
        assert any("trainable_tokens" in name for name in moved)
    assert all(bool(torch.isfinite(value).all()) for state in weights for value in state.values())
    notes = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    steps = [note for note in notes if "train/loss" in note]
    assert [note["step"] for note in steps] == [1, 2]
    for note in steps:
        assert (note["objective/ratio_mean"], note["objective/ratio_max"]) == (1.0, 1.0)
        assert note["train/grad_norm"] > 0
        assert 0 < note["policy/sampling_gap"] <= note["policy/sampling_gap_max"] < 0.3
