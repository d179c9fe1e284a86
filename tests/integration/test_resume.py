"""A run that is killed and resumed ends with the same bits as one that was left alone."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from genrl.cli import main
from tests.helpers import assert_same
from tests.integration.processes import leave, stop
from tests.runs import small

pytestmark = pytest.mark.slow

OPTIONS = (
    "objective=sage",  # keeps a running mean that has to come back, too
    "objective.ema_decay=0.5",
    "objective.kl_coef=0.01",
    "model.dropout=0.2",
    "align.validate_every=0.5",
    "align.patience=3",
    "align.item_dropout=0.1",
    "rollout.epochs=2",
    "rl.max_steps=8",
    "rl.validate_every=4",
    "rl.select=last",
    "rl.warmup_steps=3",
)
TIMES = ("seconds", "peak_mib", "command", "folder", "evaluation")
"""What differs between two runs that are the same."""
FOLDER = "sage-s0"
JOB = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "run", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
    **{"SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
}
"""What SLURM tells a job; Lightning has an answer to SIGUSR1 of its own there."""


def words(output: Path, *more: str) -> list[str]:
    return ["fit", *small(output, *OPTIONS, *more)]


def results(output: Path) -> dict[str, Any]:
    """metrics.json without times and places."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(item) for key, item in value.items() if key not in TIMES}
        return value

    return stripped(json.loads((output / "toy" / FOLDER / "metrics.json").read_text()))


def files(output: Path) -> dict[str, bytes]:
    """Weights, ranks and learning curves of both stages; times are left out of the curves."""
    found: dict[str, bytes] = {}
    for path in sorted([*(output / "toy").rglob("weights.safetensors"), *(output / "toy").rglob("ranks.safetensors")]):
        found[str(path.relative_to(output))] = path.read_bytes()
    for path in sorted((output / "toy").rglob("history.jsonl")):
        notes = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{name: value for name, value in note.items() if "time/" not in name} for note in notes]
        found[str(path.relative_to(output))] = json.dumps(kept).encode()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert main(words(output)) == 0
    return output


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, whole):
    killed = tmp_path / "killed"
    often = words(killed, "trainer.checkpoint_steps=1")
    moments = [
        ("align", 4, "saved"),
        ("align", 5, "step"),  # the fourth step has been saved, the fifth is lost
        ("align", 7, "saved"),  # between two validations
        ("align", 8, "between"),
        ("rl", 1, "step"),  # nothing of the stage has been saved
        ("rl", 3, "step"),  # in the middle of a rollout's updates
        ("rl", 6, "saved"),  # behind a rollout's last update, and between two validations
        ("rl", 8, "saved"),  # all is trained, nothing is scored
    ]
    resume = []
    for moment in moments:
        leave([*often, *resume], tmp_path / "log.txt", moment)
        assert not (killed / "toy" / FOLDER / "metrics.json").exists()
        if moment == ("rl", 6, "saved"):
            shutil.copytree(killed, tmp_path / "other")
        if not resume:
            assert main(words(killed)) == 2  # not without --resume
            resume = ["--resume", "auto"]
    assert main([*often, *resume]) == 0
    same(killed, whole)
    almost(tmp_path / "other", whole)


def almost(output: Path, wanted: Path) -> None:
    """What remains of a run with other micro-batches gives the same weights, up to rounding."""
    assert main([*words(output, "rollout.micro_batch=3"), "--resume"]) == 0
    found, expected = (load_file(place / "toy" / FOLDER / "weights.safetensors") for place in (output, wanted))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same(found[name], value, tolerance=1e-6)


def test_a_run_that_is_asked_to_stop_keeps_its_steps_says_so_and_ends_with_the_same_bits(tmp_path, whole):
    stopped, log = tmp_path / "stopped", tmp_path / "log.txt"
    moments = [
        ("align", 3, "step", signal.SIGTERM),
        ("align", 8, "step", signal.SIGINT),  # the last step: its validation still happens
        ("rl", 1, "step", signal.SIGUSR1),  # what a job is told in good time
        ("rl", 3, "step", signal.SIGTERM),  # the rollout is used up first
        ("rl", 8, "between", signal.SIGINT),  # inside the last validation
    ]
    resume = []
    for *at, number in moments:
        stop([*words(stopped), *resume], log, (at[0], at[1], at[2]), number, JOB)
        assert f"genrl: stopped by {signal.Signals(number).name}" in log.read_text()
        log.unlink()
        resume = ["--resume"]
    assert main([*words(stopped), *resume]) == 0
    same(stopped, whole)
    assert not [*stopped.rglob("hpc_ckpt*"), *Path.cwd().glob("hpc_ckpt*")]


def same(output: Path, wanted: Path) -> None:
    """All that two runs left, but for times."""
    assert results(output) == results(wanted)
    found, expected = files(output), files(wanted)
    assert list(found) == list(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
