"""Wrong input ends with one clear message, exit code 2, and nothing written over."""

from __future__ import annotations

import csv
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl.cli import main
from genrl.training import callbacks
from tests.integration.small import SMALL

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, command: str = "fit") -> tuple[int, str]:
        small = (*SMALL, f"output={tmp_path / 'runs'}") if command == "fit" else ()
        code = main(
            [command, *small, "align.max_epochs=1", "rl.max_steps=2", *arguments] if small else [command, *arguments]
        )
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def finished(tmp_path: Path, run: Run) -> Path:
    """A finished run folder."""
    assert run("objective=grpo")[0] == 0
    return tmp_path / "runs" / "toy" / "grpo-s0"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def files(
    tmp_path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("user", "item", "when")
) -> list[str]:
    """Overrides that read a CSV of these rows."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return [
        "data.source=files",
        f"data.interactions={path}",
        "data.columns.user=user",
        "data.columns.item=item",
        "data.columns.time=when",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--objective", "sappo"], ["'sappo'", "Did you mean 'sapo'"]),
        (["layout=sidd"], ["'sidd'", "Did you mean 'sid'"]),
        (["rewards.exact_mach.weight=1"], ["exact_mach", "Did you mean 'exact_match'"]),
        (["rl.learning_rat=1"], ["learning_rat", "Did you mean 'learning_rate'"]),
        (["objective=grpo", "objective.clip_hig=1"], ["clip_hig", "Did you mean 'clip_high'"]),
        (["rewards.level_match.weight=0"], ["'sapo' needs", "rewards.level_match.weight=1"]),
        (["objective=grpo", "rollout.group_size=1"], ["group_size", "2"]),
        (["rollout.method=beam", "rollout.group_size=100", "evaluate.beam=10"], ["group_size=100", "distinct"]),
        (["rollout.prompts=4000"], ["rollout.prompts=4000", "Lower rollout.prompts"]),
        (["model.name=models/none"], ["models/none", "config.json"]),
        (["model.quantize=nf4"], ["model.quantize", "lora.rank"]),
    ],
)
def test_a_wrong_option_is_named_with_the_remedy(
    arguments: list[str], told: list[str], run: Run, tmp_path: Path
) -> None:
    code, message = run(*arguments)
    assert code == 2
    for part in told:
        assert part in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("runs/toy/*/weights.safetensors"))


def test_a_missing_column_names_the_columns_there(run: Run, tmp_path: Path) -> None:
    code, message = run(*files(tmp_path, [("u", "i", 1)], ("user", "itm", "when")))
    assert code == 2
    for part in ("rows.csv", "'item'", "itm"):
        assert part in message


def test_an_unknown_item_names_file_and_line(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "items.csv"
    table.write_text("item\na\nb\n")
    rows = [("u", "a", 1), ("u", "x", 2)]
    code, message = run(
        *files(tmp_path, rows), f"data.items={table}", "data.columns.title=null", "data.columns.category=null"
    )
    assert code == 2
    for part in ("rows.csv:3", "'x'"):
        assert part in message


def test_an_empty_split_is_refused(run: Run, tmp_path: Path) -> None:
    code, message = run(*files(tmp_path, [(user, item, item) for user in "ab" for item in "pq"]))
    assert code == 2
    assert "split" in message


def test_a_folder_with_another_configuration_is_left_alone(run: Run, finished: Path) -> None:
    before = contents(finished)
    code, message = run("objective=grpo", "rl.learning_rate=0.001")
    assert code == 2
    for part in (str(finished), "rl.learning_rate", "another configuration"):
        assert part in message
    assert contents(finished) == before


def test_a_truncated_checkpoint_is_named(run: Run, finished: Path) -> None:
    path = finished / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, message = run("--run", str(finished), command="evaluate")
    assert code == 2
    assert "weights.safetensors is truncated or damaged" in message


def test_weights_of_another_model_are_refused(run: Run, finished: Path) -> None:
    path = finished / "weights.safetensors"
    save_file({name: torch.zeros(*value.shape, 2) for name, value in load_file(path).items()}, path)
    code, message = run("--run", str(finished), command="evaluate")
    assert code == 2
    assert "belong to another model" in message


def test_a_sid_table_of_another_catalogue_is_refused(run: Run, finished: Path) -> None:
    (table,) = finished.parent.glob("sid-*.safetensors")
    assert run("objective=ce", "data.toy.items=70", "experiment=other")[0] == 0
    (other,) = (finished.parent.parent / "other").glob("sid-*.safetensors")
    table.write_bytes(other.read_bytes())
    code, message = run("--run", str(finished), command="evaluate")
    assert code == 2
    assert "another catalogue" in message


def test_a_damaged_resume_point_is_named(run: Run, finished: Path) -> None:
    (finished / "metrics.json").unlink()
    point = finished / "last.ckpt"
    point.write_bytes(point.read_bytes()[:2000])
    code, message = run("objective=grpo", "--resume")
    assert code == 2
    assert "last.ckpt" in message


def test_a_non_finite_loss_stops_with_the_batch_saved(run: Run, tmp_path: Path) -> None:
    code, message = run("objective=grpo", "rl.learning_rate=1e30", "rl.max_steps=6", "objective.kl_coef=0.01")
    assert code == 2
    assert "is nan" in message
    (saved,) = tmp_path.glob("runs/toy/grpo-s0/non-finite-*.safetensors")
    assert "tokens" in load_file(saved)


def test_a_full_disk_is_explained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(callbacks, "save_file", full)
    code, message = run("objective=grpo")
    assert code == 2
    assert "disk" in message
    assert not list(tmp_path.glob("runs/toy/*/metrics.json"))
