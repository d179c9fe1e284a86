"""What a generative recommender is compared with: reference lines without learning, and trained recommenders."""

from genrl.baselines import lc_rec, rearec, sasrec, tiger  # noqa: F401 (registered by import)
from genrl.baselines.base import BASELINES, Problem, Ranker, Recommender, TrainingConfig
from genrl.baselines.reference import ItemKNN, MostPopular, RepeatLast, reference_lines

__all__ = [
    "BASELINES",
    "ItemKNN",
    "MostPopular",
    "Problem",
    "Ranker",
    "Recommender",
    "RepeatLast",
    "TrainingConfig",
    "reference_lines",
]
