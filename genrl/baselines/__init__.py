"""Baselines without a language model."""

from genrl.baselines.reference import ItemKNN, MostPopular, Ranker, RepeatLast, reference_lines

__all__ = ["ItemKNN", "MostPopular", "Ranker", "RepeatLast", "reference_lines"]
