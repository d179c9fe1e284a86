"""Two processes give the same update as one, through the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers import assert_same
from tests.integration.small import SMALL, genrl, results

UPDATES = ("stages=[rl]", "rl.select=last", "rl.max_steps=3", "rl.validate_every=3", "rl.learning_rate=3e-5")


@pytest.mark.parametrize("objective", ["sapo", "sage"])
def test_two_processes_give_the_same_update_as_one(objective: str, tmp_path: Path) -> None:
    states, metrics = [], []
    for devices in (1, 2):
        output = tmp_path / str(devices)
        ended = genrl(
            "fit", "--objective", objective, *SMALL, *UPDATES, f"output={output}", f"trainer.devices={devices}"
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        states.append(load_file(output / "toy" / f"{objective}-s0" / "weights.safetensors"))
        metrics.append(results(output / "toy" / f"{objective}-s0"))
    for name, value in states[0].items():
        assert_same(states[1][name], value, 1e-6)
    assert metrics[1]["test"]["rl"] == metrics[0]["test"]["rl"]
