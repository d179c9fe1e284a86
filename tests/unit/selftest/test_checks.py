"""Each check passes on this installation, and does not pass where something is wrong."""

from functools import partial

import pytest
import torch

from genrl.cli.configuration import REGISTRIES
from genrl.config import load_config
from genrl.errors import ConfigError, UnsupportedError
from genrl.selftest import CHECKS, Check, Found, find_device, run
from genrl.selftest.engine import largest, padded, sampled_and_scored, searched_and_enumerated, total_probability
from genrl.selftest.golden import golden_difference
from genrl.selftest.low_precision import bfloat16, nf4
from genrl.selftest.whole_runs import OPTIONS
from genrl.selftest.world import LAYOUTS, World

WHOLE_RUNS = ("micro-batch", "resume", "world")
"""Left out here for their time: tests/integration sees the same of larger runs."""
CPU = torch.device("cpu")


def compose(words):
    return load_config(overrides=list(words), registries=REGISTRIES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(compose, CPU, str(tmp_path_factory.mktemp("selftest")))


def test_this_installation_computes_what_it_should():
    outcomes = list(run(compose, CPU, [name for name in CHECKS if name not in WHOLE_RUNS]))
    assert [(outcome.name, outcome.trouble) for outcome in outcomes if not outcome.passed] == []
    assert all(outcome.found.cases > 1 for outcome in outcomes)


def test_engine_checks_look_at_every_layout_and_more_than_one_token(world):
    assert set(world.sessions) == set(LAYOUTS)
    assert golden_difference(world).cases == 32
    assert sampled_and_scored(world).cases > 1000
    assert bfloat16(world).difference > 0  # it is another precision


def test_a_policy_that_is_not_one_distribution_does_not_pass(world):
    session = world.sessions["sid"]
    policy, wrong = session.policy, partial(torch.nn.functional.dropout, p=0.5, training=True)
    hook = policy.base.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: wrong(output))
    try:
        for name, compare in (("decode", sampled_and_scored), ("search", searched_and_enumerated), ("padding", padded)):
            assert compare(world).difference > CHECKS[name].allowed, name
    finally:
        hook.remove()
    assert total_probability(world).difference <= CHECKS["trie"].allowed


def test_what_cannot_be_compared_does_not_pass(monkeypatch):
    def broken(_world):
        raise RuntimeError("no such kernel")

    def lacking(_world):
        raise UnsupportedError("not installed")

    checks = {
        "nan": Check("", lambda _: Found(float("nan"), 1), 1.0),
        "apart": Check("", lambda _: largest([torch.tensor([0.5, -2.0])]), 1.0),
        "broken": Check("", broken, 1.0),
        "lacking": Check("", lacking, 1.0),
        "equal": Check("", lambda _: largest([torch.zeros(2)]), 0.0),
    }
    for name, check in checks.items():
        monkeypatch.setitem(CHECKS, name, check)
    outcomes = {outcome.name: outcome for outcome in run(compose, CPU, list(checks))}
    assert [name for name, outcome in outcomes.items() if outcome.passed] == ["equal"]
    assert [name for name, outcome in outcomes.items() if outcome.left_out] == ["lacking"]
    assert outcomes["apart"].found == Found(2.0, 2)
    assert outcomes["broken"].trouble == "RuntimeError: no such kernel"


def test_weights_that_were_packed_for_evaluation_do_not_pass(world, monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda layer, inputs: inputs * 0.5)
    assert nf4(world).difference > CHECKS["nf4"].allowed


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="--device nowhere cannot be used here"):
        find_device("nowhere")
    assert find_device("cpu") == CPU


def test_whole_runs_keep_a_running_mean_that_has_to_come_back(world):
    assert world.config(*OPTIONS).rollout.epochs == 2
    assert world.config(*OPTIONS).objective["ema_decay"] == 0.5
