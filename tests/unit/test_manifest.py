import json
import os
from pathlib import Path

import pytest

from genrl import manifest
from genrl.errors import CheckpointError
from genrl.manifest import check, seal

FILES = ("config.yaml", "weights.safetensors", "prior/weights.safetensors", "sids.safetensors")
LIVELY = ("events.out.tfevents.1", "log.txt", "resume-00000002-0123456789abcdef.ckpt", ".lock", "evaluation-1/a.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with all that lies in one."""
    folder = tmp_path / "grpo-s0"
    for number, name in enumerate((*FILES, *LIVELY)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content %d" % number)
    seal(folder, {"name": "grpo"})
    return folder


def flip(path: Path) -> None:
    """One bit, as a disk does it: size and time stay."""
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:3] + bytes([data[3] ^ 1]) + data[4:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def listing(folder: Path) -> dict[str, str]:
    return json.loads((folder / "manifest.json").read_text())


def test_what_numbers_depend_on_is_held_and_what_goes_on_changing_is_not(folder):
    assert json.loads((folder / "metrics.json").read_text()) == {"name": "grpo"}
    assert check(folder) == listing(folder)
    assert set(listing(folder)) == {*FILES, "metrics.json"}
    for name in LIVELY:
        (folder / name).unlink()
    (folder / "notes.txt").write_text("of mine")
    check(folder)
    check(folder.rename(folder.with_name("moved")))


@pytest.mark.parametrize("name", [*FILES, "metrics.json"])
def test_one_bit_that_flipped_and_a_file_that_is_missing_are_told_by_name(folder, name):
    flip(folder / name)
    with pytest.raises(CheckpointError, match=rf"grpo-s0 is damaged: {name} has another content than when .* finished"):
        check(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"grpo-s0 is damaged: {name} is missing\. .* remove the folder"):
        check(folder)


def test_everything_that_is_wrong_is_told_at_once(folder):
    flip(folder / "config.yaml")
    (folder / "sids.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"config\.yaml has another content .*; sids\.safetensors is missing"):
        check(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "prior/../../secret", "a\0b", "linked"])
def test_a_manifest_reaches_no_file_outside_its_folder(folder, name):
    (folder.parent / "secret").write_text("x")
    (folder / "linked").symlink_to(folder.parent / "secret")
    (folder / "manifest.json").write_text(json.dumps({**listing(folder), name: "0" * 64}))
    with pytest.raises(CheckpointError, match=r"lies outside the folder"):
        check(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics.json": 3}', "\x00" * 40, "[" * 100_000, "null"])
def test_a_manifest_that_is_damaged_itself_is_told(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        check(folder)


def test_a_folder_without_one_is_not_trusted(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json.*earlier version, or was copied in part\. Copy"):
        check(folder)


def test_a_death_at_any_write_leaves_a_run_that_is_not_finished_and_can_be(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    write = manifest.write_json
    for last in ("manifest.json", "metrics.json"):

        def dies(path: Path, value: object, last: str = last) -> None:
            if path.name == last:
                raise KeyboardInterrupt
            write(path, value)

        with monkeypatch.context() as patched:
            patched.setattr(manifest, "write_json", dies)
            with pytest.raises(KeyboardInterrupt):
                seal(tmp_path, {"name": "x"})
        assert not (tmp_path / "metrics.json").exists()
    seal(tmp_path, {"name": "y"})
    assert set(check(tmp_path)) == {"weights.safetensors", "metrics.json"}
