from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from genrl.config import RunConfig, load_config, run_folder
from genrl.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from genrl.training import outcome
from genrl.training.callbacks import save_weights
from genrl.training.claim import claim
from genrl.training.contract import decoding
from genrl.training.run import (
    build_objective,
    build_sids,
    evaluate_run,
    fit,
    load_run,
    make_verifier,
    recommend,
    recommend_with_thinking,
)
from genrl.training.session import Session
from tests.helpers import assert_same
from tests.runs import changed, small_config

QUICK = ("align.max_epochs=1", "rl.max_steps=2", "objective=grpo")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(small_config(tmp_path_factory.mktemp("runs"), *QUICK), command="genrl fit")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run and its experiment that a test may spoil."""
    shutil.copytree(finished.parent, tmp_path / "toy")
    return tmp_path / "toy" / finished.name


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return small_config(folder.parents[1], *QUICK, *overrides)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unfinished(folder: Path) -> Path:
    """Make a finished run look as if it had been killed behind its last checkpoint."""
    (folder / "metrics.json").unlink()
    (folder / "ranks.safetensors").unlink()
    return folder


def test_a_finished_run_is_shown_and_left_as_it_is(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(copied.parent)
    assert fit(config_of(copied)) == copied
    shown = " ".join(capsys.readouterr().out.split())
    assert "is finished already" in shown
    assert "rl (grpo)" in shown
    assert content(copied.parent) == before


def test_another_configuration_is_refused_by_name_and_nothing_is_overwritten(copied: Path) -> None:
    before = content(copied.parent)
    options = ("rl.max_steps=3", "objective.clip_low=0.1", "rewards.format.weight=0.1", "name=grpo")
    changes = r"name, objective.clip_low, rewards.format.weight, rl.max_steps"
    with pytest.raises(ConfigError, match=rf"holds another configuration; it differs in {changes}. Nothing was"):
        fit(config_of(copied, *options), resume=True)
    assert content(copied.parent) == before


def test_options_that_change_no_number_may_differ(copied: Path) -> None:
    config = config_of(copied, "trainer.threads=1", "trainer.log_every=7")
    assert fit(config) == copied
    moved = copied.parents[1] / "moved"
    shutil.move(copied.parent, moved / "toy")
    assert fit(replace(config, output=str(moved))) == moved / "toy" / copied.name


def test_an_unfinished_run_asks_for_resume(copied: Path) -> None:
    unfinished(copied)
    before = content(copied.parent)
    with pytest.raises(ConfigError, match=r"unfinished run of this configuration. Add --resume"):
        fit(config_of(copied))
    assert content(copied.parent) == before


def test_resuming_behind_the_last_step_gives_the_same_metrics(copied: Path, finished: Path) -> None:
    unfinished(copied)
    assert fit(config_of(copied), resume=True) == copied
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, copied))
    for part in ("valid", "test", "difference"):
        assert one[part] == two[part]
    assert (copied / "weights.safetensors").read_bytes() == (finished / "weights.safetensors").read_bytes()


def test_what_is_wrong_with_the_data_leaves_no_run_folder(tmp_path: Path) -> None:
    table = tmp_path / "actions.csv"
    table.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n % 5},{n}\n" for n in range(99)))
    files = ["data.source=files", f"data.interactions={table}"]
    with pytest.raises(DataError, match="no column 'who'"):
        fit(small_config(tmp_path / "runs", *files, "data.columns.user=who"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.prompts=81"], "rollout.prompts=81, but the data set has only 80 RL prompts"),
        (["rollout.method=beam", "rollout.group_size=61"], "the catalogue has 60 distinct SIDs"),
        (["rewards.level_match=null"], "objective 'sapo' needs a match per step"),
        (["rollout.group_size=1"], "needs several completions per prompt"),
    ],
)
def test_what_is_wrong_with_rl_is_said_before_anything_is_trained(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(small_config(tmp_path, "objective=sapo", *overrides))
    assert [path.name.partition("-")[0] for path in (tmp_path / "toy").iterdir()] in (
        [".lock", "sid"],
        ["sid", ".lock"],
    )


def test_a_corrected_command_is_not_held_against_the_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="60 distinct SIDs"):
        fit(small_config(tmp_path, *QUICK, "rollout.method=beam", "rollout.group_size=61"))
    assert (fit(small_config(tmp_path, *QUICK, "stages=[align]")) / "metrics.json").is_file()


def test_a_run_without_rl_asks_nothing_of_objective_and_rollout(tmp_path: Path) -> None:
    options = ("stages=[align]", "rollout.group_size=1", "rollout.prompts=999", "align.max_epochs=1")
    folder = fit(small_config(tmp_path, "objective=grpo", *options))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["align"]
    assert "rl" not in metrics["test"]
    assert evaluate_run(folder, split="test", overrides=[])[folder.name] == metrics["test"]["align"]


def test_an_objective_object_takes_the_place_of_the_configured_one(tmp_path: Path) -> None:
    config = small_config(tmp_path, *QUICK)
    objective = build_objective(replace(config, objective={**config.objective, "kl_coef": 0.5, "entropy_coef": 0.1}))
    calls = []
    original = objective.loss
    objective.loss = lambda *arguments: calls.append(1) or original(*arguments)  # type: ignore[method-assign]
    fit(config, objective=objective)
    assert len(calls) == 2


def test_the_verifier_holds_the_rewards_of_the_configuration(session: Session, tmp_path: Path) -> None:
    config = changed(session, tmp_path, "rewards.exact_match.weight=2", "rewards.prefix_match.weight=0")
    verifier = make_verifier(config, build_objective(config.config))
    assert verifier.weights == {"exact_match": 2.0, "level_match": 1.0, "prefix_match": 0.0}
    assert verifier.step_names == ("level_match",)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:100], lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"\x00" * 500],
    ids=["head", "half", "empty", "zeros"],
)
@pytest.mark.parametrize("stage", ["align", "rl"])
def test_a_damaged_resume_point_is_named(copied: Path, stage: str, spoil: object) -> None:
    folder = unfinished(copied)
    if stage == "align":
        (folder,) = copied.parent.glob("align-*")
        (folder / "metrics.json").unlink()
    path = folder / "last.ckpt"
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"last.ckpt is truncated, damaged or of another version"):
        fit(config_of(copied), resume=True)
    assert path.read_bytes() == before


def test_the_resume_point_of_another_model_is_named(copied: Path, tmp_path: Path) -> None:
    other = fit(small_config(tmp_path / "wide", *QUICK, "model.hidden=32"))
    shutil.copy(other / "last.ckpt", unfinished(copied) / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last.ckpt is truncated, damaged or of another version"):
        fit(config_of(copied), resume=True)


@pytest.mark.parametrize("spoil", [lambda data: data[:-40], lambda data: data[:6], lambda data: b""])
def test_damaged_weights_are_named(copied: Path, spoil: object) -> None:
    path = copied / "weights.safetensors"
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"weights.safetensors is truncated or damaged"):
        load_run(copied)
    (align,) = copied.parent.glob("align-*")
    shutil.copy(path, align / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"align-.*weights.safetensors is truncated or damaged"):
        fit(replace(config_of(copied), seed=1))


def test_weights_of_another_model_are_named(copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(2)}, copied / "weights.safetensors")
    with pytest.raises(CheckpointError, match="belong to another model: 1 of another shape"):
        load_run(copied)


def test_a_damaged_configuration_or_result_is_named(copied: Path) -> None:
    (copied / "metrics.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"metrics.json is damaged"):
        fit(config_of(copied))
    (copied / "config.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match=r"config.yaml is damaged"):
        fit(config_of(copied))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        load_run(tmp_path)


def test_a_run_is_rebuilt_with_its_trained_weights(finished: Path) -> None:
    session = load_run(finished)
    saved = load_file(finished / "weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in session.policy.state().items())


def test_a_run_can_be_moved_and_read_from_anywhere(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OmegaConf.load(copied / "config.yaml")
    config.output = "runs"  # relative, as the default is
    OmegaConf.save(config, copied / "config.yaml")
    (copied / "weights.safetensors").unlink()
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["stages"]["align"]["folder"] = "runs/toy/" + Path(metrics["stages"]["align"]["folder"]).name
    (copied / "metrics.json").write_text(json.dumps(metrics))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    session = load_run(copied)
    assert run_folder(session.config) == copied
    (align,) = copied.parent.glob("align-*")
    saved = load_file(align / "weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in session.policy.state().items())
    assert not list(elsewhere.iterdir())
    assert len(list(copied.parent.glob("sid-*"))) == 1


def test_evaluating_a_run_repeats_its_metrics_and_writes_nothing_into_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_recommendations_are_the_top_of_the_ranking(finished: Path) -> None:
    session = load_run(finished)
    catalog = session.dataset.catalog
    rows = [[3, 7], [5]]
    by_id = recommend(finished, [[catalog.item_ids[row] for row in history] for history in rows], 60)
    by_title = recommend(finished, [[catalog.titles[row] for row in history] for history in rows], 60)
    assert by_id == by_title
    assert [len(items) for items in by_id] == [60, 60]
    for items in by_id:
        scores = torch.tensor([score for _, _, score in items])
        assert bool((scores.diff() <= 0).all())
        assert_same(scores.exp().sum(), torch.tensor(1.0))
        assert all(catalog.titles[catalog.row(item)] == title for item, title, _ in items)
    fresh = recommend(finished, [[catalog.item_ids[row] for row in history] for history in rows], 5, exclude_seen=True)
    for items, whole, history in zip(fresh, by_id, rows, strict=True):
        seen = {catalog.item_ids[row] for row in history}
        wanted = [item for item, _, _ in whole if item not in seen][:5]
        assert [item for item, _, _ in items] == wanted


def test_recommendations_among_some_items_are_those_of_the_whole_ranking(finished: Path, tmp_path: Path) -> None:
    catalog = load_run(finished).dataset.catalog
    histories = [[catalog.item_ids[row] for row in history] for history in ([3, 7], [5])]
    whole = recommend(finished, histories, 60)
    stock = [catalog.item_ids[row] for row in range(0, 60, 3)]
    for allowed, options in (
        (set(stock), {"only": stock}),
        ({catalog.item_ids[row] for row in catalog.cold.nonzero()[:, 0].tolist()}, {"cold": True}),
    ):
        for exact in (False, True):
            found = recommend(finished, histories, 10, exclude_seen=True, exact=exact, **options)
            for items, everything, history in zip(found, whole, histories, strict=True):
                wanted = [entry for entry in everything if entry[0] in allowed - set(history)][:10]
                assert [item for item, _, _ in items] == [item for item, _, _ in wanted]
                scores = [torch.tensor([score for _, _, score in some]) for some in (items, wanted)]
                assert_same(scores[0], scores[1])
    with pytest.raises(DataError, match=r"has no item left|keeps no item"):
        recommend(finished, [[catalog.item_ids[3]]], 5, exclude_seen=True, only=[catalog.item_ids[3]])


def test_an_unknown_item_of_a_history_is_named(finished: Path) -> None:
    with pytest.raises(DataError, match="'i99'"):
        recommend(finished, [["i3", "i99"]], 5)


@pytest.fixture(scope="module")
def reasoned(thinking: Session) -> Path:
    """A run folder of a policy that thinks."""
    folder = run_folder(thinking.config)
    folder.mkdir()
    claim(folder, thinking.config, "genrl fit")
    contract = decoding(thinking.policy, thinking.layout, thinking.config.evaluate)
    metadata = {"decoding": json.dumps(contract)}
    save_weights(thinking.policy.state(), folder / "weights.safetensors", metadata)
    return folder


def test_thinking_is_shown_beside_the_items(reasoned: Path, thinking: Session) -> None:
    catalog = thinking.dataset.catalog
    names = [[catalog.item_ids[row] for row in history] for history in ([3, 7], [5])]
    items = recommend(reasoned, names, 5, exclude_seen=True)
    shown, blocks = recommend_with_thinking(reasoned, names, 5, exclude_seen=True)
    assert shown == items
    assert [len(found) for found in items] == [5, 5]
    assert [len(texts) for texts in blocks] == [thinking.table.levels] * 2
    assert all(text for texts in blocks for text in texts)
    assert "think" not in "".join(text for texts in blocks for text in texts)


def test_thinking_cannot_be_shown_where_there_is_none(finished: Path) -> None:
    with pytest.raises(UnsupportedError, match="writes no thinking"):
        recommend_with_thinking(finished, [["i3"]], 5)


def test_a_run_that_was_only_aligned_does_not_think(reasoned: Path, thinking: Session) -> None:
    config = replace(thinking.config, name="aligned", stages=["align"])
    folder, align = run_folder(config), reasoned.parent / "align-0"
    for made in (folder, align):
        made.mkdir()
    claim(folder, config, "genrl fit")
    contract = decoding(thinking.policy, thinking.layout.items, config.evaluate)
    save_weights(thinking.policy.state(), align / "weights.safetensors", {"decoding": json.dumps(contract)})
    (folder / "metrics.json").write_text(json.dumps({"stages": {"align": {"folder": str(align)}}}))
    found = load_run(folder)
    assert isinstance(found, Session)
    assert not found.layout.thinking
    with pytest.raises(UnsupportedError, match="writes no thinking"):
        recommend_with_thinking(folder, [["i3"]], 5)


def test_another_layout_is_refused_and_another_search_is_told(
    reasoned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_sids_are_built_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "build", None)
    table = build_sids(small_config(tmp_path))
    assert len(table) == 60
    assert [path.name for path in (tmp_path / "toy").glob("sid-*")]


def test_reference_lines_are_computed_once_per_experiment(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "reference_lines", None)
    folder = fit(config_of(copied, "seed=1"))
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (copied, folder))
    assert one["test"]["most_popular"] == two["test"]["most_popular"]


def test_the_saved_configuration_is_the_whole_one(finished: Path) -> None:
    assert load_config([finished / "config.yaml"]).rl.max_steps == 2
    assert "seed: 0" in (finished / "config.yaml").read_text()
