"""Verifiable rewards: rollout and targets in, float32 rewards out."""

from genrl.rewards.base import REWARDS, Reward, RewardContext, Verifier, build_verifier

# isort: split
# A plug-in that moves in here imports the names above from this package.
from genrl.rewards.feedback import Feedback
from genrl.rewards.match import ExactMatch, LevelMatch, NDCGRank, PrefixMatch
from genrl.rewards.shape import Format
from genrl.rewards.slate import ColdHit, DiversityReward, Novelty, SlateHit, SlateNDCG, Validity
from genrl.rewards.told import Information

__all__ = [
    "REWARDS",
    "ColdHit",
    "DiversityReward",
    "ExactMatch",
    "Feedback",
    "Format",
    "Information",
    "LevelMatch",
    "NDCGRank",
    "Novelty",
    "PrefixMatch",
    "Reward",
    "RewardContext",
    "SlateHit",
    "SlateNDCG",
    "Validity",
    "Verifier",
    "build_verifier",
]
