"""RecIF-Bench as one call: rows, generations, scores, and the files that they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from genrl.benchmarks.recif.decoding import Checkpoint, DecodingConfig
from genrl.benchmarks.recif.generations import read_generations, write_generations
from genrl.benchmarks.recif.maps import ItemMap, read_map
from genrl.benchmarks.recif.rows import Row, Task, find_task, read_rows
from genrl.benchmarks.recif.scores import Scores, score
from genrl.benchmarks.registry import BENCHMARKS
from genrl.errors import ConfigError
from genrl.files import kept_if_writable
from genrl.options import option


@dataclass(frozen=True)
class RecifConfig(DecodingConfig):
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
        items = self._map(task, data) if self._compares_items(task) else None
        return self._scored(task, rows, texts, items, generations, len(without))

    def run(self, name: str, model: Path, data: Path, output: Path) -> Scores:
        """Have a local checkpoint write generations and score them.

        Leaves `TASK/test_generated.json`, which `score_file` and the evaluator can score again, and its scores beside
        it in the output folder.

        Args:
            name: of the task.
            model: folder of a Hugging Face causal language model with the SID tokens.
            data: folder of the benchmark.
            output: folder for the results.

        Raises:
            ConfigError: for a task that there is not, or a model that lacks what the protocol needs.
            DataError: for files of the benchmark that are missing or damaged.
        """
        task = find_task(name)
        rows, without = read_rows(data, task, self.config.rows)
        kept = self.config.among == "map" and task.kind == "items"
        items = self._map(task, data) if kept or self._compares_items(task) else None
        checkpoint = Checkpoint(model, self.config, items if kept else None)
        texts = checkpoint.generate(task, rows)
        path = output / task.name / "test_generated.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_generations(path, task, model.name, rows, texts)
        thoughts = {} if self.config.thinking == "off" else {"thoughts_cut_off": checkpoint.unclosed}
        return self._scored(task, rows, texts, items, path, len(without), thoughts)

    def _compares_items(self, task: Task) -> bool:
        return task.kind == "items" and "pid" in self.kinds

    def _scored(
        self,
        task: Task,
        rows: Sequence[Row],
        texts: Mapping[str, Sequence[str]],
        items: ItemMap | None,
        path: Path,
        without: int,
        counts: Mapping[str, int] | None = None,
    ) -> Scores:
        """Scores of generations, written beside their file."""
        found = score(task, rows, texts, kinds=self.kinds, k=self.config.k, items=items)
        further = {"rows_left_out_without_answer": without, "rows_published": task.published}
        found.counts.update({**further, **(counts or {})})
        with kept_if_writable("the scores", path.parent):
            found.save(path.with_suffix(".scores.json"), generations=str(path), options=asdict(self.config))
        return found

    def _map(self, task: Task, data: Path | None) -> ItemMap:
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
    left_out = set(without)
    return {name: each for name, each in texts.items() if name not in left_out}
