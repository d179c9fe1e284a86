import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from genrl.config.schema import RLConfig
from genrl.errors import CheckpointError, DataError
from genrl.files import (
    atomic,
    file_hash,
    key_of,
    locked,
    model_hash,
    read_json,
    read_metadata,
    read_weights,
    save_weights,
    write_json,
)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"half.json is damaged"):
        read_json(tmp_path / "half.json")
    with pytest.raises(CheckpointError, match="is missing"):
        read_json(tmp_path / "none.json")
    whole = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(100)}, whole)
    whole.write_bytes(whole.read_bytes()[:-50])
    for read in (read_weights, read_metadata):
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read(whole)
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            read(tmp_path / "none.safetensors")


def test_keys_change_with_what_they_are_made_of():
    assert key_of(RLConfig(), 1) == key_of(RLConfig(), 1)
    assert key_of(RLConfig(), 1) != key_of(RLConfig(max_steps=4), 1)
    assert key_of(RLConfig(), 1) != key_of(RLConfig(), 2)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    code = "import sys, pathlib, genrl.files\nwith genrl.files.locked(pathlib.Path(sys.argv[1])): print('in')"
    command, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    with locked(tmp_path):
        other = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        assert "waiting" in other.stderr.readline()
        assert other.poll() is None
    out, _ = other.communicate(timeout=60)
    assert out.strip() == "in"


def test_the_hash_changes_with_the_content_of_a_file_or_folder(tmp_path):
    file = tmp_path / "parts" / "a.csv"
    file.parent.mkdir()
    file.write_text("one")
    before, whole = file_hash(file), file_hash(file.parent)
    assert (file_hash(file), file_hash(str(file.parent))) == (before, whole)
    file.rename(file.with_name("b.csv"))
    assert file_hash(file.with_name("b.csv")) == before
    assert file_hash(file.parent) != whole
    file.write_text("two")
    assert file_hash(file) != before
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read"):
        file_hash(tmp_path / "none.jsonl")


def test_of_a_model_folder_what_the_model_is_made_of_counts(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = model_hash(tmp_path)
    (tmp_path / "README.md").write_text("notes")
    assert model_hash(tmp_path) == before
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert model_hash(moved) == before
    (moved / "model.safetensors").write_bytes(b"Weights")  # as long as before
    assert model_hash(moved) != before


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    writing = atomic(path)
    writing.__enter__().write_text("half")
    assert not writing.__exit__(KeyError, KeyError(), None)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("note.txt", "old")]
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("note.txt", "new")]
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}


def test_saved_weights_are_read_as_they_were(tmp_path):
    for metadata in ({"decoding": "x"}, None):
        save_weights({"a": torch.tensor([1.5, -2.0])}, tmp_path / "w.safetensors", metadata)
        assert read_weights(tmp_path / "w.safetensors")["a"].tolist() == [1.5, -2.0]
        assert read_metadata(tmp_path / "w.safetensors") == (metadata or {})
