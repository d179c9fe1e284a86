from pathlib import Path

from genrl import cli


def test_slates_of_a_run_are_written(run_module, capsys):
    assert cli.main(["slates", "--run", "runs/x", "--out", "a.jsonl"]) == 0
    asked = {"above": 0.0, "prompts": None, "overrides": []}
    assert run_module.calls == [("write_slates", (Path("runs/x"), Path("a.jsonl")), asked)]
    assert "2 slates" in capsys.readouterr().out
    words = ["slates", "--run", "runs/x", "--out", "a.jsonl", "--above", "-0.5", "--prompts", "9", "seed=3"]
    assert cli.main(words) == 0
    assert run_module.calls[1][2] == {"above": -0.5, "prompts": 9, "overrides": ["seed=3"]}


def test_numbers_out_of_bounds_are_refused(run_module, capsys):
    for more, said in ((["--prompts", "0"], "--prompts 0: give at least 1"), (["--above", "nan"], "--above nan")):
        assert cli.main(["slates", "--run", "runs/x", "--out", "a.jsonl", *more]) == 2
        assert said in capsys.readouterr().err
    assert run_module.calls == []
