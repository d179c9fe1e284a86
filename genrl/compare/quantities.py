"""What is drawn of the quantities that runs note."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from genrl.compare.verdict import capital
from genrl.plots import Band, Notes, band

TRAINING = {
    "policy/entropy": "entropy of the policy, nats",
    "policy/kl": "KL from the reference policy, nats",
    "objective/dead_groups": "dead groups",
}
MATCH = "train/match/step"
SAMPLED = ("train/reward", "objective/dead_groups", MATCH)
"""Quantities of completions; they say nothing of a row whose completions are the targets."""
Panels = dict[str, dict[str, Band]]
"""Title -> row -> its curve."""


def panels(noted: Collection[str]) -> dict[str, str]:
    """What is drawn of the quantities that runs have noted, with titles, in order.

    Example:
        >>> panels(["train/match/step1", "val/ndcg@5", "val/ndcg@10", "train/loss"])
        {'val/ndcg@10': 'validation NDCG@10', 'train/match/step1': 'match rate of step 1'}
    """
    titles = {
        "train/reward": "reward",
        **_largest(noted, "val/ndcg@", "validation NDCG@"),
        **_largest(noted, "val/cold_recall@", "validation cold recall@"),
        **TRAINING,
        **{name: f"match rate of step {name[len(MATCH) :]}" for name in matches(noted)},
    }
    return {name: title for name, title in titles.items() if name in noted}


def matches(noted: Collection[str]) -> list[str]:
    """Match rates among the quantities, in the order of steps."""
    return sorted((name for name in noted if name.startswith(MATCH)), key=lambda name: int(name[len(MATCH) :]))


def bands_of(notes: Mapping[str, Sequence[Notes]]) -> tuple[Panels, Panels]:
    """Learning curves, and those of the match rates of steps, of rows that have some."""
    taught = {row for row, runs in notes.items() if _is_taught(runs)}
    learning: Panels = {}
    steps: Panels = {}
    for name, title in panels({name for runs in notes.values() for run in runs for name in run}).items():
        rows = [row for row in notes if row not in taught or not name.startswith(SAMPLED)]
        found = {row: band([run[name] for run in notes[row] if name in run]) for row in rows}
        if any(found.values()):
            known = {row: curve for row, curve in found.items() if curve}
            (steps if name.startswith(MATCH) else learning)[capital(title)] = known
    return learning, steps


def _is_taught(runs: Sequence[Notes]) -> bool:
    """Whether every code of every completion was that of the target."""
    rates = [rate for run in runs for name, values in run.items() if name.startswith(MATCH) for rate in values.values()]
    return bool(rates) and min(rates) == 1.0


def _largest(noted: Collection[str], prefix: str, title: str) -> dict[str, str]:
    """The quantity `prefix<K>` of the largest K."""
    cuts = [int(name[len(prefix) :]) for name in noted if name.startswith(prefix)]
    return {f"{prefix}{max(cuts)}": f"{title}{max(cuts)}"} if cuts else {}
