import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from genrl.compare.finished import Finished
from genrl.errors import CheckpointError, ConfigError
from genrl.metrics.functional import ndcg_at_k
from genrl.runs import rescore as module
from genrl.runs.fit import fit
from genrl.runs.rescore import evaluate_run, rescore
from tests.helpers import assert_same
from tests.runs import QUICK, content, small_config


def test_without_other_options_the_record_is_the_runs_own(copied):
    before = content(copied.parent)
    record = rescore(copied, ["evaluate.test_users=null"])
    assert record.folder == copied
    assert record.metrics == json.loads((copied / "metrics.json").read_text())
    assert content(copied.parent) == before


def test_a_run_is_scored_again_with_its_stages_and_the_lines_beside_it(copied, monkeypatch):
    own = {name: (copied / name).read_bytes() for name in ("metrics.json", "ranks.safetensors", "config.yaml")}
    record = rescore(copied, ["evaluate.k=[3]", "evaluate.test_users=30"])
    assert record.config.evaluate.k == [3]
    assert record.folder.parent == copied
    before = json.loads(own["metrics.json"])
    assert record.metrics.keys() == before.keys()
    assert record.metrics["test"].keys() == before["test"].keys()
    ranks = load_file(record.folder / "ranks.safetensors")["test/raw"]
    assert ranks.numel() == 30
    assert_same(record.metrics["test"]["rl"]["raw"]["ndcg@3"], float(ndcg_at_k(ranks[:, None], 3).mean()), 1e-6)
    place = Path(record.metrics["stages"]["align"]["evaluation"])
    assert place.parent == next(copied.parent.glob("align-*"))
    shared = load_file(place / "ranks.safetensors")["test/excluded"]
    assert_same(
        record.metrics["test"]["align"]["excluded"]["ndcg@3"], float(ndcg_at_k(shared[:, None], 3).mean()), 1e-6
    )
    gain = ndcg_at_k(ranks[:, None], 3) - ndcg_at_k(load_file(place / "ranks.safetensors")["test/raw"][:, None], 3)
    assert_same(record.metrics["differences"]["rl"]["raw"]["ndcg@3"][0], float(gain.mean()), 1e-6)
    assert {name: (copied / name).read_bytes() for name in own} == own
    monkeypatch.setattr(module, "load_run", None)  # what was scored is not scored again
    assert rescore(copied, ["evaluate.k=[3]", "evaluate.test_users=30"]).metrics == record.metrics


def test_a_run_that_cannot_be_written_to_is_scored_again_elsewhere(copied, read_only):
    before, options = content(copied.parent), ["evaluate.k=[3]"]
    read_only(copied.parent)
    with pytest.warns(UserWarning, match=f"scores are not kept: {copied.parent}.*: Read-only file system"):
        record = rescore(copied, options)
    stage = Path(record.metrics["stages"]["align"]["evaluation"])
    assert stage.parents[1] == record.folder.parents[1] != copied.parent
    assert rescore(copied, options) == record  # kept while the process lives
    assert Finished.read(copied, options).shared == {"align": stage}
    assert Finished.read(copied).shared["align"].parent.parent == copied.parent
    assert content(copied.parent) == before


def test_only_options_of_evaluation_may_change(copied):
    with pytest.raises(ConfigError, match=r"rl\.max_steps=3: a finished run is scored again with options of section"):
        rescore(copied, ["rl.max_steps=3"])


def test_a_stage_of_a_run_is_scored_by_its_name_or_its_folder(copied):
    wanted = json.loads((copied / "metrics.json").read_text())["test"]
    both = evaluate_run(copied, split="test", overrides=[], stages=["align", "rl"])
    assert both["align"] == wanted["align"]
    assert both["rl"] == wanted["rl"]
    (folder,) = copied.parent.glob("align-*")
    assert evaluate_run(folder, split="test", overrides=[])["align"] == wanted["align"]
    again = evaluate_run(folder, split="test", overrides=["evaluate.test_users=7"])
    assert again["align"]["raw"]["rows"] == 7


def test_a_stage_that_is_not_there_is_named(copied):
    with pytest.raises(ConfigError, match=r"has no stage activate\. Its stages: align, rl"):
        evaluate_run(copied, split="test", overrides=[], stages=["activate"])
    (folder,) = copied.parent.glob("align-*")
    alone = copied.parent.parent / "elsewhere" / folder.name
    shutil.copytree(folder, alone)
    with pytest.raises(CheckpointError, match="no finished run beside it has used them"):
        evaluate_run(alone, split="test", overrides=[])
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="the weights of stage align that grpo-s0 began with"):
        rescore(copied, ["evaluate.k=[3]"])


@pytest.mark.filterwarnings("ignore:stage activate")  # which learns next to nothing here
def test_a_stage_is_scored_with_the_layout_that_it_has_learnt(tmp_path):
    options = ("layout=blocked", "layout.budget=3", "data.max_history=8", "evaluate.beam=10", "data.toy.users=12")
    run = fit(small_config(tmp_path, *QUICK, *options, "stages=[align,activate]", "activate.examples=64"))
    wanted = json.loads((run / "metrics.json").read_text())["test"]
    found = evaluate_run(run, split="test", overrides=[], stages=["align", "activate"])
    assert found["align"] == wanted["align"]
    assert found["activate"] == wanted["activate"]
    assert "format_failure" in found["activate"]["raw"]
    assert "format_failure" not in found["align"]["raw"]
