"""The record of a comparison: everything a report says, as report.json holds it."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Difference:
    """A row minus another in one metric, in its unit."""

    effect: float
    low: float
    """Lower end of the interval."""
    high: float
    relative: float | None
    """Share of the other's mean; None if that is 0."""
    p_holm: float
    """Corrected for the number of rows asked for, or for that of pairs."""
    seed_noise: float | None
    """Standard deviation between seeds; None with one seed."""
    rows: int
    """Users compared."""
    seeds_covered: bool
    """Whether the interval holds the noise of training, as no side was trained only once."""
    warnings: list[str]


@dataclass(frozen=True)
class Line:
    """What a row scored on one part, in one kind of ranking."""

    metrics: dict[str, float | None]
    """`metric@K` -> mean over seeds; None where it has no rows."""
    seeds: list[int]
    """None: no seed could change it."""
    by_seed: list[float] | None = None
    """NDCG, by seed."""
    interval: list[float | None] | None = None
    """Ends of the interval of the mean NDCG over seeds; None with one seed."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """`metric@K` -> difference to the baseline, those that are known."""
    ties: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """`tied` and `untied` -> `metric@K` -> mean over seeds, of a row that was scored on them apart."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of the interval of the mean, where there is one."""
        low, high = self.interval or (None, None)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Pair:
    """Two of the rows asked for, neither of them the baseline."""

    row: str
    other: str
    differences: dict[str, Difference] = field(default_factory=dict)
    """`metric@K` -> row minus other."""


@dataclass(frozen=True)
class Table:
    """One part (test or validation) and kind of ranking (raw or history excluded)."""

    k: int
    users: int
    cold_rows: int | None
    """Users with a cold target; None: no run kept it."""
    lines: dict[str, Line]
    pairs: list[Pair] = field(default_factory=list)
    ties: dict[str, int] = field(default_factory=dict)
    """`tied` and `untied` -> users, where `evaluate.ties` has asked for rows scored on them apart."""
    pool: dict[str, float] | None = None
    """`size` of the candidate pools and `ceiling`, the share of targets in them; None: the whole catalogue."""

    @property
    def of(self) -> str:
        """The users and what they were ranked in, in words."""
        cold = "" if self.cold_rows is None else f", {self.cold_rows:,} with a cold target"
        pool = "" if self.pool is None else f"; pools of {self.pool['size']:.0f}, ceiling {self.pool['ceiling']:.4f}"
        return f"{self.users:,} users{cold}{pool}"

    @property
    def main(self) -> str:
        """The metric that the words are about."""
        return f"ndcg@{self.k}"

    @property
    def apart(self) -> list[str]:
        """What tied and untied targets are scored in; nothing where no row was."""
        return next((list(line.ties["tied"]) for line in self.lines.values() if line.ties), [])


@dataclass(frozen=True)
class Row:
    """What a row is."""

    kind: str
    """`objective` or `baseline`."""
    name: str
    title: str
    paper: str
    options: dict[str, Any]
    seeds: list[int]
    runs: list[str]
    pieces: str | None = None
    """Of an objective, in words."""
    rewards: dict[str, Any] | None = None
    spent: dict[str, int | None] | None = None
    """Steps, prompts, completions and tokens of one run in stage `rl`."""


@dataclass(frozen=True)
class Point:
    """One point of a grid."""

    run: str
    point: dict[str, str]
    score: float | None
    """On validation; None: not finished."""


@dataclass(frozen=True)
class Choice:
    """What a row was chosen from."""

    metric: str
    points: list[Point]
    chosen: dict[str, str] | None


@dataclass(frozen=True)
class Cost:
    """What a stage took: mean over seeds, and the largest memory."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Request:
    """What one request of a trained policy costs."""

    tokens: float
    multiply_adds: int
    milliseconds: float


@dataclass(frozen=True)
class Expense:
    """What a row of the study of thinking spent, and what its requests cost."""

    beam: int
    training: dict[str, int]
    """Stage -> tokens."""
    rl_prompts: int
    request: Request

    @property
    def supervised(self) -> int:
        """Tokens of the stages before `rl`."""
        return sum(tokens for stage, tokens in self.training.items() if stage != "rl")


@dataclass(frozen=True)
class Report:
    """A comparison."""

    experiment: str
    data: dict[str, Any]
    """Name and fingerprint."""
    sid: dict[str, Any]
    """Levels, codes per level, fingerprint."""
    shared: dict[str, str]
    """Stage before `rl` that all objectives share -> its folder."""
    versions: dict[str, Any]
    baseline: str
    """Row that the others are compared with."""
    planned: bool
    """Whether it is known which runs there should be."""
    unfinished: list[str]
    notes: list[str]
    """What a reader must know of the whole."""
    choices: dict[str, Choice]
    tables: dict[str, dict[str, Table]]
    """Part -> kind of ranking -> table."""
    rows: dict[str, Row]
    commands: dict[str, str]
    """Run -> how it was made."""
    cost: dict[str, Cost]
    thinking: dict[str, Expense] | None = None
    """Where rows were compared for what thinking costs."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Finished run that is left out -> what is wrong with its files."""

    def to_json(self) -> dict[str, Any]:
        """Plain values. The difference in NDCG stands beside the others once more, as `difference`."""
        tree = dataclasses.asdict(self, dict_factory=_present)
        for table in (table for kinds in tree["tables"].values() for table in kinds.values()):
            for line in table["lines"].values():
                if "differences" in line:
                    line["difference"] = line["differences"][f"ndcg@{table['k']}"]
        return tree


DEFAULTS: dict[str, Any] = {
    one.name: None if one.default_factory is MISSING else one.default_factory()
    for kind in (Line, Table, Row, Report)
    for one in dataclasses.fields(kind)
    if one.default is None or one.default_factory is not MISSING
}


def _present(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record without the optional fields that it does not have."""
    return {name: value for name, value in fields if name not in DEFAULTS or value != DEFAULTS[name]}
