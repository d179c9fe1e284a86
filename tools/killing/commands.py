"""Small commands of genrl, run in forks of one process that has loaded everything, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import sklearn.feature_extraction.text  # noqa: F401 (runs import it late, and so each fork would)
import torch
import torch.utils.tensorboard
import transformers.models.qwen3.modeling_qwen3  # noqa: F401 (likewise)

from genrl import stopping
from genrl.cli import main
from genrl.compare import report
from genrl.compare import run as comparison
from genrl.runs import tables

SMALL = (
    *("data.toy.world=toy", "data.toy.users=24", "data.toy.items=48", "sid.codes=8", "sid.levels=2"),
    *("model.hidden=16", "model.layers=1", "model.heads=2", "model.feed_forward=32", "model.vocabulary=200"),
    *("evaluate.k=[10]", "evaluate.beam=10", "evaluate.valid_users=4", "evaluate.test_users=4"),
    *(
        "align.max_epochs=1",
        "align.validate_every=0.5",
        "align.items_per_step=64",
        "align.learning_rate=0.01",
        "rollout.prompts=4",
    ),
    *("rollout.group_size=4", "rl.max_steps=4", "rl.validate_every=4", "rl.learning_rate=0.001"),
    *("trainer.accelerator=cpu", "trainer.log_every=1", "trainer.checkpoint_steps=1"),
)
THINKING = (
    "stages=[align,activate,rl]",
    "layout=blocked",
    "layout.budget=1",
    "activate.examples=16",
    "activate.max_epochs=1",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "fit": ("fit", *SMALL, *THINKING, "activate.examples_per_step=8", "objective=sage", "rollout.epochs=2"),
    "baseline": ("fit", "--baseline", "sasrec", *SMALL, "baseline.max_epochs=2", "baseline.hidden=16"),
    "sid": ("sid", *SMALL),
    "compare": ("compare", "--objectives", "grpo,sapo", "--seeds", "0", *SMALL, "layout=sid", "stages=[align,rl]"),
}
TIMES = ("seconds", "peak_mib", "command", "commands", "cost", "folder", "evaluation")
"""What differs between two runs that are the same."""
LIMIT = 300.0
"""Seconds after which a command counts as hanging."""
KILLED = 137


def resumed(words: Sequence[str]) -> list[str]:
    """The command that goes on with what another has left; all but `fit` do by themselves."""
    return [*words, "--resume"] if words[0] == "fit" else [*words]


def fork(words: Sequence[str], log: Path, begin: Callable[[], None] = lambda: None) -> int:
    """Start a command in a process group of its own, whose output goes to a log; returns the number of the process."""
    number = os.fork()
    if number == 0:
        os.setpgid(0, 0)
        _live(words, log, begin)
    with suppress(OSError):  # whichever comes first; it may be over already
        os.setpgid(number, number)
    return number


def end(number: int, limit: float = LIMIT) -> int:
    """Wait for a process, and kill its group behind a limit of seconds; returns the exit code, as shells count."""
    last = time.monotonic() + limit
    while True:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        if time.monotonic() > last:
            os.killpg(number, signal.SIGKILL)
            last = float("inf")
        time.sleep(0.005)


def digest(output: Path) -> dict[str, str]:
    """File -> SHA-256 of what must be equal: weights, codes, ranks, samples, and metrics and curves without times."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.suffix == ".safetensors":
            found[name] = _content(path.read_bytes())
        elif path.name == "samples.jsonl":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("metrics.json", "report.json"):
            text = json.dumps(_stripped(json.loads(path.read_text()))).replace(str(output), "")
            found[name] = hashlib.sha256(text.encode()).hexdigest()
        elif path.name == "history.jsonl":
            notes = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [{key: value for key, value in note.items() if "time/" not in key} for note in notes]
            found[name] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return found


def litter(output: Path) -> list[str]:
    """What killed processes have left, and the command that went on should have swept up."""
    found = (path for path in output.rglob(".*.*") if path.name.split(".")[1].isdecimal())
    return [str(path.relative_to(output)) for path in found]


def _content(safetensors: bytes) -> str:
    """SHA-256 of tensors, and of the header in the order of its names, which is another one in each process."""
    size = 8 + int.from_bytes(safetensors[:8], "little")
    header = json.dumps(json.loads(safetensors[8:size]), sort_keys=True)
    return hashlib.sha256(header.encode() + safetensors[size:]).hexdigest()


def _stripped(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {key: _stripped(item) for key, item in value.items() if key not in TIMES}
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def _live(words: Sequence[str], log: Path, begin: Callable[[], None]) -> None:
    """The whole life of a fork."""
    code = 1
    try:
        with log.open("a") as said, Path(os.devnull).open() as nothing:
            for file, stream in ((0, nothing), (1, said), (2, said)):
                os.dup2(stream.fileno(), file)
        sys.stdout, sys.stderr = (os.fdopen(file, "w", closefd=False) for file in (1, 2))  # not those of a test
        for number in stopping.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        stopping._asked = stopping._Asked()
        torch.set_num_threads(1)
        _without_pictures()
        comparison.start = _Fork  # type: ignore[assignment]
        begin()
        code = main([*words])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _without_pictures() -> None:
    """Curves and the page of a report take as long as all the rest, and nothing depends on them."""
    tables.curves = lambda *_: None
    report.draw = lambda *_: None
    report.html = lambda *_: ""


class _Fork:
    """A run of a comparison as a fork, in the process group of the comparison; has what is used of `Popen`."""

    def __init__(self, run: Any, slot: int) -> None:  # noqa: ANN401 (genrl.compare.plan.Run)
        run.folder.mkdir(parents=True, exist_ok=True)
        self.number = os.fork()
        self.code: int | None = None
        if self.number == 0:
            _live(run.words, run.folder / comparison.LOG, lambda: None)

    def poll(self) -> int | None:
        if self.code is None:
            done, status = os.waitpid(self.number, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.number, signal.SIGTERM)

    def wait(self) -> None:
        if self.poll() is None:
            self.code = end(self.number)
