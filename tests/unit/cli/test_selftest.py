import pytest

from genrl.cli import main
from genrl.cli.selftest import run
from genrl.selftest import CHECKS, Check, Found


def test_it_says_what_it_compared_and_that_all_is_well(capsys):
    assert main(["selftest", "--only", "golden"]) == 0
    said = capsys.readouterr().out
    assert "1 checks on cpu" in said
    assert "ok     golden" in said
    assert "32 compared" in said
    assert said.endswith("1 checks passed: this installation computes what it should\n")


def test_a_check_that_fails_is_an_error(capsys, monkeypatch):
    monkeypatch.setitem(CHECKS, "golden", Check("what is, with what should be", lambda _: Found(0.5, 3), 1e-9))
    assert main(["selftest", "--only", "golden"]) == 2
    said = capsys.readouterr()
    assert (
        "FAILED golden       what is, with what should be: 5.0e-01 apart (at most 1e-09 allowed, 3 compared)"
        in said.out
    )
    assert "genrl: 1 of 1 checks failed: golden. Numbers of this installation cannot be trusted." in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "goldem"], "--only goldem: no such check. Did you mean 'golden'?"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
    ],
)
def test_what_is_not_there_is_refused(capsys, words, message):
    assert main(["selftest", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_is_what_runs():
    from genrl.cli import build_parser

    assert build_parser().parse_args(["selftest"]).execute is run
