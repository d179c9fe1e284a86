"""The optimisers of stages: AdamW, paged AdamW, and Muon for the matrices inside a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from genrl.policy.sharding import gathered, shared_out

A, B, C = 3.4445, -4.7750, 2.0315
"""Newton-Schulz iteration x <- a x + (b x x^T + c (x x^T)^2) x, which drives all singular values towards 1."""
STEPS = 5
"""Newton-Schulz iterations per step."""
TOGETHER = 2**24
"""Elements of the matrices that are made orthogonal at a time; bounds temporary memory."""
RMS = 0.2
"""Root mean square of an update in units of the rate: that of AdamW, so that both go by one rate and one decay."""
PAGED = {"paged_adamw_8bit": "AdamW8bit", "paged_adamw_32bit": "AdamW32bit"}
"""Optimisers of bitsandbytes. Paged ones keep means in unified memory, from which the driver moves pages to the CPU
when the GPU is short of memory (QLoRA, arXiv:2305.14314); on a CPU, where there is nowhere to move them, they are the
same without pages. Means in 8 bits have a scale for each 256 values (arXiv:2110.02861); those of fewer than 4,096
values stay in 32 bits."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: all directions of a matrix are learned at one pace.

        m <- momentum m + (1 - momentum) g,    w <- (1 - lr decay) w - lr 0.2 sqrt(max(rows, columns)) orthogonal(g')

    with g' = (1 - momentum) g + momentum m (Nesterov); after K. Jordan's Muon (2024), the scale is that of
    arXiv:2502.16982. `torch.optim.Muon` gives the same up to its rounding to bfloat16. That makes it eight times slower
    on a CPU: half a step of the tiny model.

    Args:
        params: matrices, or groups of them.
        lr: rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of the gradient's mean.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient; those of one shape together.

        Of matrices that are shared out over ranks each one is gathered, and each rank applies its share of the update.
        """
        assert closure is None, "see `Side`"
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for value in group["params"]:
                if value.grad is None:
                    continue
                mean = self.state[value].setdefault("mean", torch.zeros_like(value))
                mean.lerp_(value.grad, 1 - momentum)
                alike[value.shape].append((value, gathered(value.grad.lerp(mean, momentum))))
            for shape, pairs in alike.items():
                together = max(1, TOGETHER // shape.numel())
                for start in range(0, len(pairs), together):
                    some = pairs[start : start + together]
                    updates = orthogonal(torch.stack([update for _, update in some]))
                    for (value, _), update in zip(some, updates, strict=True):
                        value.mul_(1 - rate * group["weight_decay"])
                        value.sub_(shared_out(update, value), alpha=rate * RMS * max(shape) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [n, r, c] with their singular values driven towards 1, to about a fifth; computed in float32."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.float()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(STEPS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x if wide is matrices else x.mT).to(matrices.dtype)


class Side(torch.optim.Optimizer):
    """Optimisers side by side, each with parameters of its own, as one: Lightning knows one optimiser per stage."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of each, behind one call of `closure`."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimiser(
    groups: list[dict[str, Any]],
    matrices: set[int],
    kind: str = "adamw",
    **options: Any,  # noqa: ANN401
) -> torch.optim.Optimizer:
    """AdamW for groups of parameters, with Muon for those whose `id` is among `matrices`.

    Args:
        groups: parameters and their weight decay.
        matrices: ids of parameters; empty: AdamW alone.
        kind: one of `PAGED`; anything else is PyTorch's AdamW.
        options: of AdamW; Muon has its rate.
    """
    if kind in PAGED:
        from bitsandbytes import optim

        paged = any(value.device.type != "cpu" for group in groups for value in group["params"])
        made: torch.optim.Optimizer = getattr(optim, f"{'Paged' * paged}{PAGED[kind]}")(groups, **options)
        return made
    parts: list[torch.optim.Optimizer] = []
    for chosen in (False, True):
        kept = [{**group, "params": [p for p in group["params"] if (id(p) in matrices) == chosen]} for group in groups]
        kept = [group for group in kept if group["params"]]
        if kept:
            parts.append(Muon(kept, options["lr"]) if chosen else torch.optim.AdamW(kept, **options))
    return parts[0] if len(parts) == 1 and not matrices else Side(*parts)
