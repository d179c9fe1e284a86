"""How often the host waits for the device: counted on a stand-in, on any machine, without a clock."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.checks import TOLERANCE, require
from benchmarks.figures import Figure
from benchmarks.inputs import LEVELS, QUICK, Inputs, Sizes, make_inputs, make_slates, make_thinking
from benchmarks.standin import DEVICE, StandIn, StandInStrategy, Wait, move, stand_in, there, told
from benchmarks.steps import genrl_block, quiet_trainers
from genrl.batches import Completions
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write

T = TypeVar("T")
GROUP, BEAMS, STEPS = 8, 5, 3
SMALL = replace(QUICK, budget=12)
"""Counts do not depend on a model's size, so a small one is asked; blocks are longer than one look at what ended."""


@dataclass(frozen=True)
class Counted:
    """Waits of one call of each kind."""

    write: list[Wait]
    search: list[Wait]
    score: list[Wait]
    tokens: int
    """Places of the completions that were written."""
    checked: str


def waits(sizes: Sizes, repeats: int) -> list[Figure]:
    """Waits of the host per token written, level searched, batch scored and optimiser step, behind the first call.

    A small model is asked, whatever the sizes. Numbers are counted once: they do not differ from round to round.
    """
    found: list[Figure] = []
    for name, make in (("sid", make_inputs), ("think blocks", make_thinking), ("slates", make_slates)):
        for way in ("tree", "expand") if name == "sid" else ("expand",):
            counted = counts(make(SMALL), way)
            parts = {"token written": (counted.write, counted.tokens), "batch scored": (counted.score, 1)}
            if name == "sid":
                parts["level searched"] = (counted.search, LEVELS)
            found += [_figure(f"{name}, {way}: {what}", *part, counted.checked) for what, part in parts.items()]
    steps = updates()
    return [*found, _figure("sid: step of GRPO", steps, 1, f"behind the first: {told(steps)}")]


def counts(inputs: Inputs, way: str) -> Counted:
    """Waits of a rollout, a ranking and a scored batch, whose results are those of the CPU."""
    policy, layout, requests = inputs.policy, inputs.layout, inputs.prompts
    shape = len(requests), GROUP, layout.length
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    drawn = write(policy, layout, requests, GROUP, noise=noise)
    wanted = score(policy, layout, requests, drawn).logps.detach()
    ranked, _ = search(policy, layout, requests, BEAMS)
    policy = copy.deepcopy(policy)
    policy.branching = way
    with stand_in() as device:
        move(policy)
        away = layout.to(DEVICE), requests.to(DEVICE)
        written, at_writing = _behind_the_first(device, partial(write, policy, *away, GROUP, noise=noise.to(DEVICE)))
        found, at_search = _behind_the_first(device, partial(search, policy, *away, BEAMS))
        scores, at_score = _behind_the_first(device, partial(score, policy, *away, written))
    _require_same(written, drawn, found[0].items, ranked.items, scores.logps, wanted)
    tokens = written.tokens.shape[1]
    checked = f"the same completions, rankings and log-probabilities (to {TOLERANCE:g}) as on the CPU"
    return Counted(at_writing, at_search, at_score, tokens, checked)


def _behind_the_first(device: StandIn, call: Callable[[], T]) -> tuple[T, list[Wait]]:
    """The result of the second call and its waits: the first one looks at the model once and for all."""
    call()
    device.take()
    found = call()
    return found, device.take()


def _require_same(
    written: Completions, drawn: Completions, items: Tensor, ranked: Tensor, logps: Tensor, wanted: Tensor
) -> None:
    """What was computed on the stand-in is what the CPU computes."""
    require(torch.equal(there(written.tokens), drawn.tokens), "waits: the stand-in writes other completions.")
    require(torch.equal(there(items), ranked), "waits: the stand-in ranks other items.")
    gap = float((there(logps) - wanted).abs().max())
    require(gap <= TOLERANCE, f"waits: log-probabilities on the stand-in differ by {gap:.2g}.")


def updates() -> list[Wait]:
    """Waits of the last of a few steps of GRPO under Lightning's trainer, rollout and rewards included."""
    quiet_trainers()
    inputs = make_inputs(SMALL)
    with stand_in() as device:
        marks: list[list[Wait]] = []
        genrl_block(inputs, GROUP, STEPS, strategy=StandInStrategy(), after=lambda: marks.append(device.take()))
    return marks[-1]


def _figure(setting: str, found: list[Wait], per: int, checked: str) -> Figure:
    return Figure("waits", setting, len(found) / per, None, "waits", None, None, None, "lower", checked)
