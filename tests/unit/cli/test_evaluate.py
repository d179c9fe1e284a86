from pathlib import Path

import pytest

from genrl import cli


def test_evaluate_takes_a_folder_or_a_configuration(run_module):
    assert cli.main(["evaluate", "--run", "runs/x", "--split", "valid", "evaluate.beam=40"]) == 0
    assert cli.main(["evaluate", "--objective", "gbpo", "--seed", "2"]) == 0
    assert cli.main(["evaluate", "--run", "runs/x", "--stage", "align", "--stage", "rl"]) == 0
    first, second, third = run_module.calls
    assert first == (
        "evaluate_run",
        (Path("runs/x"),),
        {"split": "valid", "overrides": ["evaluate.beam=40"], "stages": ()},
    )
    assert second[1] == (Path("runs/toy/gbpo-s2"),)
    assert second[2]["split"] == "test"
    assert third[2]["stages"] == ["align", "rl"]


@pytest.mark.parametrize("extra", [["--objective", "gbpo"], ["--seed", "0"], ["--config", "a.yaml"]])
def test_evaluate_refuses_flags_that_the_run_folder_would_override(run_module, capsys, extra):
    assert cli.main(["evaluate", "--run", "runs/x", *extra]) == 2
    assert f"{extra[0]} would be ignored" in capsys.readouterr().err
    assert run_module.calls == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "ad"], "--task belongs to a benchmark. Name it as well: --benchmark recif"),
        (["--benchmark", "recif", "--run", "runs/x", "--task", "ad"], "--benchmark has no use for --run"),
        (["--benchmark", "recif", "--seed", "0", "--task", "ad"], "--benchmark has no use for --seed"),
        (["--benchmark", "recif"], "--benchmark needs --task NAME"),
        (
            ["--benchmark", "recif", "--task", "ad"],
            "needs one of --generations FILE to score and --model FOLDER to run",
        ),
        (["--benchmark", "recif", "--task", "ad", "--model", "m"], "--model needs --data FOLDER"),
        (
            ["--benchmark", "recif", "--task", "ad", "--generations", "f", "--output", "o"],
            "--output belongs to --model",
        ),
        (
            ["--benchmark", "recf", "--task", "ad", "--generations", "x"],
            "unknown benchmark 'recf'. Did you mean 'recif'",
        ),
    ],
)
def test_flags_of_runs_and_of_benchmarks_are_kept_apart(run_module, capsys, words, says):
    assert cli.main(["evaluate", *words]) == 2
    assert says in capsys.readouterr().err
    assert run_module.calls == []
