"""RecIF-Bench as one call: rows, generations, scores, and the files that they leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from genrl.benchmarks.recif.generations import read_generations
from genrl.benchmarks.recif.maps import ItemMap, read_map
from genrl.benchmarks.recif.rows import Row, Task, find_task, read_rows
from genrl.benchmarks.recif.scores import Scores, score
from genrl.benchmarks.registry import BENCHMARKS
from genrl.errors import ConfigError
from genrl.options import option


@dataclass(frozen=True)
class RecifConfig:
    """Options of RecIF-Bench; the defaults are those of the published numbers."""

    mode: Literal["sid", "pid", "both"] = "sid"
    """What is compared with what was chosen: SIDs, the items that they stand for, or both in turn."""
    k: list[int] = option([1, 32], ge=1)
    """Cut-offs."""
    rows: int | None = option(None, ge=1)
    """The first test rows alone; null: all."""


@BENCHMARKS.register("recif", config=RecifConfig, title="RecIF-Bench of OpenOneRec, evaluator v1.0", paper="2512.24762")
class Recif:
    """RecIF-Bench.

    Args:
        config: its options.
    """

    def __init__(self, config: RecifConfig) -> None:
        self.config = config

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is compared."""
        return ("sid", "pid") if self.config.mode == "both" else (self.config.mode,)

    def score_file(self, name: str, generations: Path, data: Path | None = None) -> Scores:
        """Score recorded generations, and write the scores beside their file as FILE.scores.json.

        Args:
            name: of the task.
            generations: file of the evaluator's form.
            data: folder of the benchmark. Its test rows are what is divided by; without it the rows of the file are,
                with the answers that the file holds, and items (`mode=pid`) cannot be told.

        Raises:
            ConfigError: for a task that there is not, a file of another task, or items without a folder.
            DataError: for files that are missing or damaged.
        """
        task = find_task(name)
        written, texts, rows = read_generations(generations)
        if written and find_task(written) != task:
            raise ConfigError(f"--task {task.name}: {generations} holds generations of task {written}. Name that task.")
        without: list[str] = []
        if data is not None:
            rows, without = read_rows(data, task, self.config.rows)
            texts = _asked(texts, rows, without, limited=self.config.rows is not None)
        elif self.config.rows is not None:
            raise ConfigError(f"rows={self.config.rows} are rows of the benchmark: give its folder with --data.")
        found = self.score(task, rows, texts, data, len(without))
        found.save(generations.with_suffix(".scores.json"), generations=str(generations), options=asdict(self.config))
        return found

    def score(
        self, task: Task, rows: list[Row], texts: dict[str, list[str]], data: Path | None, without: int = 0
    ) -> Scores:
        """Scores of generations, with the rows that were left out for want of an answer among the counts."""
        kinds = () if task.kind == "label" else self.kinds
        found = score(task, rows, texts, kinds=kinds, k=self.config.k, items=self._map(task, data, kinds))
        found.counts["rows_left_out_without_answer"] = without
        found.counts["rows_published"] = task.published
        return found

    def _map(self, task: Task, data: Path | None, kinds: tuple[str, ...]) -> ItemMap | None:
        if "pid" not in kinds:
            return None
        if data is None:
            raise ConfigError(
                f"mode={self.config.mode} compares items, which {task.map} of the benchmark tells: give its folder "
                f"with --data, or compare SIDs with mode=sid."
            )
        return read_map(data / task.map)


def _asked(texts: dict[str, list[str]], rows: list[Row], without: list[str], *, limited: bool) -> dict[str, list[str]]:
    """Generations without those of rows that nobody asks for: rows without an answer, and all others of a few rows."""
    if limited:
        return {row.name: texts[row.name] for row in rows if row.name in texts}
    return {name: each for name, each in texts.items() if name not in set(without)}
