from genrl.compare.quantities import MEASURES, TESTED, bands_of, matches, panels, titled
from genrl.runs.tables import COLUMNS
from tests.pages import notes


def test_panels_have_an_order_and_the_largest_cutoff():
    names = ["val/ndcg@5", "train/match/step10", "train/match/step2", "val/ndcg@10", "policy/kl", "policy/entropy"]
    names += ["objective/dead_groups", "val/cold_recall@10", "val/cold_recall@5", "train/reward", "train/reward/a"]
    assert list(panels([*names, "loss"])) == [
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
    assert matches(names) == ["train/match/step2", "train/match/step10"]


def test_curves_and_match_rates_are_kept_apart_with_bands_over_seeds():
    learning, steps = bands_of({**notes(), "sage": [{}]})
    assert list(learning) == ["Reward", "Validation NDCG@10"]
    assert list(steps) == ["Match rate of step 1", "Match rate of step 2"]
    assert learning["Reward"] == {row: [(5, 1.5, 1.0, 2.0), (10, 2.5, 2.0, 3.0)] for row in ("grpo", "sapo")}


def test_rows_that_are_given_the_targets_have_no_curves_of_completions():
    taught = {"train/reward": {5: 5.0}, "train/match/step1": {5: 1.0}, "val/ndcg@10": {5: 0.3}}
    learning, steps = bands_of({**notes(), "ce": [taught]})
    assert {title: "ce" in rows for title, rows in {**learning, **steps}.items()} == {
        "Reward": False,
        "Validation NDCG@10": True,
        "Match rate of step 1": False,
        "Match rate of step 2": False,
    }
    failing = {**taught, "train/match/step1": {5: 0.75, 6: 1.0}, "train/valid_rate": {5: 0.75, 6: 1.0}}
    assert "ce" not in bands_of({**notes(), "ce": [failing]})[0]["Reward"]
    lost = {**taught, "train/match/step1": {5: 0.0}, "train/valid_rate": {5: 0.0}}
    assert "ce" in bands_of({"ce": [lost]})[0]["Reward"]
    halfway = {**taught, "train/match/step2": {5: 0.5}}
    assert "ce" in bands_of({"ce": [halfway]})[0]["Reward"]


def test_every_metric_of_the_tables_of_a_run_has_the_same_head_here():
    assert {name: MEASURES[name].head for name in COLUMNS} == COLUMNS


def test_differences_are_tested_in_what_each_user_has_an_outcome_of():
    assert TESTED == ["ndcg", "recall", "cold_recall"]
    assert [name for name in TESTED if MEASURES[name].cold] == ["cold_recall"]
    assert titled("ndcg@10") == "NDCG@10"
