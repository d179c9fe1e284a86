"""How diverse a completion is, and the running mean of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from genrl.batches import Completions
from genrl.errors import ConfigError
from genrl.ops import group_view, world_sum

Source = Literal["auto", "slate", "group", "policy"]


def category_entropy(categories: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Shannon entropy of the categories in each row, in nats; unknown categories are left out.

    Args:
        categories: [R, N] int64; -1 is unknown (or no item).
        dtype: of the result.

    Returns:
        Entropies [R]; 0 for a row without known category.

    Example:
        >>> category_entropy(torch.tensor([[0, 1], [2, 2], [-1, -1]]))
        tensor([0.6931, 0.0000, 0.0000])
    """
    known = categories >= 0
    same = (categories[:, :, None] == categories[:, None, :]) & known[:, None, :]
    total = known.sum(1, keepdim=True).clamp(min=1).to(dtype)
    rarity = (total / same.sum(2).to(dtype)).masked_fill(~known, 1)
    return (torch.log(rarity) / total).sum(1)


class Diversity(nn.Module):
    """Diversity H of completions and its running mean over rollouts (SAGE, arXiv:2601.21452, eq. 6 and Alg. 1 line 35).

    Args:
        source: "slate": entropy over the categories of the completion's items (paper); "group": over the items of all
            completions of the prompt; "policy": mean entropy of the distributions its tokens were drawn from; "auto":
            slate where completions have several items, else group (one item has no entropy).
        decay: share of the running mean that stays at each update; the paper gives none.
        init: starting value in nats; None: the mean of the first rollout.
    """

    mean: Tensor
    pending: Tensor

    def __init__(self, source: Source = "auto", decay: float = 0.99, init: float | None = None) -> None:
        super().__init__()
        self.source = source
        self.decay = decay
        start = float("nan") if init is None else init
        self.register_buffer("mean", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("pending", torch.tensor(float("nan"), dtype=torch.float64))

    @property
    def needs(self) -> frozenset[str]:
        """Categories or entropies, and several items if the slate alone is looked at."""
        wanted = {
            "auto": {"categories"},
            "slate": {"categories", "slate"},
            "group": {"categories"},
            "policy": {"entropy"},
        }
        return frozenset(wanted[self.source])

    def measure(self, rollout: Completions) -> Tensor:
        """Diversity of each completion [B], nats.

        Raises:
            ConfigError: if the rollout does not hold what it is measured on.
        """
        dtype = rollout.logps.dtype
        if self.source == "policy":
            if rollout.entropy is None:
                raise ConfigError("diversity 'policy' needs rollout.entropy. Record entropies, or set diversity=group.")
            chosen = rollout.chosen.to(dtype)
            return (rollout.entropy.to(dtype) * chosen).sum(1) / chosen.sum(1).clamp(min=1)
        if rollout.categories is None:
            raise ConfigError(
                f"diversity {self.source!r} needs item categories; the rollout has none. Name their "
                f"column (data.columns.category), or set diversity=policy."
            )
        several = rollout.items.shape[1] > 1
        if self.source == "slate" and not several:
            raise ConfigError(
                "diversity 'slate' needs several items per completion, this layout has one. Set diversity=group."
            )
        if self.source == "slate" or (self.source == "auto" and several):
            return category_entropy(rollout.categories, dtype)
        groups = group_view(rollout.categories, rollout.group_size).flatten(1)
        return category_entropy(groups, dtype).repeat_interleave(rollout.group_size)

    def prepare(self, rollout: Completions) -> tuple[Tensor, Tensor]:
        """Measure a rollout and keep its mean, over all ranks, for `after_step`.

        Returns:
            Diversity of each completion [B] and the running mean before this rollout (a scalar), both in nats.
        """
        measured = self.measure(rollout)
        total, rows = world_sum(torch.stack([measured.double().sum(), measured.new_tensor(len(measured)).double()]))
        self.pending.copy_(total / rows.clamp(min=1))
        self.mean.copy_(torch.where(self.mean.isnan(), self.pending, self.mean))
        return measured, self.mean.to(measured.dtype)

    def after_step(self) -> None:
        """Move the mean once per rollout: mean <- decay * mean + (1 - decay) * mean of the rollout."""
        moved = self.decay * self.mean + (1 - self.decay) * self.pending
        self.mean.copy_(torch.where(self.pending.isnan(), self.mean, moved))
        self.pending.fill_(float("nan"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Diversity:
        """Move to a device, but stay float64: a bfloat16 mean would never move by 1 %."""
        kept = {name: value.clone() for name, value in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """Options, on one line."""
        return f"source={self.source!r}, decay={self.decay}"


def homogeneity_factor(diversity: Tensor, mean: Tensor, beta: float) -> Tensor:
    """Lambda = 1 + beta * tanh(max(0, mean - H)): equation 6 of arXiv:2601.21452.

    Args:
        diversity: H of each completion [B], nats.
        mean: running mean, nats.
        beta: strength.

    Returns:
        Values in [1, 1 + beta) [B]; above 1 for completions less diverse than usual.
    """
    return 1 + beta * torch.tanh((mean - diversity).clamp(min=0))
