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
