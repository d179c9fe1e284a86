"""The breakdown of finished runs counts what it says it counts."""

import breakdown
import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl.catalog.sequences import Role
from genrl.metrics.functional import ndcg_at_k
from genrl.runs.fit import fit
from genrl.runs.rescore import load_run
from tests.runs import small_config


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    output = tmp_path_factory.mktemp("breakdown")
    for name in ("item_knn", "most_popular"):
        fit(small_config(output, "stages=[baseline]", f"baseline.name={name}"))
    return output / "toy"


def table(text, place):
    rows = [line.strip("| ").split(" | ") for line in text.split("\n\n")[place].splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_every_group_has_the_rows_that_its_name_says(experiment):
    session = load_run(experiment / "item_knn-s0")
    groups = breakdown.row_groups(session.dataset, session.config, "test")
    sequences, catalog = session.dataset.sequences, session.dataset.catalog
    for row, position in enumerate(sequences.rows(Role.TEST).tolist()):
        count = int(catalog.train_counts[sequences.items[position]])
        user = int(sequences.users(torch.tensor([position])))
        length = position - int(sequences.offsets[user])
        for low, high in ((0, 3), (4, 8), (9, 20)):
            assert bool(groups[f"target seen {low} to {high} times"][row]) == (low <= count <= high)
        assert bool(groups["target seen 21 or more times"][row]) == (count > 20)
        assert bool(groups["history of 5 to 9"][row]) == (5 <= length <= 9)
        tied = bool(sequences.times[position] == sequences.times[position - 1])
        assert bool(groups["at the same time as the item before"][row]) == tied


def test_the_table_has_the_means_of_its_groups(experiment):
    text = breakdown.breakdown(experiment, None, "test", "raw")
    shown = table(text, 1)
    ranks = load_file(experiment / "item_knn-s0" / "ranks.safetensors")["test/raw"]
    assert shown["all"] == ["80", f"{float(ndcg_at_k(ranks[:, None], 10).mean()):.4f}", shown["all"][2]]
    assert sum(int(row[0]) for name, row in shown.items() if name.startswith("target")) == 80
    assert shown["history of 1 to 4"] == ["0", "-", "-"]
    seeds = {"row": torch.tensor([[0, 20], [20, 20]])}
    assert table(breakdown.by_group(seeds, {"all": torch.tensor([True, True])}, 10), 0)["all"] == ["2", "0.2500"]


def test_what_a_row_finds_beside_another_one():
    ours, theirs = torch.tensor([[0, 0, 20, 1, 20]]), torch.tensor([[0, 20, 3, 20, 20]])
    shown = table(breakdown.overlap({"first": theirs, "second": ours}, 10), 0)
    best = ndcg_at_k(torch.tensor([[0], [0], [3], [1], [20]]), 10).mean()
    assert shown == {"second": ["50.0%", "66.7%", f"{float(best):.4f}"]}


def test_rows_that_are_not_there_and_rows_of_other_users_are_named(experiment, tmp_path, capsys):
    def refused(*words):
        assert breakdown.main([*map(str, words)]) == 2
        return capsys.readouterr().err

    assert "no row 'item_knm'. Did you mean 'item_knn'?" in refused(experiment, "--rows", "item_knm")
    assert "no run is finished there" in refused(tmp_path)
    path = experiment / "most_popular-s0" / "ranks.safetensors"
    ranks = load_file(path)
    save_file({name: value[:40].clone() for name, value in ranks.items()}, path)
    assert "not of the same users" in refused(experiment)
    save_file(ranks, path)
