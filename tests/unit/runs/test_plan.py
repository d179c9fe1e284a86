from dataclasses import replace

import pytest

from genrl.config.checks import contradictions
from genrl.policy.memory import Need
from genrl.runs import plan as module
from genrl.runs.plan import Plan, free, plan
from genrl.runs.session import Session
from genrl.runs.stage import build_objective
from tests.models import save_local_model
from tests.runs import small_config


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("plan"), "objective=grpo", "rollout.group_size=32")
    session = Session.build(config)
    return session, build_objective(config)


def total(session, objective, **changes) -> dict[str, float]:
    config = session.config
    for name, values in changes.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    found = plan(replace(session, config=config), objective, 1e12)
    assert found.fits
    assert not found.proposal
    return {need.part: need.total for need in found.needs}


def test_every_part_of_a_run_is_planned_and_no_weights_are_made(planned):
    session, objective = planned
    found = total(session, objective)
    assert list(found) == ["align", "rl rollout", "rl update", "rankings"]
    assert "policy" not in vars(session.learner)
    (update,) = (need for need in plan(session, objective, 1e12).needs if need.part == "rl update")
    trained = sum(value.numel() for value in session.learner.make().trainable().values())
    assert update.weights == 4 * trained
    assert update.reference == 4 * trained
    assert update.optimiser == 8 * trained


def test_what_is_computed_at_a_time_is_what_parts_need(planned):
    session, objective = planned
    base = total(session, objective)
    assert total(session, objective, rollout={"micro_batch": 1})["rl update"] < base["rl update"]
    assert total(session, objective, evaluate={"batch": 8})["rankings"] < base["rankings"]
    assert total(session, objective, align={"items_per_step": 16})["align"] < base["align"]
    assert total(session, objective, rollout={"prompts": 16})["rl rollout"] > base["rl rollout"]


def test_settings_that_are_proposed_fit_by_their_own_plan_and_none_is_too_many(planned):
    session, objective = planned
    worst = plan(session, objective, 1e12).total
    found = plan(session, objective, 0.6 * worst)
    assert not found.fits
    assert found.proposed <= 0.6 * worst
    assert found.proposal
    assert found.lines()[-1].endswith(" ".join(found.proposal))
    for left_out in (*found.proposal, None):
        words = [(word,) for word in found.proposal if word != left_out]
        config = module._with(session.config, words)
        again = plan(replace(session, config=config), objective, 0.6 * worst)
        assert again.fits == (left_out is None)
        if left_out is None:
            assert again.total == found.proposed


def test_where_nothing_fits_that_is_said(planned):
    found = plan(*planned, 1000.0)
    assert found.proposal == ()
    assert (
        found.lines()[-1] == "  It does not fit, nor does any setting tried. Take a smaller model or a larger device."
    )


def test_nothing_is_tried_that_fit_would_refuse(tmp_path, monkeypatch):
    """4-bit weights need adapters, and FSDP2 does not take them."""
    words = (f"model.name={save_local_model(tmp_path / 'model', 'qwen3')}", "stages=[rl]", "objective=grpo")
    config = small_config(tmp_path, *words, "trainer.strategy=fsdp", "trainer.devices=2")
    tried, needs = [], module.Planner.needs
    monkeypatch.setattr(module.Planner, "needs", lambda planner, config: tried.append(config) or needs(planner, config))
    assert plan(Session.build(config), build_objective(config), 1000.0).proposal == ()
    assert any(one.model.lora.rank for one in tried)
    assert [list(contradictions(one)) for one in tried] == [[]] * len(tried)


def test_a_plan_is_two_lines():
    needs = (Need("align", weights=2.0**30, activations=2.0**29), Need("rankings", weights=2.0**30))
    lines = Plan(needs, 2.0**31, 0.0).lines()
    assert lines == [
        "memory: 1.5 GiB of 2.0 GiB on each device at the peak, in align: weights 1.0 GiB, activations 0.5 GiB",
        "  less in rankings 1.0 GiB",
    ]


def test_free_memory_is_less_than_there_is():
    found = free(gpu=False)
    assert found is None or 2**20 < found < 2**50
