"""Runs of the item policy: trained, resumed, kept and loaded as any other policy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genrl.config import RunConfig
from genrl.errors import UnsupportedError
from genrl.policy.item import ItemPolicy
from genrl.prompts.packing import HistoryRows
from genrl.runs.fit import fit
from genrl.runs.recommend import load_recommender, recommend
from genrl.runs.rescore import evaluate_run
from genrl.runs.session import Session
from genrl.runs.stage import _align
from genrl.training.sft import ItemSFTModule
from tests.helpers import assert_same
from tests.runs import QUICK, attach, changed, flat_gradient, flat_weights, rl_module, small_config, train

ITEM = (
    "model.name=item",
    "data.toy.users=24",
    "data.max_history=6",
    "model.item.hidden=16",
    "model.item.layers=1",
    "model.item.dropout=0",
)


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return small_config(folder, *ITEM, *overrides)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    made = Session.build(config_of(tmp_path_factory.mktemp("session")))
    with torch.no_grad():
        for value in made.policy.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config_of(tmp_path_factory.mktemp("runs"), *QUICK, "model.item.edge_decay=0.1"))


def align_module(session: Session) -> ItemSFTModule:
    stage = _align(session)
    module = stage.module()
    module.configure_model()
    assert isinstance(module, ItemSFTModule)
    return module


def test_align_lowers_the_likelihood_of_the_codes_of_every_training_item(session, tmp_path):
    module = attach(align_module(changed(session, tmp_path, *ITEM, "align.items_per_step=100000")))
    module.policy.load_state(session.policy.state(), "here")
    batch = next(iter(module.train_dataloader()))
    loss = module.training_step(batch, 0)
    histories = module.batches
    assert isinstance(histories, HistoryRows)
    total, count = torch.zeros(()), 0
    for window in range(len(histories.histories.windows)):
        shown, targets = histories.histories.shown(window, 0)
        items, wanted = torch.from_numpy(shown), torch.from_numpy(targets)
        total = total + module.policy.along(
            items[None], wanted[None], lambda said, to=items[wanted]: said.loss(module.layout, to)
        )
        count += int(wanted.sum()) * session.table.levels
    assert count == int(batch.share)
    assert_same(loss, total / count)
    loss.backward()
    gradient = flat_gradient(module.policy)
    module.policy.zero_grad()
    (total / count).backward()
    assert_same(gradient, flat_gradient(module.policy), 1e-5)


def test_ranks_share_a_step_and_item_dropout_leaves_items_out(session, tmp_path):
    whole = session.packer()
    assert isinstance(whole, HistoryRows)
    parts = []
    for rank in range(2):
        part = session.packer()
        part.rank, part.world = rank, 2
        parts.append(part.step(1))
    batch = whole.step(1)
    assert [int(part.share) for part in parts] == [int(batch.share)] * 2
    assert sum(int(part.targets.sum()) for part in parts) * session.table.levels == int(batch.share)
    rows = [[item for item in row if item >= 0] for one in parts for row in one.items.tolist()]
    assert sorted(rows) == sorted([item for item in row if item >= 0] for row in batch.items.tolist())
    fewer = changed(session, tmp_path, *ITEM, "align.item_dropout=0.5").packer().step(1)
    assert int((fewer.items >= 0).sum()) < int((batch.items >= 0).sum())
    assert bool((fewer.targets <= (fewer.items >= 0)).all())


@pytest.mark.parametrize("objective", ["grpo", "gbpo", "sapo", "sage", "ce"])
def test_every_objective_moves_it(session, tmp_path, objective):
    options = "rewards.level_match.weight=1", "rollout.micro_batch=3", "objective.kl_coef=0.1"
    module = rl_module(
        changed(session, tmp_path, *ITEM, f"objective={objective}", *options[: 2 if objective == "ce" else 3]), tmp_path
    )
    weights = module.policy.state()
    before = flat_weights(module.policy)
    train(module, 1)
    moved = flat_weights(module.policy)
    assert bool(torch.isfinite(moved).all())
    assert not moved.equal(before)
    if module.reference is not None:
        assert all(value.equal(weights[name]) for name, value in module.reference.weights.items())
    module.policy.load_state(weights, "here")


def test_the_own_vectors_of_edges_have_a_decay_of_their_own(session, tmp_path):
    settings = "model.item.edge_decay=0.3", "align.weight_decay=0.2"
    config = config_of(tmp_path, *settings)
    own = Session.build(config)
    module = align_module(own)
    groups = module.configure_optimizers()["optimizer"].param_groups
    names = {id(value): name for name, value in module.trainable().items()}
    decays = {names[id(value)]: group["weight_decay"] for group in groups for value in group["params"]}
    assert decays.keys() == module.trainable().keys()
    for name, value in module.trainable().items():
        assert decays[name] == pytest.approx(0.5 if ".own." in name else 0.2 if value.dim() > 1 else 0.0)


def test_a_finished_run_ranks_recommends_and_is_scored_again(finished, capsys):
    metrics = json.loads((finished / "metrics.json").read_text())
    certified = {name: value for name, value in metrics["test"]["rl"]["raw"].items() if name.startswith("certified@")}
    assert set(certified.values()) == {1.0}
    assert metrics["test"]["rl"] in evaluate_run(finished, split="test", overrides=[]).values()
    _, recommender = load_recommender(finished)
    assert isinstance(recommender.policy, ItemPolicy)
    saved = load_file(finished / "weights.safetensors")
    assert all(value.equal(saved[name]) for name, value in recommender.policy.state().items())
    assert not (finished / "tokenizer").exists()
    titles = recommender.problem.dataset.catalog.item_ids
    history = [titles[3], titles[5]]
    (whole,) = recommend(finished, [history], 60, exact=True)
    (unseen,) = recommend(finished, [history], 4, exclude_seen=True)
    assert len(whole.items) == 60
    assert unseen.items == [each for each in whole.items if each[0] not in history][:4]
    assert len(recommend(finished, [[]], 3)[0].items) == 3
    (shorter,) = recommend(finished, [history], 3, only=list(titles[:7]))
    assert {item for item, _, _ in shorter.items} <= set(titles[:7])


@pytest.mark.parametrize("stage", ["align", "rl"])
def test_a_stage_that_is_resumed_ends_with_the_same_bits(tmp_path, stage):
    settings = "model.item.dropout=0.2", "model.item.edge_dropout=0.1", "objective=grpo", "objective.kl_coef=0.1"
    session = Session.build(config_of(tmp_path, "data.toy.users=40", *settings))

    def module() -> object:
        session.learner.forget()
        made = align_module(session) if stage == "align" else rl_module(session, tmp_path)
        made.configure_model()
        return made

    whole, first, second = (module() for _ in range(3))
    train(whole, 4)
    trainer = train(first, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    train(second, 4, start=tmp_path / "half.ckpt")
    assert flat_weights(second.policy).equal(flat_weights(whole.policy))


def test_a_layout_with_words_is_refused(tmp_path):
    config = replace(config_of(tmp_path), layout={"name": "blocked", "budget": 3})
    with pytest.raises(
        UnsupportedError, match=r"layout=blocked asks for more\. Use layout=sid, or a policy that writes"
    ):
        Session.build(config)
