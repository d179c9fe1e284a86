"""The smallest real run: a toy catalogue of 60 items, a model of a few thousand parameters, both stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = (
    "data.toy.users=80",
    "data.toy.items=60",
    "sid.codes=8",
    "model.hidden=16",
    "model.heads=2",
    "model.layers=1",
    "model.feed_forward=32",
    "model.vocabulary=300",
    "align.max_epochs=3",
    "align.items_per_step=64",
    "rollout.prompts=8",
    "rollout.group_size=4",
    "rl.max_steps=6",
    "rl.validate_every=2",
    "evaluate.beam=10",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
)
NOISE = ("seconds", "peak_mib", "folder", "evaluation", "command")


def genrl(*arguments: str, script: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    start = [sys.executable, str(script)] if script else [sys.executable, "-m", "genrl"]
    return subprocess.run(
        [*start, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def results(run: Path) -> Any:
    """metrics.json without what two equal runs may differ in."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items() if key not in NOISE}
        return value

    return clean(json.loads((run / "metrics.json").read_text()))
