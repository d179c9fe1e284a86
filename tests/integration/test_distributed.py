"""Two processes, of one machine or of two, give the update and the metrics of one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrl.cli import main
from tests.helpers import assert_same
from tests.integration.processes import KILLED, LIMIT, end, start
from tests.runs import curves_drawn, small

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HASH = re.compile(r"(?<=-)[0-9a-f]{16}(?=\.ckpt$)")
"""What a checkpoint's name says of its content, which differs in the last bits of the weights."""
COMMON = ("rl.select=last", "rl.max_steps=3", "rl.validate_every=2", "rl.learning_rate=0.0001", "evaluate.batch=4")
OFTEN = "trainer.checkpoint_minutes=0.000001"
"""Checkpoints behind each step, as the clock of the first process says."""
FEW = ("evaluate.valid_users=13", "evaluate.test_users=9")
"""Users who do not fill the last batch of each process."""
RUNS = {
    "sapo": (
        "stages=[align,activate,rl]",
        "layout=blocked",
        "layout.budget=3",
        "align.max_epochs=1",
        "align.learning_rate=0.0003",
        "activate.max_epochs=1",
        "activate.learning_rate=0.0003",
        "rollout.micro_batch=3",
        "trainer.num_nodes=2",
        OFTEN,
        *FEW,
    ),
    "sage": (
        *("stages=[align,rl]", "align.max_epochs=1", "align.learning_rate=0.0003", "objective.diversity=group"),
        *("objective.kl_coef=0.01", "trainer.devices=2", "trainer.strategy=fsdp", OFTEN, *FEW),
    ),
    "grpo": ("stages=[align,rl]", "align.max_epochs=1", "align.learning_rate=0.0003", "trainer.devices=2"),
}
"""Through all stages with thinking, on two nodes that share a folder; with weights shared out over two processes that
SLURM has started; and in a process that starts the second one itself, and once."""
UNLIKE = ("time/", "objective/", "policy/entropy")
"""Times; and means over the tokens of a micro-batch, of which two ranks have others."""


@pytest.fixture(scope="module", params=list(RUNS))
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Objective, folder of the run with one process, folder of the run with two."""
    name = request.param
    options = (*COMMON, *RUNS[name], f"objective={name}")
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with curves_drawn(name == "grpo"):
        assert (
            main(["fit", *small(one, *options), "trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto"])
            == 0
        )
    command = ["fit", *small(two, *options)]
    if name == "grpo":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        kept: dict[str, Any] = {"capture_output": True, "text": True, "timeout": LIMIT, "check": False}
        done = subprocess.run([sys.executable, "-m", "genrl", *command], env=environment, **kept)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        logs = [two / f"log{rank}.txt" for rank in range(2)]
        started = [
            start(command, log, environment)
            for log, environment in zip(logs, launched(nodes=2) if name == "sapo" else scheduled(), strict=True)
        ]
        for process, log in zip(started, logs, strict=True):
            end(process, log)
    return name, one / "toy", two / "toy"


def launched(nodes: int) -> list[dict[str, str]]:
    """What torchrun tells each of two processes, on as many nodes or on one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    return [
        {
            **shared,
            "RANK": str(rank),
            "LOCAL_RANK": str(0 if nodes == 2 else rank),
            "GROUP_RANK": str(rank if nodes == 2 else 0),
            "LOCAL_WORLD_SIZE": str(2 // nodes),
        }
        for rank in range(2)
    ]


def scheduled() -> list[dict[str, str]]:
    """What SLURM tells each of two tasks on one node."""
    port = launched(nodes=1)[0]["MASTER_PORT"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "genrl", "SLURM_NODELIST": "localhost", "MASTER_PORT": port}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    return [{**job, **tasks, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


def test_a_signal_to_one_process_stops_both_behind_the_same_step(tmp_path):
    command = ["fit", *small(tmp_path, *COMMON, "stages=[align]", "trainer.devices=2", "align.max_epochs=2")]
    logs = [tmp_path / f"log{rank}.txt" for rank in range(2)]
    environments = launched(nodes=1)
    first = start(command, logs[0], environments[0])
    second = start(command, logs[1], environments[1], ("align", 2, "step"), signal.SIGTERM)
    for process, log in zip((first, second), logs, strict=True):
        end(process, log, 128 + signal.SIGTERM)
    *_, last = sorted((tmp_path / "toy").glob("align-*/resume-*.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(("gone", "strategy"), [(0, "fsdp"), (1, "ddp")])
def test_a_process_that_is_gone_ends_the_other_with_one_line(tmp_path, gone, strategy):
    options = ("stages=[align]", "trainer.devices=2", "align.max_epochs=2", f"trainer.strategy={strategy}")
    command = ["fit", *small(tmp_path, *COMMON, *options)]
    logs, environments = [tmp_path / f"log{rank}.txt" for rank in range(2)], launched(nodes=1)
    at = [("align", 2, "step") if rank == gone else None for rank in range(2)]
    started = [start(command, *about) for about in zip(logs, environments, at, strict=True)]
    end(started[gone], logs[gone], KILLED)
    began = time.monotonic()
    end(started[1 - gone], logs[1 - gone], 2)
    assert time.monotonic() - began < 60
    (line,) = (line for line in logs[1 - gone].read_text().splitlines() if line.startswith("genrl: "))
    assert "give the same command with --resume" in line
    assert "Traceback" not in logs[1 - gone].read_text()


def test_the_weights_are_the_same(outputs):
    name, one, two = outputs
    stages = [*(path.name for kind in ("align", "activate") for path in one.glob(f"{kind}-*")), f"{name}-s0"]
    assert len(stages) == len(RUNS[name][0].split(","))
    for stage in stages:
        first, second = (load_file(folder / stage / "weights.safetensors") for folder in (one, two))
        assert set(first) == set(second)
        for parameter, value in first.items():
            assert_same(second[parameter], value, tolerance=1e-6)


def test_every_user_is_scored_once(outputs):
    name, one, two = outputs
    first, second = (json.loads((folder / f"{name}-s0" / "metrics.json").read_text()) for folder in (one, two))
    for split in ("valid", "test"):
        assert set(second[split]) == set(first[split])
        for model, scored in first[split].items():
            for kind, metrics in scored.items():
                assert second[split][model][kind] == pytest.approx(metrics, abs=1e-6, nan_ok=True), (split, model, kind)
                assert all("cold" in name for name, value in metrics.items() if value != value)  # of few users no one's
    ranks = [load_file(folder / f"{name}-s0" / "ranks.safetensors") for folder in (one, two)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])


def test_what_is_logged_while_training_is_the_same(outputs):
    _, one, two = outputs
    for folder in (path.name for path in one.iterdir() if (path / "history.jsonl").exists()):
        first, second = (
            [json.loads(line) for line in (output / folder / "history.jsonl").read_text().splitlines()]
            for output in (one, two)
        )
        assert [note["step"] for note in first] == [note["step"] for note in second]
        for before, after in zip(first, second, strict=True):
            kept = {key: value for key, value in before.items() if not key.startswith(UNLIKE)}
            assert {key: after[key] for key in kept} == pytest.approx(kept, abs=1e-5, nan_ok=True), folder
            assert all("cold" in key for key, value in kept.items() if value != value)


def test_one_process_writes(outputs):
    _, one, two = outputs
    for folder in (path for path in one.iterdir() if path.is_dir()):
        names = [sorted(path.name for path in base.rglob("*")) for base in (folder, two / folder.name)]
        kept = [[HASH.sub("", name) for name in part if "tfevents" not in name] for part in names]
        assert kept[0] == kept[1]
        assert len(names[0]) == len(names[1])
