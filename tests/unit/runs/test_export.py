import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrl.errors import CheckpointError, DataError, UnsupportedError
from genrl.runs import export as module
from genrl.runs.export import DECODING, SIDS, export
from genrl.runs.fit import fit
from genrl.runs.recommend import load_recommender
from tests.helpers import assert_same
from tests.runs import small_config


def test_a_run_becomes_a_folder_that_transformers_reads(finished, tmp_path):
    made = export(finished, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    _, found = load_recommender(finished)
    sids, catalog = json.loads((tmp_path / "out" / SIDS).read_text()), found.problem.dataset.catalog
    assert tuple(sids) == catalog.item_ids
    decoding = json.loads((tmp_path / "out" / DECODING).read_text())
    history = [decoding["template"]["start"], *tokenizer.convert_tokens_to_ids(sids[catalog.item_ids[5]])]
    with torch.no_grad():
        said = model(torch.tensor([history])).logits
        assert_same(said, found.policy.base(torch.tensor([history])).logits)
    assert not list((tmp_path / "out").glob("*.bin"))
    assert (made.parameters, made.items) == (sum(p.numel() for p in model.parameters()), len(catalog))
    assert (made.quantised, made.prior, made.dtype) == (None, None, "float32")
    assert made.furthest <= 1e-5
    assert f"SIDs of {len(catalog)} items in sids.json" in made.lines()[0]
    with pytest.raises(DataError, match="out is there already"):
        export(finished, tmp_path / "out")


def test_a_model_that_says_something_else_is_not_kept(finished, tmp_path, monkeypatch):
    said = iter((torch.zeros(2, 3), torch.full((2, 3), 0.01)))
    monkeypatch.setattr(module, "log_probs", lambda *_: next(said))
    with pytest.raises(CheckpointError, match=r"does not say what the run says: .* by 0.01 nats"):
        export(finished, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_language_model_is_refused(tmp_path):
    folder = fit(small_config(tmp_path, "stages=[baseline]"))
    with pytest.raises(UnsupportedError, match="is a run of item_knn, which is no language model"):
        export(folder, tmp_path / "out")
