import json
import math
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from genrl.plots import (
    MOST_MARKS,
    MOST_POINTS,
    Band,
    band,
    curve_grid,
    draw_curves,
    look,
    looks,
    read_notes,
    save,
    style,
    to_svg,
)
from tests.pages import Page


def noted(folder: Path, *notes: dict[str, float]) -> Path:
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


def test_notes_are_read_by_quantity_and_step(tmp_path):
    folder = noted(
        tmp_path / "a", {"step": 0, "val/ndcg@10": 0.1}, {"step": 5, "train/reward": 1.0, "val/ndcg@10": 0.2}
    )
    assert read_notes(folder) == {"val/ndcg@10": {0: 0.1, 5: 0.2}, "train/reward": {5: 1.0}}
    assert read_notes(tmp_path / "nothing") == {}


def test_values_that_are_not_finite_are_left_out(tmp_path):
    folder = noted(
        tmp_path / "a", {"step": 1, "val/cold_recall@10": math.nan, "train/loss": math.inf, "policy/kl": 0.5}
    )
    assert read_notes(folder) == {"policy/kl": {1: 0.5}}


def test_a_band_holds_steps_that_all_seeds_have():
    assert band([{0: 1.0, 5: 2.0, 9: 7.0}, {5: 4.0, 0: 3.0}]) == [(0, 2.0, 1.0, 3.0), (5, 3.0, 2.0, 4.0)]
    assert band([]) == []


def test_no_two_of_many_rows_look_alike():
    found = looks([f"row {number}" for number in range(16)], ["a", "b", "c", "d"])
    assert len({(look.colour, look.marker) for look in found.values()}) == 20
    assert len({(look.solid, look.marker) for look in found.values()}) == 12  # also without colour
    first = [look(number) for number in range(8)]
    assert len({look.marker for look in first}) == len({look.shape for look in first}) == 8
    assert len(looks([], [str(number) for number in range(20)])) == 20


def test_a_legend_shows_the_mark_and_the_dash_of_the_figure():
    assert (look(0).dashes, look(1).dashes) == (None, "7 3")
    assert look(1).shape == "M-3.5 3.5L3.5 3.5L3.5 -3.5L-3.5 -3.5L-3.5 3.5z"


def drawn(bands: dict[str, Band]) -> Figure:
    with style():
        figure = Figure()
        draw_curves(figure.subplots(), bands, looks(bands))
    return figure


def test_a_curve_runs_through_the_means_in_a_band_between_least_and_largest():
    (axis,) = drawn({"a": [(0, 2.0, 1.0, 3.0), (10, 4.0, 4.0, 4.0)], "b": []}).axes
    (line,) = axis.get_lines()
    assert [list(values) for values in line.get_data()] == [[0, 10], [2.0, 4.0]]
    (area,) = axis.collections
    assert {tuple(point) for point in area.get_paths()[0].vertices.tolist()} == {(0, 1), (0, 3), (10, 4)}
    assert axis.get_ylim()[0] > 0


def test_noise_does_not_fill_a_panel():
    for curve, wanted in (
        ([0.0722, 0.0728, 0.0724], (0.0725 - 0.00728, 0.0725 + 0.00728)),  # a fifth of the largest value
        ([-3.0, -2.9], (-2.95 - 0.3, -2.95 + 0.3)),
    ):
        (axis,) = drawn({"a": [(step, value, value, value) for step, value in enumerate(curve)]}).axes
        assert axis.get_ylim() == pytest.approx(wanted)
    (axis,) = drawn({"a": [(0, 0.1, 0.1, 0.1), (1, 0.5, 0.5, 0.5)]}).axes
    assert axis.get_ylim()[1] < 0.53  # what is larger fills its panel


def test_one_point_and_constant_values_can_be_drawn():
    (axis,) = drawn({"a": [(3, 0.0, 0.0, 0.0)]}).axes
    assert axis.get_xlim() == (2.0, 4.0)
    assert axis.get_ylim()[0] == 0.0


def test_a_long_curve_is_drawn_as_means_of_neighbours():
    (axis,) = drawn({"a": [(step, float(step % 2), 0.0, 1.0) for step in range(5 * MOST_POINTS * 2)]}).axes
    (line,) = axis.get_lines()
    assert len(line.get_xdata()) == MOST_POINTS
    assert set(line.get_ydata()) == {0.5}


def test_every_validation_has_its_mark_and_a_long_curve_a_few():
    def marks(count: int) -> int:
        (axis,) = drawn({"a": [(step, 0.5, 0.0, 1.0) for step in range(count)]}).axes
        (line,) = axis.get_lines()
        return len(range(0, count, line.get_markevery()))

    assert [marks(count) for count in (1, 7, 12, MOST_MARKS)] == [1, 7, 12, MOST_MARKS]
    assert 3 < marks(MOST_POINTS) < 10


def test_each_panel_has_a_line_and_a_band_for_each_row_that_noted_it():
    flat: Band = [(1, 0.5, 0.0, 1.0)]
    panels = {"reward": {"grpo": flat, "ce": []}, "NDCG": {"grpo": flat, "ce": flat}, "KL": {"grpo": flat}}
    figure = curve_grid({**panels, "match": {"ce": flat}}, looks(["grpo", "ce"]), title="all")
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(axes) == ["reward", "NDCG", "KL", "match"]
    assert len(figure.axes) == 6
    lines = {title: [line.get_label() for line in axis.get_lines()] for title, axis in axes.items()}
    assert list(lines.values()) == [["grpo"], ["grpo", "ce"], ["grpo"], ["ce"]]
    assert all(len(axis.collections) == len(axis.get_lines()) for axis in axes.values())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["grpo", "ce"]
    first, second = axes["NDCG"].get_lines()
    assert (first.get_color(), first.get_linestyle()) != (second.get_color(), second.get_linestyle())
    assert axes["reward"].get_lines()[0].get_color() == first.get_color()  # the same in all panels
    assert curve_grid({"reward": {"": flat}}, looks([""])).legends == []


def test_a_picture_has_the_same_bytes_each_time_and_nothing_of_the_machine(tmp_path):
    for name in ("a.png", "b.png"):
        save(drawn({"a": [(3, 0.0, 0.0, 0.0)]}), tmp_path / "new" / name)
    one, other = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert one == other
    assert one.startswith(b"\x89PNG")
    assert b"Software" not in one
    assert len(list((tmp_path / "new").glob("*"))) == 2  # nothing temporary is left


def test_a_figure_of_a_page_says_what_it_shows_and_takes_the_colours_of_the_page():
    curve: Band = [(0, 1.0, 0.0, 2.0), (5, 2.0, 1.0, 3.0)]
    text = to_svg(drawn({"a": curve}), "a < b", ["one & two", "three"])
    assert text == to_svg(drawn({"a": curve}), "a < b", ["one & two", "three"])
    page = Page(text)
    assert page.texts[:2] == ["a < b", "one & two; three"]
    assert page.elements[0][1].keys() == {"viewbox", "role", "class"}
    assert not re.search(r"\bid=|href|url\(|font|<style|<!DOCTYPE|xmlns", text)
    assert set(re.findall(r"#[0-9a-f]{6}", text)) == set()
    assert {"var(--colour0)", "var(--rule)", "var(--muted)", "var(--paper)"} <= set(re.findall(r"var\([^)]*\)", text))
