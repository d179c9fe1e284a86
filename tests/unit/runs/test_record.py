import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from genrl.config.schema import EvaluateConfig
from genrl.errors import CheckpointError, DataError
from genrl.runs import record
from genrl.runs.evaluate import Evaluation, evaluated_rows
from genrl.runs.record import Meter, references, save_ranks, versions, written
from tests.runs import small_config
from tests.unit.recommenders.problems import dataset_of

EMPTY = {"recall@10": 0.1234567, "cold_recall@10": float("nan")}


def test_ranks_are_kept_with_what_targets_are_cold(session, tmp_path):
    config = EvaluateConfig(valid_users=30)
    ranks = {"raw": torch.arange(30), "excluded": torch.arange(30).flip(0)}
    save_ranks(tmp_path, {"valid": Evaluation({}, {}, ranks)}, session.dataset, config)
    found = load_file(tmp_path / "ranks.safetensors")
    assert torch.equal(found["valid/raw"], ranks["raw"])
    assert torch.equal(found["valid/excluded"], ranks["excluded"])
    targets = session.dataset.sequences.items[evaluated_rows(session.dataset, config, "valid")]
    assert found["cold/valid"].tolist() == session.dataset.catalog.cold[targets].long().tolist()
    assert not list(tmp_path.glob(".*"))


def test_where_nothing_can_be_written_reference_lines_are_kept_in_memory(session, tmp_path, read_only):
    read_only(tmp_path)
    with pytest.warns(UserWarning, match=f"the reference lines are not kept: {tmp_path / 'toy'}: "):
        found = references(small_config(tmp_path), session.dataset, session.table.codes, "valid")
    assert list(found) == ["most_popular", "repeat_last", "item_knn"]


def test_a_folder_that_refuses_is_told_from_a_disk_that_is_full(session, tmp_path, monkeypatch):
    def refuse(folder):
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(record, "locked", refuse)
    monkeypatch.setattr(record, "_reference_lines", lambda *_: {"made": {}})
    asked = small_config(tmp_path), session.dataset, session.table.codes, "valid"
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        with pytest.warns(UserWarning, match=f"not kept: .*toy: {os.strerror(number)}"):
            assert references(*asked) == {"made": {}}
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        references(*asked)


def test_a_mean_over_no_rows_is_null():
    values = written(Evaluation(EMPTY, EMPTY, {}))
    assert json.loads(json.dumps(values))["raw"] == {"recall@10": 0.123457, "cold_recall@10": None}


def test_reference_lines_are_computed_once_and_again_for_other_rows(session, tmp_path):
    config = small_config(tmp_path)
    (tmp_path / "toy").mkdir()
    litter = tmp_path / "toy" / f".{2**30}.reference-valid-0.json"  # of a process that is no more
    litter.touch()
    lines = references(config, session.dataset, session.table.codes, "valid")
    (path,) = (tmp_path / "toy").glob("reference-valid-*.json")
    assert not litter.exists()
    path.write_text(json.dumps({"kept": {}}))
    assert references(config, session.dataset, session.table.codes, "valid") == {"kept": {}}
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"it holds no reference lines\. Remove it; it is made again"):
        references(config, session.dataset, session.table.codes, "valid")
    fewer = replace(config, evaluate=replace(config.evaluate, valid_users=10))
    found = references(fewer, session.dataset, session.table.codes, "valid")
    assert list(found) == list(lines) == ["most_popular", "repeat_last", "item_knn"]
    assert (found["item_knn"]["raw"]["rows"], lines["item_knn"]["raw"]["rows"]) == (10, 80)
    apart = replace(config, evaluate=replace(config.evaluate, ties=True))
    raw = references(apart, session.dataset, session.table.codes, "valid")["item_knn"]["raw"]
    assert (raw["untied_rows"], raw["tied_rows"], raw["tied_ndcg@10"]) == (80, 0, None)  # the toy has no ties
    assert raw["untied_ndcg@10"] == raw["ndcg@10"] == lines["item_knn"]["raw"]["ndcg@10"]


def test_a_split_without_rows_is_a_clear_error(tmp_path):
    dataset = dataset_of([[0, 1, 2]], ["tte"])
    with pytest.raises(DataError, match="the valid part has no rows"):
        references(small_config(tmp_path), dataset, torch.zeros(3, 1, dtype=torch.int64), "valid")


def test_versions_and_meter_tell_something():
    assert versions()["torch"] == torch.__version__
    meter = Meter()
    block = torch.ones(30_000_000)
    assert meter.read()["peak_mib"] > 100
    assert block.numel()
