from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from genrl.compare.record import Report
from genrl.compare.summary import show
from tests.pages import line, report, table


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


def test_tied_and_untied_targets_are_shown_where_they_were_asked_for() -> None:
    apart = {"tied": {"ndcg@10": 0.125, "recall@10": 0.25}, "untied": {"ndcg@10": 0.5, "recall@10": None}}
    known = table()
    asked = replace(known, ties={"tied": 250, "untied": 350}, lines={**known.lines, "align": line(0.2, ties=apart)})
    text = shown(report(tables={"test": {"excluded": asked}}))
    lines = text[text.index("tied and untied targets") :].splitlines()
    assert " ".join(lines[2].split()) == "N@10, 250 tied R@10, 250 tied N@10, 350 untied R@10, 350 untied"
    rows = [one.split() for one in lines[3:]]
    assert ["align", "0.1250", "0.2500", "0.5000", "-"] in rows
    assert ["sage", "-", "-", "-", "-"] in rows
    assert "tied: the 250 users whose target has the time" in text
    assert "test, history excluded: 600 users, 30 with a cold target, NDCG@10" in text
    assert "untied" not in shown(report())


def test_a_whole_report_without_warnings_says_neither() -> None:
    text = shown(report())
    assert "Partial" not in text
    assert not any(line.startswith("#") for line in text.splitlines())
