"""Gradient coefficients of objectives against the importance ratio, by autograd through the objectives themselves."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from genrl.batches import Completions, Rewards, Scores
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES
from genrl.plots import look, save, style

ITEMS = 10
"""Items of a slate, one token each, as many as in the paper."""
SLATES = tuple(product(("diverse", "uniform"), ("good", "bad")))
"""The completions of each prompt: every item of another category or all of one; rewarded or not."""
READINGS: Mapping[str, Mapping[str, Any]] = {
    "Algorithm 1": {"form": "clipped"},
    "equations 4-5 as their text explains them": {"form": "gradient", "phi": "resolved"},
    "equations 4-5 as printed": {"form": "gradient", "phi": "literal"},
}
"""What the SAGE paper says in three places, as options of `sage`."""
WIDTHS = (4.0, 3.0, 2.2, 2.2)
"""Of the lines, so that those below show where curves agree."""


def coefficients(
    objective: str, options: Mapping[str, Any], ratios: Tensor, probability: float = 0.4
) -> dict[tuple[str, str], Tensor]:
    """Gradient coefficient c of an objective: d loss / d log pi = -c A w, where w is the weight of the completion.

    The loss is that of a rollout with one prompt per ratio, whose four slates are those of `SLATES`. All tokens of a
    slate have one ratio pi / pi_old of `ratios` [N], so that means over tokens, items and slates agree; the gradients
    of its tokens are summed. `probability` is pi_old of every token, on which the bounds of GBPO depend; times a ratio
    it must be below 1.

    Returns:
        (diversity, quality) of the slate -> coefficients [N] float64.

    Example:
        >>> found = coefficients("gbpo", {}, torch.tensor([0.9, 1.3]))
        >>> found["diverse", "good"]
        tensor([0.9000, 1.0000], dtype=torch.float64)
    """
    built = OBJECTIVES.build(objective, dict(options))
    rollout, rewards, logps = synthetic(ratios, probability)
    experience = built.before_step(Scores(logps.detach(), rollout.entropy), built.prepare(rollout, rewards))
    loss = built.loss(Scores(logps, rollout.entropy), experience).loss
    (gradient,) = torch.autograd.grad(loss, logps)
    found = -gradient.sum(1) / (experience.weights * experience.advantages).sum(1)
    return dict(zip(SLATES, found.view(-1, len(SLATES)).unbind(1), strict=True))


def synthetic(ratios: Tensor, probability: float) -> tuple[Completions, Rewards, Tensor]:
    """A rollout with the slates of `SLATES` for every ratio, its rewards, and log pi [B, T] with gradient."""
    ratios = ratios.double()
    if not 0 < probability < 1 or not bool(((ratios > 0) & (ratios * probability < 1)).all()):
        raise ConfigError(
            f"probability {probability:g} with ratios up to {float(ratios.max()):g}: both must be above 0, and so must "
            f"1 - ratio * probability. Give --probability a value below {1 / float(ratios.max()):g}."
        )
    diverse = torch.tensor([diversity == "diverse" for diversity, _ in SLATES]).repeat(len(ratios))
    good = torch.tensor([quality == "good" for _, quality in SLATES]).double().repeat(len(ratios))
    places = torch.arange(ITEMS).expand(len(good), ITEMS)
    zeros, old = torch.zeros_like(places), torch.full(places.shape, math.log(probability), dtype=torch.float64)
    rollout = Completions(
        tokens=zeros,
        chosen=zeros == 0,
        logps=old,
        ref_logps=old,
        entropy=0 * old,
        codes=zeros,
        items=places,
        item_ids=places,
        step_ids=places,
        categories=places * diverse[:, None],
        group_size=len(SLATES),
        num_steps=ITEMS,
    )
    rewards = Rewards({"hit": good[:, None].expand(places.shape) / ITEMS}, {"hit": 1.0})
    logps = old + ratios.log().repeat_interleave(len(SLATES))[:, None]
    return rollout, rewards, logps.requires_grad_()


def draw(path: Path, probability: float = 0.4) -> None:
    """Draw GRPO, GBPO and the three readings of SAGE: a column per reading, a row per sign of the advantage."""
    ratios = torch.linspace(0.01, 2, 399, dtype=torch.float64)
    grpo = coefficients("grpo", {"kl_coef": 0.0}, ratios, probability)
    gbpo = coefficients("gbpo", {}, ratios, probability)
    with style(**{"text.parse_math": True, "font.size": 10}):
        figure = Figure(figsize=(11, 6.6), layout="constrained")
        axes = figure.subplots(2, len(READINGS), sharex=True, sharey=True)
        for column, (reading, options) in enumerate(READINGS.items()):
            sage = coefficients("sage", options, ratios, probability)
            for row, quality in enumerate(("good", "bad")):
                curves = {
                    "GRPO": grpo["diverse", quality],
                    "GBPO": gbpo["diverse", quality],
                    "SAGE, high entropy (ln 10)": sage["diverse", quality],
                    "SAGE, low entropy (0)": sage["uniform", quality],
                }
                for number, ((name, values), width) in enumerate(zip(curves.items(), WIDTHS, strict=True)):
                    axes[row, column].plot(ratios, values, label=name, **{**look(number).line, "linewidth": width})
                axes[row, column].set(xlim=(0, 2), ylim=(-0.08, 2.68))
            axes[0, column].set_title(f"SAGE, {reading}", fontsize=9.5)
            axes[1, column].set_xlabel("importance ratio $r = \\pi / \\pi_{old}$")
        for row, sign in enumerate((">", "<")):
            axes[row, 0].set_ylabel(f"$A {sign} 0$: gradient coefficient $c$")
        handles, names = axes[0, 0].get_legend_handles_labels()
        given = f"slates of {ITEMS} tokens, each with $\\pi_{{old}} = {probability:g}$"
        figure.legend(handles, names, title=given, loc="outside lower center", ncols=len(names), handlelength=4.5)
        save(figure, path, dpi=150)
