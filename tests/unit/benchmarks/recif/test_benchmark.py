import json

import pytest

from genrl import cli
from genrl.benchmarks import BENCHMARKS
from genrl.errors import ConfigError, DataError
from tests.unit.benchmarks.recif.files import chat, sid, write_map, write_rows, write_samples

A, B = sid(0, 0, 1), sid(0, 0, 2)


@pytest.fixture
def data(tmp_path):
    """Four rows, one without an answer; generations of three, one of them without a hit."""
    write_rows(tmp_path, answers=[(A, [10]), (B, [20]), ("", [10]), (A + B, [10, 20])])
    write_map(tmp_path, {(0, 0, 1): [(10, 2)], (0, 0, 2): [(20, 1)]})
    return tmp_path


@pytest.fixture
def generations(data):
    samples = {0: ([A, B], A, {"answer_pid": [10]}), 1: ([A], B, {}), 2: ([A], "", {}), 3: ([B], A + B, {})}
    return write_samples(data / "test_generated.json", "ad", samples)


def test_the_command_prints_definitions_and_counts_and_writes_them_beside_the_file(data, generations, capsys):
    words = ["evaluate", "--benchmark", "recif", "--task", "ad", "--generations", str(generations), "--data", str(data)]
    assert cli.main([*words, "mode=both", "k=[1,2]"]) == 0
    printed = capsys.readouterr().out
    assert "pass@1                             0.6667  rows in which any of the first 1 SIDs is gold / rows" in printed
    assert "rows_left_out_without_answer       1" in printed
    written = json.loads((data / "test_generated.scores.json").read_text())
    assert written["metrics"]["recall@2"] == written["metrics"]["pid_recall@2"] == 0.5
    assert written["metrics"]["pid_position1_pass@1"] == 1 / 3
    assert (written["counts"]["rows"], written["options"]["k"]) == (3, [1, 2])
    assert "min(2, |gold|)" in written["definitions"]["recall@2"]


def test_scores_beside_a_file_that_cannot_be_written_are_told(data, generations, read_only):
    read_only(generations.parent)
    with pytest.warns(UserWarning, match="the scores are not kept: .*: Read-only file system"):
        assert BENCHMARKS.build("recif").score_file("ad", generations).metrics["pass@1"] > 0
    assert not list(generations.parent.glob("*scores*"))


def test_rows_that_the_file_lacks_are_misses_only_with_the_benchmark_beside(data, generations):
    recif = BENCHMARKS.build("recif")
    samples = json.loads(generations.read_text())
    del samples["samples"]["1"]
    generations.write_text(json.dumps(samples))
    assert recif.score_file("ad", generations).metrics["pass@1"] == 2 / 3  # the row without an answer is one of three
    assert recif.score_file("ad", generations, data).metrics["pass@1"] == 2 / 3  # the one that is lacking is
    first = BENCHMARKS.build("recif", {"rows": 1}).score_file("ad", generations, data)
    assert (first.metrics["pass@1"], first.counts["rows"]) == (1, 1)


def test_what_does_not_fit_is_refused(data, generations):
    build = BENCHMARKS.build
    with pytest.raises(ConfigError, match=r"--task video: .* holds generations of task ad\. Name that task"):
        build("recif").score_file("video", generations)
    with pytest.raises(
        ConfigError, match=r"mode=pid compares items, which sid2pid.json .* or compare SIDs with mode=sid"
    ):
        build("recif", {"mode": "pid"}).score_file("ad", generations)
    with pytest.raises(ConfigError, match=r"rows=2 are rows of the benchmark: give its folder with --data"):
        build("recif", {"rows": 2}).score_file("ad", generations)
    with pytest.raises(ConfigError, match=r"has no option 'mod'\. Did you mean 'mode'"):
        build("recif", {"mod": "sid"})
    with pytest.raises(ConfigError, match=r"option 'k': .*must be at least 1"):
        build("recif", {"k": [0]})


def test_a_checkpoint_is_run_and_what_it_wrote_can_be_scored_again(data, checkpoint, tmp_path, capsys):
    words = ["evaluate", "--benchmark", "recif", "--task", "ad", "--data", str(data), "--model", str(checkpoint)]
    words += ["--output", str(tmp_path / "out"), "dtype=float32", "beams=4", "k=[1,4]", "mode=both", "among=map"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "pid_pass@4" in printed
    folder = tmp_path / "out" / "recif" / "OneRec-tiny" / "ad"
    scores = json.loads((folder / "test_generated.scores.json").read_text())
    assert scores["metrics"]["pass@4"] == scores["metrics"]["pid_recall@4"] == 1  # the map has two SIDs alone
    again = BENCHMARKS.build("recif", {"k": [1, 4], "mode": "both"}).score_file(
        "ad", folder / "test_generated.json", data
    )
    assert again.metrics == scores["metrics"]


def test_label_prediction_runs_and_tells_thoughts_that_were_cut_off(tmp_path, checkpoint):
    write_rows(tmp_path, "label_pred", [("是", []), ("否", []), ("否", [])], [chat("喜" * n) for n in (1, 2, 3)])
    recif = BENCHMARKS.build("recif", {"dtype": "float32", "thinking": "race", "thinking_tokens": 3, "mode": "both"})
    found = recif.run("label-pred", checkpoint, tmp_path, tmp_path / "out")
    assert found.counts["rows_scored"] == 3
    assert found.counts["thoughts_cut_off"] == 3
    assert found.metrics["auc"] in (0, 0.5, 1)


def test_a_map_that_is_missing_is_named_before_the_model_is_loaded(tmp_path):
    write_rows(tmp_path, answers=[(A, [10])])
    recif = BENCHMARKS.build("recif", {"among": "map"})
    with pytest.raises(DataError, match=r"sid2pid\.json: no such file"):
        recif.run("ad", tmp_path / "no model", tmp_path, tmp_path / "out")
