import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl import manifest
from genrl.cli import main
from genrl.config import RunConfig
from genrl.errors import CheckpointError, ConfigError, DataError
from genrl.files import save_weights
from genrl.policy.model import Policy
from genrl.recommenders.policy import PolicyRecommender
from genrl.registry import load_plugin
from genrl.runs.fit import build_sids, fit
from genrl.runs.recommend import recommend
from genrl.runs.rescore import evaluate_run
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, make_verifier
from genrl.training import callbacks
from genrl.training.checkpoints import points
from tests.helpers import assert_same
from tests.models import save_local_model
from tests.runs import QUICK, changed, content, small, small_config

OWN_LAYOUT = """
from genrl.layouts import LAYOUTS
from genrl.layouts.sid import SidLayout, SidLayoutConfig

LAYOUTS.register("own", config=SidLayoutConfig)(type("OwnLayout", (SidLayout,), {"__module__": __name__}))
"""

FEW = (*QUICK, "data.toy.users=20")


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return small_config(folder.parents[1], *QUICK, *overrides)


def unfinished(folder: Path) -> Path:
    """Make a finished run look as if it had been killed behind its last checkpoint."""
    (folder / "metrics.json").unlink()
    (folder / "ranks.safetensors").unlink()
    return folder


def test_a_finished_run_is_shown_and_left_as_it_is(copied, capsys):
    before = content(copied.parent)
    assert fit(config_of(copied)) == copied
    shown = " ".join(capsys.readouterr().out.split())
    assert "is finished already" in shown
    assert "rl (grpo)" in shown
    assert content(copied.parent) == before


def test_a_stage_that_was_scored_before_is_loaded_only_for_what_comes_of_it(copied, monkeypatch):
    made: list[Path | None] = []
    make = PolicyRecommender.make

    def noted(recommender: PolicyRecommender, start: Path | None = None) -> Policy:
        made.append(start)
        return make(recommender, start)

    monkeypatch.setattr(PolicyRecommender, "make", noted)
    (align,) = copied.parent.glob("align-*")
    fit(config_of(copied, "name=again"))
    assert made == [align / "weights.safetensors"]
    alone = fit(config_of(copied, "name=alone", "stages=[align]"))
    kept, learnt = (load_file(folder / "weights.safetensors") for folder in (alone, align))
    assert kept.keys() == learnt.keys()
    for name, value in learnt.items():
        assert_same(kept[name], value, 0.0)


def test_another_configuration_is_refused_by_name_and_nothing_is_overwritten(copied):
    before = content(copied.parent)
    options = ("rl.max_steps=3", "objective.clip_low=0.1", "rewards.format.weight=0.1", "name=grpo")
    changes = r"name, objective.clip_low, rewards.format.weight, rl.max_steps"
    with pytest.raises(ConfigError, match=rf"holds another configuration; it differs in {changes}. Nothing was"):
        fit(config_of(copied, *options), resume=True)
    assert content(copied.parent) == before


def test_options_that_change_no_number_may_differ(copied):
    config = config_of(copied, "trainer.threads=1", "trainer.log_every=7", "trainer.strategy=ddp")
    assert fit(config) == copied
    moved = copied.parents[1] / "moved"
    shutil.move(copied.parent, moved / "toy")
    assert fit(replace(config, output=str(moved))) == moved / "toy" / copied.name


def test_an_unfinished_run_asks_for_resume(copied):
    unfinished(copied)
    before = content(copied.parent)
    with pytest.raises(ConfigError, match=r"unfinished run of this configuration. Add --resume"):
        fit(config_of(copied))
    assert content(copied.parent) == before


def test_resuming_behind_the_last_step_gives_the_same_metrics(copied, finished):
    unfinished(copied)
    assert fit(config_of(copied), resume=True) == copied
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, copied))
    for part in ("valid", "test", "differences"):
        assert one[part] == two[part]
    assert (copied / "weights.safetensors").read_bytes() == (finished / "weights.safetensors").read_bytes()


def test_what_is_wrong_with_the_data_leaves_no_run_folder(tmp_path):
    table = tmp_path / "actions.csv"
    table.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n % 5},{n}\n" for n in range(99)))
    files = ["data.source=files", f"data.interactions={table}"]
    with pytest.raises(DataError, match="no column 'who'"):
        fit(small_config(tmp_path / "runs", *files, "data.columns.user=who"))
    assert not (tmp_path / "runs").exists()


def test_pools_without_any_target_are_refused_before_anything_is_trained(tmp_path):
    pool = ("data.pool.size=1", "data.pool.target=false", "data.pool.neighbours=0", "data.pool.popular=0")
    with pytest.raises(DataError, match="none of 2 candidate pools holds its target"):
        fit(small_config(tmp_path, *QUICK, *pool, "evaluate.valid_users=2", "evaluate.k=[1]"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith((".", "sid-"))]


def test_a_corrected_command_is_not_held_against_the_wrong_one(tmp_path):
    with pytest.raises(ConfigError, match="60 distinct SIDs"):
        fit(small_config(tmp_path, *QUICK, "rollout.method=beam", "rollout.group_size=61"))
    assert (fit(small_config(tmp_path, *QUICK, "stages=[align]")) / "metrics.json").is_file()


def test_a_run_without_rl_asks_nothing_of_objective_and_rollout(tmp_path):
    options = (
        "stages=[align]",
        "rollout.group_size=1",
        "rollout.prompts=999",
        "align.max_epochs=1",
        "data.toy.users=20",
    )
    folder = fit(small_config(tmp_path, "objective=grpo", *options))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["align"]
    assert "rl" not in metrics["test"]
    assert evaluate_run(folder, split="test", overrides=[])[folder.name] == metrics["test"]["align"]


def test_an_objective_object_takes_the_place_of_the_configured_one(tmp_path):
    config = small_config(tmp_path, *FEW)
    objective = build_objective(replace(config, objective={**config.objective, "kl_coef": 0.5, "entropy_coef": 0.1}))
    calls = []
    original = objective.loss
    objective.loss = lambda *arguments: calls.append(1) or original(*arguments)
    fit(config, objective=objective)
    assert len(calls) == 2


def test_the_verifier_holds_the_rewards_of_the_configuration(session, tmp_path):
    config = changed(session, tmp_path, "rewards.exact_match.weight=2", "rewards.prefix_match.weight=0")
    verifier = make_verifier(config, build_objective(config.config))
    assert verifier.weights == {"exact_match": 2.0, "level_match": 1.0, "prefix_match": 0.0}
    assert verifier.step_names == ("level_match",)
    report = replace(config.table.report, distinct=config.table.report.built + 1)
    crowded = replace(config, table=replace(config.table, report=report))
    contexts = [make_verifier(each, build_objective(each.config)).context for each in (config, crowded)]
    assert [context.collision_level for context in contexts] == [False, True]


@pytest.mark.parametrize(
    ("stage", "spoil"),
    [
        ("align", lambda data: data[: len(data) // 2]),
        *(
            ("rl", spoil)
            for spoil in (lambda data: data[:-9], lambda _: b"", lambda data: bytes([data[0] ^ 1]) + data[1:])
        ),
    ],
)
def test_a_damaged_resume_point_is_told_and_passed_over(copied, stage, spoil):
    folder = unfinished(copied)
    if stage == "align":
        (folder,) = copied.parent.glob("align-*")
        (folder / "metrics.json").unlink()
    (path,) = points(folder)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{path.name} does not hold what was written into it.* starting the stage"):
        assert fit(config_of(copied), resume=True) == copied


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[::-1])])
def test_best_weights_that_were_damaged_while_the_run_lay_idle_are_told(copied, spoil):
    spoil(unfinished(copied) / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing or does not hold .* Remove the resume-"):
        fit(config_of(copied), resume=True)
    for path in points(copied):
        path.unlink()  # as the message says
    assert fit(config_of(copied), resume=True) == copied


def test_a_run_folder_with_links_is_refused_and_what_they_point_to_stays(copied, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    for folder in (unfinished(copied), *copied.parent.glob("align-*")):
        (folder / "history.jsonl").unlink()
        (folder / "history.jsonl").symlink_to(theirs)
        with pytest.raises(CheckpointError, match=rf"{folder.name} holds links.*: history.jsonl"):
            fit(config_of(copied), resume=True)
        (folder / "history.jsonl").unlink()
    assert theirs.read_text() == "precious"


def test_the_resume_point_of_another_model_is_named(copied, tmp_path):
    other = fit(small_config(tmp_path / "wide", *FEW, "model.hidden=32", "stages=[rl]"))
    folder, (point, *_) = unfinished(copied), points(other)
    for path in points(folder):
        path.unlink()
    shutil.copy(point, folder)
    with pytest.raises(CheckpointError, match=r"ckpt is of another model or version"):
        fit(config_of(copied), resume=True)


def test_damaged_weights_of_a_shared_stage_are_named(copied):
    (align,) = copied.parent.glob("align-*")
    path = align / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"align-\w+ is damaged: weights.safetensors has another content"):
        fit(replace(config_of(copied), seed=1))


def test_a_damaged_configuration_or_result_is_named(copied):
    (copied / "metrics.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"grpo-s0 is damaged: metrics.json has another content"):
        fit(config_of(copied))
    (copied / "config.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match=r"config.yaml is damaged"):
        fit(config_of(copied))


def test_sids_are_built_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "build", None)
    table = build_sids(small_config(tmp_path))
    assert len(table) == 60
    assert [path.name for path in (tmp_path / "toy").glob("sid-*")]


def test_adapters_are_not_put_on_an_exchanged_base(tmp_path):
    base = save_local_model(tmp_path / "base")
    tiny = ("align.text_tasks=off", "data.max_history=10", "stages=[align]", "model.lora.rank=2")
    config = small_config(tmp_path / "runs", *FEW, f"model.name={base}", *tiny)
    folder, before = fit(config), Session.build(config).align_key()
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    for use in (lambda: evaluate_run(folder, split="test", overrides=[]), lambda: recommend(folder, [["i3"]], 5)):
        with pytest.raises(
            CheckpointError, match=r"made with other inputs: model\.name \(.*base\) has another content"
        ):
            use()
    with pytest.raises(ConfigError, match=r"was begun when model\.name \(.*base\) had another content"):
        fit(config)
    assert Session.build(config).align_key() != before  # so that its align stage is not reused


def test_a_finished_run_keeps_the_plug_in_that_it_was_made_with(tmp_path):
    plugin = tmp_path / "own_layout.py"
    plugin.write_text(OWN_LAYOUT)
    load_plugin(str(plugin))
    config = small_config(tmp_path / "runs", *FEW, "stages=[align]", f"plugins=[{plugin}]", "layout=own")
    folder, before = fit(config), Session.build(config).align_key()
    results = evaluate_run(folder, split="test", overrides=[])
    plugin.write_text("raise SystemError\n")
    assert evaluate_run(folder, split="test", overrides=[]) == results
    assert recommend(folder, [["i3"]], 5)[0].items
    assert Session.build(config).align_key() != before
    with pytest.raises(ConfigError, match=r"was begun when plugins .*own_layout\.py .* had another content"):
        fit(config)


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")


def read_only(path: Path, *arguments: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def removed(state: object, path: Path, metadata: object = None) -> None:
    shutil.rmtree(path.parent)
    save_weights(state, path, metadata)


def full_in_torch(*arguments: object, **options: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3")


@pytest.mark.parametrize(
    ("owner", "name", "error", "said"),
    [
        (callbacks, "save_weights", full, "the disk is full while writing some/file"),
        (torch, "save", full_in_torch, "the disk is full"),
        (manifest, "write_json", read_only, "manifest.json cannot be written to (Permission denied)"),
        (callbacks, "save_weights", removed, "was removed or moved while the run was at work"),
    ],
)
def test_what_cannot_be_written_is_explained_and_the_run_can_go_on(
    copied, tmp_path, monkeypatch, capsys, owner, name, error, said
):
    command = ["fit", *small(tmp_path, *QUICK, "rl.max_steps=1", "name=full")]  # beside a finished run, its alignment
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, error)
        assert main(command) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("genrl: ") == 1
    assert "Traceback" not in shown
    assert not (copied.with_name("full-s0") / "metrics.json").exists()
    assert main([*command, "--resume"]) == 0
    assert {path.name for path in tmp_path.rglob(".*")} <= {".lock"}  # no half-written file is left
