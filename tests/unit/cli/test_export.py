from genrl.cli import main


def test_folders_are_handed_on_and_what_was_found_is_printed(run_module, capsys):
    assert main(["export", "--run", "runs/toy/sapo-s0", "--out", "model", "model.name=moved"]) == 0
    ((name, (run, out, overrides), _),) = run_module.calls
    assert (name, str(run), str(out), overrides) == ("export", "runs/toy/sapo-s0", "model", ["model.name=moved"])
    assert capsys.readouterr().out == "written\n"
