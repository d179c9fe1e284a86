from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from genrl.compare.curves import COLUMNS, Notes, band, draw, look, panels, read_notes


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


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = noted(
        tmp_path / "a", {"step": 1, "val/cold_recall@10": math.nan, "train/loss": math.inf, "policy/kl": 0.5}
    )
    assert read_notes(folder) == {"policy/kl": {1: 0.5}}


def test_panels_have_an_order_and_the_largest_cutoff() -> None:
    names = ["val/ndcg@5", "train/match/step10", "train/match/step2", "val/ndcg@10", "policy/kl", "policy/entropy"]
    names += [
        "objective/dead_groups",
        "val/cold_recall@10",
        "val/cold_recall@5",
        "train/reward",
        "train/reward/a",
        "loss",
    ]
    assert list(panels(names)) == [
        "train/reward",
        "val/ndcg@10",
        "val/cold_recall@10",
        "policy/entropy",
        "policy/kl",
        "objective/dead_groups",
        "train/match/step2",
        "train/match/step10",
    ]
    assert panels(["loss"]) == {}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when they were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_each_panel_has_a_line_and_a_band_for_each_row_that_noted_it(tmp_path: Path, figures: list[Figure]) -> None:
    rows: dict[str, list[Notes]] = {
        "grpo": [{"val/ndcg@5": {1: 0.1, 2: 0.3}, "train/reward": {1: seed}, "policy/kl": {1: 0.5}} for seed in (0, 1)],
        "ce": [{"val/ndcg@5": {1: 0.3}, "train/match/step1": {1: 1.0}}],
    }
    draw(rows, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob("*")] == ["report.png"]  # nothing temporary is left
    (figure,) = figures
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(axes) == ["reward", "validation NDCG@5", "KL from the reference policy, nats", "match rate of step 1"]
    assert len(figure.axes) == 2 * COLUMNS
    lines = {title: [line.get_label() for line in axis.get_lines()] for title, axis in axes.items()}
    assert list(lines.values()) == [["grpo"], ["grpo", "ce"], ["grpo"], ["ce"]]
    assert all(len(axis.collections) == len(axis.get_lines()) for axis in axes.values())
    (reward,) = axes["reward"].get_lines()
    assert reward.get_ydata().tolist() == [0.5]  # type: ignore[union-attr]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["grpo", "ce"]
    looks = {
        line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes["validation NDCG@5"].get_lines()
    }
    assert all(line.get_color() == looks["grpo"][0] for line in axes["reward"].get_lines())  # the same in all panels
    assert looks["grpo"] != looks["ce"]


def test_twelve_rows_look_different() -> None:
    assert len({look(number) for number in range(12)}) == 12


def test_without_notes_there_is_no_picture(tmp_path: Path) -> None:
    draw({"grpo": [{}, {"train/loss": {1: 1.0}}]}, tmp_path / "report.png")
    assert not (tmp_path / "report.png").exists()
