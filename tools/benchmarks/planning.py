"""What `genrl plan` says of memory against what a stage takes, in a process of its own, around a made model."""

import gc
import multiprocessing
import tempfile
from pathlib import Path

import torch
from make_model import write
from rich.console import Console

from benchmarks.figures import Figure, compare
from benchmarks.inputs import Sizes
from benchmarks.updating import resident
from genrl.cli.configuration import REGISTRIES
from genrl.config import load_config
from genrl.files import write_json
from genrl.runs.plan import plan
from genrl.runs.record import Meter
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, run_stage, stages_of

COMMON = (
    "layout=sid",
    "objective=grpo",
    "data.max_history=20",
    "data.toy.users=60",
    "align.max_epochs=1",
    "align.items_per_step=384",
    "align.learning_rate=0.0001",
    "align.text_tasks=off",
    "align.optimizer=adamw",
    "align.validate_every=10",
    "rollout.prompts=8",
    "rollout.group_size=16",
    "rl.max_steps=2",
    "rl.validate_every=2",
    "rl.select=last",
    "evaluate.batch=8",
    "evaluate.valid_users=8",
    "evaluate.test_users=8",
    "trainer.threads=1",
)
LORA = ("model.lora.rank=16", "model.lora.dropout=0.05", "model.dtype=bfloat16", "trainer.precision=bf16-true")
SHAPES = {
    "all weights": ("stages=[align]",),
    "all weights, checkpointing": ("stages=[align]", "trainer.checkpointing=true"),
    "all weights, rl": ("stages=[rl]", "objective.kl_coef=0.01"),
    "all weights, rl in 4 passes": ("stages=[rl]", "rollout.micro_batch=4", "rollout.group_size=64"),
    "LoRA": ("stages=[align]", *LORA),
    "NF4": ("stages=[align]", *LORA, "model.quantize=nf4", "align.optimizer=paged_adamw_8bit"),
    "NF4, checkpointing, rl": ("stages=[rl]", *LORA, "model.quantize=nf4", "trainer.checkpointing=true"),
}
"""Name -> overrides of the run whose stage is measured."""


def plans(sizes: Sizes, repeats: int) -> list[Figure]:
    """Peak memory of a stage, planned and measured: on a GPU all of it, on a CPU what is above data and libraries."""
    found = []
    device = "gpu" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as place:
        folder = make_model(Path(place) / "model", sizes)
        for name, words in SHAPES.items():
            options = [*COMMON, *words, f"model.name={folder}", f"trainer.accelerator={device}"]
            options.append(f"output={Path(place) / name.replace(' ', '-')}")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                part, planned, measured = pool.apply(measure, (options,))
            checked = f"{planned / measured:.2f} of what was measured is planned"
            found.append(compare("plan", f"{name}, {part}", [planned], [measured], unit="MiB", checked=checked))
    return found


def make_model(folder: Path, sizes: Sizes) -> Path:
    """A Qwen3 with random weights, as a downloaded one lies in a folder."""
    heads = sizes.hidden // 64 if sizes.hidden >= 128 else 2
    shape = {
        "vocab_size": sizes.words,
        "hidden_size": sizes.hidden,
        "intermediate_size": 3 * sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": sizes.hidden // heads,
        "tie_word_embeddings": True,
    }
    return write(folder, shape, torch.float32)


def measure(words: list[str]) -> tuple[str, float, float]:
    """The part of a run with the highest peak, and MiB of that peak: as planned, and as its only stage took them."""
    config = load_config(overrides=words, registries=REGISTRIES)
    session, objective = Session.build(config), build_objective(config)
    planned = plan(session, objective)
    stages = stages_of(session, objective)
    small = ["model.name=tiny", "model.lora.rank=0", "model.quantize=none"]
    warm = load_config(overrides=[*words, *small, f"output={config.output}/warm"], registries=REGISTRIES)
    run_stage(stages_of(Session.build(warm), objective)[-1], Console(quiet=True), last=True)  # libraries set up
    gc.collect()
    before = 0.0 if torch.cuda.is_available() else resident()
    meter = Meter()
    run_stage(stages[-1], Console(quiet=True), last=True)
    taken = meter.read()["peak_mib"] - before
    write_json(Path(config.output) / "plan.json", {need.part: need.parts() for need in planned.needs})
    return planned.worst.part, planned.worst.total / 2**20, taken
