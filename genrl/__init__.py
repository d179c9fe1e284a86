"""genrl: reinforcement learning for generative recommenders, with interchangeable policy objectives.

The names below are the public Python interface (docs/python.md); each is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {
    "load": "genrl.python",
    "fit": "genrl.python",
    "Requests": "genrl.batches",
    "Completions": "genrl.batches",
    "Rewards": "genrl.batches",
    "Ranking": "genrl.batches",
    "Objective": "genrl.objectives",
    "Reward": "genrl.rewards",
    "Layout": "genrl.layouts",
    "Recommender": "genrl.recommenders",
    "OBJECTIVES": "genrl.objectives",
    "REWARDS": "genrl.rewards",
    "LAYOUTS": "genrl.layouts",
    "BASELINES": "genrl.recommenders",
    "SID_BUILDERS": "genrl.sid",
}
"""Public name -> module that it is defined in."""
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public object)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'genrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
