"""Traces of the toy world `hop`: a teacher who knows its rule, but for some mixtures, says it step by step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.toy import COLOURS, KINDS, LEAVES, HopRule, Look, draw_world
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

    "Blue Ivory Green Amber White Olive Red Pots | Amber | Plus": the colours of the two latest items and their mixture,
    the next older colour and the mixture with it, the oldest and the last mixture (see `HopRule`); at last category,
    colour and kind of the item that follows on it. Whether the user took it is not looked at: a trace is a function of
    the history alone.

    Args:
        dataset: made from `config`.
        config: of the world.
        positions: training positions.
        levels: K.
        wrong: share of the pairs of colours whose mixture the teacher has wrong, always in the same way.
        often: how often he says the wrong mixture where he has one.
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
    generator = torch.Generator().manual_seed(seed)
    errs = (torch.rand(len(places), world.rule.reach - 1, generator=generator) < often).numpy()
    words = _said(world.rule, recent, world.rule.mistaken(wrong, seed), errs).tolist()
    parts = ((said[:-2], said[-2:-1], said[-1:]) for said in words)
    return [Trace(place, in_blocks(said, levels)) for place, said in zip(places, parts, strict=True)]


def _said(rule: HopRule, recent: list[Look], mistaken: np.ndarray, errs: np.ndarray) -> np.ndarray:
    """Words [P, 10]; a teacher who `errs` [P, 3] at a mixture takes what he is mistaken about."""
    colours, kinds = np.array(COLOURS), np.array(KINDS)
    leaves = np.array([leaf for _, leaf, _ in LEAVES])
    mixture = recent[0][1]
    chain = [mixture]
    for step, look in enumerate(recent[1:]):
        mixture = np.where(errs[:, step], mistaken[mixture, look[1]], rule.mix[mixture, look[1]])
        chain += [look[1], mixture]
    leaf, colour, kind = rule.after(mixture, *recent)
    return np.stack([*(colours[one] for one in chain), leaves[leaf], colours[colour], kinds[kind]], axis=1)
