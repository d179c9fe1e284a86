"""Kill small runs at many points, and see that each goes on to the same bits: `nice -n 5 python tools/kill.py`.

Each command runs undisturbed once. Then, from an empty folder, it is cut (of some points twice) and given again, with
`--resume` where it has one, until it ends; weights, codes, ranks, metrics, samples and curves, without times, must be
those of the undisturbed one, and nothing else may be left. How it is cut:

kills       SIGKILL at a random time
operations  at a random file operation: before it, after it, or in the middle of a write
power       likewise, and what was not on the disk for sure is lost, see killing/disk.py
signals     SIGTERM, SIGINT or SIGUSR1 at a random time; the exit code must say so
damage      likewise killed, and one file is damaged on purpose; here it may refuse in words instead

Without a C compiler operations are cut by Python's audit hooks, before they happen only, and there is no `power`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from killing.cutting import LOADED, PRELOAD, Cut, Hooks, Library, build, compiler

WHOLE = Cut()
POINTS = {"kills": 50, "operations": 100, "power": 20, "signals": 20, "damage": 10}
"""Kind of cut -> points by default."""
AGAIN = 0.25
"""Share of the points that are cut a second time, while they go on."""
SHARES = {"fit": 4, "baseline": 3, "sid": 3, "compare": 1}
"""How often each command is taken."""
DAMAGES = ("flipped", "shortened", "noughts", "removed")
OUTCOMES = ("equal", "unequal", "refused")


@dataclass
class Outcome:
    """What became of one point."""

    kind: str
    command: str
    cuts: list[str] = field(default_factory=list)
    outcome: str = "equal"
    reason: str = ""


@dataclass(frozen=True)
class Whole:
    """What an undisturbed command took and left."""

    seconds: float
    operations: int
    writes: int
    digest: dict[str, str]


class Harness:
    """Cuts commands in forks of this process.

    Args:
        knife: counts file operations and cuts them.
        folder: for all files; each point uses `output` in it, so that paths are equal, too.
        seed: of all that is random.
    """

    def __init__(self, knife: Library | Hooks, folder: Path, seed: int = 0) -> None:
        from killing import commands  # loads torch, which the process that compiles the library does without

        self.commands = commands
        self.knife = knife
        self.output, self.log, self.book = folder / "output", folder / "log.txt", folder / "book"
        self.random = Random(seed)
        self.whole: dict[str, Whole] = {}

    def measure(self, command: str) -> Whole:
        """Run a command undisturbed, once for all its points."""
        if command not in self.whole:
            self._clear()
            began = time.monotonic()
            code = self._run(self._words(command))
            if code:
                raise RuntimeError(f"{command} ended with {code}, undisturbed:\n{self.log.read_text()[-3000:]}")
            seconds, counts = time.monotonic() - began, (self.knife.count(), self.knife.count("write"))
            self.whole[command] = Whole(seconds, *counts, self.commands.digest(self.output))
        return self.whole[command]

    def point(self, kind: str, command: str) -> Outcome:
        """Cut a command once or twice, let it go on, and compare what it leaves."""
        whole, found = self.measure(command), Outcome(kind, command)
        self._clear()
        words = self._words(command)
        for _ in range(1 + (self.random.random() < AGAIN)):
            code = getattr(self, f"_{kind}")(words, whole, found)
            if code == 0:
                break
            if code not in self._expected(kind, found):
                return self._failed(found, f"ended with {code} when it was cut")
            words = self.commands.resumed(self._words(command))
        if kind == "damage":
            self._spoil(found)
        code = self._run(self.commands.resumed(words))
        return self._judged(found, code, whole)

    def _judged(self, found: Outcome, code: int, whole: Whole) -> Outcome:
        """Compare what the last command has left."""
        said = self.log.read_text(errors="replace")
        if code == 2 and "\ngenrl: " in f"\n{said}" and "Traceback" not in said:
            found.outcome, found.reason = "refused", said[said.rindex("genrl: ") :].strip()
            return found
        if code:
            return self._failed(found, f"ended with {code} when it went on")
        digest, wanted = self.commands.digest(self.output), whole.digest
        other = sorted(name for name in digest.keys() | wanted.keys() if digest.get(name) != wanted.get(name))
        if other:
            return self._failed(found, f"other content: {', '.join(other)}")
        left = self.commands.litter(self.output)
        return self._failed(found, f"left behind: {', '.join(left)}") if left else found

    def _kills(self, words: Sequence[str], whole: Whole, found: Outcome) -> int:
        return self._signalled(words, whole, found, signal.SIGKILL)

    def _signals(self, words: Sequence[str], whole: Whole, found: Outcome) -> int:
        return self._signalled(words, whole, found, self.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))

    def _signalled(self, words: Sequence[str], whole: Whole, found: Outcome, number: signal.Signals) -> int:
        """Run, and send a signal at a random time: SIGKILL to all processes of the group, others to the first alone."""
        after = self.random.uniform(0.0, whole.seconds)
        found.cuts.append(f"{number.name} after {after:.2f} s")
        process = self.commands.fork(words, self.log, partial(self.knife.arm, self.output))
        time.sleep(after)
        (os.killpg if number == signal.SIGKILL else os.kill)(process, number)
        return self.commands.end(process)

    def _operations(self, words: Sequence[str], whole: Whole, found: Outcome) -> int:
        moment = self.random.choice(self.knife.moments)
        kind, most = ("write", whole.writes) if moment == "middle" else ("", whole.operations)
        cut = Cut(self.random.randint(1, max(1, most)), kind, moment)
        found.cuts.append(str(cut))
        return self._run(words, cut)

    def _power(self, words: Sequence[str], whole: Whole, found: Outcome) -> int:
        from killing.disk import STATES, Disk

        disk = Disk(self.output)
        for path in self.book.parent.glob(f"{self.book.name}*"):
            path.unlink()
        cut = Cut(self.random.randint(1, whole.operations), "", self.random.choice(("before", "after")))
        code = self._run(words, cut, self.book)
        state = self.random.choice(STATES)
        disk.replay(self.book)
        found.cuts.append(f"{cut}, {disk.leave(state, self.random)} file(s) {state}")
        return code

    def _damage(self, words: Sequence[str], whole: Whole, found: Outcome) -> int:
        return self._operations(words, whole, found)

    def _spoil(self, found: Outcome) -> None:
        """Damage one file that the cut has left."""
        paths = [path for path in sorted(self.output.rglob("*")) if path.is_file() and path.stat().st_size]
        if not paths:
            return
        path, how = self.random.choice(paths), self.random.choice(DAMAGES)
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        if how == "removed":
            path.unlink()
        else:
            content[place] ^= 1 << self.random.randrange(8)
            damaged = {"flipped": bytes(content), "shortened": bytes(content[:place]), "noughts": bytes(len(content))}
            path.write_bytes(damaged[how])
        found.cuts.append(f"{path.relative_to(self.output)} {how}")

    def _run(self, words: Sequence[str], cut: Cut = WHOLE, book: Path | None = None) -> int:
        """Run a command to its end or to a cut; the counts of its operations stay."""
        self.log.unlink(missing_ok=True)
        self.knife.arm(self.output)  # makes what is counted with known to all forks
        self.knife.disarm()
        return self.commands.end(self.commands.fork(words, self.log, partial(self.knife.arm, self.output, cut, book)))

    def _words(self, command: str) -> list[str]:
        return [*self.commands.COMMANDS[command], "--output", str(self.output)]

    def _expected(self, kind: str, found: Outcome) -> tuple[int, ...]:
        """Exit codes of a command that was cut."""
        if kind != "signals":
            return (self.commands.KILLED,)
        return (128 + getattr(signal, found.cuts[-1].partition(" ")[0]),)

    def _clear(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)

    def _failed(self, found: Outcome, reason: str) -> Outcome:
        said = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
        found.outcome, found.reason = "unequal", f"{reason}\n{said}"
        return found


def main(words: Sequence[str] | None = None, knife: Library | Hooks | None = None) -> int:
    """Cut as often as asked; 1 if anything did not go on to the same bits or refused without having been damaged."""
    options = _parser().parse_args(words)
    points = {kind: getattr(options, kind) for kind in POINTS}
    knife = knife or _knife()
    if not knife.logs:
        print("no C compiler here: operations are cut before they happen only, and there are no power cuts")
        points["power"] = 0
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(knife, Path(folder).resolve(), options.seed)
        found = run(harness, points, options.only or list(SHARES), options.minutes)
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, **summary(found)}, indent=2) + "\n")
    failed = [each for each in found if each.outcome != "equal" and (each.kind, each.outcome) != ("damage", "refused")]
    for each in failed:
        print(f"{each.kind}, {each.command}, {'; then '.join(each.cuts)}: {each.outcome}: {each.reason}\n")
    print(table(found))
    return 1 if failed else 0


def run(harness: Harness, points: dict[str, int], commands: Sequence[str], minutes: float) -> list[Outcome]:
    """Cut at as many points of each kind, in an order in which all kinds come early, or until the time is up."""
    began, found = time.monotonic(), []
    order = sorted((number / count, kind) for kind, count in points.items() for number in range(count))
    shares = [SHARES[command] for command in commands]
    for done, (_, kind) in enumerate(order, start=1):
        (command,) = harness.random.choices(commands, shares)
        found.append(harness.point(kind, command))
        spent = time.monotonic() - began
        if found[-1].outcome != "equal" or done % 10 == 0 or done == len(order):
            last, left = found[-1], spent / done * (len(order) - done)
            counts = Counter(each.outcome for each in found)
            said = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES)
            print(f"{done} of {len(order)} points: {said}; {left / 60:.1f} min left", flush=True)
            if last.outcome != "equal":
                print(f"  {last.kind}, {last.command}, {last.cuts}: {last.reason[:300]}", flush=True)
        if spent > 60 * minutes:
            print(f"{minutes:g} minutes are up")
            break
    return found


def summary(found: Sequence[Outcome]) -> dict[str, object]:
    """Counts by kind and by command, and all about each point that is not equal."""
    return {
        "points": len(found),
        "counts": {kind: _counts([each for each in found if each.kind == kind]) for kind in POINTS},
        "commands": {name: _counts([each for each in found if each.command == name]) for name in SHARES},
        "others": [asdict(each) for each in found if each.outcome != "equal"],
    }


def table(found: Sequence[Outcome]) -> str:
    """Counts by kind as Markdown."""
    lines = ["| cut | points | equal | not equal | refused |", "|---|---|---|---|---|"]
    for kind in POINTS:
        counts = _counts([each for each in found if each.kind == kind])
        lines.append(f"| {kind} | {' | '.join(str(counts[name]) for name in ('tried', *OUTCOMES))} |")
    return "\n".join(lines)


def _counts(found: Sequence[Outcome]) -> dict[str, int]:
    counts = Counter(each.outcome for each in found)
    return {"tried": len(found), **{name: counts[name] for name in OUTCOMES}}


def _knife() -> Library | Hooks:
    """The preloaded library, with which this process begins anew where it can be compiled; else audit hooks."""
    if LOADED not in os.environ and compiler() is not None:
        library = build(Path(tempfile.mkdtemp()))
        environment = {**os.environ, PRELOAD: str(library), LOADED: str(library), "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    if LOADED not in os.environ:
        return Hooks()
    library = Path(os.environ.pop(LOADED))
    library.unlink()  # it stays loaded
    library.parent.rmdir()
    os.environ.pop(PRELOAD)
    return Library()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in POINTS.items():
        parser.add_argument(f"--{kind}", type=int, metavar="N", default=count, help=f"points (default: {count})")
    parser.add_argument("--only", action="append", choices=SHARES, help="this command alone; repeatable")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further point behind so many")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the counts go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
