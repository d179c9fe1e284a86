"""What chooses weights, and what the words about a run are about."""

import re
from collections.abc import Iterable
from dataclasses import replace

from genrl.config.schema import EvaluateConfig, RunConfig

METRICS = ("ndcg", "recall", "mrr", "cold_recall")
"""Metrics that may choose weights."""
MAIN = 10
"""Cut-off of curves, differences and verdicts where it is among those of a run."""


def main_cut(k: Iterable[int]) -> int:
    """The cut-off that curves, differences and verdicts are about.

    Example:
        >>> main_cut([1, 10, 50]), main_cut([5, 20])
        (10, 20)
    """
    known = set(k)
    return MAIN if MAIN in known else max(known)


def cut_of(metric: str) -> int | None:
    """K of a metric that may choose weights; None: there is no such metric.

    Example:
        >>> cut_of("ndcg@5"), cut_of("ndcg"), cut_of("gini@5")
        (5, None, None)
    """
    found = re.fullmatch(rf"(?:{'|'.join(METRICS)})@([1-9][0-9]*)", metric)
    return int(found[1]) if found else None


def selected(config: RunConfig) -> str:
    """The metric that chooses weights."""
    return config.select.metric or f"ndcg@{main_cut(config.evaluate.k)}"


def validating(config: RunConfig) -> EvaluateConfig:
    """How validation ranks while a stage trains: with a narrow beam, for the cut-offs that it reaches."""
    cut = cut_of(selected(config))
    assert cut is not None, f"checked with the configuration: {config.select.metric}"
    reached = max(config.evaluate.beam, cut)
    k = sorted({cut, *(each for each in config.evaluate.k if each <= reached)})
    return replace(config.evaluate, k=k, exact=False, ties=False, readings=False, pass_at=None)


def within(config: RunConfig, items: int) -> EvaluateConfig:
    """The options of evaluation with the cut-offs that a catalogue has items for, and the one that chooses weights.

    Example:
        >>> config = RunConfig(evaluate=EvaluateConfig(k=[5, 50]))
        >>> within(config, 20).k, within(config, 3).k
        ([5], [3])
    """
    k = [each for each in config.evaluate.k if each <= items] or [items]
    cut = cut_of(config.select.metric or "")
    return replace(config.evaluate, k=k if cut is None or cut in k else sorted([*k, cut]))
