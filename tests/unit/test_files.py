import os
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
    refuse_links,
    save_weights,
    sweep,
    weights_hash,
    write_json,
    write_text,
)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"half.json is damaged"):
        read_json(tmp_path / "half.json")
    with pytest.raises(CheckpointError, match="is missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(
        CheckpointError, match=r"folder.json cannot be read \(Is a directory\)"
    ):  # and nothing is damaged
        read_json(tmp_path / "folder.json")
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


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    own = tmp_path / "own"
    own.mkdir()
    for name in ("note.txt", f".{os.getpid()}.note.txt"):
        (own / name).symlink_to(theirs)
    write_text(own / "note.txt", "new")
    assert [(path.name, path.is_symlink(), path.read_text()) for path in own.iterdir()] == [("note.txt", False, "new")]
    (own / "resume.writing").symlink_to(theirs)
    with atomic(own / "resume.writing") as temporary:
        temporary.write_bytes(b"state")
    assert (own / "resume.writing").read_bytes() == b"state"
    assert theirs.read_text() == "precious"


@pytest.mark.parametrize("name", ["history.jsonl", "evaluation-1", "tokenizer/tokenizer.json"])
def test_a_folder_with_links_is_refused_by_their_names(tmp_path, name):
    (tmp_path / "runs" / "tokenizer").mkdir(parents=True)
    refuse_links(tmp_path / "runs")
    refuse_links(tmp_path / "none")
    (tmp_path / "runs" / name).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=rf"runs holds links, which are not followed: {name}\."):
        refuse_links(tmp_path / "runs")
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk")
    refuse_links(tmp_path / "latest")  # where a folder lies is the user's affair


def test_the_lock_is_never_a_link(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"\.lock is a link"), locked(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "precious"


def test_what_killed_writes_have_left_is_swept_up_and_what_is_being_written_is_not(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    (tmp_path / "prior").mkdir()
    left = [f".{gone.pid}.metrics.json", f".{os.getpid()}.a.txt", f"prior/.{gone.pid}.w.x", f".{10**20}.b.c"]
    kept = [".lock", f".{os.getppid()}.metrics.json", ".mine.txt", "metrics.json", ".5"]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    sweep(tmp_path, "prior/.*.w.*")
    assert not (tmp_path / left[2]).exists()
    assert (tmp_path / left[0]).exists()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def test_a_file_that_changes_within_the_grain_of_its_time_is_read_again(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    times, before = path.stat(), file_hash(path)
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(path) != before


def test_json_that_nests_without_end_is_damage(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"deep\.json is damaged"):
        read_json(tmp_path / "deep.json")


def test_saved_weights_are_read_as_they_were(tmp_path):
    for metadata in ({"decoding": "x"}, None):
        save_weights({"a": torch.tensor([1.5, -2.0])}, tmp_path / "w.safetensors", metadata)
        assert read_weights(tmp_path / "w.safetensors")["a"].tolist() == [1.5, -2.0]
        assert read_metadata(tmp_path / "w.safetensors") == (metadata or {})


def test_weights_are_known_by_their_tensors_and_not_by_what_else_their_header_says(tmp_path):
    path, names = tmp_path / "w.safetensors", ("a", "b")
    hashes = set()
    for metadata in ({"decoding": "x"}, {}, None):
        save_weights({name: torch.tensor([1.5, -2.0]) for name in names}, path, metadata)
        hashes.add(weights_hash(path))
    assert len(hashes) == 1
    whole = path.read_bytes()
    for place in (20, len(whole) - 1):  # a name and a number
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert weights_hash(path) not in hashes
    for damaged in (b"", bytes(40), b"\xff" * 40, whole[:9], b"[]".rjust(2) * 8):
        path.write_bytes(damaged)
        assert weights_hash(path) not in hashes
    assert weights_hash(tmp_path / "none") == ""
