"""What is logged of rollouts and updates, under the same tags for every objective: tag -> scalar.

Steps, blocks and SID levels are counted from 1 in tags. Docs: the table in docs/objectives.md.
"""

from dataclasses import replace

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Rewards
from genrl.metrics.functional import seen
from genrl.objectives import ObjectiveOutput, live_prompts
from genrl.ops import masked_mean, segment_sum, world_size, world_sum
from genrl.training.drawing import Rollout

Values = dict[str, Tensor]


def reward_values(rewards: Rewards) -> Values:
    """Mean reward, that of each component, and of each step: its match and what shapes it."""
    values = {"train/reward": rewards.outcome.mean()}
    values |= {f"train/reward/{name}": value.mean() for name, value in rewards.components.items()}
    parts = [part for part in (rewards.steps, rewards.step_shaping) if part is not None]
    if parts:
        values |= _numbered("train/reward/step", torch.stack(parts).sum(0).mean(0))
    return values


def match_values(drawn: Completions, targets: Tensor, codes: Tensor) -> Values:
    """Share of completions whose step names the first target's code of its level or, in slates, one of the targets.

    Args:
        drawn: G completions for each of P requests.
        targets: [P, M] catalogue rows, -1 pads.
        codes: [I, K] of the catalogue.
    """
    if drawn.items.shape[1] > 1:
        own = targets.repeat_interleave(drawn.group_size, dim=0)
        return _numbered("train/match/step", seen(drawn.items, own).float().mean(0))
    wanted = codes[targets[:, 0]].repeat_interleave(drawn.group_size, dim=0)
    levels = min(wanted.shape[1], drawn.num_steps)
    return _numbered("train/match/step", (drawn.codes[:, :levels] == wanted[:, :levels]).float().mean(0))


def rollout_values(whole: Experience, rollout: Rollout, codes: Tensor, cold: Tensor, *, written: bool) -> Values:
    """All that is logged of a rollout, whatever the objective.

    Args:
        whole: P groups of completions with their credit.
        rollout: these completions as they were drawn, with their rewards.
        codes: [I, K] codes of the catalogue.
        cold: [I] bool, cold items of the catalogue.
        written: whether the policy wrote the items; else there is no entropy of what they were drawn from.
    """
    drawn = rollout.completions if written else replace(rollout.completions, entropy=None)
    return {
        **reward_values(rollout.rewards),
        **match_values(drawn, rollout.requests.wanted.items, codes),
        **completion_values(drawn, cold),
        "objective/dead_groups": 1 - live_prompts(whole).float().mean(),
        "rollout/useful": ((whole.advantages != 0) & (whole.weights > 0)).any(1).float().mean(),
        **advantage_values(whole),
    }


def completion_values(drawn: Completions, cold: Tensor) -> Values:
    """What the completions are like; `cold` [I] bool are items of the catalogue."""
    named = drawn.items >= 0
    groups = drawn.items.view(len(drawn), -1)
    ordered = groups.sort(dim=1).values
    distinct = (ordered.diff(dim=1) != 0).sum() + len(groups)
    return {
        "train/valid_rate": named.float().mean(),
        "rollout/cold_share": (cold[drawn.items.clamp(min=0)] & named).float().mean(),
        "rollout/length": drawn.chosen.float().sum(1).mean(),
        "rollout/distinct": distinct / max(1, groups.numel()),
        **({} if drawn.teacher_kl is None else {"policy/teacher_kl": _taught(drawn)}),
        **entropy_values(drawn),
        **thinking_values(drawn),
    }


def _taught(drawn: Completions) -> Tensor:
    """Mean divergence from the teacher over the SID tokens that the policy chose, nats."""
    assert drawn.teacher_kl is not None
    return masked_mean(drawn.teacher_kl, drawn.chosen & drawn.item_mask)


def thinking_values(drawn: Completions) -> Values:
    """Words per block, share of blocks that their budget ended, share of completions without an item.

    Means over the blocks that were begun; nothing for layouts without thinking.
    """
    if drawn.closed is None:
        return {}
    steps = torch.arange(drawn.num_steps, device=drawn.tokens.device)
    within = (drawn.step_ids[:, :, None] == steps) & ~drawn.item_mask[:, :, None]
    begun = within.any(1)
    words = (within & drawn.chosen[:, :, None]).sum(1) - drawn.closed.long()  # `</think>` is chosen, but is no word
    lengths = torch.stack([masked_mean(words[:, step].float(), begun[:, step]) for step in steps.tolist()])
    return {
        **_numbered("rollout/think_length/block", lengths),
        "rollout/budget_hits": masked_mean((~drawn.closed).float(), begun),
        "rollout/format_failures": (drawn.items < 0).all(1).float().mean(),
        **information_values(drawn),
    }


def information_values(drawn: Completions) -> Values:
    """How much likelier thinking makes the target, nats: mean over the thoughts that were judged and did not fail."""
    if drawn.information is None:
        return {}
    told = drawn.information.sum(1)
    known = told.isfinite()
    return {"rollout/information": masked_mean(told.masked_fill(~known, 0.0), known)}


def entropy_values(drawn: Completions) -> Values:
    """Entropy of the distributions that tokens came from, in nats: of all, of SID levels or items, of thinking."""
    if drawn.entropy is None:
        return {}
    sid = drawn.chosen & drawn.item_mask
    values = {"policy/entropy": masked_mean(drawn.entropy, drawn.chosen)}
    unit = "item" if drawn.items.shape[1] > 1 else "level"
    for step in range(drawn.num_steps):
        values[f"policy/entropy/{unit}{step + 1}"] = masked_mean(drawn.entropy, sid & (drawn.step_ids == step))
    if drawn.closed is not None:
        values["policy/entropy/thinking"] = masked_mean(drawn.entropy, drawn.chosen & ~drawn.item_mask)
        values["policy/entropy/sid"] = masked_mean(drawn.entropy, sid)
    return values


def advantage_values(experience: Experience) -> Values:
    """Mean size of the advantages of each step's chosen tokens."""
    sizes, drawn = experience.advantages.abs(), experience.completions
    return {
        f"objective/advantage_abs_step{step + 1}": masked_mean(sizes, drawn.chosen & (drawn.step_ids == step))
        for step in range(drawn.num_steps)
    }


def objective_values(output: ObjectiveOutput) -> Values:
    """An objective's statistics under their tags; groups without gradient are counted over the whole rollout."""
    stats = {name: value for name, value in output.stats.items() if name != "dead_groups"}
    return {f"policy/{k}" if k in ("entropy", "kl") else f"objective/{k}": value for k, value in stats.items()}


class StepGradients:
    """Norm of the loss's gradient by the log-probabilities of each of S steps' tokens, over all passes and ranks."""

    def __init__(self, steps: int) -> None:
        self.squares = torch.zeros(steps)

    def watch(self, logps: Tensor, drawn: Completions) -> None:
        """Gather the gradient by log-probabilities [B, T] when the backward pass comes to them."""

        def gather(gradient: Tensor) -> None:
            squares = segment_sum(gradient.float() ** 2, drawn.step_ids, drawn.num_steps).sum(0)
            self.squares = self.squares.to(gradient.device) + squares

        logps.register_hook(gather)

    def forget(self) -> None:
        """Begin anew."""
        self.squares = torch.zeros_like(self.squares)

    def close(self, device: torch.device) -> Values:
        """Tag -> norm, on a device; then begin anew. All ranks together."""
        squares = world_sum(self.squares.to(device)) / world_size() ** 2  # losses hold a factor `world`
        self.forget()
        return _numbered("train/grad_norm/step", squares.sqrt())


def _numbered(tag: str, values: Tensor) -> Values:
    return {f"{tag}{number}": value for number, value in enumerate(values.unbind(), start=1)}
