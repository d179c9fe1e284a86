import pytest

from genrl.cli import main
from genrl.manifest import seal


@pytest.fixture
def stage(tmp_path):
    """A finished stage without weights, which is all that a baseline of counts has."""
    folder = tmp_path / "align-1"
    folder.mkdir()
    (folder / "history.jsonl").write_text('{"step": 1}\n')
    seal(folder, {"best_step": 3})
    return folder


def test_each_folder_is_answered_and_the_first_damaged_one_is_an_error(stage, capsys):
    assert main(["verify", "--run", str(stage), str(stage)]) == 0
    assert capsys.readouterr().out.count(f"{stage}: 2 files are what they were") == 2
    (stage / "history.jsonl").write_text('{"step": 2}\n')
    assert main(["verify", "--run", str(stage)]) == 2
    assert "align-1 is damaged: history.jsonl has another content" in capsys.readouterr().err


def test_a_folder_is_needed_and_options_are_not_taken(stage, capsys):
    with pytest.raises(SystemExit):
        main(["verify"])
    assert "--run" in capsys.readouterr().err
    assert main(["verify", "--run", str(stage), "evaluate.k=[3]"]) == 2
