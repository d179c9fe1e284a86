"""What a generative recommender is compared with: reference lines without learning, and trained recommenders."""

from genrl.recommenders import lc_rec, rearec, sasrec, tiger  # noqa: F401 (registered by import)
from genrl.recommenders.base import BASELINES, Problem, Ranker, Recommender, TrainingConfig
from genrl.recommenders.reference import ItemKNN, MostPopular, RepeatLast, reference_lines

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
