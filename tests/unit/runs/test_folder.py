import errno
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from genrl.config import RunConfig, run_folder
from genrl.config.schema import ActivateConfig
from genrl.errors import CheckpointError, ConfigError, FolderError
from genrl.files import write_json
from genrl.runs.folder import claim, differences, is_finished, lasting, owned, writing


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output=str(tmp_path))


@pytest.fixture
def folder(config: RunConfig) -> Path:
    folder = run_folder(config)
    folder.mkdir(parents=True)
    claim(folder, config, "python -m genrl fit --seed 0")
    return folder


def test_a_claimed_folder_says_how_it_was_started_and_with_what(folder):
    first, *_, again = (folder / "command.txt").read_text().splitlines()
    assert first == "python -m genrl fit --seed 0"
    assert again == f"python -m genrl fit --config {folder / 'config.yaml'} output=runs-again"
    assert (folder / "versions.json").is_file()


def test_a_second_claim_changes_nothing(folder, config):
    before = (folder / "command.txt").read_bytes()
    claim(folder, config, "something else")
    assert (folder / "command.txt").read_bytes() == before


def test_a_folder_is_finished_once_its_metrics_are_there(folder, config):
    assert not is_finished(folder, config, resume=True)
    write_json(folder / "metrics.json", {})
    assert is_finished(folder, config, resume=False)
    assert not is_finished(folder.parent / "other", config, resume=False)


def test_another_configuration_is_refused_by_option(folder, config):
    with pytest.raises(ConfigError, match=r"differs in seed\. Nothing was written"):
        is_finished(folder, replace(config, seed=3), resume=True)


def test_options_that_an_older_version_lacked_stand_at_their_default(folder, config):
    saved = folder / "config.yaml"
    values = OmegaConf.load(saved)
    del values["baseline"], values["trainer"]["compile"]
    OmegaConf.save(values, saved)
    assert differences(saved, config) == []
    clipped = replace(config, trainer=replace(config.trainer, max_grad_norm=2.0))
    assert differences(saved, clipped) == ["trainer.max_grad_norm"]


def test_options_that_change_no_number_but_by_rounding_do_not_make_another_run(folder, config):
    trainer = replace(config.trainer, checkpoint_steps=3, checkpoint_minutes=1.0, compile=True, checkpointing=True)
    other = replace(config, trainer=trainer, rollout=replace(config.rollout, micro_batch=2))
    assert differences(folder / "config.yaml", other) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk is full while writing .*history.jsonl\. .*--resume"),
        (errno.EROFS, r"history.jsonl cannot be written to \(Read-only file system\)\. .*Make .* writable"),
        (errno.EACCES, r"history.jsonl cannot be written to \(Permission denied\)"),
    ],
)
def test_what_cannot_be_written_any_more_is_told_with_its_remedy(folder, number, message):
    def error(path):
        return OSError(number, os.strerror(number), str(path))

    with pytest.raises(FolderError, match=message), writing(folder):
        raise error(folder / "history.jsonl")
    if number != errno.ENOSPC:
        with pytest.raises(OSError, match=r"/data/log\.csv"), writing(folder):
            raise error("/data/log.csv")  # of the user, and to be read


def test_what_libraries_say_of_a_disk_is_understood_and_other_errors_are_left_alone(folder):
    with pytest.raises(FolderError, match="cannot be written to"), writing(folder):
        raise ValueError("I/O error: Read-only file system (os error 30)")
    with pytest.raises(ZeroDivisionError), writing(folder):
        raise ZeroDivisionError


def test_the_thread_that_writes_for_tensorboard_shows_no_traceback_of_its_own(folder, capsys):
    class _AsyncWriterThread(threading.Thread):
        def run(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Other(_AsyncWriterThread):
        pass

    hook = threading.excepthook
    heard = []
    threading.excepthook = heard.append
    try:
        with writing(folder):
            for kind in (_AsyncWriterThread, Other):
                thread = kind()
                thread.start()
                thread.join()
        assert threading.excepthook == heard.append
    finally:
        threading.excepthook = hook
    assert len(heard) == 1


def test_a_folder_that_was_removed_is_what_went_wrong(folder):
    with pytest.raises(KeyError), lasting(folder):
        raise KeyError("a bug")
    shutil.rmtree(folder)
    message = r"was removed or moved while the run was at work \(KeyError\)"
    with pytest.raises(FolderError, match=message), lasting(folder):
        raise KeyError("of what is gone")


def test_a_run_that_another_process_makes_is_refused_as_such(folder, config):
    code = "import sys, pathlib, genrl.files\nwith genrl.files.locked(pathlib.Path(sys.argv[1])): print('in'); input()"
    command, pipe = [sys.executable, "-c", code, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline().strip() == "in"
        with pytest.raises(ConfigError, match=r"another process is at work in .* and makes this very run"):
            is_finished(folder, config, resume=False)
        other.communicate("\n")
    with pytest.raises(ConfigError, match="holds an unfinished run of this configuration"):
        is_finished(folder, config, resume=False)


def test_an_owned_folder_has_no_links_and_no_litter(folder, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left = folder / f".{gone.pid}.weights.safetensors"
    left.touch()
    with owned(folder):
        assert not left.exists()
    (tmp_path / "theirs").write_text("precious")
    for name in (".lock", "command.txt", "config.yaml", "history.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "theirs")
        with pytest.raises(CheckpointError, match=rf"holds links, which are not followed: {name}"), owned(folder):
            pass
        (folder / name).unlink()
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_claim_does_not_write_through_a_link(config, tmp_path):
    (tmp_path / "theirs").write_text("precious")
    folder = run_folder(config)
    folder.mkdir(parents=True)
    for name in ("command.txt", "inputs.json", "versions.json"):
        (folder / name).symlink_to(tmp_path / "theirs")
    claim(folder, config, "genrl fit")
    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (folder / "command.txt").is_symlink()


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_made_from_files_that_changed_since_is_refused(tmp_path, finished):
    traces = tmp_path / "traces.jsonl"
    traces.write_text("one")
    config = RunConfig(output=str(tmp_path), activate=ActivateConfig(traces="jsonl", path=str(traces)))
    folder = run_folder(config)
    folder.mkdir(parents=True)
    claim(folder, config, "python -m genrl fit")
    if finished:
        write_json(folder / "metrics.json", {})
    assert is_finished(folder, config, resume=True) == finished
    traces.write_text("one and another")
    with pytest.raises(ConfigError, match=r"was begun when activate.path \(.*traces.jsonl\) had another content"):
        is_finished(folder, config, resume=True)
    traces.unlink()
    assert is_finished(folder, config, resume=True) == finished  # what is missed is said when it is read
    traces.write_text("one")
    (folder / "inputs.json").unlink()  # of an earlier version
    assert is_finished(folder, config, resume=True) == finished
