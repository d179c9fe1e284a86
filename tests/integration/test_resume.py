"""A run that is killed and resumed ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genrl.cli import main
from tests.runs import small

ROOT = Path(__file__).resolve().parents[2]
KILLED = Path(__file__).with_name("killed_run.py")
OPTIONS = (
    "objective=sage",  # keeps a running mean that has to come back, too
    "objective.ema_decay=0.5",
    "objective.kl_coef=0.01",
    "model.dropout=0.2",
    "align.validate_every=0.5",
    "align.patience=3",
    "align.shuffle_ties=true",
    "align.item_dropout=0.1",
    "rollout.epochs=2",
    "rl.max_steps=8",
    "rl.validate_every=2",
    "rl.select=last",
    "rl.warmup_steps=3",
)
TIMES = ("seconds", "peak_mib", "command", "folder", "evaluation")
"""What differs between two runs that are the same."""
FOLDER = "sage-s0"


def words(output: Path) -> list[str]:
    return ["fit", *small(output, *OPTIONS)]


def kill(output: Path, stage: str, step: int, moment: str, *flags: str) -> None:
    """Run until the given moment and leave there."""
    command = [sys.executable, str(KILLED), stage, str(step), moment, *words(output), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 137, done.stderr[-2000:]
    assert not (output / "toy" / FOLDER / "metrics.json").exists()


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
    """The run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert main(words(output)) == 0
    return output


def check(output: Path, whole: Path) -> None:
    assert results(output) == results(whole)
    found, wanted = files(output), files(whole)
    assert list(found) == list(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    kill(tmp_path, "align", 5, "step")  # the fourth step has been saved, the fifth is lost
    kill(tmp_path, "align", 8, "between", "--resume")
    kill(tmp_path, "rl", 3, "step", "--resume")  # in the middle of a rollout's updates
    kill(tmp_path, "rl", 6, "saved", "--resume")
    kill(tmp_path, "rl", 8, "saved", "--resume")  # all is trained, nothing is scored
    assert main([*words(tmp_path), "--resume"]) == 0
    check(tmp_path, whole)


@pytest.mark.parametrize(("stage", "step", "moment"), [("align", 4, "saved"), ("rl", 1, "step")])
def test_a_killed_run_goes_on_where_it_was(whole: Path, tmp_path: Path, stage: str, step: int, moment: str) -> None:
    kill(tmp_path, stage, step, moment)
    assert main(words(tmp_path)) == 2  # not without --resume
    assert main([*words(tmp_path), "--resume"]) == 0
    check(tmp_path, whole)
