from pathlib import Path

import pytest

from genrl import cli
from genrl.cli.recommend import read_histories
from genrl.errors import DataError


def test_recommend_prints_a_ranked_list_and_the_thinking_if_asked_to(run_module, capsys):
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3, 4", "--top", "1", "--exclude-history"]) == 0
    asked = {"exclude_seen": True, "only": None, "cold": False, "exact": False, "days": None, "overrides": []}
    assert run_module.calls == [("recommend", (Path("runs/x"), [["3", "4"]], 1), asked)]
    shown = capsys.readouterr().out
    assert "after 3, 4:" in shown
    assert "17  a title" in shown
    assert "red fruit" not in shown
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--show-thinking"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["after 3:", "thought 1: red fruit", "thought 2: sweet"]
    assert lines[3].endswith("17  a title")


def test_thinking_cannot_be_shown_where_there_is_none(run_module, capsys):
    run_module.found.thinking = None
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--show-thinking"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "runs/x writes no thinking that could be shown" in " ".join(shown.err.split())


def test_recommend_among_some_items(run_module, tmp_path):
    stock = tmp_path / "stock.txt"
    stock.write_text("17\n\n  a title\n")
    words = ["recommend", "--run", "runs/x", "--history", "3", "--only", str(stock), "--cold", "--exact"]
    assert cli.main(words) == 0
    asked = {"exclude_seen": False, "only": ["17", "a title"], "cold": True, "exact": True}
    asked |= {"days": None, "overrides": []}
    assert run_module.calls[0][2] == asked


@pytest.mark.parametrize(("text", "reason"), [(None, "no such file"), ("\n \n", "names no item")])
def test_a_list_of_items_that_says_nothing_is_refused(run_module, tmp_path, capsys, text, reason):
    stock = tmp_path / "stock.txt"
    if text is not None:
        stock.write_text(text)
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--only", str(stock)]) == 2
    assert run_module.calls == []
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{stock}: " in shown
    assert reason in shown


@pytest.mark.parametrize("words", [[], ["--history", " , "], ["--history", "3", "--top", "0"]])
def test_recommend_without_a_history_or_a_list(words, run_module):
    assert cli.main(["recommend", "--run", "runs/x", *words]) == 2
    assert run_module.calls == []


def test_histories_from_a_file(tmp_path):
    path = tmp_path / "histories.jsonl"
    path.write_text('["a, with comma", "b"]\n\n{"user": 1, "history": [3]}\n')
    assert read_histories("x", path) == ([["x"], ["a, with comma", "b"], ["3"]], None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("[1,", ":2: not JSON"), ('{"items": [1]}', ":2: "), ("3", "is no history"), ('[["a"]]', "is no history")],
)
def test_a_broken_history_names_file_and_line(tmp_path, line, reason):
    path = tmp_path / "histories.jsonl"
    path.write_text(f"[1]\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_histories(None, path)
    assert f"{path}:2: " in str(caught.value)
    assert reason in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read_histories(None, tmp_path / "nothing")


def test_a_path_that_no_disk_takes_is_named_and_no_traceback(capsys):
    assert cli.main(["recommend", "--run", "n" * 300, "--history", "3"]) == 2
    assert "File name too long. Give a shorter path or name." in " ".join(capsys.readouterr().err.split())


def test_days_stand_beside_the_items_of_their_history(run_module, tmp_path, capsys):
    path = tmp_path / "histories.jsonl"
    path.write_text('{"history": [3, 4], "days": [2, 0]}\n[5]\n')
    assert read_histories("x, y", path, "1,0.5") == ([["x", "y"], ["3", "4"], ["5"]], [[1.0, 0.5], [2, 0], []])
    assert read_histories("x", None) == ([["x"]], None)
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3,4", "--days", "9,1"]) == 0
    assert run_module.calls[0][2]["days"] == [[9.0, 1.0]]
    for words, reason in (
        (["--history-file", str(path), "--days", "1"], "--days is about the items of --history"),
        (["--history", "3", "--days", "soon"], "could not convert string to float: 'soon'. Give numbers"),
    ):
        assert cli.main(["recommend", "--run", "runs/x", *words]) == 2
        assert reason in " ".join(capsys.readouterr().err.split())
    path.write_text('{"history": [3], "days": ["2"]}\n')
    with pytest.raises(DataError, match=r'jsonl:1: "days" must be a list of numbers'):
        read_histories(None, path)
