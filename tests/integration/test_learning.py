"""Training really learns: alignment beats popularity, and RL raises what it is rewarded for."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from genrl.cli import main
from tests.runs import small

OPTIONS = (
    "data.toy.users=400",
    "data.toy.items=72",
    "data.max_history=20",
    "sid.codes=9",
    "model.hidden=32",
    "model.layers=2",
    "model.feed_forward=64",
    "model.dropout=0.1",
    "align.max_epochs=6",
    "align.learning_rate=4e-3",
    "align.patience=0",
    "rollout.prompts=32",
    "rollout.group_size=8",
    "rl.max_steps=60",
    "rl.learning_rate=2e-3",
    "rl.validate_every=60",
    "rl.select=last",
)
OBJECTIVES = {"grpo": ("rollout.method=beam",), "sapo": ()}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("learning")
    for name, options in OBJECTIVES.items():
        assert main(["fit", *small(output, *OPTIONS, *options), "--objective", name]) == 0
    return output / "toy"


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("split", ["valid", "test"])
def test_alignment_beats_popularity(experiment: Path, split: str) -> None:
    scored = read(experiment / "grpo-s0")[split]
    for kind in ("raw", "excluded"):
        for metric in ("recall@10", "ndcg@10"):
            assert scored["align"][kind][metric] > 1.5 * scored["most_popular"][kind][metric]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_rl_raises_the_reward_it_is_trained_on(experiment: Path, name: str) -> None:
    lines = (experiment / f"{name}-s0" / "history.jsonl").read_text().splitlines()
    rewards = [note["train/reward"] for note in map(json.loads, lines) if "train/reward" in note]
    assert len(rewards) == 60
    assert mean(rewards[-10:]) > 1.08 * mean(rewards[:10])
