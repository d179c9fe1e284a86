"""Metrics of rankings: pure functions, a torchmetrics class, and comparisons of models over users and seeds."""

from typing import TYPE_CHECKING, Any

from genrl.metrics.comparison import (
    Difference,
    SeedInterval,
    detectable_change,
    holm,
    paired_difference,
    seed_interval,
    warnings_of,
)
from genrl.metrics.functional import exclude_history, sid_keys, target_ranks

if TYPE_CHECKING:
    from genrl.metrics.ranking import RankingMetrics, per_row_metrics

__all__ = [
    "Difference",
    "RankingMetrics",
    "SeedInterval",
    "detectable_change",
    "exclude_history",
    "holm",
    "paired_difference",
    "per_row_metrics",
    "seed_interval",
    "sid_keys",
    "target_ranks",
    "warnings_of",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a class or a function)
    """What needs torchmetrics is imported when it is first used."""
    if name not in ("RankingMetrics", "per_row_metrics"):
        raise AttributeError(f"module 'genrl.metrics' has no attribute {name!r}")
    from genrl.metrics import ranking

    return getattr(ranking, name)
