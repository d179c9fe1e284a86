import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from genrl.config import RunConfig, run_folder
from genrl.config.schema import ActivateConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.files import write_json
from genrl.runs.folder import claim, differences, is_finished, owned


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
