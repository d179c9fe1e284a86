from genrl import cli


def test_sid_prints_the_report(run_module, capsys):
    assert cli.main(["sid", "sid.codes=16"]) == 0
    assert run_module.calls[0][1][0].sid["codes"] == 16
    assert "300 distinct SIDs" in capsys.readouterr().out
