"""Run a comparison: `fit` in processes of their own, several at a time, and a report of what is finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import TaskID

from genrl.compare.plan import Candidate, Plan, Run
from genrl.config import RunConfig
from genrl.config.select import main_cut
from genrl.errors import CheckpointError, ConfigError, GenRLError
from genrl.files import read_json, refuse_links
from genrl.manifest import METRICS, check
from genrl.progress import Display
from genrl.runs.folder import differences
from genrl.stopping import handled

LOG = "log.txt"
TAIL = 15
"""Lines of its log that are shown of a run that failed."""
LOOK = 0.3
"""Seconds between looks at the runs."""


def run_comparison(plan: Plan, jobs: int) -> list[Run]:
    """Make all runs of a comparison that are not finished, `jobs` at a time; the runs that failed are returned.

    First the stages before `rl`, once; then the points of all grids with the first seed; then the best point of each
    row with the other seeds.

    Raises:
        ConfigError: before anything is run, if a folder holds another configuration.
        CheckpointError: before anything is run, if a finished run is damaged.
        GenRLError: if the stages before `rl` failed.
    """
    for run in [plan.shared, *plan.runs]:
        refuse_other_configuration(run)
    with handled(), Display(period=24 * 3600.0) as bars:
        display = Runs(plan, bars)
        firsts = [candidate.runs[0] for candidates in plan.rows.values() for candidate in candidates]
        if not all(is_done(run.folder) for run in firsts) and run_all([plan.shared], 1, display):
            shared = " and ".join(plan.shared.config.stages)
            raise GenRLError(
                f"stage {shared} failed, which all runs begin with. Its output: {plan.shared.folder / LOG}."
            )
        failed = run_all(firsts, jobs, display)
        rest: list[Run] = []
        for row, candidates in plan.rows.items():
            _, best = choose(candidates)
            rest += [] if best is None else best.runs[1:]
            if len(candidates) > 1 and best is not None:
                display.say(f"{row}: chosen on validation: {best.runs[0].folder.name}")
        return failed + run_all(rest, jobs, display)


def choose(candidates: Sequence[Candidate]) -> tuple[list[float | None], Candidate | None]:
    """Choose the setting of a row on validation: the best `select.metric`, the first of equal ones.

    Returns:
        The score of each with the first seed, None where it is not finished; and the best one, None until all are.
    """
    scores = [_validation_score(candidate.runs[0]) for candidate in candidates]
    if len(candidates) == 1:
        return scores, candidates[0]
    known = [score for score in scores if score is not None]
    return scores, candidates[scores.index(max(known))] if len(known) == len(scores) else None


def is_done(folder: Path) -> bool:
    """Whether a run is finished."""
    return (folder / METRICS).exists() and (folder / "config.yaml").exists()


def refuse_other_configuration(run: Run) -> None:
    """Stop if the folder of a run belongs to another configuration, has links in it, or is finished and damaged."""
    refuse_links(run.folder)
    saved = run.folder / "config.yaml"
    changed = differences(saved, run.config) if saved.exists() else []
    if changed:
        raise ConfigError(
            f"{run.folder} already holds another configuration; it differs in {', '.join(changed)}. Nothing was run. "
            f"Choose another --experiment or other names (--objectives NAME=OBJECTIVE), or remove the folder."
        )
    if is_done(run.folder):
        check(run.folder)


def run_all(runs: Sequence[Run], jobs: int, display: Runs) -> list[Run]:
    """Make the runs that are not finished, at most `jobs` at a time, and return those that failed."""
    waiting = [run for run in runs if not is_done(run.folder)]
    work: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    failed: list[Run] = []
    try:
        while waiting or work:
            for slot in range(jobs):
                if waiting and slot not in work:
                    run = waiting.pop(0)
                    work[slot] = (run, start(run, slot))
                    display.say(f"{run.folder.name} started")
            time.sleep(LOOK)
            for slot, (run, process) in list(work.items()):
                code = process.poll()
                if code is not None:
                    del work[slot]
                    failed += [run] if code else []
                    display.ended(run, code)
            display.look([run for run, _ in work.values()])
    finally:
        for _, process in work.values():
            process.terminate()
        for _, process in work.values():
            process.wait()
    return failed


def start(run: Run, slot: int) -> subprocess.Popen[bytes]:
    """Start one run; what it prints goes to the end of the log in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "genrl", *run.words],
            env={**os.environ, **environment(run.config, slot, _visible())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def environment(config: RunConfig, slot: int, visible: Sequence[str]) -> dict[str, str]:
    """CPU threads of the run in place `slot` of those at work, and its GPUs where several are visible.

    Example:
        >>> environment(RunConfig(), 3, ["4", "5"])
        {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '5'}
    """
    trainer = config.trainer
    found = {"OMP_NUM_THREADS": str(trainer.threads)} if trainer.threads else {}
    if len(visible) > 1 and trainer.accelerator != "cpu":
        own = [visible[(slot * trainer.devices + device) % len(visible)] for device in range(trainer.devices)]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return found


def completion_length(config: RunConfig) -> int:
    """Tokens per completion, of thinking the most there can be; builds the SID table of the experiment if need be."""
    from genrl.runs.session import Session  # takes seconds to load, which other budgets need not wait for

    return Session.build(config).layout.length


class Runs:
    """Shows a whole comparison."""

    def __init__(self, plan: Plan, display: Display) -> None:
        self.needed = [
            *(candidate.runs[0] for candidates in plan.rows.values() for candidate in candidates),
            *(run for candidates in plan.rows.values() for run in candidates[0].runs[1:]),
        ]
        """As many runs as the comparison will have made, of the right lengths; which point is best is not known yet."""
        self.finished = [run for run in plan.runs if is_done(run.folder)]
        self.display = display
        self.total = display.add("", sum(_size(run) for run in self.needed), "steps")
        self.bars: dict[str, TaskID] = {}
        self.look([])

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.display.say(f"[{len(self.finished)}/{len(self.needed)}] {line}")

    def ended(self, run: Run, code: int) -> None:
        """Note the end of a run; of one that failed, show the end of its log."""
        if code:
            log = run.folder / LOG
            tail = log.read_text(errors="replace").splitlines()[-TAIL:]
            self.say("\n  ".join([f"{run.folder.name} failed with code {code}. The end of {log}:", *tail]))
            return
        if "rl" in run.config.stages:
            self.finished.append(run)
        self.say(f"{run.folder.name} finished")

    def look(self, work: Sequence[Run]) -> None:
        """Show where the runs at work are."""
        steps = {run.folder.name: (latest_step(run), run.max_steps) for run in work}
        for name in self.bars.keys() - steps.keys():
            self.display.remove(self.bars.pop(name))
        done = sum(_size(run) for run in self.finished) + sum(step for step, most in steps.values() if most)
        self.display.move(self.total, done, name=f"{len(self.finished)} of {len(self.needed)} runs done")
        for name, (step, most) in steps.items():
            if name not in self.bars:
                self.bars[name] = self.display.add(f"  {name}", most, "steps")
            self.display.move(self.bars[name], step)


def latest_step(run: Run) -> int:
    """The last step that the notes of a run hold; 0 before the first."""
    history = run.folder / "history.jsonl"
    if not history.exists():
        return 0
    for line in reversed(history.read_text().splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):  # being written
            continue
    return 0


def _size(run: Run) -> int:
    return run.max_steps or 1


def _validation_score(run: Run) -> float | None:
    """Of a finished run; None as well where it is damaged, which a comparison refuses and a report tells."""
    if not is_done(run.folder):
        return None
    try:
        check(run.folder)
        scores = read_json(run.folder / METRICS)["valid"]["rl"][run.config.select.ranking]
        main = main_cut(int(name.partition("@")[2]) for name in scores if name.startswith("ndcg@"))
        return float(scores[run.config.select.metric or f"ndcg@{main}"])
    except (CheckpointError, LookupError, TypeError, ValueError):
        return None


def _visible() -> list[str]:
    """The GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(device) for device in range(torch.cuda.device_count())]
