"""The metrics that a report tests, the quantities that it draws, and how both are named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from genrl.config.select import main_cut
from genrl.metrics.functional import ndcg_at_k, recall_at_k
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


@dataclass(frozen=True)
class Measure:
    """A metric of reports, taken at the largest K."""

    name: str
    """Before `@K` in metrics.json."""
    head: str
    """Short head of a column in Markdown."""
    title: str
    outcome: Callable[[Tensor, int], Tensor] | None = None
    """Outcome of each user from the place of the target [R, 1] and K, more being better: differences are tested."""
    cold: bool = False
    """Defined for users with a cold target alone."""


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("ndcg", "N", "NDCG", ndcg_at_k),
        Measure("recall", "R", "recall", recall_at_k),
        Measure("mrr", "MRR", "mean reciprocal rank"),
        Measure("entropy", "Ent", "entropy, bits"),
        Measure("cold_recall", "Cold", "cold recall", recall_at_k, cold=True),
        Measure("coverage", "Cov", "coverage"),
        Measure("top1pct_share", "Top1%", "top 1%"),
    )
}
TESTED = [name for name, measure in MEASURES.items() if measure.outcome]
"""Those with paired differences."""


def titled(metric: str) -> str:
    """Name of a metric for people.

    Example:
        >>> titled("cold_recall@10")
        'cold recall@10'
    """
    name, _, cutoff = metric.partition("@")
    return f"{MEASURES[name].title}@{cutoff}"


def capital(words: str) -> str:
    """With a capital letter at the start, the others as they are."""
    return words[0].upper() + words[1:]


def panels(noted: Collection[str]) -> dict[str, str]:
    """What is drawn of the quantities that runs have noted, with titles, in order.

    Example:
        >>> panels(["train/match/step1", "val/ndcg@10", "val/ndcg@20", "train/loss"])
        {'val/ndcg@10': 'validation NDCG@10', 'train/match/step1': 'match rate of step 1'}
    """
    titles = {
        "train/reward": "reward",
        **_main(noted, "val/ndcg@", "validation NDCG@"),
        **_main(noted, "val/cold_recall@", "validation cold recall@"),
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
    """Whether every code of every completion with an item was that of the target."""
    rates = [
        (rate, run.get("train/valid_rate", {}).get(step, 1.0))
        for run in runs
        for name, values in run.items()
        if name.startswith(MATCH)
        for step, rate in values.items()
    ]
    return any(rate for rate, _ in rates) and all(rate == named for rate, named in rates)


def _main(noted: Collection[str], prefix: str, title: str) -> dict[str, str]:
    """The quantity `prefix<K>` of the cut-off that verdicts are about."""
    cuts = [int(name[len(prefix) :]) for name in noted if name.startswith(prefix)]
    return {f"{prefix}{main_cut(cuts)}": f"{title}{main_cut(cuts)}"} if cuts else {}
