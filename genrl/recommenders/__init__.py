"""What a generative recommender is compared with: reference lines without learning, and trained recommenders."""

from genrl.recommenders import lc_rec, rearec, sasrec, tiger  # noqa: F401 (registered by import)
from genrl.recommenders.base import BASELINES, Baseline, Problem, Recommender, TrainedBaseline, TrainingConfig
from genrl.recommenders.reference import ItemKNN, MostPopular, RepeatLast, reference_lines

__all__ = [
    "BASELINES",
    "Baseline",
    "ItemKNN",
    "MostPopular",
    "Problem",
    "Recommender",
    "RepeatLast",
    "TrainedBaseline",
    "TrainingConfig",
    "reference_lines",
]
