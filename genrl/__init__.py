"""genrl: reinforcement learning for generative recommenders, with interchangeable policy objectives."""

from __future__ import annotations

__version__ = "0.1.0"
