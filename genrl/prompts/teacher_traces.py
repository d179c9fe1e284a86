"""Traces of the toy world `hop`: a teacher who knows the rule, but for some of its first step, says it step by step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.toy import COLOURS, KINDS, LEAVES, HopRule, draw_world
from genrl.config.schema import ToyConfig
from genrl.errors import ConfigError, DataError
from genrl.prompts.traces import Trace, in_blocks


def teacher_traces(
    dataset: Dataset,
    config: ToyConfig,
    positions: Tensor,
    levels: int,
    wrong: float = 0.0,
    often: float = 1.0,
    seed: int = 0,
) -> list[Trace]:
    """Traces of K blocks for those of `positions` [P] that have four items before them, in their order.

    "Tea Blue Ivory Green Amber White Olive Pots | Amber | Plus": category of the latest item and colour of the one
    before, the first colour of the chain (see `HopRule`), what the older items add and the colours that come of it; then
    category, colour and kind of the item that the rule puts next. Whether the user took it is not looked at: a trace is
    a function of the history alone.

    Args:
        dataset: made from `config`.
        config: of the world.
        positions: training positions.
        levels: K.
        wrong: share of the cells of the rule's first step that the teacher has wrong, always in the same way.
        often: how often he takes the wrong value where he has one.
        seed: of his mistakes.

    Raises:
        ConfigError: for a world without a chain.
        DataError: if no position has four items before it.
    """
    world = draw_world(config)
    if not isinstance(world.rule, HopRule):
        raise ConfigError(f"activate.traces=teacher needs data.toy.world=hop, not {config.world}.")
    histories = dataset.sequences.histories(positions, world.rule.reach)
    enough = (histories >= 0).all(1)
    if not bool(enough.any()):
        raise DataError(f"no training position has {world.rule.reach} items before it. Raise data.toy.users.")
    places = positions[enough].tolist()
    numbers = np.array([int(item_id[1:]) for item_id in dataset.catalog.item_ids])[histories[enough].numpy()]
    recent = [(world.leaves[row], world.colours[row], world.kinds[row]) for row in numbers.T[::-1]]
    right, mistaken = _said(world.rule, recent), _said(world.rule.mistaken(wrong, seed), recent)
    errs = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)) < often
    words = np.where(errs.numpy()[:, None], mistaken, right).tolist()
    parts = ((said[:-2], said[-2:-1], said[-1:]) for said in words)
    return [Trace(place, in_blocks(said, levels)) for place, said in zip(places, parts, strict=True)]


def _said(rule: HopRule, recent: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Words [P, 10]."""
    colours, kinds = np.array(COLOURS), np.array(KINDS)
    leaves = np.array([leaf for _, leaf, _ in LEAVES])
    adds = [leaves[recent[0][0]], *(colours[look[1]] for look in recent[1:])]
    one, two, three = (colours[step] for step in rule.chain(*recent))
    leaf, colour, kind = rule.next(*recent)
    chain = [adds[0], adds[1], one, adds[2], two, adds[3], three]
    return np.stack([*chain, leaves[leaf], colours[colour], kinds[kind]], axis=1)
