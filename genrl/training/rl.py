"""Stage `rl`: rollouts, verifier rewards and policy updates, whatever the objective."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from genrl.batches import Batch, Completions, Experience, Requests, Rewards, Scores, Targets, concatenate
from genrl.config.schema import RLConfig, RolloutConfig
from genrl.objectives import Objective, live_prompts, renormalized
from genrl.objectives.answers import loss_of, moved_on, prepared, renewed
from genrl.ops import seed_of, sent
from genrl.policy.base import TrainablePolicy
from genrl.policy.guide import Guide
from genrl.policy.information import informed, tells
from genrl.policy.reference import Reference
from genrl.policy.rollout import given_text, rollout, sampling_of, target_rollout, targets_behind_text
from genrl.policy.score import score
from genrl.policy.sharding import sharded, whole
from genrl.policy.teach import taught
from genrl.prompts.template import PromptMaker
from genrl.recommenders.gold import GoldSlates
from genrl.rewards.base import Verifier
from genrl.training.diagnostics import StepGradients, objective_values, rollout_values
from genrl.training.drawing import Rollout, draw_alive, hopeless, with_targets
from genrl.training.gap import based_on, sampling_gap, truncated
from genrl.training.journal import Value
from genrl.training.portions import Portions
from genrl.training.stage import StageModule, scheduled
from genrl.training.stream import PromptOrder, StepStream


@dataclass(frozen=True, slots=True)
class Part(Batch):
    """Some groups of a rollout: a mini-batch makes an optimiser step, a micro-batch a pass of one."""

    experience: Experience
    requests: Requests

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.experience)

    def groups(self, rows: Tensor) -> Part:
        """Whole groups; `rows` selects requests."""
        return Part(self.experience.groups(rows), self.requests.rows(rows))

    def portion(self, own: slice) -> Part:
        """Whole groups, for `Update`."""
        return self.groups(torch.arange(own.start, own.stop, device=self.requests.mask.device))


class RLModule(StageModule):
    """Owns rollout, verification and update; the objective says how rewards become a loss.

    From top to bottom: requests -> write -> verify -> prepare -> micro-batches -> score -> loss. `experience` runs once
    per rollout, without gradient, inside a sized stream; Lightning's ordinary loop below it updates the policy
    (accumulation, clipping and checkpoints are Lightning's own).

    Args:
        objective: rewards in, loss out.
        verifier: completions and requests in, rewards out.
        prompts: order of the RL prompts.
        maker: positions -> prompt tokens.
        categories: [I] category of each catalogue row.
        config: the rl section.
        rollouts: the rollout section.
        seed: of the sampling.
        teacher: judges what was written, for objectives that want it.
        gold: makes whole slates of the targets, where the policy writes slates.
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
        teacher: Guide | None = None,
        gold: GoldSlates | None = None,
        **stage: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(unit="group", hint=" rollout.micro_batch sets how many prompts go through at once.", **stage)
        self.objective = objective
        self.verifier = verifier
        self.prompts = prompts
        self.maker = maker
        self.categories: Tensor
        self.register_buffer("categories", categories, persistent=False)
        self.config = config
        self.max_steps = config.max_steps
        self.rollouts = rollouts
        self.seed = seed
        self.teacher = teacher
        self.gold = gold
        self.updates = rollouts.epochs * rollouts.minibatches
        """Optimiser steps per rollout."""
        self.writes = not objective.trains_on_targets
        """Whether the policy writes the items of completions; else they are the targets, behind text of its own."""
        self.sampled: tuple[Experience, Rewards, Requests] | None = None
        """The latest rollout with its credit, for samples."""
        self.gradients = StepGradients(self.layout.steps)
        self._pending: list[Part] = []
        self._ahead: tuple[tuple[int, int], Requests] | None = None
        self._rescored = False  # old log-probabilities are those of a scoring pass already
        self._update_began = 0.0
        self.drawing = Portions("rollout")
        self.divided.append(self.drawing)
        self.reference: Reference | None = None

    def configure_model(self) -> None:
        """The reference is the policy that the stage begins with, so it is made before a checkpoint is restored."""
        super().configure_model()
        if self.objective.uses_reference and self.reference is None:
            self.reference = Reference(self.policy)

    def train_dataloader(self) -> StepStream[Part]:
        """The next round of steps; it ends with the last update of a rollout."""
        steps = -(-self.config.validate_every // self.updates) * self.updates
        return StepStream(self._batches, lambda: self.global_step, steps, self.config.max_steps, self.micro_batches)

    def _batches(self, step: int) -> Iterator[Part]:
        """The micro-batches of an optimiser step; the first step of a rollout draws it."""
        index, update = divmod(step, self.updates)
        if update == 0:
            with self.journal.timed("time/rollout"), self.numerics(), whole(self.policy):
                self._pending = self.experience(index)
        part = self._pending[update]
        if self.objective.uses_scores:
            part = self._renewed(part, first=update == 0)
        self._update_began = time.perf_counter()
        self.updating.begin()
        yield from self._micro_batches(part)

    @torch.no_grad()
    def experience(self, index: int) -> list[Part]:
        """Rollout number `index` as the mini-batches of its optimiser steps: draw, verify, give credit, split."""
        self.policy.eval()
        drawn = draw_alive(partial(self._draw, index), self.objective, self.journal)
        requests, completions = drawn.requests, drawn.completions
        self.check_finite(completions.logps, drawn, "log-probability of the rollout")
        if self.layout.writes_text and not self.writes:
            completions = given_text(completions)
        if self.reference is not None:
            with self.reference.whole():
                held_to = self._judged(completions, requests, cast(TrainablePolicy, self.reference))
            completions = replace(completions, ref_logps=held_to.logps)
        whole = prepared(self.objective, completions, drawn.rewards)
        self.sampled = (whole, drawn.rewards, requests)
        self.journal.add(rollout_values(whole, drawn, self.layout.codes, self.metrics.cold, written=self.writes))
        self._rescored = self.writes and self.updates > 1 and not self.policy.exact
        if self._rescored:
            logps = self._judged(completions, requests).logps
            whole = based_on(self._corrected(whole, logps), logps)
        return self._mini_batches(Part(whole, requests), index)

    def _draw(self, index: int, attempt: int) -> Rollout:
        """This rank's share of a rollout, with its rewards."""
        rows = self._rows
        share = rows.stop - rows.start
        requests = self._requests(index, attempt).to(self.device)
        if self.writes or self.layout.writes_text:
            seed = seed_of(self.seed, index, 1, attempt)

            def written(own: slice) -> Completions:
                return self._written(requests.rows(own), slice(rows.start + own.start, rows.start + own.stop), seed)

            completions = reduce(concatenate, self.drawing.over(share, written))
        else:
            completions = target_rollout(self.layout, self._aimed(requests), self.categories)
        drawn = Rollout(requests, completions, self.verifier(completions, requests))
        return self._repaired(drawn) if self.objective.repair else drawn

    @property
    def _rows(self) -> slice:
        """This rank's requests among those of a rollout."""
        share = self.rollouts.prompts // self.trainer.world_size
        return slice(self.global_rank * share, (self.global_rank + 1) * share)

    def _requests(self, index: int, attempt: int) -> Requests:
        """This rank's requests of a rollout, on the host."""
        if self._ahead is not None and self._ahead[0] == (index, attempt):
            return self._ahead[1]
        return self.maker.at(self.prompts.at(index, attempt)[self._rows])

    def prepare(self, step: int) -> None:
        index, update = divmod(step, self.updates)
        if update == 0:
            self._ahead = (index, 0), self._requests(index, 0)

    def _written(self, requests: Requests, rows: slice, seed: int) -> Completions:
        """What the policy writes for some requests of a rollout, which are `rows` of all; judged by who has a say."""
        noise = torch.Generator().manual_seed(seed)
        shared: dict[str, Any] = {"rows": rows, "total": self.rollouts.prompts, "categories": self.categories}
        draw = rollout if self.writes else targets_behind_text
        completions = draw(self.policy, self.layout, requests, self.rollouts, generator=noise, **shared)
        if tells(self.layout):
            count = self.rollouts.group_size if self.verifier.uses_information else self.rollouts.information
            completions = informed(self.policy, self.layout, requests, completions, count)
        if self.teacher is not None and self.objective.uses_teacher:
            judged = self.policy, self.layout, requests, completions, self.teacher
            completions = taught(*judged, sampling_of(self.rollouts))
        return completions

    def _aimed(self, requests: Requests) -> Requests:
        """The requests with whole completions as their targets."""
        if self.gold is None:
            return requests
        slates, labelled = self.gold(requests.wanted.items, requests.history, requests.pool)
        self.journal.add({"rollout/filled": 1 - labelled.float().mean() / slates.shape[1]})
        return replace(requests, targets=Targets(slates))

    def _repaired(self, drawn: Rollout) -> Rollout:
        """The target in the place of one completion where nothing else could be learned, as if the policy wrote it."""
        dead = hopeless(drawn)
        self.journal.add({"rollout/repaired": dead.float().mean()})
        groups = dead.nonzero()[:, 0]
        if not len(groups):
            return drawn
        requests = drawn.requests.rows(groups)
        targets = target_rollout(self.layout, self._aimed(requests), self.categories)
        scores = self._judged(targets, requests)
        targets = replace(targets, logps=scores.logps, entropy=scores.entropy)
        completions = with_targets(drawn.completions, groups, targets)
        return Rollout(drawn.requests, completions, self.verifier(completions, drawn.requests))

    def _mini_batches(self, whole: Part, index: int) -> list[Part]:
        """Share out the groups of a rollout, anew in each pass over it; each mini-batch weighs as much as the whole."""
        if self.updates == 1:
            return [whole]
        generator = torch.Generator().manual_seed(seed_of(self.seed, index, 2))
        parts: list[Part] = []
        for _ in range(self.rollouts.epochs):
            order = torch.randperm(len(whole), generator=generator).to(whole.requests.mask.device)
            parts += [whole.groups(rows) for rows in order.tensor_split(self.rollouts.minibatches)]
        return [replace(part, experience=renormalized(part.experience)) for part in parts]

    def _micro_batches(self, part: Part) -> Iterator[Part]:
        """Split a mini-batch into whole groups; groups without any gradient are left out of the forward pass."""
        lengths = part.requests.mask.sum(1)
        known = torch.stack([live_prompts(part.experience).to(lengths.dtype), lengths]).cpu()  # the host looks once
        live, lengths = known.unbind()
        rows = live.nonzero()[:, 0]
        if self.objective.gradient_without_advantage:
            rows = torch.arange(len(part))
        rows = rows[lengths[rows].argsort(stable=True)]  # prompts of like length together: little padding in each part
        for some in rows.tensor_split(self.micro_batches):
            own = part.groups(sent(some, part.requests.mask.device))
            longest = max([1, *lengths[some].tolist()])
            yield replace(own, requests=own.requests.last(longest))

    def training_step(self, part: Part, index: int) -> Tensor:
        """Loss of one micro-batch; micro-batch losses of a step add up to the step's loss."""
        self.policy.update_mode()  # no dropout: the update must see the distribution that was sampled from
        if len(part) == 0:  # every group was dead; the step still has to happen on all ranks
            self.journal.add({"train/loss": 0.0})
            return self._nothing()
        loss, values = self.updating.forward(part)
        self.journal.add(values)
        return loss * self.trainer.accumulate_grad_batches

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Value]]:
        """Loss of some groups, watched for values that are no numbers, and what is to be logged of it."""
        experience = part.experience
        scores = self._score(experience.completions, part.requests)
        if self.writes and self.global_step % self.updates == 0:  # the policy that wrote: its ratios are 1
            corrected = experience if self._rescored else self._corrected(experience, scores.logps)
            experience = based_on(corrected, scores.logps)
        self.gradients.watch(scores.logps, experience.completions)
        output = loss_of(self.objective, scores, experience)
        values: dict[str, Value] = {**objective_values(output), "train/loss": output.loss.detach() * self.micro_batches}
        return self.skips.watch(output.loss, part), values

    def forget(self) -> None:
        super().forget()
        self.gradients.forget()

    def _nothing(self) -> Tensor:
        """A loss of 0 whose backward pass comes to all weights, and to those of a sharded policy as any other does."""
        if not sharded(self.policy):
            return sum((p.sum() * 0.0 for p in self.policy.trainable().values()), torch.zeros((), device=self.device))
        any_group = self._pending[self.global_step % self.updates].groups(torch.tensor([0], device=self.device))
        return self._score(any_group.experience.completions, any_group.requests).logps.sum() * 0.0

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (handed on as they are)
        """After each optimiser step let running statistics move on and log what was gathered.

        Here and not at the end of the batch, where callbacks come first and would see the values of the step before.
        """
        super().optimizer_step(*arguments, **options)
        moved_on(self.objective)
        self.journal.add({"time/update": time.perf_counter() - self._update_began})
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.note({**self.journal.close(), **self.norms, "train/learning_rate": rate})

    def said(self) -> dict[str, float]:
        """Nothing before the optimiser has stepped."""
        return {}

    def beside(self) -> dict[str, Tensor]:
        return self.gradients.close(self.device)

    def _score(self, completions: Completions, requests: Requests, policy: TrainablePolicy | None = None) -> Scores:
        """What a policy, by default that of the moment, says of completions, under what they were drawn from."""
        return score(policy or self.policy, self.layout, requests, completions, sampling_of(self.rollouts))

    @torch.no_grad()
    def _judged(self, completions: Completions, requests: Requests, policy: TrainablePolicy | None = None) -> Scores:
        """As `_score`, without gradient and in portions that memory has room for."""

        def judge(own: slice) -> Scores:
            if len(completions) == own.stop - own.start:
                return self._score(completions, requests, policy)
            rows = torch.arange(own.start, own.stop, device=requests.mask.device)
            return self._score(completions.groups(rows), requests.rows(rows), policy)

        return reduce(concatenate, self.drawing.over(len(completions), judge))

    def _corrected(self, experience: Experience, logps: Tensor) -> Experience:
        """See to the gap between what sampling said of the tokens and what scoring says, [B, T]."""
        self.journal.add(sampling_gap(experience, logps))
        if self.rollouts.correction == "none":
            return experience
        return truncated(experience, logps, self.rollouts.correction_bound)

    def _renewed(self, part: Part, *, first: bool) -> Part:
        """A mini-batch with what the objective makes of its scores under the policy of the moment."""
        self.policy.eval()
        old = part.experience.completions.logps
        with self.numerics(), whole(self.policy):
            scores = self._judged(part.experience.completions, part.requests)
        based = based_on(part.experience, scores.logps) if first and self.writes else part.experience
        return replace(part, experience=based_on(renewed(self.objective, scores, based), old))

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes per optimiser step and rank."""
        return micro_batches(self.rollouts, self.trainer.world_size)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, then constant."""
        config = self.config
        optimizer = self.optimiser(config.learning_rate, config.weight_decay, config.betas, kind=config.optimizer)
        return scheduled(optimizer, lambda step: min(1.0, (step + 1) / max(1, config.warmup_steps)))


def micro_batches(config: RolloutConfig, world: int) -> int:
    """Forward and backward passes per optimiser step and rank, for `world` ranks.

    Example:
        >>> micro_batches(RolloutConfig(prompts=32, micro_batch=12), world=1)
        3
    """
    prompts = config.prompts // config.minibatches // world
    return 1 if config.micro_batch == 0 else -(-prompts // config.micro_batch)
