"""Wrong input ends with exit code 2 and one clear message, and nothing is overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.cli import main
from genrl.config.schema import DataConfig, ToyConfig
from genrl.runs import fit as run
from genrl.training import callbacks
from tests.integration.processes import end, start
from tests.runs import content, small

QUICK = ("objective=grpo", "align.max_epochs=1", "rl.max_steps=2", "rl.validate_every=1")
STAGES = "stages=[align,activate,rl]"
BLOCKED = (STAGES, "layout=blocked", "layout.budget=6")
Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run a command that must end with exit code 2, and return its one message."""

    def complain(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        shown = capsys.readouterr().err
        messages = [line for line in shown.splitlines() if line.startswith("genrl: ")]
        assert len(messages) == 1
        assert "Traceback" not in shown
        return shown[shown.index("genrl: ") :]

    return complain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert main(["fit", *small(output, *QUICK)]) == 0
    return output / "toy" / "grpo-s0"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    shutil.copytree(finished.parent, tmp_path / "toy")
    return tmp_path / "toy" / finished.name


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("objective=sappo", "unknown objective 'sappo'. Did you mean 'sapo'?"),
        ("layout=sidd", "unknown layout 'sidd'. Did you mean 'sid'?"),
        ("rewards.exact_mach.weight=1", "unknown reward 'exact_mach'. Did you mean 'exact_match'?"),
        ("rl.max_step=3", "rl.max_step = 3: is not an option. Did you mean 'max_steps'?"),
        ("objective.reduction=tokens", "'tokens' is not one of sequence, token. Did you mean 'token'?\n"),
        ("objective.clip_hi=0.3", "has no option 'clip_hi'"),
        ("rollout.method=beams", "rollout.method = 'beams'"),
        ("sid.name=kmean", "Did you mean 'kmeans'?"),
        ("stages=[aline]", "has no stage 'aline'"),
    ],
)
def test_an_unknown_name_comes_with_a_suggestion(
    complaint: Complaint, tmp_path: Path, override: str, hint: str
) -> None:
    output = tmp_path / "runs"
    assert hint in complaint("fit", *small(output), "objective=grpo", override)
    assert not output.exists()


def test_a_process_ends_with_code_2_and_without_a_traceback(tmp_path: Path) -> None:
    command = ["fit", *small(tmp_path / "runs", "rollout.prompts=99")]
    log = tmp_path / "log.txt"
    end(start(command, log), log, 2)
    said = log.read_text()
    assert "genrl: rollout.prompts=99, but the data set has only 80 RL prompts." in said
    assert "Traceback" not in said


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Overrides for a data set of the user's own, which a test may spoil."""
    rows = [f"u{user},i{(3 * user + place * place) % 20},{place}" for user in range(30) for place in range(8)]
    (tmp_path / "actions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    items = [f"i{item},Title {item} {'abcdefg'[item % 7]},{item % 3}" for item in range(20)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title,category", *items]) + "\n")
    named = [f"data.interactions={tmp_path / 'actions.csv'}", f"data.items={tmp_path / 'items.csv'}"]
    return [*small(tmp_path / "runs", *QUICK, "sid.codes=5"), "data.source=files", *named]


def test_a_missing_column_is_named(complaint: Complaint, files: list[str], tmp_path: Path) -> None:
    shown = complaint("fit", *files, "data.columns.user=userid")
    assert "no column 'userid' (asked for by data.columns.user). Did you mean 'user_id'?" in shown
    assert not (tmp_path / "runs").exists()


def test_an_unknown_item_of_a_sequence_is_named_with_its_line(
    complaint: Complaint, files: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "actions.csv").open("a") as table:
        table.write("u3,i77,9\n")
    shown = complaint("fit", *files)
    assert "actions.csv:242: item 'i77' is not in" in shown
    assert "Did you mean 'i7'?" in shown
    assert not (tmp_path / "runs").exists()


def test_an_empty_part_of_the_split_is_named(complaint: Complaint, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "actions.csv").write_text("user_id,item_id,timestamp\nu1,i1,1\nu1,i2,2\nu2,i3,1\nu2,i4,2\n")
    assert "the valid part is empty after data.split: leave_one_out of 4 interactions" in complaint("fit", *files)
    assert not (tmp_path / "runs").exists()


def test_the_sid_table_of_another_catalogue_is_refused(complaint: Complaint, files: list[str], tmp_path: Path) -> None:
    assert main(["sid", *files]) == 0
    (old,) = (tmp_path / "runs" / "toy").glob("sid-*")
    items = (tmp_path / "items.csv").read_text()
    (tmp_path / "items.csv").write_text(items.replace("Title 4", "Name 4"))
    assert main(["sid", *files]) == 0
    (new,) = set((tmp_path / "runs" / "toy").glob("sid-*")) - {old}
    shutil.copy(old, new)
    before = content(tmp_path / "runs")
    assert f"{new}: made for another catalogue" in complaint("fit", *files)
    assert content(tmp_path / "runs") == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=sapo", "rewards.level_match=null"], "objective 'sapo' needs a match per step"),
        (["rollout.group_size=1"], "objective 'grpo' needs several completions per prompt"),
        (["rollout.method=beam", "rollout.group_size=61"], "group_size=61 distinct items, but the catalogue has 60"),
        (["rollout.method=gumbel", "rollout.group_size=61"], "Lower rollout.group_size or use rollout.method=sample"),
        (["rollout.prompts=81"], "rollout.prompts=81, but the data set has only 80 RL prompts"),
        (["model.name=nowhere"], "neither 'tiny' nor a folder with a Hugging Face model"),
        (["data.max_history=2000"], "do not fit into the 4096 positions of model 'tiny'. Lower data.max_history"),
        ([*BLOCKED, "layout.minimum=7"], "layout.budget=6 is smaller than the 7 words that a block needs"),
        ([*BLOCKED, "layout.total=2"], "layout.total=2 is smaller than the 3 words that 3 blocks need"),
        ([*BLOCKED, "layout.minimum=5", "activate.words=4"], "layout.minimum is 5"),
        ([*BLOCKED, "rollout.method=beam"], "rollout.method=beam searches over SID tokens alone"),
        ([STAGES, "objective=sapo", "objective.scope=think_only"], "needs a layout with thinking"),
        ([STAGES, "rewards.format.weight=1"], "rewards.format judges thinking, and this layout has none"),
        ([*BLOCKED, "activate.traces=jsonl"], "activate.path: is needed by activate.traces=jsonl"),
        ([*BLOCKED, "activate.path=some.jsonl"], "is not read with activate.traces=auto"),
        ([*BLOCKED, "activate.traces=jsonl", "activate.path=nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(
    complaint: Complaint, tmp_path: Path, overrides: list[str], message: str
) -> None:
    output = tmp_path / "runs"
    assert message in complaint("fit", *small(output, *QUICK, *overrides))
    left = {path.name.partition("-")[0] for path in output.rglob("*") if path.is_file()} if output.exists() else set()
    assert left <= {".lock", "sid"}


def test_traces_with_another_number_of_blocks_than_sids_have_levels_are_refused(
    complaint: Complaint, tmp_path: Path
) -> None:
    dataset = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=80, items=60)))
    position = dataset.sequences.rows(Role.TRAIN)[:1]
    user = dataset.sequences.user_ids[int(dataset.sequences.users(position))]
    item = dataset.catalog.item_ids[int(dataset.sequences.items[position])]
    traces = tmp_path / "traces.jsonl"
    traces.write_text(json.dumps({"user": user, "item": item, "blocks": ["one", "two"]}))
    own = ("activate.traces=jsonl", f"activate.path={traces}")
    shown = complaint("fit", *small(tmp_path / "runs", *QUICK, *BLOCKED, *own))
    assert "traces.jsonl:1: 2 blocks, but the SID table has 3 levels" in shown
    assert not list((tmp_path / "runs").rglob("align-*"))


def test_a_run_folder_of_another_configuration_is_left_alone(complaint: Complaint, copied: Path) -> None:
    before = content(copied.parent)
    shown = complaint("fit", *small(copied.parents[1], *QUICK, "rl.learning_rate=0.5"), "--resume")
    assert "already holds another configuration; it differs in rl.learning_rate. Nothing was written." in shown
    assert content(copied.parent) == before


def test_an_unfinished_run_asks_for_resume(complaint: Complaint, copied: Path) -> None:
    (copied / "metrics.json").unlink()
    before = content(copied.parent)
    assert "holds an unfinished run" in complaint("fit", *small(copied.parents[1], *QUICK))
    assert content(copied.parent) == before


def test_damaged_weights_are_refused(complaint: Complaint, copied: Path) -> None:
    path = copied / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    for command in (["evaluate", "--run", str(copied)], ["recommend", "--run", str(copied), "--history", "i3"]):
        assert f"{path} is truncated or damaged" in complaint(*command)


def test_the_weights_of_another_model_are_refused(complaint: Complaint, copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, copied / "weights.safetensors")
    shown = complaint("evaluate", "--run", str(copied))
    assert "these weights belong to another model" in shown
    assert "config.yaml in its run folder" in shown


def test_a_damaged_resume_point_is_refused(complaint: Complaint, copied: Path) -> None:
    (copied / "metrics.json").unlink()
    path = copied / "last.ckpt"
    for spoilt in (path.read_bytes()[: path.stat().st_size // 2], b"", b"not a checkpoint"):
        path.write_bytes(spoilt)
        shown = complaint("fit", *small(copied.parents[1], *QUICK), "--resume")
        assert f"{path} is truncated, damaged or of another version" in shown
        assert path.read_bytes() == spoilt
    path.unlink()
    assert main(["fit", *small(copied.parents[1], *QUICK), "--resume"]) == 0  # what the message advises


def test_a_loss_that_is_no_number_is_reported_with_its_batch(complaint: Complaint, tmp_path: Path) -> None:
    huge = ["rl.learning_rate=1e30", "trainer.max_grad_norm=0", "rollout.method=beam", "rl.max_steps=4"]
    shown = complaint("fit", *small(tmp_path, *QUICK, *huge))
    (saved,) = (tmp_path / "toy" / "grpo-s0").glob("non-finite-*.safetensors")
    assert str(saved) in shown
    assert "learning rate" in shown
    assert any("tokens" in name for name in load_file(saved))


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")


def full_in_torch(*arguments: object, **options: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3")


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (callbacks, "save_weights", full),
        (torch, "save", full_in_torch),
        (run, "write_json", full),
        (run.tables, "curves", full),
    ],
)
def test_a_full_disk_is_explained_and_the_run_can_go_on(
    complaint: Complaint,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: Callable[..., None],
) -> None:
    command = ["fit", *small(tmp_path, *QUICK, "rl.max_steps=1", "name=full")]  # beside a finished run, its alignment
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, error)
        assert "the disk is full" in complaint(*command)
    assert not (copied.with_name("full-s0") / "metrics.json").exists()
    assert main([*command, "--resume"]) == 0
    assert {path.name for path in tmp_path.rglob(".*")} <= {".lock"}  # no half-written file is left


def test_a_folder_that_is_no_run_is_named(complaint: Complaint, tmp_path: Path) -> None:
    assert f"{tmp_path} is no run folder" in complaint("evaluate", "--run", str(tmp_path))


def test_an_unknown_item_of_a_history_is_named(complaint: Complaint, finished: Path) -> None:
    assert "'i66'" in complaint("recommend", "--run", str(finished), "--history", "i3,i66")
