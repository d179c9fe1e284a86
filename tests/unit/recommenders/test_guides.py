"""Runs with a prior from the first stage to what is left of them without their data and without the prior's run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genrl.catalog.sequences import Role
from genrl.errors import CheckpointError, ConfigError, UnsupportedError
from genrl.files import read_json
from genrl.runs.fit import fit
from genrl.runs.recommend import load_recommender
from genrl.runs.rescore import evaluate_run
from genrl.runs.session import Session
from tests.helpers import assert_same
from tests.runs import small_config

BASELINE = ("stages=[baseline]", "baseline=item_knn", "experiment=guides")
POLICY = ("experiment=guides", "objective=opd", "align.max_epochs=1", "rl.max_steps=2", "evaluate.test_users=20")
POLICY += ("model.name=item", "model.item.hidden=16", "model.item.layers=1")


@pytest.fixture(scope="module")
def knn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(small_config(tmp_path_factory.mktemp("guides"), *BASELINE))


@pytest.fixture(scope="module")
def guided(knn: Path) -> Path:
    """A finished run with a prior, and a teacher in both stages."""
    taught = ("align.teacher_share=0.5", f"teacher.run={knn}", "rollout.group_size=1")
    return fit(small_config(knn.parents[1], *POLICY, *taught, f"prior.run={knn}", "prior.weight=0.4"))


def built(knn: Path, *overrides: str) -> Session:
    return Session.build(small_config(knn.parents[1], *POLICY, *overrides))


def test_rankings_are_those_of_policy_and_prior_together(guided, knn):
    config, policy = load_recommender(guided)
    _, alone = load_recommender(guided, ["prior.weight=0"])
    _, prior = load_recommender(knn)
    assert config.prior.weight == 0.4
    session = Session.build(config)
    requests = session.maker.at(session.dataset.sequences.rows(Role.TEST)[:6])
    own, theirs, found = (each.log_probs(requests) for each in (alone, prior, policy))
    codes = session.table.codes
    for level in range(codes.shape[1]):  # of each pair of siblings the mixture's odds are those of the two, weighed
        for item in range(0, len(codes), 5):
            family = (codes[:, :level] == codes[item, :level]).all(1)
            sibling = next((i for i in range(len(codes)) if family[i] and codes[i, level] != codes[item, level]), None)
            if sibling is None:
                continue
            both = [(codes[:, : level + 1] == codes[i, : level + 1]).all(1) for i in (item, sibling)]
            odds = [
                part[:, both[0]].double().logsumexp(1) - part[:, both[1]].double().logsumexp(1)
                for part in (own, theirs, found)
            ]
            assert_same(odds[2], 0.6 * odds[0] + 0.4 * odds[1], 1e-4)
    assert_same(found.exp().sum(1), torch.ones(6))


def test_a_run_keeps_its_prior_and_repeats_its_metrics_without_the_priors_run(guided, knn, tmp_path):
    metrics = read_json(guided / "metrics.json")
    copied = tmp_path / "toy" / "guides" / guided.name
    shutil.copytree(guided, copied)
    hidden = knn.rename(knn.with_name("elsewhere"))
    try:
        found = evaluate_run(copied, split="test", overrides=[])
        assert found[copied.name]["raw"] == metrics["test"]["rl"]["raw"]
        other = evaluate_run(copied, split="test", overrides=["prior.weight=0.9"])
        assert other[copied.name]["raw"] != found[copied.name]["raw"]
    finally:
        hidden.rename(knn)


def test_another_prior_or_none_is_refused_and_the_same_one_elsewhere_is_not(guided, knn, tmp_path):
    with pytest.raises(CheckpointError, match=r"prior\.content is '[0-9a-f]{8}' there and None here.*0 ranks without"):
        load_recommender(guided, ["prior.run=null"])
    popular = fit(small_config(knn.parents[1], *BASELINE[:1], "baseline=most_popular", "experiment=guides"))
    with pytest.raises(CheckpointError, match=r"prior\.content is '[0-9a-f]{8}' there and '[0-9a-f]{8}' here"):
        load_recommender(guided, [f"prior.run={popular}"])
    with pytest.raises(CheckpointError, match=r"prior\.temperature is 1\.0 there and 2\.0 here"):
        load_recommender(guided, ["prior.temperature=2"])
    moved = tmp_path / "moved"
    shutil.copytree(knn, moved)
    load_recommender(guided, [f"prior.run={moved}"])


def test_shared_stages_are_those_of_one_prior(knn):
    overrides = ["prior.run=null", f"prior.run={knn}"]
    keys = {built(knn, one).align_key() for one in overrides}
    keys |= {built(knn, overrides[1], one).align_key() for one in ("prior.weight=0.4", "prior.temperature=2")}
    taught = (f"teacher.run={knn}", "align.teacher_share=0.5")
    keys |= {built(knn, *taught, *more).align_key() for more in ((), ("teacher.temperature=2",))}
    assert len(keys) == 6
    assert built(knn, taught[0]).align_key() in keys  # a teacher of opd alone does not touch align


def test_runs_that_cannot_guide_are_refused_in_words(knn, tmp_path):
    with pytest.raises(CheckpointError, match=r"prior\.run=nowhere is no finished run .* fit --baseline sasrec"):
        built(knn, "prior.run=nowhere")
    with pytest.raises(CheckpointError, match=r"made from other data, or with another split or order"):
        built(knn, f"prior.run={knn}", "data.rl_holdout=2")
    with pytest.raises(ConfigError, match=r"align\.teacher_share = 0\.5: needs a teacher"):
        built(knn, "align.teacher_share=0.5")
    with pytest.raises(ConfigError, match=r"objective 'opd' needs a teacher"):
        fit(small_config(knn.parents[1], *POLICY, "name=untaught"))
    with pytest.raises(ConfigError, match=r"rollout\.normalize = 'vocab': vocab cannot be had with a prior"):
        built(knn, f"prior.run={knn}", "rollout.normalize=vocab")
    damaged = tmp_path / "damaged"
    shutil.copytree(knn, damaged)
    (damaged / "ranks.safetensors").unlink()
    for section in ("prior", "teacher"):
        with pytest.raises(CheckpointError, match=r"damaged is damaged: ranks\.safetensors is missing"):
            _ = built(knn, f"{section}.run={damaged}").teacher
    last = fit(small_config(knn.parents[1], *BASELINE[:1], "baseline=repeat_last", "experiment=guides"))
    with pytest.raises(UnsupportedError, match=r"prior\.run=.*repeat_last ranks items without giving them prob"):
        built(knn, f"prior.run={last}")
    session = built(knn, f"prior.run={knn}")
    catalog = session.dataset.catalog
    renamed = replace(session.dataset, catalog=replace(catalog, item_ids=("new", *catalog.item_ids[1:])))
    problem = replace(session.learner.problem, dataset=renamed, prior=knn)
    with pytest.raises(CheckpointError, match=r"another catalogue: 60 items there, 60 here, 1 of which it lacks"):
        type(session.learner).build(session.config, problem)
