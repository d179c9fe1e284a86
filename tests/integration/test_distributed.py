"""Two processes, of one machine or of two, give the update and the metrics of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrl.cli import main
from tests.helpers import assert_same
from tests.runs import small

ROOT = Path(__file__).resolve().parents[2]
COMMON = ("rl.select=last", "rl.max_steps=3", "rl.validate_every=2", "rl.learning_rate=0.0001", "evaluate.batch=16")
RUNS = {
    "sapo": (
        "stages=[align,activate,rl]",
        "layout=blocked",
        "layout.budget=6",
        "align.max_epochs=1",
        "align.learning_rate=0.0003",
        "activate.max_epochs=1",
        "activate.learning_rate=0.0003",
        "rollout.micro_batch=3",
    ),
    "sage": ("stages=[rl]", "objective.diversity=group"),
    "grpo": ("stages=[align,rl]", "align.max_epochs=1", "align.learning_rate=0.0003"),
}
"""Through all stages with thinking, the later ones in processes that trained before; straight into the last one; and
on two nodes that share a folder, each started by its own launcher."""
UNLIKE = ("time/", "objective/", "policy/entropy")
"""Times; and means over the tokens of a micro-batch, of which two ranks have others."""


@pytest.fixture(scope="module", params=list(RUNS))
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Objective, folder of the run with one process, folder of the run with two."""
    name = request.param
    options = (*COMMON, *RUNS[name], f"objective={name}")
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    assert main(["fit", *small(one, *options)]) == 0
    run(*(nodes(two, *options) if name == "grpo" else [[sys.executable, *fit(two, *options, "trainer.devices=2")]]))
    return name, one / "toy", two / "toy"


def fit(output: Path, *options: str) -> list[str]:
    return ["-m", "genrl", "fit", *small(output, *options)]


def nodes(output: Path, *options: str) -> list[list[str]]:
    """What starts a run on each of two nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    started = [sys.executable, "-m", "torch.distributed.run", *shared]
    return [[*started, f"--node-rank={node}", *fit(output, *options, "trainer.num_nodes=2")] for node in range(2)]


def run(*commands: list[str]) -> None:
    """Run commands together; all of them have to end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kept: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(command, **kept) for command in commands]
    try:
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.kill()


def test_the_weights_are_the_same(outputs: tuple[str, Path, Path]) -> None:
    name, one, two = outputs
    stages = [*(path.name for kind in ("align", "activate") for path in one.glob(f"{kind}-*")), f"{name}-s0"]
    assert len(stages) == len(RUNS[name][0].split(","))
    for stage in stages:
        first, second = (load_file(folder / stage / "weights.safetensors") for folder in (one, two))
        assert set(first) == set(second)
        for parameter, value in first.items():
            assert_same(second[parameter], value, tolerance=1e-6)


def test_every_user_is_scored_once(outputs: tuple[str, Path, Path]) -> None:
    name, one, two = outputs
    first, second = (json.loads((folder / f"{name}-s0" / "metrics.json").read_text()) for folder in (one, two))
    for split in ("valid", "test"):
        assert set(second[split]) == set(first[split])
        for model, scored in first[split].items():
            for kind, metrics in scored.items():
                assert second[split][model][kind] == pytest.approx(metrics, abs=1e-6), (split, model, kind)
    ranks = [load_file(folder / f"{name}-s0" / "ranks.safetensors") for folder in (one, two)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])


def test_what_is_logged_while_training_is_the_same(outputs: tuple[str, Path, Path]) -> None:
    _, one, two = outputs
    for folder in (path.name for path in one.iterdir() if (path / "history.jsonl").exists()):
        first, second = (
            [json.loads(line) for line in (output / folder / "history.jsonl").read_text().splitlines()]
            for output in (one, two)
        )
        assert [note["step"] for note in first] == [note["step"] for note in second]
        for before, after in zip(first, second, strict=True):
            kept = {key: value for key, value in before.items() if not key.startswith(UNLIKE)}
            assert {key: after[key] for key in kept} == pytest.approx(kept, abs=1e-5), folder


def test_one_process_writes(outputs: tuple[str, Path, Path]) -> None:
    _, one, two = outputs
    for folder in (path for path in one.iterdir() if path.is_dir()):
        names = [sorted(path.name for path in base.rglob("*")) for base in (folder, two / folder.name)]
        kept = [[name for name in part if "tfevents" not in name] for part in names]
        assert kept[0] == kept[1]
        assert len(names[0]) == len(names[1])
