"""The best slates that a finished run writes for training prompts, as a file to learn from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genrl.batches import Completions, Requests, Rewards, concatenate
from genrl.catalog.dataset import Dataset
from genrl.config import RunConfig
from genrl.errors import ConfigError, DataError
from genrl.files import file_hash, write_text
from genrl.layouts import writes_slates
from genrl.metrics.functional import distinct, seen
from genrl.ops import seed_of
from genrl.policy.rollout import rollout
from genrl.progress import progress_bar
from genrl.prompts.slates import held_out_items, slate_places
from genrl.recommenders.base import WEIGHTS
from genrl.rewards import Verifier
from genrl.runs.recommend import run_config
from genrl.runs.rescore import load_run
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, make_verifier
from genrl.training.fitting import quiet_libraries
from genrl.training.portions import Portions

BATCH = 64
"""Prompts that slates are written for at a time."""


@dataclass(frozen=True)
class Kept:
    """What became of the prompts that slates were written for."""

    path: Path
    prompts: int
    slates: int
    """Prompts of which a slate was kept."""
    above: float
    mean: float
    """Reward of all slates that were written."""
    rewards: Tensor
    """[slates] of those that were kept."""
    refused: int
    """Slates with an item that is held out for validation or test, or with a place that names no new item."""
    written: int
    """Slates in all."""

    def lines(self) -> list[str]:
        """What is to be said of it."""
        low, middle, high = self.rewards.double().quantile(torch.tensor([0.0, 0.5, 1.0]).double()).tolist()
        return [
            f"{self.slates:,} slates of {self.prompts:,} prompts in {self.path}: the best of each group with a reward "
            f"above {self.above:g}",
            f"reward: {low:.3f} to {high:.3f}, median {middle:.3f}; of all {self.written:,} that were written the mean "
            f"is {self.mean:.3f}",
            f"{self.refused:,} of these could not be kept: they hold an item that the user chose in validation or test "
            f"and nowhere else, or a place without a new item",
            f"learn them: activate.traces=jsonl activate.path={self.path}",
        ]


def write_slates(
    folder: Path, path: Path, *, above: float = 0.0, prompts: int | None = None, overrides: list[str] | None = None
) -> Kept:
    """Have a run write a group of slates for each RL prompt, and keep the best of each group in a JSONL file.

    Groups are drawn and rewarded as in stage `rl` (sections `rollout` and `rewards`, noise by `seed`). The best has the
    highest weighted sum of rewards; of equal ones it is the likeliest. A slate that `activate` would refuse is never
    the best. Of prompts that share user and target the latest is asked, since a line of the file names no other.

    Args:
        folder: of a finished run of slates.
        path: of the file, which must not be there.
        above: what the reward of a slate must exceed.
        prompts: at most so many, a random part; None: all.
        overrides: `key=value` texts over the configuration of the run.

    Raises:
        ConfigError: if the run writes no slates.
        DataError: if the file is there, or no slate can be kept.
        CheckpointError: as `load_run`.
    """
    if path.exists():
        raise DataError(f"{path} is there already. Give another file, or remove it if no run has learned from it.")
    quiet_libraries()
    if (folder / "config.yaml").is_file():
        _check(run_config(folder, overrides or []), folder)
    session = load_run(folder, overrides or [])
    asked = _asked(session, prompts)
    objective = build_objective(session.config)
    verifier = make_verifier(session, objective)
    categories = session.dataset.catalog.level(objective.category).to(session.policy.device)
    about = {"run": f"{session.config.experiment}/{folder.resolve().name}", "weights": file_hash(folder / WEIGHTS)[:16]}
    lines: list[str] = []
    totals: list[Tensor] = []
    kept: list[float] = []
    refused = 0
    best = float("-inf")
    portions = Portions("rollout")
    with progress_bar("slates", len(asked), "prompts") as advance:
        for number, positions in enumerate(asked.split(BATCH)):
            drawn, rewards = _drawn(session, verifier, positions, number, categories, portions)
            usable = _usable(drawn.items, held_out_items(session.dataset.sequences, positions), drawn.group_size)
            refused += int((~usable).sum())
            totals.append(rewards.outcome)
            for row in _best(drawn, rewards, usable):
                reward = float(rewards.outcome[row])
                best = max(best, reward)
                if reward > above:
                    kept.append(reward)
                    position = int(positions[row // drawn.group_size])
                    lines.append(json.dumps(_record(session.dataset, position, row, drawn, rewards) | about))
            advance(len(positions))
    if not lines:
        found = "" if best == float("-inf") else f"; the best of them earns {best:.3f}. Lower --above"
        raise DataError(f"no slate that can be kept earns more than {above:g} for {len(asked):,} prompts{found}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    outcome = torch.cat(totals)
    return Kept(path, len(asked), len(lines), above, float(outcome.mean()), torch.tensor(kept), refused, len(outcome))


def _check(config: RunConfig, folder: Path) -> None:
    if not writes_slates(config) or "rl" not in config.stages:
        raise ConfigError(
            f"{folder} has layout={config.layout['name']} and stages={config.stages}: there are no slates that rewards "
            f"have judged. Give a run of stage rl with layout=slate."
        )


def _asked(session: Session, most: int | None) -> Tensor:
    """Positions of the prompts that slates are written for, ascending."""
    positions = session.prompt_positions()
    positions = positions[torch.isin(positions, slate_places(session.dataset).nameable())]
    if most is None or most >= len(positions):
        return positions
    generator = torch.Generator().manual_seed(seed_of(session.config.seed))
    return positions[torch.randperm(len(positions), generator=generator)[:most]].sort().values


@torch.no_grad()
def _drawn(
    session: Session, verifier: Verifier, positions: Tensor, number: int, categories: Tensor, portions: Portions
) -> tuple[Completions, Rewards]:
    """A group of slates for each prompt, with their rewards, on the CPU."""
    config, policy = session.config, session.policy
    requests: Requests = session.maker.at(positions)
    seed = seed_of(config.seed, number)
    policy.eval()
    with session.numerics():
        layout, there = session.layout.to(str(policy.device)), requests.to(str(policy.device))

        def written(own: slice) -> Completions:
            shared: dict[str, Any] = {"rows": own, "total": len(positions), "categories": categories}
            noise = torch.Generator().manual_seed(seed)
            return rollout(policy, layout, there.rows(own), config.rollout, generator=noise, **shared)

        drawn = reduce(concatenate, portions.over(len(positions), written))
        rewards = verifier(drawn, there)
    return cast(Completions, drawn.to("cpu")), cast(Rewards, rewards.to("cpu"))


def _usable(items: Tensor, held_out: Tensor, group: int) -> Tensor:
    """Which slates [B, L] hold L different items, and none of those [P, H] that their user chose in validation or test.

    Example:
        >>> _usable(torch.tensor([[1, 2], [2, 2], [1, 3], [1, -1]]), torch.tensor([[3, -1]]), 4).tolist()
        [True, False, False, False]
    """
    whole = ((items >= 0) & (distinct(items) == items)).all(1)
    return whole & ~(seen(items, held_out.repeat_interleave(group, 0)) & (items >= 0)).any(1)


def _best(drawn: Completions, rewards: Rewards, usable: Tensor) -> Iterator[int]:
    """The row of the best usable slate of each group that has one."""
    likely = drawn.logps.sum(1)
    for rows in torch.arange(len(likely)).split(drawn.group_size):
        left = [row for row in rows.tolist() if bool(usable[row])]
        if left:
            yield max(left, key=lambda row: (float(rewards.outcome[row]), float(likely[row])))


def _record(dataset: Dataset, position: int, row: int, drawn: Completions, rewards: Rewards) -> dict[str, Any]:
    """The line of one slate."""
    sequences, ids = dataset.sequences, dataset.catalog.item_ids
    return {
        "user": sequences.user_ids[int(sequences.users(torch.tensor([position])))],
        "item": ids[int(sequences.items[position])],
        "items": [ids[item] for item in drawn.items[row].tolist()],
        "reward": round(float(rewards.outcome[row]), 6),
        "rewards": {name: round(float(value[row]), 6) for name, value in rewards.components.items()},
        "log_prob": round(float(drawn.logps[row].sum()), 4),
    }
