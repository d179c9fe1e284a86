from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl.catalog.sequences import Role
from genrl.config import RunConfig
from genrl.config.schema import AlignConfig, ModelConfig
from genrl.errors import CheckpointError, ConfigError, DataError
from genrl.recommenders import BASELINES
from genrl.recommenders.lc_rec import LCRec
from genrl.runs.fit import fit
from genrl.runs.recommend import answer, load_recommender, recommend
from genrl.runs.rescore import evaluate_run, load_run
from genrl.runs.session import Session
from genrl.runs.stage import tuned
from tests.runs import resealed, small_config

QUICK = {
    "most_popular": [],
    "repeat_last": [],
    "item_knn": ["baseline.window=3"],
    "sasrec": ["baseline.hidden=16", "baseline.max_epochs=3", "baseline.batch=16"],
    "rearec": ["baseline.hidden=16", "baseline.max_epochs=1"],
    "tiger": ["baseline.hidden=16", "baseline.layers=1", "baseline.feed_forward=16", "baseline.max_epochs=1"],
    "lc_rec": ["baseline.max_epochs=1"],
}
LEARNING = ("sasrec", "rearec", "tiger", "lc_rec")


def config_of(output: Path, name: str, *overrides: str) -> RunConfig:
    few = ("data.toy.users=40", "stages=[baseline]", f"baseline.name={name}")
    return small_config(output, *few, *QUICK[name], *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("baselines")
    return {name: fit(config_of(output, name), command="genrl fit") for name in QUICK}


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_every_registered_baseline_is_run_here() -> None:
    assert set(QUICK) == set(BASELINES.names())


@pytest.mark.parametrize("name", list(QUICK))
def test_a_run_folder_is_that_of_an_objective(finished: dict[str, Path], name: str) -> None:
    folder, metrics = finished[name], read(finished[name])
    assert folder.name == f"{name}-s0"
    assert metrics["baseline"]["name"] == metrics["name"] == name
    assert {"seconds", "peak_mib", "best_step"} <= metrics["stages"]["baseline"].keys()
    ranks = load_file(folder / "ranks.safetensors")
    assert set(ranks) == {"valid/raw", "valid/excluded", "test/raw", "test/excluded", "cold/valid", "cold/test"}
    session = load_run(folder)
    positions = session.dataset.sequences.rows(Role.TEST)
    targets = session.dataset.sequences.items[positions]
    assert torch.equal(ranks["cold/test"].bool(), session.dataset.catalog.cold[targets])
    for kind in ("raw", "excluded"):
        hits = (ranks[f"test/{kind}"] < 10).float().mean()
        assert metrics["test"]["baseline"][kind]["recall@10"] == pytest.approx(float(hits), abs=1e-6)
    assert {"config.yaml", "command.txt", "versions.json"} <= {path.name for path in folder.iterdir()}


def whole(scored: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the shares of short lists, of which there are none."""
    for values in scored.values():
        assert [values.pop(name) for name in list(values) if name.startswith("short@")] == [0]
    return scored


@pytest.mark.parametrize("name", ["most_popular", "repeat_last", "item_knn"])
def test_a_reference_line_is_the_same_as_a_run_of_its_own(tmp_path: Path, name: str) -> None:
    config = small_config(tmp_path, "stages=[baseline]", f"baseline.name={name}")
    metrics = read(fit(config))
    for split in ("valid", "test"):
        assert whole(metrics[split]["baseline"]) == metrics[split][name]


def test_cut_offs_above_the_number_of_items_are_left_out_for_reference_lines_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read(fit(small_config(tmp_path, "stages=[baseline]", "baseline.name=item_knn", "evaluate.k=[10,61]")))
    assert whole(metrics["test"]["baseline"]) == metrics["test"]["item_knn"]
    assert not [name for name in metrics["test"]["item_knn"]["raw"] if name.endswith("@61")]
    assert "@61" not in capsys.readouterr().out


@pytest.mark.parametrize("name", list(QUICK))
def test_evaluating_a_run_repeats_its_metrics(finished: dict[str, Path], name: str) -> None:
    folder = finished[name]
    assert evaluate_run(folder, split="test", overrides=[])[folder.name] == read(folder)["test"]["baseline"]


@pytest.mark.parametrize("name", list(QUICK))
def test_recommendations_keep_to_what_is_allowed(finished: dict[str, Path], name: str) -> None:
    recommender = load_recommender(finished[name])[1]
    catalog = recommender.problem.dataset.catalog
    histories = [[catalog.item_ids[row] for row in history] for history in ([3, 7], [5])]
    stock = [catalog.item_ids[row] for row in range(0, 60, 3)]
    whole = answer(recommender, histories, 60)
    some = answer(recommender, histories, 5, exclude_seen=True, only=range(0, 60, 3))
    for found, every, history in zip(some, whole, histories, strict=True):
        wanted = [item for item, _, _ in every.items if item in stock and item not in history][:5]
        assert [item for item, _, _ in found.items] == wanted
        assert found.thinking is None
    assert all(
        catalog.cold[catalog.row(item)]
        for found in answer(recommender, histories, 3, cold=True)
        for item, *_ in found.items
    )


@pytest.mark.parametrize("name", ["item_knn", "sasrec"])
def test_allowing_nothing_is_an_error(finished: dict[str, Path], name: str) -> None:
    cold = load_run(finished[name]).dataset.catalog
    warm = cold.item_ids[int((~cold.cold).nonzero()[0])]
    with pytest.raises(DataError, match="no item may be recommended"):
        recommend(finished[name], [[warm]], 5, cold=True, only=[warm])


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(finished: dict[str, Path], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    whole = finished["sasrec"]
    config = config_of(tmp_path, "sasrec")
    from genrl.training import baseline

    step = baseline.BaselineModule.training_step

    def training_step(module: baseline.BaselineModule, batch: object, index: int) -> torch.Tensor:
        if module.global_step == module.batches.steps_per_epoch + 2:
            raise Killed
        return step(module, batch, index)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline.BaselineModule, "training_step", training_step)
        with pytest.raises(Killed):
            fit(config)
    with pytest.raises(ConfigError, match="Add --resume"):
        fit(config)
    resumed = fit(config, resume=True)
    assert (resumed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert read(resumed)["test"] == read(whole)["test"]
    (resumed / "metrics.json").unlink()  # it ended when all else was written already
    fit(config, resume=True)
    assert read(resumed)["test"] == read(whole)["test"]


def test_seeds_differ(finished: dict[str, Path], tmp_path: Path) -> None:
    first, other = finished["sasrec"], fit(config_of(tmp_path, "sasrec", "seed=1"))
    assert (first / "weights.safetensors").read_bytes() != (other / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("name", LEARNING)
def test_weights_of_another_model_are_named(finished: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "toy" / finished[name].name
    shutil.copytree(finished[name], folder)
    weights = load_file(folder / "weights.safetensors")
    wrong = {key: torch.zeros(2) if place == 0 else value for place, (key, value) in enumerate(weights.items())}
    save_file(wrong, folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        load_run(resealed(folder))


@pytest.mark.parametrize("name", ["most_popular", "item_knn"])
def test_a_reference_line_is_the_same_as_a_run_where_items_share_sids(tmp_path: Path, name: str) -> None:
    shared = ("sid.codes=2", "sid.collisions=keep", "evaluate.level=sid")
    metrics = read(fit(small_config(tmp_path, "stages=[baseline]", f"baseline.name={name}", *shared)))
    assert whole(metrics["test"]["baseline"]) == metrics["test"][name]


def test_rankings_are_wide_enough_for_as_many_sids_as_are_scored(tmp_path: Path) -> None:
    shared = ("sid.codes=2", "sid.collisions=keep", "evaluate.level=sid", "evaluate.k=[2]")
    session = Session.build(config_of(tmp_path, "sasrec", *shared))
    (batch, *_) = session.batches("test")
    for ranking in session.recommender.rankings(batch, session.config.evaluate).values():
        for items in ranking.items:
            assert len(session.table.codes[items[items >= 0]].unique(dim=0)) >= 2


@pytest.mark.parametrize("name", list(QUICK))
def test_every_baseline_gives_exact_lists_and_its_final_tables_are_exact(finished: dict[str, Path], name: str) -> None:
    recommender = load_recommender(finished[name])[1]
    (exact,), (whole,) = (answer(recommender, [["i3"]], top, exact=True) for top in (3, 60))
    assert [item for item, *_ in exact.items] == [item for item, *_ in whole.items[:3]]
    scored = read(finished[name])["test"]["baseline"]
    searched = name in ("tiger", "lc_rec")  # the others score every item
    for kind in ("raw", "excluded"):
        told = [value for metric, value in scored[kind].items() if metric.startswith("certified@")]
        assert told == ([1.0] if searched else [])


def test_the_trainer_s_options_reach_the_backbone(tmp_path: Path) -> None:
    config = config_of(tmp_path, "lc_rec", "trainer.checkpointing=true", "trainer.branching=naive")
    session = Session.build(config)
    assert isinstance(session.recommender, LCRec)
    session.recommender.train()
    assert session.recommender.policy.checkpointing
    assert session.recommender.policy.branching == "naive"


@pytest.mark.parametrize("name", LEARNING)
def test_mixed_precision_trains_validates_and_scores(tmp_path: Path, name: str) -> None:
    metrics = read(fit(config_of(tmp_path, name, "baseline.max_epochs=1", "trainer.precision=bf16-mixed")))
    assert 0 <= metrics["test"]["baseline"]["raw"]["recall@10"] <= 1


@pytest.mark.parametrize(
    ("model", "asked", "wanted"),
    [("tiny", "auto", "muon"), ("item", "auto", "adamw"), ("models/some", "auto", "adamw"), ("item", "muon", "muon")],
)
def test_the_optimiser_is_muon_for_a_language_model_from_scratch_and_where_it_is_asked_for(model, asked, wanted):
    assert tuned(AlignConfig(optimizer=asked), ModelConfig(name=model)).optimizer == wanted
