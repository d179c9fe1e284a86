"""See within minutes what a GPU makes of genrl: `python tools/gpu_check.py [--out FOLDER]` writes a page of results.

Each part is a process with a time limit. What it found is written before the next one begins, so a part that fails, or
hangs, loses nothing of the others. `--device cpu --quick` runs all of it in small sizes without a GPU.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QLORA = "configs/model/qwen3_1p7b_qlora.yaml"
COMMON = (
    *("data.toy.users=300", "data.toy.items=200", "data.max_history=60", "sid.codes=16", "layout=blocked"),
    *("layout.budget=8", "objective=grpo", "align.max_epochs=1", "align.text_tasks=off", "align.validate_every=10"),
    *("align.items_per_step=768", "activate.max_epochs=1", "activate.examples=160", "rl.max_steps=4"),
    *("rl.validate_every=4", "rl.select=last", "rollout.group_size=16", "rollout.prompts=16", "evaluate.beam=10"),
    *("evaluate.exact=false", "evaluate.batch=8", "evaluate.valid_users=8", "evaluate.test_users=8"),
)
"""A few steps of each stage, on histories of up to 60 items."""
QUICK = (
    *("data.toy.users=60", "data.toy.items=60", "sid.codes=8", "data.max_history=8", "layout.budget=2"),
    *(
        "align.items_per_step=256",
        "activate.examples=64",
        "activate.examples_per_step=16",
        "rollout.prompts=4",
        "rollout.group_size=4",
    ),
    *("rl.max_steps=2", "rl.validate_every=2"),
)
RATES = ("align.learning_rate=1e-5", "activate.learning_rate=1e-5", "rl.learning_rate=1e-6")
FULL = (*RATES, "model.dtype=bfloat16", "trainer.precision=bf16-true")
"""Of training without adapters, for which the default rates are too high."""
MEASURED = (("rollout", 3, 60), ("step", 2, 150), ("floor", 5, 90), ("beam", 3, 60), ("memory", 1, 90))
"""Benchmarks, their rounds and seconds."""
LEAST = 15.0
"""Seconds below which a part is not begun."""
TAIL = 2000
"""Characters of the output that are kept."""


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    about: str
    words: tuple[str, ...]
    """Of the command, behind `python`."""
    limit: float
    """Seconds."""
    writes: Path | None = None
    """The file of its measurements."""
    scratch: Path | None = None
    """A folder to be removed behind it."""
    lacks: str = ""
    """Why it cannot be run."""
    needs: str = ""
    """The part that makes what it works with."""
    early: bool = False
    """Whether it begins at once, beside those before it; nothing is timed meanwhile."""


def main(words: list[str] | None = None) -> int:
    """Run the parts in turn; 0 if all of them ended well."""
    options = _parser().parse_args(words)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="genrl-gpu-check-", dir=options.scratch) as place:
        parts = chosen(list(plan(options, Path(place))), options.only)
        names = {place: "models", str(options.out): options.out.name}
        begun = {part.name: Process(part, names) for part in parts if part.early and not part.lacks}
        results: list[dict[str, Any]] = []
        try:
            for part in parts:
                process = begun.pop(part.name, None) or Process(part, names, ends - time.monotonic())
                results.append(process.result(min(part.limit, ends - time.monotonic())))
                write(options.out, results)
                print(f"{part.name}: {results[-1]['state']}, {results[-1]['seconds']:.0f} s", flush=True)
                if part.scratch:
                    shutil.rmtree(part.scratch, ignore_errors=True)
        finally:
            for process in begun.values():
                process.end()
    print(f"results: {options.out / 'gpu.md'}")
    return 0 if all(result["state"] == "ok" for result in results) else 1


def chosen(parts: list[Part], names: list[str] | None) -> list[Part]:
    """The parts of these names with those that they need; None: all.

    Raises:
        SystemExit: for a name that none has.
    """
    known = [part.name for part in parts]
    for name in names or ():
        if name not in known:
            raise SystemExit(f"error: --only {name}: no such part. Parts: {', '.join(known)}.")
    needed = {part.needs for part in parts if names and part.name in names}
    return [part for part in parts if names is None or part.name in needed | set(names)]


def plan(options: argparse.Namespace, place: Path) -> Iterator[Part]:
    """The parts in their order: what tells of mistakes, then speed, then training; what is missed least comes last."""
    quick, device = options.quick, options.device
    shapes = ("tiny",) if quick else ("1.7B", "8B")
    tests = "tests/property/test_every_objective.py" if quick else "tests"
    yield Part("pytest", "tests that need a GPU", ("-m", "pytest", "-n", "0", "-m", "gpu", tests), 150)
    checks = ("--only", "trie", "--only", "search", "--only", "bf16") if quick else ()
    words = ("-m", "genrl", "selftest", "--device", device, *checks)
    yield Part("selftest", "genrl against itself", words, 150, early=True)
    words = ("tools/make_model.py", *shapes, "--out", str(place), "--device", device)
    yield Part("models", "random weights to train", words, 150, early=True)
    *first, beam, memory = (measured(options, *row) for row in MEASURED)
    yield from (*first, *training(options, place, shapes), beam, memory)


def measured(options: argparse.Namespace, name: str, repeats: int, limit: float) -> Part:
    """A benchmark."""
    file, rounds = options.out / f"{name}.json", str(1 if options.quick else repeats)
    sizes = ("--sizes", "quick" if options.quick else "card", "--device", options.device, "--precision", "bf16")
    words = ("tools/bench.py", "--only", name, *sizes, "--repeats", rounds, "--json", str(file))
    lacks = "trl is not installed" if name == "step" and find_spec("trl") is None else ""
    return Part(name, "genrl and its peers", words, limit, file, lacks=lacks)


def training(options: argparse.Namespace, place: Path, shapes: Sequence[str]) -> Iterator[Part]:
    """Stages of a few steps."""
    lora, capped = ("--config", QLORA), () if options.device == "cpu" else ("--gpu-memory", "24")
    small, large = place / f"qwen3-{shapes[0]}", place / f"qwen3-{shapes[-1]}"
    about = f"NF4 and LoRA, all stages, {shapes[0]}"
    yield replace(train(options, "qlora", about, small, (*lora, *capped), (), place), needs="models")
    if large != small:
        about = f"NF4 and LoRA, all stages, {shapes[-1]}"
        yield replace(train(options, "qlora-large", about, large, (*lora, *capped), (), place), needs="models")
    all_weights = (*FULL, "stages=[align,rl]")
    about = f"all weights in bfloat16, {shapes[0]}"
    yield replace(train(options, "full", about, small, (), all_weights, place), needs="models")
    shared = (*FULL, "stages=[rl]", "trainer.strategy=fsdp")
    about = f"the same under FSDP2, one process, {shapes[0]}"
    yield replace(train(options, "fsdp", about, small, (), shared, place), needs="models")
    if options.smollm:
        mixed = (*RATES, "trainer.precision=bf16-mixed")
        about = "all weights in mixed precision, real weights"
        yield train(options, "smollm", about, options.smollm.resolve(), (), mixed, place)


def train(
    options: argparse.Namespace,
    name: str,
    about: str,
    folder: Path,
    flags: Sequence[str],
    words: Sequence[str],
    place: Path,
) -> Part:
    """Train a few steps."""
    file, output = options.out / f"{name}.json", place / "runs" / name
    sizes = (*COMMON, *QUICK) if options.quick else COMMON
    where = f"trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}"
    command = ("tools/train_steps.py", *flags, "--json", str(file), *sizes, *words, where)
    command += (f"model.name={folder}", f"output={output}")
    return Part(name, about, command, 180, file, output)


class Process:
    """A part at work, unless it lacks something or time.

    Args:
        part: what runs.
        names: folders and what they are called in results.
        left: seconds.
    """

    def __init__(self, part: Part, names: dict[str, str], left: float = float("inf")) -> None:
        self.part, self.names, self.begun = part, names, time.monotonic()
        self.lacks = part.lacks or ("the time was up" if left < min(LEAST, part.limit) else "")
        if self.lacks:
            return
        if part.writes:
            part.writes.unlink(missing_ok=True)  # of an earlier check
        paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed where it is read)
        self.process = subprocess.Popen(
            [sys.executable, *part.words],
            cwd=ROOT,
            env=own,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def result(self, seconds: float) -> dict[str, Any]:
        """How it ended, which it has to within so many seconds."""
        part = self.part
        found = {"name": part.name, "about": part.about, "command": self._told(shlex.join(["python", *part.words]))}
        if self.lacks:
            return {**found, "state": f"not begun: {self.lacks}", "seconds": 0.0, "output": "", "measured": None}
        seconds = max(0.0, seconds)
        try:
            code = self.process.wait(timeout=seconds)
            state = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            state = f"ended after {seconds:.0f} s"
        finally:
            self.end()
        self.log.seek(0)
        output = self._told(self.log.read())[-TAIL:]
        self.log.close()
        measured = json.loads(part.writes.read_text()) if part.writes and part.writes.exists() else None
        took = round(time.monotonic() - self.begun, 1)
        return {**found, "state": state, "seconds": took, "output": output, "measured": measured}

    def end(self) -> None:
        """End it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _told(self, text: str) -> str:
        for folder, name in self.names.items():
            text = text.replace(folder, name)
        return text


def write(folder: Path, results: list[dict[str, Any]]) -> None:
    """What is known so far, as gpu.json and as the page gpu.md."""
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "gpu.md").write_text("\n".join(page(results)) + "\n")


def page(results: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of the page: the machine, how each part ended, then what each of them found."""
    yield "# genrl on this machine\n"
    machines = [result["measured"]["machine"] for result in results if result["measured"]]
    card = next((machine["card"] for machine in machines if "card" in machine), None)
    said = ", ".join(f"{name} {value}" for name, value in (card or {"no GPU:": "nothing here is about one"}).items())
    yield f"{said}\n\n| part | | state | seconds |\n|---|---|---|---|"
    for result in results:
        yield f"| {result['name']} | {result['about']} | {result['state']} | {result['seconds']:.0f} |"
    for result in results:
        yield f"\n## {result['name']}\n\n```bash\n{result['command']}\n```\n"
        measured = result["measured"] or {}
        yield from figures(measured.get("figures", ()))
        yield from stages(measured.get("stages", {}))
        if not measured or result["state"] != "ok":
            yield f"```text\n{result['output'].strip()}\n```"


def figures(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Figures of `tools/bench.py` as a table."""
    if rows:
        yield "| | genrl | compared with | ratio (quartiles) | to reach |\n|---|---|---|---|---|"
    for row in rows:
        ratio, (low, high) = row["ratio"], row["quartiles"] or (0, 0)
        sign = ">=" if row["better"] == "higher" else "<="
        goal = "" if row["goal"] is None else f"{sign} {row['goal']:g} {'met' if row['met'] else '**missed**'}"
        peer = "" if row["theirs"] is None else f"{row['theirs']:.3g} {row['unit']}"
        shown = "" if ratio is None else f"{ratio:.2f} ({low:.2f}-{high:.2f})"
        yield f"| {row['setting']} | {row['ours']:.3g} {row['unit']} | {peer} | {shown} | {goal} |"
    for checked in dict.fromkeys(row["checked"] for row in rows):
        yield f"\nChecked: {checked}."


def stages(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What `tools/train_steps.py` measured as a table."""
    if rows:
        yield "| stage | steps | tokens/s | planned MiB | peak MiB | planned / peak | reserved MiB |"
        yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        speed, planned = row["tokens_per_second"], row["planned_mib"]
        shown = "" if speed is None else f"{speed:,.0f}"
        share = "" if planned is None or not row["peak_mib"] else f"{planned / row['peak_mib']:.2f}"
        cells = (name, row["steps"], shown, planned, row["peak_mib"], share, row["reserved_mib"])
        yield f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help="results (gpu-check/)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where everything runs (cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--only", action="append", metavar="PART", help="this part; may be repeated (all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="when no further part begins (8)")
    parser.add_argument("--smollm", type=Path, metavar="FOLDER", help="train this model with real weights, too")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where models are written (temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
