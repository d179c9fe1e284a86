"""A run that is killed again and again ends with the same bits as one that is not."""

from __future__ import annotations

from pathlib import Path

from tests.integration.small import SMALL, genrl, results

KILLED = Path(__file__).with_name("killed_run.py")
OBJECTIVE = ("--objective", "sage", "rollout.epochs=2")  # running state in the objective, two updates per rollout


def weights(folder: Path, pattern: str) -> bytes:
    (found,) = folder.glob(f"toy/{pattern}/weights.safetensors")
    return found.read_bytes()


def test_a_run_killed_at_several_points_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert genrl("fit", *OBJECTIVE, *SMALL, f"output={whole}").returncode == 0

    arguments = ("fit", *OBJECTIVE, *SMALL, f"output={pieces}")
    points = [("align", 5, "step"), ("align", 26, "saved"), ("rl", 3, "step"), ("rl", 4, "saved")]
    for place, (stage, step, when) in enumerate(points):
        resume = ("--resume",) if place else ()
        ended = genrl(*arguments, *resume, script=KILLED, KILL_STAGE=stage, KILL_STEP=str(step), KILL_WHEN=when)
        assert ended.returncode == 137, f"{stage} {step} {when}: {ended.stderr[-2000:]}"
        assert not (pieces / "toy" / "sage-s0" / "metrics.json").exists()

    refused = genrl(*arguments)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    ended = genrl(*arguments, "--resume")
    assert ended.returncode == 0, ended.stderr[-2000:]
    for pattern in ("align-*", "sage-s0"):
        assert weights(pieces, pattern) == weights(whole, pattern)
    assert results(pieces / "toy" / "sage-s0") == results(whole / "toy" / "sage-s0")
    for stage in ("align-*", "sage-s0"):
        notes = [next(folder.glob(f"toy/{stage}/history.jsonl")).read_text().splitlines() for folder in (whole, pieces)]
        assert len(notes[0]) == len(notes[1])
