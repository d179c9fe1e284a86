"""Metrics of rankings: pure functions, torchmetrics classes, and intervals for paired differences."""

from genrl.metrics.functional import exclude_history, sid_keys, target_ranks
from genrl.metrics.intervals import Interval, paired_interval
from genrl.metrics.ranking import (
    ColdRecallAtK,
    NDCGAtK,
    PassAtK,
    RankingMetrics,
    RecallAtK,
    RowMean,
    ValidRate,
    per_row_metrics,
)

__all__ = [
    "ColdRecallAtK",
    "Interval",
    "NDCGAtK",
    "PassAtK",
    "RankingMetrics",
    "RecallAtK",
    "RowMean",
    "ValidRate",
    "exclude_history",
    "paired_interval",
    "per_row_metrics",
    "sid_keys",
    "target_ranks",
]
