"""Does thinking pay? The same model with it and without it, at equal training and work."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from genrl.compare.finished import Finished, Rows, planned_rows, spent
from genrl.compare.plan import SECTIONS, Budget, Compose, Plan, Run, make_plan, of_row
from genrl.compare.record import Expense, Request
from genrl.compare.run import completion_length, is_done, run_comparison
from genrl.compare.studies.requests import milliseconds, widest_beam, work
from genrl.config import RunConfig
from genrl.errors import ConfigError, DataError, suggest
from genrl.files import key_of, read_json, write_json
from genrl.layouts import thinks
from genrl.plots import read_notes
from genrl.prompts.packing import SegmentPlanner
from genrl.runs.rescore import load_run
from genrl.runs.session import Session

ROWS = ("plain", "thinking")
OPEN = (*SECTIONS, "layout", "activate")
"""Sections that may be set for one row."""


@dataclass(frozen=True)
class Question:
    """A comparison of thinking, as the command line asks for it."""

    objective: str
    seeds: Sequence[int]
    budget: Budget | None
    """Of stage `rl` of the row with thinking; the other gets as many tokens."""
    flags: Sequence[str]
    """Of `fit`, for both rows."""
    overrides: Sequence[str]
    """For both rows; one that begins with `ROW:` is for that row only."""
    compose: Compose


@dataclass(frozen=True)
class Match:
    """What the row without thinking gets, so that it spends as much as the row with thinking did."""

    epochs: int
    """Passes of stage `align`."""
    steps: int
    """Of stage `rl`."""
    validate_every: int
    """Steps between validations, so that both choose their weights among equally many."""
    beam: int
    """Width of the search."""

    @property
    def overrides(self) -> list[str]:
        return [
            f"align.max_epochs={self.epochs}",
            "align.patience=0",
            f"rl.max_steps={self.steps}",
            f"rl.validate_every={self.validate_every}",
            f"evaluate.beam={self.beam}",
        ]


def compare_thinking(asked: Question, jobs: int | None) -> tuple[Plan, list[Run]]:
    """Make the runs with thinking, measure what they spent, and make those without; `jobs` None makes none.

    Returns:
        The plan of both rows (of the one with thinking alone until that is finished), and the runs that failed.
    """
    plan = thinking_plan(asked)
    failed = [] if jobs is None else run_comparison(plan, jobs)
    if not all(is_done(run.folder) for run in plan.runs):
        return plan, failed
    plain = plain_plan(asked, matched(plan, plain_plan(asked, None)))
    failed += [] if jobs is None else run_comparison(plain, jobs)
    return Plan({**plain.rows, **plan.rows}, plan.shared), failed


def thinking_plan(asked: Question) -> Plan:
    """The runs with thinking: the configured layout if it thinks, else `blocked`."""
    overrides = _overrides(asked, "thinking")
    named = [text for text in overrides if not text.startswith("layout.")]
    stages = ["stages=[align,activate,rl]"]
    if not thinks(asked.compose(["fit", *asked.flags, *named, *stages])):
        overrides = ["layout=blocked", *(text for text in overrides if not text.startswith("layout="))]
    plan = _plan(asked, "thinking", [*overrides, *stages], asked.budget)
    config = plan.runs[0].config
    if config.trainer.log_every > config.rl.max_steps:
        raise ConfigError(
            f"trainer.log_every={config.trainer.log_every} is more than rl.max_steps={config.rl.max_steps}: no rollout "
            f"would be noted, and how long its completions are is what the other row is matched by. Lower "
            f"trainer.log_every."
        )
    return plan


def plain_plan(asked: Question, match: Match | None) -> Plan:
    """The runs without thinking, which may spend what they are matched to; None: as configured."""
    kept = [text for text in _overrides(asked, "plain") if text.partition("=")[0].partition(".")[0] != "layout"]
    matching = [] if match is None else match.overrides
    return _plan(asked, "plain", [*kept, "layout=sid", "stages=[align,rl]", *matching], None)


def matched(thinking: Plan, plain: Plan) -> Match:
    """What the row without thinking gets, from finished runs with it; measured once and kept beside the runs."""
    configs = [replace(run.config, output="") for run in (*thinking.runs, plain.runs[0])]
    path = thinking.runs[0].folder.parent / f"matched-{key_of(*configs)}.json"
    if not path.exists():
        write_json(path, asdict(_match(planned_rows(thinking)["thinking"], plain.runs[0].config)))
    return Match(**read_json(path))


def measure(rows: Rows) -> dict[str, Expense]:
    """What each row spent in training, means over seeds, and what a request of its first seed costs."""
    sessions = {row: _session(runs[0].folder) for row, runs in rows.items()}
    times = milliseconds(sessions)
    found = {}
    for row, session in sessions.items():
        runs, took = rows[row], work(session)
        prompts = statistics.mean(spent(run, read_notes(run.folder))["prompts"] or 0 for run in runs)
        found[row] = Expense(
            beam=session.config.evaluate.beam,
            training={**stage_tokens(session, runs[0]), "rl": _rl_tokens(runs)},
            rl_prompts=round(prompts),
            request=Request(round(took.tokens, 1), round(took.multiply_adds), round(times[row], 3)),
        )
    return found


def stage_tokens(session: Session, run: Finished) -> dict[str, int]:
    """Tokens that went through the model in each supervised stage, prompts among them and padding not."""
    found = {}
    for stage, place in run.shared.items():
        batches = _batches(session, stage)
        steps = max(max(values) for values in read_notes(run.folder.parent / place.parent.name).values())
        found[stage] = round(steps * _tokens_per_pass(batches) / batches.steps_per_epoch)
    return found


def _match(runs: Sequence[Finished], config: RunConfig) -> Match:
    """What a row with this configuration gets, measured on the finished runs with thinking."""
    thinking, plain = _session(runs[0].folder), Session.build(config)
    tokens = sum(stage_tokens(thinking, runs[0]).values())
    budget = Budget("tokens", _rl_tokens(runs)).overrides(config, lambda _: plain.layout.length)
    steps = int(budget[0].partition("=")[2])
    taken = spent(runs[0], read_notes(runs[0].folder))["steps"] or 1
    return Match(
        epochs=max(1, round(tokens / _tokens_per_pass(_batches(plain, "align")))),
        steps=steps,
        validate_every=max(1, round(steps / taken * thinking.config.rl.validate_every)),
        beam=widest_beam(plain, work(thinking).multiply_adds),
    )


def _plan(asked: Question, row: str, overrides: Sequence[str], budget: Budget | None) -> Plan:
    rows = {row: asked.objective}
    return make_plan(rows, asked.seeds, [], budget, (asked.flags, overrides), asked.compose, completion_length)


def _overrides(asked: Question, row: str) -> list[str]:
    """Those for both rows and those for this one."""
    kept = ["evaluate.exact=false"]  # what a request costs is matched by the width of its beam
    for text in asked.overrides:
        owner, rest = of_row(text, ROWS, "")
        section = rest.partition("=")[0].partition(".")[0]
        if owner is not None and section not in OPEN:
            raise ConfigError(
                f"{text}: {section!r} must be the same for all rows.{suggest(section, OPEN)} Sections of one row: "
                f"{', '.join(OPEN)}."
            )
        if section == "stages":
            raise ConfigError(f"{text}: --thinking sets stages itself. Leave it out.")
        kept += [rest] if owner in (None, row) else []
    return kept


def _session(folder: Path) -> Session:
    """A finished run with its weights."""
    session = load_run(folder)
    assert isinstance(session, Session)
    return session


def _rl_tokens(runs: Sequence[Finished]) -> int:
    """Tokens of the completions of stage `rl`, mean over seeds."""
    found = [spent(run, read_notes(run.folder))["tokens"] for run in runs]
    known = [tokens for tokens in found if tokens is not None]
    if len(known) < len(found):
        raise DataError(
            f"{runs[0].folder}: its notes do not say how long completions were. Remove the folder, and lower "
            f"trainer.log_every below rl.max_steps."
        )
    return round(statistics.mean(known))


def _batches(session: Session, stage: str) -> SegmentPlanner:
    return cast(SegmentPlanner, session.packer()) if stage == "align" else session.activate_batches()


def _tokens_per_pass(batches: SegmentPlanner) -> int:
    """Tokens of the first pass over the data, without padding."""
    return sum(int((batches.step(step).segments >= 0).sum()) for step in range(batches.steps_per_epoch))
