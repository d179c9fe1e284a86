"""Do two models differ, when both the training seed and the choice of test users could have been others?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

SHARE = 0.2
"""Change, as a share of the other model's mean, that a test should be able to find."""
POWER = 0.8
"""Probability with which it should find it."""
ROUNDING = 1e-9
"""Share of another variance below which one is nothing but rounding."""


@dataclass(frozen=True)
class SeedInterval:
    """Mean over training seeds with the ends of its interval, NaN with one seed; in the unit of the values."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def has_width(self) -> bool:
        """Whether there were two seeds or more."""
        return self.seeds > 1


@dataclass(frozen=True)
class Part:
    """What one source of chance adds to the variance of an estimate, and the degrees of freedom of that variance."""

    variance: float
    degrees: float


@dataclass(frozen=True)
class Difference:
    """Mean difference of two models with its interval, in the unit of the outcome (NDCG, recall, ...)."""

    effect: float
    """Ours minus theirs, over all users and seeds."""
    low: float
    high: float
    p_value: float
    """Two-sided, for the hypothesis that the difference is 0; not corrected for several comparisons (`holm`)."""
    baseline: float
    """Mean of theirs."""
    seed_noise: float
    """Standard deviation between seeds of the difference between one run of each; NaN with one seed."""
    users: int
    seeds: int
    """Training seeds of the model that has fewer; a model of one row beside several seeds does not count."""
    by_users: Part
    by_seeds: Part
    """0 with one seed."""
    residual: float
    """That of `by_seeds.variance` which is due to seed and user together, and so shrinks with more users."""

    @property
    def relative(self) -> float:
        """The effect as a share of theirs' mean; NaN if that is 0."""
        return self.effect / self.baseline if self.baseline else math.nan


class _Seeds(NamedTuple):
    """Analysis of variance of one table [S, R]."""

    between: float
    """Variance between the means of the seeds."""
    part: Part
    residual: float
    """What the residual of seed by user adds to the variance of the mean."""


def seed_interval(values: Tensor, confidence: float = 0.95) -> SeedInterval:
    """Student-t interval (Student 1908) of a mean over training seeds, from one finite value per seed [S].

    It covers the choice of seeds on these very test users and nothing else; the difference of two models has both in
    `paired_difference`.

    Example:
        >>> interval = seed_interval(torch.tensor([1.0, 2.0, 3.0]))
        >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
        (2.0, -0.484, 4.484)
    """
    _check_confidence(confidence)
    table = _table(values, "seed_interval", "values", dimensions=1)
    seeds, mean = table.shape[0], table.mean().item()
    if seeds == 1:
        return SeedInterval(mean, math.nan, math.nan, seeds)
    half = _quantile(seeds - 1, (1 + confidence) / 2) * table.std().item() / math.sqrt(seeds)
    return SeedInterval(mean, mean - half, mean + half, seeds)


def paired_difference(ours: Tensor, theirs: Tensor, confidence: float = 0.95) -> Difference:
    """Mean of ours - theirs, with an interval for other users and other training seeds.

    Users are paired, so that what makes a user easy or hard cancels. A row of `ours` is one training seed and moves as
    a whole, so seeds are clusters. Which seeds belong together follows from the shapes:

    * equal numbers: seed s of ours is compared with seed s of theirs;
    * one of the two has one row: that is a fixed model which all seeds of the other are compared with, e.g. the weights
      they all started from. The noise of its own training is not covered;
    * other numbers: the seeds of the two are independent;
    * one row each: the interval covers the choice of users and nothing else.

    The variance of the mean is the sum of the part of users and the part of seeds, from the mean squares of the crossed
    table users x seeds (Searle, Casella and McCulloch 1992). The quantile is Student's; its degrees of freedom are the
    harmonic mean of those of the two parts, weighted with their variances. That lies between Satterthwaite (1946) and
    Cochran and Cox (1950): in simulations with 3 seeds the interval of the former covers the truth 92 to 95 times in
    100, of the latter 94 to 97.5, this one 94 to 97, and a bootstrap that draws seeds and users 75 to 99. Independent
    seeds of two models are added up as in the test of Welch (1947).

    Args:
        ours: outcome per seed and user [S, R], e.g. NDCG@10.
        theirs: outcome of the other model [S', R], the same users, two or more, in the same order.
        confidence: coverage of the interval, in (0, 1); p < 1 - confidence where it leaves out 0.

    Example:
        >>> ours, theirs = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]])
        >>> difference = paired_difference(ours, theirs)
        >>> round(difference.effect, 3), difference.seeds, difference.users
        (0.5, 2, 3)
    """
    _check_confidence(confidence)
    ours = _table(ours, "paired_difference", "ours", dimensions=2)
    theirs = _table(theirs, "paired_difference", "theirs", dimensions=2)
    users = ours.shape[1]
    if theirs.shape[1] != users or users < 2:
        raise ValueError(
            f"paired_difference needs the same two or more users (columns) on both sides, got {list(ours.shape)} and "
            f"{list(theirs.shape)}."
        )
    matched = ours.shape[0] == theirs.shape[0] or 1 in (ours.shape[0], theirs.shape[0])
    tables = [ours - theirs] if matched else [ours, theirs]
    seeds = [_by_seeds(table) for table in tables if table.shape[0] > 1]
    per_user = ours.mean(dim=0) - theirs.mean(dim=0)
    effect = per_user.mean().item()
    residual = sum(found.residual for found in seeds)
    by_seeds = _sum([found.part for found in seeds], exponent=2)
    if by_seeds.variance <= ROUNDING * residual:  # hits are few numbers, and seeds may have equally many by chance
        by_seeds, residual = replace(by_seeds, variance=0.0), 0.0
    # The means per user hold the residual of seed by user too, which the part of the seeds counts already.
    by_users = Part(max(per_user.var().item() / users - residual, 0.0), users - 1)
    total = _sum([by_users, by_seeds], exponent=1)
    half = _quantile(total.degrees, (1 + confidence) / 2) * math.sqrt(total.variance)
    return Difference(
        effect=effect,
        low=effect - half,
        high=effect + half,
        p_value=_p_value(effect, total),
        baseline=theirs.mean().item(),
        seed_noise=math.sqrt(sum(found.between for found in seeds)) if seeds else math.nan,
        users=users,
        seeds=min(table.shape[0] for table in tables),
        by_users=by_users,
        by_seeds=by_seeds,
        residual=residual,
    )


def holm(p_values: Tensor) -> Tensor:
    """p-values corrected for their number by the step-down rule of Holm (1979).

    If all that are below a level a are called differences, the probability of even one false call is at most a, however
    the tests depend on each other. [n] -> [n] float64, in the given order.

    Example:
        >>> holm(torch.tensor([0.04, 0.01, 0.03], dtype=torch.float64)).tolist()
        [0.06, 0.03, 0.06]
    """
    p_values = p_values.detach().cpu().double()
    if p_values.dim() != 1 or not bool(((p_values >= 0) & (p_values <= 1)).all()):
        raise ValueError(f"holm needs a vector of p-values in [0, 1], got {p_values.tolist()}.")
    order = p_values.argsort(stable=True)
    factors = torch.arange(len(order), 0, -1, dtype=torch.float64)
    stepped = (p_values[order] * factors).clamp(max=1)
    adjusted = torch.empty_like(p_values)
    adjusted[order] = stepped.cummax(dim=0).values if len(order) else stepped
    return adjusted


def detectable_change(difference: Difference, rows: int) -> float:
    """Smallest true difference that a test at 5% on `rows` such users and these seeds finds with 80% power.

    (t(0.975) + t(0.8)) standard errors, with the degrees of freedom of the test (Cohen 1988 for the normal case).
    """
    if rows < 2:
        raise ValueError(f"detectable_change needs two or more rows, got {rows}.")
    scale = difference.users / rows
    by_users = Part(difference.by_users.variance * scale, rows - 1)
    by_seeds = Part(_lasting(difference) + difference.residual * scale, difference.by_seeds.degrees)
    total = _sum([by_users, by_seeds], exponent=1)
    return _multiple(total.degrees) * math.sqrt(total.variance)


def signed(value: float, decimals: int = 4) -> str:
    """A number with its sign, as print has it.

    Example:
        >>> signed(-0.01)
        '−0.0100'
    """
    return f"{value:+.{decimals}f}".replace("-", "−")


def warnings_of(difference: Difference, counted_rows: int, *, trained: bool = True) -> list[str]:
    """What a reader must know before believing a difference, in plain sentences.

    None if there are three or more seeds, the difference exceeds their noise, and a change of 20% of theirs, or one as
    large as the difference itself, would be found with 80% power.

    Args:
        difference: result of `paired_difference`.
        counted_rows: rows on which the outcome is defined; for a number other than `difference.users` it is answered
            what so many rows with the same spread would show.
        trained: whether a model could have been trained with other seeds; not so if both are rules, or weights that a
            whole experiment shares.
    """
    return (_too_few_seeds(difference) if trained else []) + _too_few_rows(difference, counted_rows)


def _too_few_seeds(difference: Difference) -> list[str]:
    found = []
    if difference.seeds == 1:
        found.append("One training seed: the interval covers the choice of users only. Train at least 3 seeds.")
    elif difference.seeds < 3:
        found.append(f"{difference.seeds} training seeds: the noise between seeds is hardly known. Train at least 3.")
    if abs(difference.effect) < difference.seed_noise:
        found.append(
            f"The difference ({signed(difference.effect)}) is smaller than the noise between seeds "
            f"({difference.seed_noise:.4f}): one run of each can show the opposite."
        )
    return found


def _too_few_rows(difference: Difference, rows: int) -> list[str]:
    """At most one sentence on the power of the test."""
    if rows < 2:
        return [f"Only {rows} of the rows count: nothing can be said."]
    baseline = abs(difference.baseline)
    if not baseline:
        return [f"The other model scores 0 on all {rows} rows: a relative change has no meaning here."]
    least = detectable_change(difference, rows)
    if not least and not difference.effect:
        return [
            f"Both have the same outcome on all {rows} rows, so the interval has no width: of changes on fewer than "
            f"about {min(1.0, 3 / rows):.1%} of users nothing can be said."
        ]
    if least <= SHARE * baseline or least <= abs(difference.effect):
        return []
    return [
        f"{rows} rows and these seeds show a change only from about {least / baseline:.0%} of {baseline:.4f} upwards "
        f"(80% power): that no difference is found does not mean that there is none. {_remedy(difference, rows)}"
    ]


def _remedy(difference: Difference, rows: int) -> str:
    shrinking = (difference.by_users.variance + difference.residual) * difference.users
    degrees = _sum([difference.by_users, difference.by_seeds], exponent=1).degrees
    room = (SHARE * difference.baseline / _multiple(degrees)) ** 2 - _lasting(difference)
    needed = shrinking / room if room > 0 else math.inf
    if not rows < needed < math.inf:
        return f"More rows do not help to see {SHARE:.0%}: train more seeds."
    return f"To see {SHARE:.0%} takes about {math.ceil(needed)} rows."


def _lasting(difference: Difference) -> float:
    """Variance that no number of users takes away."""
    return max(difference.by_seeds.variance - difference.residual, 0.0)


def _multiple(degrees: float) -> float:
    """Standard errors that a true difference must have to be found at 5% with `POWER`."""
    return _quantile(degrees, 0.975) + _quantile(degrees, POWER)


def _by_seeds(table: Tensor) -> _Seeds:
    """Mean squares of a table [S, R] of two or more seeds, as parts of the variance of its mean."""
    seeds, users = table.shape
    means = table.mean(dim=1)
    rest = table - means[:, None] - table.mean(dim=0) + table.mean()
    between = means.var().item()
    residual = rest.square().sum().item() / ((seeds - 1) * (users - 1) * seeds * users)
    return _Seeds(between, Part(between / seeds, seeds - 1), residual)


def _sum(parts: list[Part], exponent: int) -> Part:
    """Sum of independent parts; 1 / degrees is the mean of theirs, weighted with (share of the variance)^exponent.

    Exponent 2 is the rule of Satterthwaite. Exponent 1 gives fewer degrees, never fewer than the fewest of a part.
    """
    variance = sum(part.variance for part in parts)
    if not variance:  # by chance, e.g. of a few rows; how little it was measured with stays known
        return Part(0.0, min((part.degrees for part in parts), default=math.inf))
    return Part(variance, 1 / sum((part.variance / variance) ** exponent / part.degrees for part in parts))


def _p_value(effect: float, total: Part) -> float:
    if not total.variance:
        return 0.0 if effect else 1.0
    from scipy.special import stdtr  # comes with scikit-learn

    return 2 * float(stdtr(total.degrees, -abs(effect) / math.sqrt(total.variance)))


def _quantile(degrees: float, probability: float) -> float:
    """Of Student's distribution; the normal one for infinite degrees."""
    from scipy.special import ndtri, stdtrit  # comes with scikit-learn

    return float(ndtri(probability) if math.isinf(degrees) else stdtrit(degrees, probability))


def _table(values: Tensor, function: str, name: str, dimensions: int) -> Tensor:
    """`values` as finite float64 on the CPU."""
    shape = "[seeds]" if dimensions == 1 else "[seeds, users]"
    if values.dim() != dimensions or not values.numel():
        raise ValueError(f"{function} needs {name} as {shape}, got {list(values.shape)}.")
    table = values.detach().cpu().double()
    if not bool(table.isfinite().all()):
        wrong = int((~table.isfinite()).sum())
        raise ValueError(
            f"{function}: {wrong} of {table.numel()} values of {name} are not finite; leave out the rows that "
            "do not count."
        )
    return table


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
