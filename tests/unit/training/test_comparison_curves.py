from __future__ import annotations

import json
from pathlib import Path

from genrl.training.comparison_curves import band, draw, read_notes


def noted(folder: Path, *notes: dict[str, float]) -> Path:
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


def test_notes_are_read_by_quantity_and_step(tmp_path: Path) -> None:
    folder = noted(
        tmp_path / "a", {"step": 0, "val/ndcg@10": 0.1}, {"step": 5, "train/reward": 1.0, "val/ndcg@10": 0.2}
    )
    assert read_notes(folder) == {"val/ndcg@10": {0: 0.1, 5: 0.2}, "train/reward": {5: 1.0}}
    assert read_notes(tmp_path / "nothing") == {}


def test_a_band_holds_steps_that_all_seeds_have() -> None:
    assert band([{0: 1.0, 5: 2.0, 9: 7.0}, {5: 4.0, 0: 3.0}]) == [(0, 2.0, 1.0, 3.0), (5, 3.0, 2.0, 4.0)]
    assert band([]) == []


def test_rows_with_different_quantities_are_drawn(tmp_path: Path) -> None:
    rows = {
        "grpo": [
            noted(tmp_path / f"grpo-{seed}", {"step": 1, "val/ndcg@5": 0.1, "train/reward": seed}) for seed in (0, 1)
        ],
        "ce": [noted(tmp_path / "ce-0", {"step": 1, "val/ndcg@5": 0.3})],
    }
    draw(rows, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob("*.png")] == ["report.png"]  # nothing temporary is left


def test_without_notes_there_is_no_picture(tmp_path: Path) -> None:
    draw({"grpo": [noted(tmp_path / "grpo-0")]}, tmp_path / "report.png")
    assert not (tmp_path / "report.png").exists()
