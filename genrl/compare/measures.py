"""The metrics that a report shows, and how they are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from genrl.metrics.functional import ndcg_at_k, recall_at_k


@dataclass(frozen=True)
class Measure:
    """A metric of reports, taken at the largest K."""

    name: str
    """Before `@K` in metrics.json."""
    head: str
    """Short head of a column in Markdown."""
    title: str
    outcome: Callable[[Tensor, int], Tensor] | None = None
    """Outcome of each user from the place of the target [R, 1] and K, more being better: differences are tested."""
    cold: bool = False
    """Defined for users with a cold target alone."""


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("ndcg", "N", "NDCG", ndcg_at_k),
        Measure("recall", "R", "recall", recall_at_k),
        Measure("entropy", "Ent", "entropy, bits"),
        Measure("cold_recall", "Cold", "cold recall", recall_at_k, cold=True),
        Measure("coverage", "Cov", "coverage"),
        Measure("top1pct_share", "Top1%", "top 1%"),
    )
}
TESTED = [name for name, measure in MEASURES.items() if measure.outcome]
"""Those with paired differences."""


def titled(metric: str) -> str:
    """Name of a metric for people.

    Example:
        >>> titled("cold_recall@10")
        'cold recall@10'
    """
    name, _, cutoff = metric.partition("@")
    return f"{MEASURES[name].title}@{cutoff}"
