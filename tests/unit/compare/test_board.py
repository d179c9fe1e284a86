import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from genrl.compare.board import layout, write_comparison
from genrl.compare.page import markdown
from genrl.compare.plan import Plan
from genrl.compare.record import Report
from genrl.compare.report import make_report
from tests.comparisons import finish, finish_baseline, plan_of, read_events, scalars

RANKS = (0, 1, 2, 20, 4, 20)
MARGIN = ("mean", "low", "high")


def text(events: EventAccumulator) -> str:
    (event,) = events.Tensors("comparison/text_summary")
    return event.tensor_proto.string_val[0].decode()


def charts(events: EventAccumulator) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Category -> title -> the tags of its only series."""
    (event,) = events.Tensors("custom_scalars__config__")
    found = Layout.FromString(event.tensor_proto.string_val[0])
    series = {part.title: {chart.title: chart.margin.series for chart in part.chart} for part in found.category}
    assert all(len(only) == 1 for part in series.values() for only in part.values())
    return {
        category: {title: (only[0].value, only[0].lower, only[0].upper) for title, only in part.items()}
        for category, part in series.items()
    }


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two rows with two seeds, and a baseline; one run is not finished."""
    output = tmp_path_factory.mktemp("board")
    plan = plan_of(output, "grpo,sapo", "sapo:objective.clip_high=0.3", seeds=(0, 1))
    for run in plan.runs[:3]:
        finish(run, RANKS)
    finish_baseline(output, "item_knn", RANKS)
    return plan


@pytest.fixture
def report(plan: Plan) -> Report:
    return make_report(plan.shared.folder.parent, plan, "align")


def test_a_row_has_the_mean_and_the_range_over_its_seeds_at_the_steps_that_all_have(tmp_path, report):
    notes = {
        "grpo": [{"policy/kl": {0: 1.0, 5: 2.0, 10: 9.0}}, {"policy/kl": {0: 2.0, 5: 6.0}}, {"time/update": {0: 1}}]
    }
    write_comparison(tmp_path, notes, report)
    found = scalars(read_events(tmp_path / "comparison" / "grpo"))
    assert found == {
        "over_seeds/policy/kl/mean": {0: 1.5, 5: 4.0},
        "over_seeds/policy/kl/low": {0: 1.0, 5: 2.0},
        "over_seeds/policy/kl/high": {0: 2.0, 5: 6.0},
    }


def test_every_chart_asks_for_series_that_the_rows_have(tmp_path, report):
    names = ["val/ndcg@5", "val/ndcg@10", "val/recall@10", "val/cold_recall@10", "val/entropy@10", "train/reward"]
    names += ["train/reward/exact_match", "policy/entropy", "policy/kl", "objective/dead_groups"]
    names += ["train/match/step1", "train/match/step2", "train/match/step10", "time/update"]
    noted = {name: {0: 0.5, 1: 0.25} for name in names}
    write_comparison(tmp_path, {"grpo": [noted, noted], "sapo": [noted]}, report)
    page = charts(read_events(tmp_path / "comparison"))
    assert {category: [*reversed(part)] for category, part in page.items()} == {  # shown in the opposite order
        "validation": ["NDCG@10", "recall@10", "recall@10 of cold targets", "entropy@10, bits"],
        "reward": ["reward", "reward/exact_match"],
        "match with the target": ["step 1", "step 2", "step 10"],
        "policy": ["entropy of the policy, nats", "KL from the reference policy, nats", "dead groups"],
    }
    assert page["validation"]["NDCG@10"] == tuple(f"over_seeds/val/ndcg@10/{curve}" for curve in MARGIN)
    tags = {tag for part in page.values() for series in part.values() for tag in series}
    for row in ("grpo", "sapo"):
        assert scalars(read_events(tmp_path / "comparison" / row)).keys() == tags


def test_rows_without_notes_or_common_steps_have_a_text_only(tmp_path, report):
    write_comparison(tmp_path, {"grpo": [], "sapo": [{"policy/kl": {0: 1.0}}, {"policy/kl": {5: 1.0}}]}, report)
    for row in ("grpo", "sapo", "item_knn"):
        events = read_events(tmp_path / "comparison" / row)
        assert scalars(events) == {}
        assert text(events)
    assert "policy" in charts(read_events(tmp_path / "comparison"))
    write_comparison(tmp_path, {}, report)
    assert read_events(tmp_path / "comparison").Tags()["tensors"] == ["comparison/text_summary"]


def test_the_texts_are_the_report_and_what_each_row_is(tmp_path, report):
    write_comparison(tmp_path, {}, report)
    written = text(read_events(tmp_path / "comparison"))
    assert "![" not in written
    lines = markdown(report).splitlines()
    assert written.splitlines() == [line for line in lines if not line.startswith("![")]
    shown = markdown_to_safe_html(written)
    assert shown.count("<table>") == sum(line.startswith("|---") for line in lines)
    sapo = text(read_events(tmp_path / "comparison" / "sapo"))
    assert str(report.rows["sapo"].pieces) in sapo
    assert "clip_high: 0.3" in sapo
    assert "exact_match:" in sapo
    assert markdown_to_safe_html(sapo).count("<pre>") == 2
    assert "window: 3" in text(read_events(tmp_path / "comparison" / "item_knn"))


def test_another_comparison_replaces_the_earlier_one_and_nothing_else(tmp_path, report):
    notes = {row: [{"policy/kl": {0: 1.0, 5: 1.0}}] for row in ("grpo", "sapo")}
    write_comparison(tmp_path, notes, report)
    others = [tmp_path / "comparison" / name for name in ("notes.txt", "events.out.tfevents.1.other")]
    for path in others:
        path.touch()
    del report.rows["sapo"]
    write_comparison(tmp_path, {"grpo": [{"policy/kl": {0: 2.0}}]}, report)
    assert not (tmp_path / "comparison" / "sapo").exists()
    assert all(path.exists() for path in others)
    found = scalars(read_events(tmp_path / "comparison" / "grpo"))
    assert found["over_seeds/policy/kl/mean"] == {0: 2.0}


def test_nothing_noted_means_no_charts():
    assert layout(["time/update", "val/rows"]) == {}
