import pytest

from genrl.config import RunConfig, run_folder
from genrl.errors import CheckpointError
from genrl.runs.folder import claim
from genrl.runs.inputs import check_inputs


def test_inputs_that_changed_since_are_named_and_a_moved_model_is_known_by_its_content(tmp_path):
    base, moved = tmp_path / "base", tmp_path / "moved"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    log = tmp_path / "log.csv"
    log.write_text("a,b")
    config = RunConfig(output=str(tmp_path))
    config.model.name, config.data.interactions = str(base), str(log)
    folder = run_folder(config)
    folder.mkdir(parents=True)
    claim(folder, config, "python -m genrl fit")
    names = ("model.name", "data.interactions")
    check_inputs(folder, config, names)
    base.rename(moved)
    with pytest.raises(CheckpointError, match=r"model\.name is not there any more"):
        check_inputs(folder, config, names)
    config.model.name = str(moved)
    check_inputs(folder, config, names)
    (moved / "model.safetensors").write_bytes(b"Weights")
    log.write_text("a,c")
    with pytest.raises(
        CheckpointError, match=r"data\.interactions \(.*log.csv\) .*; model\.name \(.*moved\) has another"
    ):
        check_inputs(folder, config, names)
    check_inputs(folder, config, ())
