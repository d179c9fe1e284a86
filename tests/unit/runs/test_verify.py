import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from genrl.cli import main
from genrl.errors import CheckpointError
from genrl.runs.verify import verify
from genrl.training.checkpoints import points
from tests.runs import resealed


def test_a_run_is_verified_with_all_that_it_is_made_of(finished):
    (align,) = finished.parent.glob("align-*")
    own, shared = (len(load_file(folder / "weights.safetensors")) for folder in (finished, align))
    assert own == shared
    said = verify(finished)
    assert "1 shared stage(s) among them" in said
    count = sum(value.numel() for value in load_file(align / "weights.safetensors").values())
    assert f"{2 * count:,} weights, all of them finite" in said
    assert f"{count:,} weights" in verify(align)


def flip(path: Path) -> None:
    """The last bit but some."""
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 4]) + data[-1:])


@pytest.mark.parametrize(
    "name",
    [
        "grpo-s0/weights.safetensors",
        "grpo-s0/ranks.safetensors",
        "grpo-s0/sids.safetensors",
        "grpo-s0/metrics.json",
        "grpo-s0/config.yaml",
        "grpo-s0/inputs.json",
        "align-*/weights.safetensors",
        "align-*/evaluation-*/ranks.safetensors",
        "align-*/evaluation-*/metrics.json",
    ],
)
def test_one_bit_that_flipped_is_found_in_every_part(copied, name):
    (path,) = copied.parent.glob(name)
    flip(path)
    with pytest.raises(CheckpointError, match=rf"{path.parent.name} is damaged: {path.name} has another content"):
        verify(copied)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "ranks.safetensors", "sids.safetensors", "metrics.json", "config.yaml"]
)
def test_a_damaged_run_is_used_by_no_command(copied, capsys, name):
    flip(copied / name)
    output = str(copied.parents[1])
    for command in (
        ["evaluate", "--run", str(copied)],
        ["recommend", "--run", str(copied), "--history", "i3"],
        ["compare", "--report-only", "--output", output],
        ["compare", "--report-only", "--output", output, "evaluate.k=[3]"],
        ["verify", "--run", str(copied)],
    ):
        assert main(command) == 2
        said = capsys.readouterr()
        assert f"grpo-s0 is damaged: {name} has another content" in said.err
        assert not said.out
    assert not list(copied.parent.glob("report*"))


def test_a_damaged_score_of_a_shared_stage_is_in_no_report(copied, capsys):
    (path,) = copied.parent.glob("align-*/evaluation-*/ranks.safetensors")
    flip(path)
    assert main(["compare", "--report-only", "--output", str(copied.parents[1])]) == 2
    assert f"{path.parent.name} is damaged: ranks.safetensors has" in capsys.readouterr().err


def test_a_stage_that_is_gone_and_a_run_that_is_not_finished_are_told(copied):
    (align,) = copied.parent.glob("align-*")
    shutil.rmtree(align)
    with pytest.raises(CheckpointError, match=r"align-\w+ has no manifest"):
        verify(copied)
    with pytest.raises(CheckpointError, match=r"toy is no finished run .* It holds finished runs: grpo-s0. Give"):
        verify(copied.parent)
    (copied / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"grpo-s0 is an unfinished run .* its command.txt and --resume"):
        verify(copied)


def test_weights_that_are_no_numbers_are_found_though_they_are_those_that_were_written(copied):
    weights = load_file(copied / "weights.safetensors")
    name, value = next((name, value) for name, value in weights.items() if value.is_floating_point())
    value.view(-1)[3] = float("nan")
    save_file(weights, copied / "weights.safetensors")
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors: {name} holds NaN or infinite values"):
        verify(resealed(copied))


def test_a_damaged_checkpoint_is_found(copied):
    (point, *_) = points(copied)
    point.write_bytes(point.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"grpo-s0: {point.name} does not hold what was written"):
        verify(copied)


@pytest.mark.parametrize("stages", [[], {"rl": []}, {"rl": {"seconds": 1.0}}])
def test_metrics_without_the_stages_of_a_run_are_told(copied, stages):
    with pytest.raises(CheckpointError, match=r"metrics\.json is damaged: it holds no stages of a run"):
        verify(resealed(copied, stages=stages))
