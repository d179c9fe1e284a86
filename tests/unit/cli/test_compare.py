import pytest

from genrl import cli


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "compare needs --objectives"),
        (("--objectives", "grpo", "--jobs", "0"), "give at least 1"),
        (("--objectives", "grpo", "--seeds", "a"), "'a' is no seed"),
        (("--objectives", "grpo", "--report-only"), "nothing to report"),
    ],
)
def test_mistakes_are_one_message(tmp_path, capsys, flags, reason):
    assert cli.main(["compare", "--output", str(tmp_path), *flags]) == 2
    assert reason in capsys.readouterr().err
