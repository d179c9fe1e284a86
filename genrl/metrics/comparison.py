"""Do two models differ, when both the training seed and the choice of test users could have been others?"""

import math
from collections.abc import Sequence
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
LEAST = -100.0
"""Logarithm of the smallest p that is told from 0."""


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
    spread = Part(table.var().item() / seeds, seeds - 1)
    half = _quantile([spread], (1 + confidence) / 2) * math.sqrt(spread.variance)
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
    table users x seeds (Searle, Casella and McCulloch 1992). The quantile is the mean of Student's quantiles of the two
    parts, weighted with their variances (Cochran and Cox 1950). With 3 seeds the interval covers the truth 95 to 97
    times in 100 and p < .01 happens at most 1.1 times in 100 by chance, wherever the noise is; with pooled degrees of
    freedom (Satterthwaite 1946) that would be up to 3.5 times, as the noise between seeds is small by chance now and
    then. Independent seeds of two models are added up as in the test of Welch (1947).

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
    by_seeds = _sum([found.part for found in seeds])
    if by_seeds.variance <= ROUNDING * residual:  # hits are few numbers, and seeds may have equally many by chance
        by_seeds, residual = replace(by_seeds, variance=0.0), 0.0
    # The means per user hold the residual of seed by user too, which the part of the seeds counts already.
    by_users = Part(max(per_user.var().item() / users - residual, 0.0), users - 1)
    error = math.sqrt(by_users.variance + by_seeds.variance)
    half = _quantile([by_users, by_seeds], (1 + confidence) / 2) * error
    return Difference(
        effect=effect,
        low=effect - half,
        high=effect + half,
        p_value=_p_value(abs(effect) / error, [by_users, by_seeds]) if error else float(not effect),
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

    (t(0.975) + t(0.8)) standard errors, with the quantiles of the test (Cohen 1988 for the normal case).
    """
    if rows < 2:
        raise ValueError(f"detectable_change needs two or more rows, got {rows}.")
    scale = difference.users / rows
    by_users = Part(difference.by_users.variance * scale, rows - 1)
    by_seeds = Part(_lasting(difference) + difference.residual * scale, difference.by_seeds.degrees)
    return _multiple([by_users, by_seeds]) * math.sqrt(by_users.variance + by_seeds.variance)


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
    multiple = _multiple([difference.by_users, difference.by_seeds])
    room = (SHARE * difference.baseline / multiple) ** 2 - _lasting(difference)
    needed = shrinking / room if room > 0 else math.inf
    if not rows < needed < math.inf:
        return f"More rows do not help to see {SHARE:.0%}: train more seeds."
    return f"To see {SHARE:.0%} takes about {math.ceil(needed)} rows."


def _lasting(difference: Difference) -> float:
    """Variance that no number of users takes away."""
    return max(difference.by_seeds.variance - difference.residual, 0.0)


def _multiple(parts: Sequence[Part]) -> float:
    """Standard errors that a true difference must have to be found at 5% with `POWER`."""
    return _quantile(parts, 0.975) + _quantile(parts, POWER)


def _by_seeds(table: Tensor) -> _Seeds:
    """Mean squares of a table [S, R] of two or more seeds, as parts of the variance of its mean."""
    seeds, users = table.shape
    means = table.mean(dim=1)
    rest = table - means[:, None] - table.mean(dim=0) + table.mean()
    between = means.var().item()
    residual = rest.square().sum().item() / ((seeds - 1) * (users - 1) * seeds * users)
    return _Seeds(between, Part(between / seeds, seeds - 1), residual)


def _sum(parts: Sequence[Part]) -> Part:
    """Sum of independent parts, with the degrees of freedom of Satterthwaite."""
    variance = sum(part.variance for part in parts)
    if not variance:  # by chance, e.g. of a few rows; the number of rows it was measured with is kept
        return Part(0.0, min((part.degrees for part in parts), default=math.inf))
    return Part(variance, 1 / sum((part.variance / variance) ** 2 / part.degrees for part in parts))


def _quantile(parts: Sequence[Part], probability: float) -> float:
    """Mean of the quantiles of Student's distributions of the parts, weighted with their variances."""
    from scipy.special import ndtri, stdtrit  # comes with scikit-learn

    total = sum(part.variance for part in parts)
    if not total:
        parts, total = [Part(1.0, _sum(parts).degrees)], 1.0
    quantiles = [ndtri(probability) if math.isinf(one.degrees) else stdtrit(one.degrees, probability) for one in parts]
    return float(sum(one.variance * value for one, value in zip(parts, quantiles, strict=True)) / total)


def _p_value(statistic: float, parts: Sequence[Part]) -> float:
    """The two-sided p with that quantile; the statistic is an effect in standard errors, at least 0."""
    from scipy.optimize import brentq  # comes with scikit-learn

    def excess(log_p: float) -> float:
        return -_quantile(parts, math.exp(log_p) / 2) - statistic

    return math.exp(brentq(excess, LEAST, 0.0)) if excess(LEAST) > 0 else 0.0


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
