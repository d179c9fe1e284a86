"""Let a local chat model write traces for training positions, one text per SID level.

    python tools/make_traces.py configs/toy.yaml --model CHAT_MODEL_FOLDER --out traces.jsonl --limit 1000

The file is what `read_traces` reads. After an interruption, the same command resumes. Positions whose trace was
dropped, and why, are in OUT.dropped.jsonl; settings and statistics in OUT.json.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher import CHECK, LETTERS, WRITE, Teacher, listed, read_steps
from torch import Tensor

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.config import load_config
from genrl.errors import ConfigError, DataError, GenRLError
from genrl.files import key_of, write_json
from genrl.policy.load import sid_token
from genrl.progress import progress_bar
from genrl.prompts.traces import LeakCheck, Trace, read_traces, trace_positions
from genrl.runs.session import sid_table
from genrl.sid.table import SidTable

STEPS, CUT, ANSWER = "wrong number of blocks", "cut off", "wrong answer"
"""Why a trace is dropped, beside what it may name."""


def main(words: Sequence[str] | None = None) -> int:
    """Write traces; 2 for an error that the user can fix, 130 when interrupted."""
    options = _parser().parse_intermixed_args(words)
    try:
        overrides = [word for word in options.config if "=" in word]
        config = load_config([word for word in options.config if "=" not in word], overrides=overrides)
        _check(options)
        teacher = Teacher.load(options.model, options.device, options.max_new_tokens, options.temperature)
        dataset = load_dataset(config.data)
        task = Task(dataset, sid_table(config, dataset), config.data.max_history, options.check_answer, options.seed)
        print(make_traces(task, teacher, options.out, options.limit, options.batch))
    except GenRLError as error:
        print(f"make_traces: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_traces: interrupted. The same command goes on from there.", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True, eq=False)
class Task:
    """What traces are written for."""

    dataset: Dataset
    table: SidTable
    max_history: int
    """Items of history that the model is shown."""
    candidates: int
    """Titles that the model must find the target among, given its trace; 0: it is not asked."""
    seed: int
    """Of the order of positions, of sampling and of the candidates."""

    def positions(self) -> list[int]:
        """Training positions with a history and a known title, in the order in which they are written.

        Raises:
            DataError: if there are none.
        """
        places = trace_positions(self.dataset)
        sequences, titles = self.dataset.sequences, self.dataset.catalog.titles
        titled = torch.tensor([bool(title) for title in titles])
        places = places[titled[sequences.items[places]] & (sequences.seen(places) > 0)]
        if not len(places):
            raise DataError("no training position has a history and a title. Set data.items and data.columns.title.")
        return places[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(places)))].tolist()

    def titles(self, position: int) -> tuple[list[str], str]:
        """Titles of the history, oldest first, and of the target."""
        names = self.dataset.catalog.titles
        shown = [names[row] or "(unknown)" for row in self._history(position)]
        return shown, names[int(self.dataset.sequences.items[position])]

    def options(self, position: int) -> tuple[list[str], int]:
        """Titles to choose the target from, and its place among them."""
        random = np.random.default_rng((self.seed, position))
        titles, seen, (_, target) = self.dataset.catalog.titles, set(self._history(position)), self.titles(position)
        rows = random.permutation(len(titles)).tolist()
        known = dict.fromkeys(titles[row] for row in rows if row not in seen and titles[row] not in ("", target))
        others = list(known)[: self.candidates - 1]
        place = int(random.integers(len(others) + 1))
        return [*others[:place], target, *others[place:]], place

    def names(self, position: int) -> dict[str, str]:
        """User and item of a position, as a line of the file names it."""
        sequences = self.dataset.sequences
        user = int(sequences.users(torch.tensor([position])))
        item = self.dataset.catalog.item_ids[int(sequences.items[position])]
        return {"user": sequences.user_ids[user], "item": item}

    def _history(self, position: int) -> list[int]:
        history: Tensor = self.dataset.sequences.histories(torch.tensor([position]), max(self.max_history, 1))[0]
        return history[history >= 0].tolist()


def make_traces(task: Task, teacher: Teacher, out: Path, limit: int | None, batch: int) -> str:
    """Write traces for the first `limit` positions of a task (None: all), `batch` at a time, and say what was kept.

    Positions that the files have from earlier calls are not asked for again.

    Raises:
        ConfigError: if the file was begun with other settings.
        DataError: if a line of the file is damaged.
    """
    dropped, notes = out.with_suffix(".dropped.jsonl"), out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "data": task.dataset.fingerprint,
        "sids": key_of(task.table.codes.tolist()),
        "levels": task.table.levels,
        "max_history": task.max_history,
        "check_answer": task.candidates,
        "seed": task.seed,
        **teacher.settings(),
    }
    if out.exists() or dropped.exists():
        _check_settings(out, notes, settings)
    write_json(notes, {"settings": settings})
    done = {(line["user"], line["item"]) for line in (*_finished(out), *_finished(dropped))}
    wanted = task.positions()[:limit]
    left = [position for position in wanted if tuple(task.names(position).values()) not in done]
    check = LeakCheck(task.dataset, task.table, sid_token)
    started = time.perf_counter()
    with (
        out.open("a", encoding="utf-8") as good,
        dropped.open("a", encoding="utf-8") as bad,
        progress_bar("writing traces", len(left), "traces") as advance,
    ):
        for start in range(0, len(left), batch):
            for line in _batch(task, teacher, check, left[start : start + batch]):
                stream = bad if "reason" in line else good
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            good.flush()
            bad.flush()
            advance(len(left[start : start + batch]))
    return _report(task, out, notes, settings, len(left), time.perf_counter() - started)


def _batch(task: Task, teacher: Teacher, check: LeakCheck, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Lines for some positions; those with a reason are dropped."""
    levels = task.table.levels
    torch.manual_seed(int(np.random.SeedSequence((task.seed, positions[0])).generate_state(1)[0]))
    shown = [task.titles(position) for position in positions]
    answers = teacher.write([WRITE.format(history=listed(old), target=new, levels=levels) for old, new in shown])
    traces = [Trace(position, read_steps(text)) for position, (text, _) in zip(positions, answers, strict=True)]
    reasons = []
    for trace, (_, whole) in zip(traces, answers, strict=True):
        wrong = STEPS if len(trace.blocks) != levels else "" if whole else CUT
        reasons.append(wrong or next(iter(check.kinds(trace)), ""))
    asked = [place for place, reason in enumerate(reasons) if not reason]
    if task.candidates and asked:
        choices = [task.options(positions[place]) for place in asked]
        prompts = []
        for place, (titles, _) in zip(asked, choices, strict=True):
            options = listed(titles, (f"{letter}." for letter in LETTERS))
            thought = " ".join(traces[place].blocks)
            prompts.append(CHECK.format(history=listed(shown[place][0]), thought=thought, options=options))
        found = teacher.choose(prompts, [len(titles) for titles, _ in choices])
        for place, chosen, (_, right) in zip(asked, found, choices, strict=True):
            reasons[place] = "" if chosen == right else ANSWER
    for trace, (text, _), reason in zip(traces, answers, reasons, strict=True):
        line = {"reason": reason, "answer": text} if reason else {"blocks": list(trace.blocks)}
        yield task.names(trace.position) | line


def _check_settings(out: Path, notes: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a file that was begun otherwise."""
    try:
        before = json.loads(notes.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{out} is there, but {notes}, which says how it was made, is not. Choose --out.") from error
    other = [name for name in settings if settings[name] != before.get(name)]
    if other:
        was = ", ".join(f"{name}={before.get(name)!r} (now {settings[name]!r})" for name in other)
        raise ConfigError(f"{out} was begun with {was}. Use the same settings, or another --out.")


def _finished(path: Path) -> list[dict[str, Any]]:
    """Lines of an earlier call; a half-written last line is removed from the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    lines = []
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
            lines.append({**record, "user": record["user"], "item": record["item"]})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: damaged. Remove the line, or choose another --out.") from error
    return lines


def _report(task: Task, out: Path, notes: Path, settings: dict[str, Any], written: int, seconds: float) -> str:
    kept = read_traces(out, task.dataset, task.table.levels) if out.stat().st_size else []
    reasons = Counter(line["reason"] for line in _finished(out.with_suffix(".dropped.jsonl")))
    total = len(kept) + sum(reasons.values())
    words = [len(block.split()) for trace in kept for block in trace.blocks]
    mean = sum(words) / len(words) if words else 0.0
    speed = written / seconds if written else None
    counted = {"kept": len(kept), "dropped": dict(reasons.most_common())}
    write_json(notes, {"settings": settings, **counted, "words_per_block": mean, "traces_per_second": speed})
    why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common()) or "none"
    share = f" ({len(kept) / total:.1%})" if total else ""
    pace = f"; {speed:.2f} traces/s" if speed else ""
    return f"kept {len(kept):,} of {total:,}{share}; dropped: {why}; {mean:.1f} words per block{pace}\n{out}"


def _check(options: argparse.Namespace) -> None:
    if options.out.suffix != ".jsonl":
        raise ConfigError(f"--out {options.out}: its name must end in .jsonl.")
    if options.check_answer and not 2 <= options.check_answer <= len(LETTERS):
        raise ConfigError(f"--check-answer {options.check_answer}: choose between 2 and {len(LETTERS)} candidates.")
    for name in ("batch", "max_new_tokens", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be at least 1.")
    if options.temperature < 0:
        raise ConfigError(f"--temperature {options.temperature}: it cannot be negative. 0 takes the likeliest words.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG", help="YAML files and key=value overrides")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a Hugging Face causal LM, best a chat model")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSONL file of traces")
    parser.add_argument("--limit", type=int, metavar="N", help="positions in all, in random order (all)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="positions at a time (16)")
    parser.add_argument("--max-new-tokens", type=int, default=384, metavar="N", help="tokens of a trace (384)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the likeliest words (0.7)")
    find = "drop a trace unless the model finds the target with it among N titles (N: 10)"
    parser.add_argument("--check-answer", type=int, nargs="?", const=10, default=0, metavar="N", help=find)
    parser.add_argument("--seed", type=int, default=0, help="of order, sampling and candidates (0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cuda, cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
