from io import StringIO
from pathlib import Path

from rich.console import Console

from genrl.compare.record import Report
from genrl.compare.summary import show
from tests.pages import report


def shown(found: Report) -> str:
    file = StringIO()
    show(found, Path("runs/toy"), Console(file=file))
    return file.getvalue()


def test_the_terminal_gets_the_verdict_one_table_and_where_the_report_is():
    lines = shown(report(notes=["A note."], unfinished=["sage-s1"])).splitlines()
    assert lines[:2] == ["Partial: sage-s1 not finished.", "A note."]
    assert lines[2] == "Of 4 rows compared with align, 1 scores higher, 1 scores lower and 2 cannot be told apart."
    assert "Read with care: 1 warning in the report." in lines
    assert [line.split()[0] for line in lines if line.startswith("  ") and line.strip()] == [
        *("seeds", "most", "item-kNN", "sasrec", "align", "grpo", "sapo", "sage"),
    ]
    (grpo,) = (line.split() for line in lines if line.startswith("  grpo"))
    assert grpo == ["grpo", "2", "0.2375", "+0.0375", "[+0.0175,", "+0.0575]", ".001", "0.4750"]
    assert lines[-2:] == ["runs/toy/report.html", "runs/toy/report.md"]
    assert max(map(len, lines)) <= 100


def test_a_whole_report_without_warnings_says_neither():
    text = shown(report())
    assert "Partial" not in text
    assert not any(line.startswith("#") for line in text.splitlines())
