import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

from genrl.config import RunConfig, load_config
from genrl.training.board import write_outcome
from tests.comparisons import finish, finish_baseline, plan_of, read_events, scalars
from tests.helpers import assert_same

RANKS = (0, 1, 2, 20, 4, 20)


def hyperparameters(events: EventAccumulator) -> dict[str, Any]:
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def write_run(folder: Path) -> EventAccumulator:
    """What a finished run leaves, read back."""
    write_outcome(folder, load_config([folder / "config.yaml"]), json.loads((folder / "metrics.json").read_text()))
    return read_events(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows with two seeds, and a baseline; one run is not finished."""
    output = tmp_path_factory.mktemp("board")
    plan = plan_of(output, "grpo,sapo", "sapo:objective.clip_high=0.3", seeds=(0, 1))
    for run in plan.runs[:3]:
        finish(run, RANKS)
    finish_baseline(output, "item_knn", RANKS)
    return plan.shared.folder.parent


def test_a_finished_run_is_a_row_of_the_table_with_its_options_and_final_metrics(experiment):
    events = write_run(experiment / "sapo-s0")
    options = hyperparameters(events)
    expected = {"objective": "sapo", "objective.clip_high": 0.3, "seed": 0.0, "rollout.group_size": 16.0}
    assert expected.items() <= options.items()
    assert options["rl.betas"] == "0.9, 0.95"
    assert options["rewards.exact_match.weight"] == 1.0
    assert "objective.dual_clip" not in options  # null
    end = events.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(end).status == STATUS_SUCCESS

    final, scored = scalars(events), json.loads((experiment / "sapo-s0" / "metrics.json").read_text())
    for split in ("test", "valid"):
        for kind, ending in (("raw", ""), ("excluded", "_history_excluded")):
            for metric in ("ndcg", "recall", "entropy", "coverage"):
                wanted = scored[split]["rl"][kind][f"{metric}@10"]
                assert_same(final[f"final/{split}{ending}/{metric}@10"][0], wanted, 1e-6)


def test_a_truth_value_stays_one_and_a_metric_without_rows_is_left_out(tmp_path):
    scores = {"raw": dict.fromkeys(("ndcg@3", "recall@3", "cold_recall@3", "entropy@3", "coverage@3"), 0.5)}
    scores |= {"excluded": {**scores["raw"], "cold_recall@3": None}}
    metrics = {"stages": {"align": {}}, "test": {"align": scores}, "valid": {"align": scores}}
    config = RunConfig()
    config.evaluate.k = [1, 3]
    write_outcome(tmp_path, config, metrics)
    events = read_events(tmp_path)
    options = hyperparameters(events)
    assert options["model.trust_remote_code"] is False
    assert options["model"] == "tiny"
    assert "objective" not in options
    assert "final/test/cold_recall@3" in scalars(events)
    assert "final/test_history_excluded/cold_recall@3" not in scalars(events)


def test_a_baseline_has_its_own_options(experiment):
    events = write_run(experiment / "item_knn-s0")
    assert hyperparameters(events) == {"seed": 0.0, "baseline": "item_knn", "baseline.window": 3.0}
    assert "final/test/ndcg@10" in scalars(events)


def test_no_run_says_which_columns_the_table_has(experiment):
    # TensorBoard would take the first list that it finds, in which options of the other objectives are missing.
    grpo, sapo = (write_run(experiment / name) for name in ("grpo-s0", "sapo-s0"))
    assert hyperparameters(grpo).keys() != hyperparameters(sapo).keys()
    tags = metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG
    assert [tag in grpo.Tags()["tensors"] for tag in tags] == [False, True]


def test_a_run_that_ends_twice_is_noted_once(experiment):
    folder = experiment / "grpo-s0"
    (folder / "events.out.tfevents.1.other").touch()
    write_run(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"]["rl"]["raw"]["ndcg@10"] = 0.25
    write_outcome(folder, load_config([folder / "config.yaml"]), metrics)
    assert len(list(folder.glob("events*.outcome"))) == 1
    assert scalars(read_events(folder))["final/test/ndcg@10"] == {0: 0.25}
    assert (folder / "events.out.tfevents.1.other").exists()
