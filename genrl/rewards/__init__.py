"""Verifiable rewards: rollout and targets in, float32 rewards out."""

from genrl.rewards.base import REWARDS, Reward, RewardContext, Verifier, build_verifier

# isort: split
# A plug-in that moves in here imports the names above from this package.
from genrl.rewards.match import ExactMatch, LevelMatch, NDCGRank, PrefixMatch
from genrl.rewards.shape import Format
from genrl.rewards.told import Information

__all__ = [
    "REWARDS",
    "ExactMatch",
    "Format",
    "Information",
    "LevelMatch",
    "NDCGRank",
    "PrefixMatch",
    "Reward",
    "RewardContext",
    "Verifier",
    "build_verifier",
]
