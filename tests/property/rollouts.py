"""Random rollouts in the shape of every layout, and every objective to try on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Rows, Scores
from genrl.objectives import OBJECTIVES, Objective
from tests.helpers import assert_same

LAYOUTS = ("sid", "blocked", "interleaved", "slate")
layouts = pytest.mark.parametrize("layout", LAYOUTS)
Outcome = tuple[Tensor, Tensor]
"""Loss, and its gradient with respect to log-probabilities."""
OBJECTIVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OBJECTIVES.names()},
    "grpo-token-entropy": ("grpo", {"reduction": "token", "entropy_coef": 0.01, "kl_coef": 0.0}),
    "grpo-dual": ("grpo", {"dual_clip": 1.1, "normalize": "mean", "guard": "clamp"}),
    "grpo-pass-at-2": ("grpo", {"compare": "pass_at_k", "k": 2}),
    "grpo-best": ("grpo", {"compare": "best"}),
    "gspo-token": ("gspo", {"level": "sequence_token", "clip_low": 0.05, "clip_high": 0.05}),
    "gdpo-token": ("gdpo", {"whiten": "token"}),
    "gdpo-item": ("gdpo", {"advantage": "item"}),
    "ecpo-sequence": ("ecpo", {"level": "sequence"}),
    "gbpo-item": ("gbpo", {"level": "item", "kl_coef": 0.01}),
    "gbpo-sign": ("gbpo", {"advantage": "sign"}),
    "bapo-paper": (
        "bapo",
        {"variant": "paper", "target": 0.5, "low": [0.6, 0.9], "high": [1.2, 3.0], "count": "active"},
    ),
    "sapo-fork": ("sapo", {"scope": "think_only", "reduction": "token", "dual_clip": 3.0}),
    "sapo-nested": ("sapo", {"match": "nested", "entropy_coef": 0.01}),
    "sapo-prefix": ("sapo", {"match": "prefix"}),
    "sapo-no-step-advantage": ("sapo", {"ablation": "no_step_advantage"}),
    "sapo-no-match-reward": ("sapo", {"ablation": "no_match_reward"}),
    "sapo-outcome": ("sapo", {"ablation": "outcome"}),
    "sage-policy": ("sage", {"diversity": "policy", "floor": "clip_lambda", "ratio_level": "token", "kl_coef": 0.01}),
    "sage-group": ("sage", {"diversity": "group", "whiten": "none"}),
    "sage-gradient": ("sage", {"form": "gradient"}),
    "sage-literal": ("sage", {"form": "gradient", "phi": "literal", "ratio_level": "item"}),
    "sage-equation-2": ("sage", {"minimum": False}),
    "sage-both": ("sage", {"positive": "literal", "negative": "clipped", "floor": "clip_lambda"}),
    "sage-item": ("sage", {"advantage": "item"}),
    "sage-item-token": ("sage", {"advantage": "item", "whiten": "token"}),
    "sage-summed": ("sage", {"ablation": "summed"}),
    "sage-gbpo": ("sage", {"form": "gradient", "phi": "gbpo_slate"}),
}


def assert_outcome(found: Outcome, expected: Outcome) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def make(name: str) -> Objective:
    objective, options = OBJECTIVE_OPTIONS[name]
    return OBJECTIVES.build(objective, options)


@dataclass(frozen=True)
class Sample:
    """A rollout with rewards, and what the policy says of it now."""

    rollout: Completions
    rewards: Rewards
    logps: Tensor
    entropy: Tensor

    def run(self, objective: Objective, experience: Experience, rows: Rows = slice(None)) -> Outcome:
        logps = self.logps[rows].detach().clone().requires_grad_()
        output = objective.loss(Scores(logps, self.entropy[rows]), experience)
        assert all(not value.requires_grad and value.dim() == 0 for value in output.stats.values())
        (gradient,) = torch.autograd.grad(output.loss, logps, allow_unused=True)
        return output.loss.detach(), torch.zeros_like(logps) if gradient is None else gradient

    def experience(self, objective: Objective) -> Experience:
        """Prepared, and renewed for the current policy as the trainer does it."""
        prepared = objective.prepare(self.rollout, self.rewards)
        return objective.before_step(Scores(self.logps, self.entropy), prepared)

    def outcome(self, objective: Objective) -> Outcome:
        return self.run(objective, self.experience(objective))

    def with_rewards(self, values: Mapping[str, Tensor], **weights: float) -> Sample:
        """Other rewards; one without a weight has weight 1."""
        known = {name: weights.get(name, 1.0) for name in values}
        return replace(self, rewards=Rewards(values, known, frozenset({"format"}) & values.keys()))

    def shifted(self, offset: float, scale: float = 1.0) -> Sample:
        """Every reward scaled and moved."""
        values = {name: value * scale + offset for name, value in self.rewards.values.items()}
        return replace(self, rewards=replace(self.rewards, values=values))

    def on_policy(self) -> Sample:
        return replace(self, logps=self.rollout.logps)

    def rows(self, order: Tensor) -> Sample:
        """Rows of all tensors in another order; prompts stay."""
        return Sample(self.rollout.rows(order), self.rewards.rows(order), self.logps[order], self.entropy[order])

    def padded(self, width: int) -> Sample:
        """`width` more places of padding, filled with values that must not matter."""
        fills: dict[str, Any] = {"chosen": False, "step_ids": -1, "item_ids": -1, "tokens": 7}

        def widen(value: Tensor, fill: float) -> Tensor:
            return torch.cat([value, value.new_full((value.shape[0], width), fill)], 1)

        names = (
            "tokens",
            "chosen",
            "step_ids",
            "logps",
            "ref_logps",
            "entropy",
            "item_ids",
            "teacher_gap",
            "teacher_kl",
        )
        present = {name: getattr(self.rollout, name) for name in names if getattr(self.rollout, name) is not None}
        rollout = replace(self.rollout, **{name: widen(value, fills.get(name, 0)) for name, value in present.items()})
        return Sample(rollout, self.rewards, widen(self.logps, 0), widen(self.entropy, 0))

    def prompts(self, rows: Tensor | slice) -> Sample:
        """Some prompts, with their rewards."""
        members = torch.arange(len(self.logps)).unflatten(0, (-1, self.rollout.group_size))[rows].flatten()
        chosen = self.rewards.rows(members)
        return Sample(self.rollout.groups(rows), chosen, self.logps[members], self.entropy[members])


def _sid(rows: int, draw: torch.Generator) -> dict[str, Any]:
    """Three SID tokens; the last is sometimes forced; every one is its own step."""
    mask = torch.ones(rows, 3, dtype=torch.bool)
    mask[:, 2] = torch.rand(rows, generator=draw) < 0.7
    steps = torch.arange(3).expand(rows, 3).clone()
    return {"chosen": mask, "step_ids": steps, "item_ids": torch.zeros_like(steps), "N": 1}


def thinking_shape(
    order: str, words: list[list[int]], closed: list[list[bool]], forced: list[list[bool]]
) -> dict[str, Any]:
    """Completions of layout `blocked`, [rows][K] each: `<think>`, words, `</think>`, line break; and the SID tokens.

    A block of 0 words was never begun: its completion ended in the block before, without `</think>` and SID.
    """
    written = [_thinking_row(order, *row) for row in zip(words, closed, forced, strict=True)]
    width = max(map(len, written))
    padded = torch.tensor([[*row, *[(-1, 0, 0)] * (width - len(row))] for row in written])
    steps, chosen, codes = padded.unbind(2)
    known = {"chosen": chosen.bool(), "step_ids": steps, "item_ids": codes - 1, "closed": torch.tensor(closed)}
    return {**known, "N": 1}


def _thinking_row(order: str, words: list[int], closed: list[bool], forced: list[bool]) -> list[tuple[int, int, int]]:
    """(step, chosen by the policy, SID token) of each token."""
    begun = sum(length > 0 for length in words)
    blocks = [[(k, 0, 0), *[(k, 1, 0)] * words[k], (k, int(closed[k]), 0), (k, 0, 0)] for k in range(begun)]
    if begun < len(words):
        return [token for block in blocks for token in block][:-2]
    codes = [[(k, int(not given), 1)] for k, given in enumerate(forced)]
    pairs = zip(blocks, codes, strict=True)
    parts = [*blocks, *codes] if order == "tail" else [part for pair in pairs for part in pair]
    return [token for part in parts for token in part]


def _thinking(order: str, rows: int, draw: torch.Generator) -> dict[str, Any]:
    """Two blocks and two SID tokens; `</think>` or the code are sometimes forced, and row 3 ends in its first block."""
    words = torch.randint(1, 4, (rows, 2), generator=draw)
    closed = torch.rand(rows, 2, generator=draw) < 0.7
    forced = torch.rand(rows, 2, generator=draw) < 0.2
    words[3, 1], closed[3] = 0, False
    return thinking_shape(order, words.tolist(), closed.tolist(), forced.tolist())


def _slate(rows: int, draw: torch.Generator) -> dict[str, Any]:
    """Three items of one to three tokens, some forced, an end token, padding."""
    owners = torch.full((rows, 10), -1)
    chosen = torch.zeros(rows, 10, dtype=torch.bool)
    for row, lengths in enumerate(torch.randint(1, 4, (rows, 3), generator=draw).tolist()):
        written = [item for item, length in enumerate(lengths) for _ in range(length)]
        owners[row, : len(written)] = torch.tensor(written)
        chosen[row, : len(written)] = torch.rand(len(written), generator=draw) < 0.8
        chosen[row, len(written)] = True
    return {"chosen": chosen, "step_ids": owners, "item_ids": owners, "N": 3}


SHAPES = dict(zip(LAYOUTS, (_sid, partial(_thinking, "tail"), partial(_thinking, "interleaved"), _slate), strict=True))


def single_tokens(items: Tensor, logps: Tensor, group_size: int) -> Completions:
    """Completions of one token [B, 1] that is their item and its code."""
    zeros = torch.zeros_like(items)
    shape = {"group_size": group_size, "num_steps": 1}
    return Completions(items, zeros == 0, zeros, zeros, items, items, logps, **shape)


def sample(layout: str, prompts: int = 4, group_size: int = 4, seed: int = 0, spread: float = 0.3) -> Sample:
    """A random rollout, with `format` if it thinks. Row 1 has no chosen token; group 2 earns the same everywhere."""
    draw = torch.Generator().manual_seed(seed)
    rows = prompts * group_size
    shape = SHAPES[layout](rows, draw)
    mask, items = shape["chosen"], shape.pop("N")
    mask[1] = False
    steps = int(shape["step_ids"].max()) + 1

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=draw, dtype=torch.float64)

    def logs(center: Tensor, width: float) -> Tensor:
        return ((center + (uniform(*mask.shape) - 0.5) * width).clamp(max=-1e-3)).masked_fill(~mask, 0)

    teacher = torch.Generator().manual_seed(seed + 1000)

    def told(low: float) -> Tensor:
        return (torch.rand(mask.shape, generator=teacher, dtype=torch.float64) + low).masked_fill(~mask, 0)

    old = logs(-0.2 - 2 * uniform(*mask.shape), 0.0)
    entropy = uniform(*mask.shape).masked_fill(~mask, 0)
    rollout = Completions(
        tokens=torch.randint(0, 9, mask.shape, generator=draw),
        codes=torch.randint(0, 9, (rows, steps), generator=draw),
        items=torch.randint(0, 20, (rows, items), generator=draw),
        categories=torch.randint(-1, 4, (rows, items), generator=draw),
        logps=old,
        ref_logps=logs(old, spread),
        entropy=entropy,
        teacher_gap=told(-0.5),
        teacher_kl=told(0.0),
        group_size=group_size,
        num_steps=steps,
        **shape,
    )
    match, novelty = (uniform(rows, steps) < 0.4).double(), uniform(rows)
    values = {"level_match": match, "novelty": novelty}
    if rollout.closed is not None:
        values["format"] = rollout.closed.double()
    for value in values.values():
        value[2 * group_size : 3 * group_size] = value.max()
    values = {"exact_match": match.prod(1), **values}
    drawn = Sample(rollout, Rewards(values, dict.fromkeys(values, 1.0)), logs(old, spread * 2), entropy)
    return drawn.with_rewards(values, novelty=0.5, format=0.25)
