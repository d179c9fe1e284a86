import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from genrl.config import run_folder
from genrl.errors import CheckpointError, ConfigError, DataError
from genrl.manifest import seal
from genrl.runs.fit import fit
from genrl.runs.folder import claim
from genrl.runs.recommend import _ages, answer, load_recommender, recommend
from genrl.runs.rescore import evaluate_run, load_run
from genrl.runs.session import Session
from tests.helpers import assert_same
from tests.runs import content, resealed, small_config


@pytest.mark.parametrize("spoil", [lambda data: data[:-40], lambda data: data[:6], lambda data: b""])
def test_damaged_weights_are_named(copied, spoil):
    path = copied / "weights.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"is damaged: weights.safetensors has another content than"):
        load_run(copied)
    resealed(copied)
    with pytest.raises(CheckpointError, match=r"weights.safetensors is truncated or damaged"):
        load_run(copied)


def test_more_items_than_there_are_are_all_of_them(finished):
    (found,) = recommend(finished, [["i0"]], 100_000_000)
    assert sorted(item for item, _, _ in found.items) == sorted(f"i{row}" for row in range(60))


def test_a_folder_without_a_run_is_named_and_runs_that_lie_in_it(copied, tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run folder \(no config.yaml there\). Give runs/<experiment>"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=rf"It holds finished runs: grpo-s0. Give one of them, e.g. {copied}\."):
        load_run(copied.parent)
    with pytest.raises(CheckpointError, match=r"config.yaml is no run folder \(a file\)"):
        load_run(copied / "config.yaml")


def test_a_run_can_be_moved_and_read_from_anywhere(copied, tmp_path, monkeypatch):
    config = OmegaConf.load(copied / "config.yaml")
    config.output = "runs"  # relative, as the default is
    OmegaConf.save(config, copied / "config.yaml")
    resealed(copied)
    for shared in (*copied.parent.glob("align-*"), *copied.parent.glob("sid-*")):
        shutil.rmtree(shared) if shared.is_dir() else shared.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    session = load_run(copied)
    assert run_folder(session.config) == copied
    saved = load_file(copied / "weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in session.policy.state().items())
    assert not list(elsewhere.iterdir())
    assert not list(copied.parent.glob("sid-*"))


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("weights.safetensors", "no such checkpoint"),
        ("metrics.json", "an unfinished run"),
        ("manifest.json", r"has no manifest\.json, .* Copy it whole, or remove"),
        ("catalog.json", "which items it was made for"),
    ],
)
def test_a_run_without_a_part_of_its_own_is_refused(copied, missing, reason):
    (copied / missing).unlink()
    uses = (lambda: load_run(copied), lambda: recommend(copied, [["i3"]], 5))
    if not missing.endswith(("metrics.json", "manifest.json")):
        for use in uses:
            with pytest.raises(CheckpointError, match=rf"is damaged: {missing} is missing"):
                use()
        resealed(copied)  # as if it had never been there
    for use in uses:
        with pytest.raises(CheckpointError, match=reason):
            use()


def test_evaluating_a_run_repeats_its_metrics_and_writes_nothing_into_it(copied, capsys):
    before = content(copied)
    metrics = json.loads((copied / "metrics.json").read_text())
    for split in ("valid", "test"):
        results = evaluate_run(copied, split=split, overrides=[])
        assert results[copied.name] == metrics[split]["rl"]
        assert results["item_knn"] == metrics[split]["item_knn"]
    assert copied.name in capsys.readouterr().out
    wider = evaluate_run(copied, split="test", overrides=["evaluate.k=[20]", "evaluate.test_users=10"])
    assert wider[copied.name]["raw"]["rows"] == 10
    assert "recall@20" in wider[copied.name]["raw"]
    assert content(copied) == before


def test_recommendations_are_the_top_of_the_ranking(finished):
    session = load_run(finished)
    catalog = session.dataset.catalog
    rows = [[3, 7], [5]]
    by_id = recommend(finished, [[catalog.item_ids[row] for row in history] for history in rows], 60)
    by_title = recommend(finished, [[catalog.titles[row] for row in history] for history in rows], 60)
    assert by_id == by_title
    assert [len(found.items) for found in by_id] == [60, 60]
    for found in by_id:
        scores = torch.tensor([score for _, _, score in found.items])
        assert bool((scores.diff() <= 0).all())
        assert_same(scores.exp().sum(), torch.tensor(1.0))
        assert all(catalog.titles[catalog.row(item)] == title for item, title, _ in found.items)
    fresh = recommend(finished, [[catalog.item_ids[row] for row in history] for history in rows], 5, exclude_seen=True)
    for found, whole, history in zip(fresh, by_id, rows, strict=True):
        seen = {catalog.item_ids[row] for row in history}
        wanted = [item for item, _, _ in whole.items if item not in seen][:5]
        assert [item for item, _, _ in found.items] == wanted


def test_recommendations_among_some_items_are_those_of_the_whole_ranking(finished, tmp_path):
    recommender = load_recommender(finished)[1]
    catalog = recommender.problem.dataset.catalog
    histories = [[catalog.item_ids[row] for row in history] for history in ([3, 7], [5])]
    whole = answer(recommender, histories, 60)
    stock = [catalog.item_ids[row] for row in range(0, 60, 3)]
    for allowed, options in (
        (set(stock), {"only": range(0, 60, 3)}),
        ({catalog.item_ids[row] for row in catalog.cold.nonzero()[:, 0].tolist()}, {"cold": True}),
    ):
        for exact in (False, True):
            some = answer(recommender, histories, 10, exclude_seen=True, exact=exact, **options)
            for found, everything, history in zip(some, whole, histories, strict=True):
                wanted = [entry for entry in everything.items if entry[0] in allowed - set(history)][:10]
                assert [item for item, _, _ in found.items] == [item for item, _, _ in wanted]
                scores = [torch.tensor([score for _, _, score in each]) for each in (found.items, wanted)]
                assert_same(scores[0], scores[1])
    with pytest.raises(DataError, match=r"has no item left|keeps no item"):
        recommend(finished, [[catalog.item_ids[3]]], 5, exclude_seen=True, only=[catalog.item_ids[3]])


def test_a_title_that_several_items_have_is_refused_with_the_candidates(copied):
    items = json.loads((copied / "catalog.json").read_text())
    items["titles"][3:5] = ["Twin", "Twin"]
    (copied / "catalog.json").write_text(json.dumps(items))
    resealed(copied)
    with pytest.raises(DataError, match=r"title 'Twin' is shared by 2 items: .*i3.*i4.* Give an id"):
        recommend(copied, [["i7", "Twin"]], 5)


@pytest.fixture(scope="module")
def reasoned(thinking: Session) -> Path:
    """A run folder of a policy that thinks."""
    folder = run_folder(thinking.config)
    folder.mkdir()
    claim(folder, thinking.config, "genrl fit")
    thinking.recommender.save(folder)
    seal(folder, {})
    return folder


def test_thinking_stands_beside_the_items(reasoned, thinking):
    catalog = thinking.dataset.catalog
    names = [[catalog.item_ids[row] for row in history] for history in ([3, 7], [5])]
    found = recommend(reasoned, names, 5, exclude_seen=True)
    assert [len(each.items) for each in found] == [5, 5]
    for each in found:
        assert len(each.thinking) == thinking.table.levels
        assert all(each.thinking)
        assert "think" not in "".join(each.thinking)


def test_a_run_that_was_only_aligned_does_not_think(thinking):
    config = replace(thinking.config, name="aligned", stages=["align"])
    folder = run_folder(config)
    folder.mkdir()
    claim(folder, config, "genrl fit")
    thinking.plain.recommender.save(folder)
    seal(folder, {})
    assert not load_run(folder).layout.writes_text
    assert recommend(folder, [["i3"]], 5)[0].thinking is None


def test_another_layout_is_refused_and_another_search_is_told(reasoned, capsys):
    with pytest.raises(CheckpointError, match=r"layout\.budget is 3 there and 5 here"):
        load_run(reasoned, ["layout.budget=5"])
    with pytest.raises(CheckpointError, match=r"template\.prefix is \[\] there"):
        load_run(reasoned, ["prompt.prefix=a"])
    options = ["evaluate.thinking_samples=2", "evaluate.beam=12", "evaluate.test_users=5"]
    found = evaluate_run(reasoned, split="test", overrides=options)
    shown = " ".join(capsys.readouterr().out.split())
    assert "evaluate.beam=12; the weights were chosen with 20" in shown
    assert "evaluate.thinking_samples=2; the weights were chosen with 0" in shown
    assert found[reasoned.name]["raw"]["format_failure"] == 0


def test_rows_appended_to_the_log_are_refused_by_evaluate_and_change_no_recommendation(tmp_path):
    rows = [f"u{user},i{(user * 7 + step * step) % 30},{step}" for user in range(60) for step in range(6)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    files = ("data.source=files", f"data.interactions={log}", "data.columns.title=null", "data.columns.category=null")
    config = small_config(
        tmp_path, *files, "sid.embedding.source=collaborative", "baseline.name=item_knn", "stages=[baseline]"
    )
    folder = fit(config)
    recommended = recommend(folder, [["i0"]], 5)
    metrics = evaluate_run(folder, split="test", overrides=[])
    log.write_text(log.read_text() + "new,i1,9\nnew,i2,10\nnew,i3,11\n")
    assert recommend(folder, [["i0"]], 5) == recommended
    with pytest.raises(CheckpointError, match=r"data.interactions \(.*log.csv\) has another content now"):
        evaluate_run(folder, split="test", overrides=[])
    told = evaluate_run(folder, split="test", overrides=[f"data.interactions={log}"])
    assert told[folder.name]["raw"]["rows"] == metrics[folder.name]["raw"]["rows"] + 1
    log.unlink()
    assert recommend(folder, [["i0"]], 5) == recommended


def test_days_ago_are_days_before_the_latest_item(finished):
    assert_same(_ages([[9, 2.5, 2], [1]], [["a", "b", "c"], ["d"]]), [[7, 0.5, 0], [0, 0, 0]])
    for days in ([1, 2], [3], [], [1, float("nan")], [1, -1]):
        with pytest.raises(DataError, match=r"history a, b: days are .*Give 2 numbers of at least 0, oldest first"):
            _ages([days], [["a", "b"]])
    with pytest.raises(ConfigError, match=r"do not say how many days ago .*Leave the days out"):
        recommend(finished, [["i0"]], 3, days=[[1.0]])
