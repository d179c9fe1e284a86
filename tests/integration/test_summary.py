"""tools/summary.py over runs that the command line made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from genrl.cli import main
from tests.runs import small

TOOL = Path(__file__).parents[2] / "tools" / "summary.py"


def results(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def test_the_summary_has_a_row_per_name_with_its_seeds_and_gain(tmp_path: Path) -> None:
    for arguments in (("objective=grpo", "seed=0"), ("objective=grpo", "seed=1"), ("objective=ce", "name=control")):
        assert main(["fit", *small(tmp_path), *arguments]) == 0
    ended = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path / "toy")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    raw = ended.stdout.split("**test, history excluded**")[0]
    rows = {line.split("|")[1].strip(): line for line in raw.splitlines() if line.startswith("|")}
    assert {"most_popular", "item_knn", "align", "grpo", "control"} <= rows.keys()
    scored = [results(tmp_path / "toy" / f"grpo-s{seed}")["test"]["rl"]["raw"]["ndcg@10"] for seed in (0, 1)]
    assert f"{sum(scored) / 2:.4f} ±" in rows["grpo"]
    gain = sum(scored) / 2 - results(tmp_path / "toy" / "grpo-s0")["test"]["align"]["raw"]["ndcg@10"]
    assert f"| {gain:+.4f} [" in rows["grpo"]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "no finished run" in ended.stderr
