"""The kill harness cuts where it says, leaves what a power cut may leave, and tells equal from unequal and refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import kill
import pytest
from killing.cutting import PRELOAD, Cut, Hooks, build, compiler
from killing.disk import Disk

ROOT = Path(__file__).resolve().parents[2]
WRITING = """
import sys
from pathlib import Path
from genrl.files import write_text
from killing.cutting import Cut, Library
root, log, number, kind, moment = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
library = Library()
library.arm(root, Cut(int(number), kind, moment), log)
notes = (root / "notes").open("a")
notes.write("noted")
notes.flush()
write_text(root / "a", "first")
write_text(root / "a", "second")
(root / "late").write_text("late")
(root / "notes").unlink()
print(library.count(), library.count("rename"))
"""
"""A file that nobody puts on the disk, one that is replaced in one move, and one whose name nobody puts there."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler")
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def cut(tmp_path: Path, library: Path) -> Callable[..., tuple[int, dict[str, str], Path]]:
    """Cut the writing process; exit code, what it has left (temporary names as `*`), and its log."""

    def cut(number: int = 0, kind: str = "", moment: str = "before") -> tuple[int, dict[str, str], Path]:
        root, log = tmp_path / "root", tmp_path / "log"
        root.mkdir()
        environment = {**os.environ, PRELOAD: str(library), "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
        command = [sys.executable, "-c", WRITING, *map(str, (root, log, number, kind, moment))]
        done = subprocess.run(command, env=environment, start_new_session=True, check=False, stdout=subprocess.PIPE)
        return done.returncode, left(root), log

    return cut


def left(root: Path) -> dict[str, str]:
    return {"*" if path.name.startswith(".") else path.name: path.read_text() for path in root.iterdir()}


CUTS = [
    (Cut(1, "rename", "before"), {"notes": "noted", "*": "first"}),
    (Cut(1, "rename", "after"), {"notes": "noted", "a": "first"}),
    (Cut(3, "write", "middle"), {"notes": "noted", "a": "first", "*": "sec"}),
    (Cut(1, "open", "before"), {}),
    (Cut(1, "unlink", "after"), {"a": "second", "late": "late"}),
    (Cut(2, "", "after"), {"notes": "noted"}),
]


@pytest.mark.parametrize(("where", "wanted"), CUTS, ids=[str(where) for where, _ in CUTS])
def test_a_process_ends_at_the_operation_that_was_chosen(cut, where, wanted):
    code, found, _ = cut(where.number, where.kind, where.moment)
    assert (code, found) == (-9, wanted)


def test_without_a_cut_nothing_changes(cut):
    code, found, _ = cut()
    assert (code, found) == (0, {"a": "second", "late": "late"})


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("emptied", {"notes": "", "a": "second", "late": ""}),
        ("noughts", {"notes": "\0" * 5, "a": "second", "late": "\0" * 4}),
        ("undone", {"notes": "", "a": "second"}),
    ],
)
def test_behind_a_power_cut_there_is_what_was_put_on_the_disk(cut, tmp_path, state, wanted):
    disk = Disk(tmp_path / "nothing")
    disk.root = tmp_path / "root"
    _, _, log = cut(1, "unlink", "before")
    disk.replay(log)
    assert disk.leave(state, Random(0)) == 2
    assert left(tmp_path / "root") == wanted


def test_an_unsynced_rename_is_undone(cut, tmp_path):
    disk = Disk(tmp_path / "nothing")
    disk.root = tmp_path / "root"
    _, found, log = cut(2, "rename", "after")
    assert found["a"] == "second"
    disk.replay(log)
    disk.leave("undone", Random(0))
    assert left(tmp_path / "root") == {"notes": "", "a": "first"}


def test_a_small_run_of_the_harness_finds_everything_equal(tmp_path, capsys):
    points = ("--kills=1", "--operations=1", "--power=1", "--signals=1", "--damage=0", "--seed=1")
    assert kill.main(["--only", "sid", *points, "--json", str(tmp_path / "counts.json")], Hooks()) == 0
    said = capsys.readouterr().out
    assert "no C compiler here" in said
    assert "| operations | 1 | 1 | 0 | 0 |" in said
    found = json.loads((tmp_path / "counts.json").read_text())
    assert (found["points"], found["commands"]["sid"]["tried"]) == (3, 3)
    assert all(counts["unequal"] == 0 for counts in found["counts"].values())


def test_what_is_not_equal_or_refused_is_told(tmp_path):
    harness = kill.Harness(Hooks(), tmp_path)
    whole = harness.measure("sid")
    (name,) = whole.digest
    harness.whole["sid"] = replace(whole, digest={name: "another"})
    found = harness.point("operations", "sid")
    assert (found.outcome, found.reason.splitlines()[0]) == ("unequal", f"other content: {name}")
    (tmp_path / "output" / name).write_bytes(b"not codes")
    harness.output = tmp_path / "output"
    refused = harness._judged(found, harness._run(harness._words("sid")), whole)
    assert refused.outcome == "refused"
    assert "damaged" in refused.reason
