import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genrl.catalog.sequences import Role
from genrl.config.schema import EvaluateConfig
from genrl.errors import CheckpointError, UnsupportedError
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.recommenders.policy import check_decoding, decoding
from tests.helpers import assert_same
from tests.models import every_item, make_layout, make_policy, make_thinking

CONFIG = EvaluateConfig(beam=10, thinking_samples=3)
HISTORY = 5


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(thinking=True)


def write(path: Path, contract: dict[str, Any]) -> Path:
    save_file({"a": torch.zeros(2)}, path, metadata={"decoding": json.dumps(contract)})
    return path


def test_weights_that_are_decoded_as_they_were_trained_pass(policy, tmp_path):
    for layout in (make_layout(policy), make_thinking(policy, order="interleaved", total=12)):
        contract = decoding(policy, layout, HISTORY, CONFIG)
        assert check_decoding(write(tmp_path / "weights", contract), decoding(policy, layout, HISTORY, CONFIG)) == []


def test_every_option_of_the_layout_is_written_down(policy):
    contract = decoding(policy, make_thinking(policy, order="interleaved", budget=5), HISTORY, CONFIG)
    assert contract["layout"]["name"] == "blocked"
    assert (contract["layout"]["order"], contract["layout"]["budget"]) == ("interleaved", 5)
    assert contract["search"] == {
        "evaluate.beam": 10,
        "data.max_history": 5,
        "evaluate.thinking_samples": 3,
        "evaluate.thinking_temperature": 1.0,
    }
    plain = decoding(policy, make_layout(policy), HISTORY, CONFIG)
    assert (plain["layout"], plain["search"]) == (
        {"name": "sid"},
        {"evaluate.beam": 10, "data.max_history": 5},
    )
    assert contract["template_hash"] != plain["template_hash"]


def test_what_differs_is_named(policy, tmp_path):
    path = write(tmp_path / "weights", decoding(policy, make_thinking(policy, budget=6), HISTORY, CONFIG))
    other = make_thinking(policy, budget=4, on_budget="fail")
    with pytest.raises(
        CheckpointError, match=r"layout.budget is 6 there and 4 here; layout.on_budget is 'close' there and 'fail' here"
    ):
        check_decoding(path, decoding(policy, other, HISTORY, CONFIG))
    with pytest.raises(CheckpointError, match=r"layout.name is 'blocked' there and 'sid' here"):
        check_decoding(path, decoding(policy, make_layout(policy), HISTORY, CONFIG))
    now = decoding(policy, make_thinking(policy), HISTORY, CONFIG)
    shifted = {**now, "template": {**now["template"], "prefix": [7], "think": 9}}
    think = now["template"]["think"]
    with pytest.raises(CheckpointError, match=rf"template.prefix is \[\] there and \[7\] here; .*think is {think} "):
        check_decoding(path, shifted)


def test_another_search_is_allowed_and_told(policy, tmp_path):
    layout = make_thinking(policy)
    path = write(tmp_path / "weights", decoding(policy, layout, HISTORY, CONFIG))
    told = check_decoding(path, decoding(policy, layout, 3, replace(CONFIG, beam=20, thinking_samples=0)))
    assert told == [
        "evaluate.beam=20; the weights were chosen with 10",
        "data.max_history=3; the weights were chosen with 5",
        "evaluate.thinking_samples=0; the weights were chosen with 3",
    ]


def test_weights_of_earlier_versions_pass(policy, tmp_path):
    now = decoding(policy, make_thinking(policy), HISTORY, CONFIG)
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    assert check_decoding(tmp_path / "plain", now) == []
    known = {**now, "layout": {"name": "blocked"}}  # written before the layout had options
    assert check_decoding(write(tmp_path / "old", known), now) == []


@torch.no_grad()
def test_probabilities_of_items_are_those_of_their_codes_whatever_the_requests_say(session):
    requests = session.maker.at(session.dataset.sequences.rows(Role.TEST)[:3])
    found = session.learner.log_probs(replace(requests, tokens=requests.tokens[:, :0], mask=requests.mask[:, :0]))
    every = every_item(session.layout, requests)
    wanted = score(session.policy, session.layout, requests, every).logps.sum(1).view(3, -1)
    sharing = (session.table.codes[:, None] == session.table.codes).all(2).sum(1)
    assert_same(found, wanted - sharing.log())
    assert_same(found.exp().sum(1), torch.ones(3))


def test_a_policy_that_thinks_has_no_probabilities_of_items(thinking):
    requests = thinking.maker.at(thinking.dataset.sequences.rows(Role.TEST)[:1])
    with pytest.raises(UnsupportedError, match=r"a policy of layout 'blocked' .* Take a run of sasrec or item_knn"):
        thinking.learner.log_probs(requests)
