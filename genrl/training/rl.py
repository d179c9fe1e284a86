"""Stage `rl`: rollouts, verifier rewards and policy updates, whatever the objective."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from genrl.batches import Completions, Experience, Requests, Rewards, Scores, concatenate
from genrl.config.schema import RLConfig, RolloutConfig
from genrl.objectives import Objective, live_prompts, renormalized
from genrl.ops import seed_of, world_max, world_size, world_sum
from genrl.policy.rollout import rollout, sampling_of, target_rollout
from genrl.policy.score import score
from genrl.prompts.prompts import PromptMaker
from genrl.rewards.base import Verifier
from genrl.training.diagnostics import (
    advantage_values,
    gradient_values,
    match_values,
    reward_values,
    rollout_values,
    squared_by_step,
)
from genrl.training.stage import StageModule, flatten, scheduled
from genrl.training.stream import PromptOrder, StepStream

Batch = tuple[Experience, Requests]
"""Completions with their credit, and the requests that they answer."""


class RLModule(StageModule):
    """Owns rollout, verification and update; the objective says how rewards become a loss.

    `experience` runs once per rollout, without gradient, inside a sized stream; Lightning's ordinary loop below it
    updates the policy (accumulation, clipping and checkpoints are Lightning's own).

    Args:
        objective: rewards in, loss out.
        verifier: completions and targets in, rewards out.
        prompts: order of the RL prompts.
        maker: positions -> prompt tokens.
        categories: [I] category of each catalogue row.
        config: the rl section.
        rollouts: the rollout section.
        seed: of the sampling.
        stage: arguments of `StageModule`.
    """

    def __init__(
        self,
        objective: Objective,
        verifier: Verifier,
        prompts: PromptOrder,
        maker: PromptMaker,
        categories: Tensor,
        config: RLConfig,
        rollouts: RolloutConfig,
        seed: int,
        **stage: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**stage)
        self.objective = objective
        self.verifier = verifier
        self.prompts = prompts
        self.maker = maker
        self.categories: Tensor
        self.register_buffer("categories", categories, persistent=False)
        self.config = config
        self.rollouts = rollouts
        self.seed = seed
        self.sampled: tuple[Experience, Rewards, Requests] | None = None
        """The latest rollout with its credit, for samples."""
        self._pending: list[Batch] = []
        self._update_began = 0.0
        self._sums: dict[str, list[Tensor | float]] = defaultdict(list)
        self._squares = torch.zeros(self.layout.steps)
        if "ref_logps" in objective.needs:
            self.policy.keep_reference()

    @property
    def updates(self) -> int:
        """Optimiser steps per rollout."""
        return self.rollouts.epochs * self.rollouts.minibatches

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes per optimiser step and rank."""
        return micro_batches(self.rollouts, self.trainer.world_size)

    def train_dataloader(self) -> StepStream[Batch]:
        """The next round of steps."""
        # A round ends with the last update of a rollout.
        steps = -(-self.config.validate_every // self.updates) * self.updates
        return StepStream(self._batches, lambda: self.global_step, steps, self.config.max_steps, self.micro_batches)

    def _batches(self, step: int) -> Iterator[Batch]:
        index, update = divmod(step, self.updates)
        if update == 0:
            started = time.perf_counter()
            with self.numerics():
                self._pending = self.experience(index)
            self._sums["time/rollout"].append(time.perf_counter() - started)
        batch, prompts = self._pending[update]
        if "scores" in self.objective.needs:
            batch = self.objective.before_step(self._score_all(batch, prompts), batch)
        self._update_began = time.perf_counter()
        yield from self._micro_batches(batch, prompts)

    def _micro_batches(self, batch: Experience, prompts: Requests) -> Iterator[Batch]:
        """Split a mini-batch into whole groups; groups without any gradient are left out of the forward pass."""
        rows = torch.arange(len(batch), device=batch.advantages.device)
        if not self.objective.gradient_without_advantage:
            rows = rows[live_prompts(batch)]
        lengths = prompts.mask[rows].sum(1)
        rows = rows[lengths.argsort(stable=True)]  # prompts of like length together: little padding in each part
        yield from ((batch.groups(part), prompts.rows(part)) for part in rows.tensor_split(self.micro_batches))

    @torch.no_grad()
    def experience(self, index: int) -> list[Batch]:
        """Rollout number `index` as the mini-batches of its optimiser steps: draw, verify, give credit, split."""
        self.policy.eval()
        drawn, rewards, prompts = self._draw(index, attempt=0)
        for attempt in range(1, self.objective.dynamic_sampling):
            live = live_prompts(self.objective.prepare(drawn, rewards))
            if int(world_max((~live).sum())) == 0:
                break
            more = self._draw(index, attempt)
            drawn, rewards, prompts = self._replace_dead(live, (drawn, rewards, prompts), more)
            self._sums["rollout/resampled"].append(float((~live).float().mean()))
        if "ref_logps" in self.objective.needs:
            with self.policy.reference():
                reference = self._scores(drawn, prompts)
            drawn = replace(drawn, ref_logps=reference.logps)
        self.check_finite(drawn.logps, drawn, "log-probability of the rollout")
        self._watch(drawn, rewards, prompts)
        whole = self.objective.prepare(drawn, rewards)
        self.sampled = (whole, rewards, prompts)
        self._note({"objective/dead_groups": 1 - live_prompts(whole).float().mean()}, advantage_values(whole))
        if self.updates == 1:
            return [(whole, prompts)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, index, 2))
        parts: list[Batch] = []
        for _ in range(self.rollouts.epochs):
            order = torch.randperm(len(whole), generator=generator).to(whole.advantages.device)
            for rows in order.tensor_split(self.rollouts.minibatches):
                parts.append((renormalized(whole.groups(rows)), prompts.rows(rows)))
        return parts

    def _draw(self, index: int, attempt: int) -> tuple[Completions, Rewards, Requests]:
        """One rollout of this rank's share of the prompts, with its rewards."""
        total = self.rollouts.prompts
        share = total // self.trainer.world_size
        rows = slice(self.global_rank * share, (self.global_rank + 1) * share)
        prompts = self.maker.at(self.prompts.at(index, attempt)[rows]).to(self.device)
        if "targets" in self.objective.needs:
            drawn = target_rollout(self.layout, prompts, self.categories)
        else:
            drawn = rollout(
                self.policy,
                self.layout,
                prompts,
                self.rollouts,
                generator=torch.Generator().manual_seed(seed_of(self.seed, index, 1, attempt)),
                rows=rows,
                total=total,
                categories=self.categories,
            )
        return drawn, self.verifier(drawn, prompts.wanted), prompts

    @staticmethod
    def _replace_dead(
        live: Tensor,
        old: tuple[Completions, Rewards, Requests],
        new: tuple[Completions, Rewards, Requests],
    ) -> tuple[Completions, Rewards, Requests]:
        """Put new groups in the place of dead ones, as many as there are."""
        count = live.numel()
        chosen = torch.arange(count, device=live.device)
        dead = (~live).nonzero().flatten()
        chosen[dead] = count + torch.arange(dead.numel(), device=live.device)
        drawn, rewards, prompts = concatenate(old[0], new[0]), concatenate(old[1], new[1]), concatenate(old[2], new[2])
        group = drawn.group_size
        rows = (chosen[:, None] * group + torch.arange(group, device=live.device)).flatten()
        return drawn.groups(chosen), rewards.rows(rows), prompts.rows(chosen)

    def training_step(self, micro: Batch, index: int) -> Tensor:
        """Loss of one micro-batch; micro-batch losses of a step add up to the step's loss."""
        batch, prompts = micro
        self.policy.update_mode()  # no dropout: the update must see the distribution that was sampled from
        if len(batch) == 0:  # every group was dead; the step still has to happen on all ranks
            self._sums["train/loss"].append(0.0)
            return sum((p.sum() * 0.0 for p in self.policy.trainable().values()), torch.zeros((), device=self.device))
        scores = self._scores(batch.completions, prompts)
        scores.logps.register_hook(partial(self._note_gradient, batch.completions))
        output = self.objective.loss(scores, batch)
        self.check_finite(output.loss, {**flatten(batch), "requests": prompts})
        for name, value in output.stats.items():
            if name != "dead_groups":  # counted over the whole rollout in `experience`
                self._sums[_tag(name)].append(value)
        self._sums["train/loss"].append(output.loss.detach() * self.micro_batches)
        return output.loss * self.trainer.accumulate_grad_batches

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (handed on as they are)
        """After each optimiser step let running statistics move on and log what was gathered.

        Here and not at the end of the batch, where callbacks come first and would see the values of the step before.
        """
        super().optimizer_step(*arguments, **options)
        self.objective.after_step()
        self._sums["time/update"].append(time.perf_counter() - self._update_began)
        values = _over_ranks({name: _summary(name, gathered) for name, gathered in self._sums.items()})
        squares = world_sum(self._squares.to(self.device)) / world_size() ** 2  # losses hold a factor `world`
        values |= {tag: float(value) for tag, value in gradient_values(squares).items()}
        self._squares = torch.zeros_like(self._squares)
        values["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._sums.clear()
        self.log_dict(values, batch_size=1)

    def _note_gradient(self, drawn: Completions, gradient: Tensor) -> None:
        """Gather the squared gradient of the loss by log-probabilities, called in the backward pass."""
        self._squares = self._squares.to(gradient.device) + squared_by_step(gradient, drawn)

    def _watch(self, drawn: Completions, rewards: Rewards, prompts: Requests) -> None:
        """Gather what is logged of every rollout, whatever the objective."""
        if "targets" in self.objective.needs:
            drawn = replace(drawn, entropy=None)  # nothing was drawn
        codes = self.layout.codes[prompts.wanted.items[:, 0]]
        self._note(reward_values(rewards), match_values(drawn, codes), rollout_values(drawn, self.metrics.cold))

    def _note(self, *values: Mapping[str, Tensor]) -> None:
        """Gather values by tag until the optimiser step ends."""
        for tag, value in (pair for part in values for pair in part.items()):
            self._sums[tag].append(value)

    def _score_all(self, batch: Experience, prompts: Requests) -> Scores:
        """Scores of a whole mini-batch without gradient."""
        self.policy.eval()
        with torch.no_grad(), self.numerics():
            return self._scores(batch.completions, prompts)

    def _scores(self, drawn: Completions, prompts: Requests) -> Scores:
        """What the policy of the moment says of a rollout's tokens, under the distributions they were drawn from."""
        return score(self.policy, self.layout, prompts, drawn, sampling_of(self.rollouts))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, then constant."""
        config = self.config
        optimizer = self.optimiser(config.learning_rate, config.weight_decay, config.betas)
        return scheduled(optimizer, lambda step: min(1.0, (step + 1) / max(1, config.warmup_steps)))


def micro_batches(config: RolloutConfig, world: int) -> int:
    """Forward and backward passes per optimiser step and rank, for `world` ranks.

    Example:
        >>> micro_batches(RolloutConfig(prompts=32, micro_batch=12), world=1)
        3
    """
    prompts = config.prompts // config.minibatches // world
    return 1 if config.micro_batch == 0 else -(-prompts // config.micro_batch)


def _summary(name: str, gathered: list[Tensor | float]) -> float:
    """Mean over the micro-batches of a step, or the largest where the name says so."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32).cpu() for value in gathered])
    return float(values.max() if name.endswith("_max") else values.mean())


def _over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The same summary over all ranks; a rank without any live group lacks some of the values."""
    if world_size() == 1:
        return values
    everyone: list[dict[str, float]] = [{} for _ in range(world_size())]
    torch.distributed.all_gather_object(everyone, values)
    names = dict.fromkeys(name for part in everyone for name in part)
    return {name: _summary(name, [part[name] for part in everyone if name in part]) for name in names}


def _tag(name: str) -> str:
    """TensorBoard tag of an objective's statistic."""
    return f"policy/{name}" if name in ("entropy", "kl") else f"objective/{name}"
