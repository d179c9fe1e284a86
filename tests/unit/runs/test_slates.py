"""Slates through all stages of a run."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking
from genrl.errors import ConfigError, UnsupportedError
from genrl.files import read_json
from genrl.layouts.slate import SlateLayout
from genrl.metrics.functional import distinct
from genrl.objectives import OBJECTIVES
from genrl.policy.search import search
from genrl.runs.fit import fit
from genrl.runs.recommend import load_recommender, recommend
from genrl.runs.rescore import evaluate_run
from genrl.runs.session import Session
from genrl.runs.stage import stages_of
from genrl.training.drawing import hopeless
from genrl.training.rl import RLModule
from genrl.training.samples import rollout_samples
from tests.helpers import assert_same
from tests.runs import activate_module, assert_step, attach, changed, one_step, rl_module, small_config

LENGTH = 4
SLATES = (
    "layout=slate",
    f"layout.length={LENGTH}",
    "stages=[align,activate,rl]",
    "activate.examples=14",
    "activate.examples_per_step=7",
    "activate.max_epochs=1",
    "evaluate.beam=4",
    f"evaluate.k=[1,{LENGTH},9]",
    "evaluate.valid_users=10",
    "evaluate.test_users=10",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, dict[str, Tensor]]:
    session = Session.build(small_config(tmp_path_factory.mktemp("slates"), *SLATES))
    return session, session.policy.state()


@pytest.fixture
def slates(built: tuple[Session, dict[str, Tensor]]) -> Session:
    session, weights = built
    session.policy.load_state(weights, "the beginning")
    session.policy.zero_grad()
    session.policy.eval()
    return session


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("align.max_epochs=1", "rl.max_steps=2", "objective=sage")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stage activate: by the next item alone the policy now reads")
        return fit(small_config(tmp_path_factory.mktemp("run"), *SLATES, *more), command="genrl fit")


def under(session: Session, folder: Path, *overrides: str) -> Session:
    return changed(session, folder, *SLATES, *overrides)


def rl(session: Session, folder: Path, *overrides: str) -> RLModule:
    made = under(session, folder, *overrides)
    module = rl_module(made, folder)
    module.gold = made.gold
    return attach(module)


def likelihood(session: Session, prompts: Tensor, slate: Tensor) -> Tensor:
    """Log-probability of one slate behind one prompt [t], by one plain forward pass, token by token."""
    layout, policy = session.layout, session.policy
    tokens = layout.compose(slate[None])[0]
    logits = policy.model(torch.cat([prompts, tokens])[None]).logits[0].float()
    state, total = layout.start(1), torch.zeros(())
    for place, token in enumerate(tokens):
        legal = layout.legal(place, state)
        now = logits[len(prompts) + place - 1]
        allowed = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
        total = total + now[token] - allowed.logsumexp(0)
        state = layout.advance(state, token[None], place)
    return total


def test_stage_activate_learns_gold_slates_behind_their_prompts(slates, tmp_path):
    session = under(slates, tmp_path, "activate.plain=0", "activate.examples_per_step=14")
    where, gold, labelled = session.slates
    assert gold[:, 0].equal(session.dataset.sequences.items[where])
    assert bool((labelled >= 1).all())
    filled = 1 - float(labelled.sum()) / gold.numel()
    assert f"14 gold slates of {LENGTH} items" in session.activate_note()
    assert f"item-kNN filled {filled:.1%} of the places" in session.activate_note()
    found = one_step(attach(activate_module(session, tmp_path)))
    prompts = [session.maker.at(position[None]) for position in where]
    total = sum(likelihood(session, p.tokens[p.mask], slate) for p, slate in zip(prompts, gold, strict=True))
    assert_step(session.policy, found, -total / gold.numel() / session.layout.levels)


def test_the_next_item_is_learned_alone_beside_the_slates(slates, tmp_path):
    session = under(slates, tmp_path, "activate.examples_per_step=14")
    found, _ = one_step(attach(activate_module(session, tmp_path)))
    where, gold, _ = session.slates
    levels = session.layout.levels
    single = replace(session.layout.config, length=1)
    first = session.learner.under(SlateLayout(single, catalogue=session.layout.catalogue))
    alone, total = replace(session, recommender=first), torch.zeros(())
    for position, slate in zip(where, gold, strict=True):
        prompt = session.maker.at(position[None])
        text = prompt.tokens[prompt.mask]
        total = total + likelihood(session, text, slate).detach() + likelihood(alone, text, slate[:1]).detach()
    assert_same(found, -total / (gold.numel() + len(gold)) / levels)


@pytest.mark.parametrize("objective", ["sage", "grpo", "gbpo", "sapo", "ce"])
def test_objectives_update_on_slates(slates, tmp_path, objective):
    module = rl(slates, tmp_path, f"objective={objective}")
    loss, gradient = one_step(module)
    assert bool(torch.isfinite(loss))
    assert float(gradient.abs().max()) > 0
    rows = 8 if objective == "ce" else 32
    drawn = module.sampled[0].completions
    assert drawn.items.shape == (rows, LENGTH)
    assert distinct(drawn.items).equal(drawn.items)
    assert drawn.categories.equal(slates.dataset.catalog.categories[drawn.items])
    logged = module.journal.close()
    wanted = module.sampled[2].wanted.items.repeat_interleave(drawn.group_size, 0)
    for place in range(LENGTH):
        assert_same(
            logged[f"train/match/step{place + 1}"], (drawn.items[:, place : place + 1] == wanted).float().mean(), 1e-6
        )
    if objective != "ce":
        assert {f"policy/entropy/item{place + 1}" for place in range(LENGTH)} <= set(logged)


def test_cross_entropy_is_that_of_the_target_and_what_fills_its_slate(slates, tmp_path):
    module = rl(slates, tmp_path, "objective=ce")
    found = one_step(module)
    requests, drawn = module.sampled[2], module.sampled[0].completions
    gold, labelled = slates.gold(requests.wanted.items, requests.history)
    assert labelled.tolist() == [1] * 8
    assert drawn.items.equal(gold)
    assert gold[:, 0].equal(requests.wanted.items[:, 0])
    assert_same(module.journal.close()["rollout/filled"], 1 - 1 / LENGTH, 1e-6)
    total = sum(
        likelihood(slates, p[m], slate) for p, m, slate in zip(requests.tokens, requests.mask, gold, strict=True)
    )
    assert_step(slates.policy, found, -total / int(drawn.chosen.sum()))


def test_groups_without_the_target_are_repaired_by_its_gold_slate(slates, tmp_path):
    module = rl(slates, tmp_path, "objective=grpo", "objective.repair=true", "rewards.level_match=null")
    drawn = module._draw(0, 0)
    bare = rl(slates, tmp_path, "objective=grpo", "rewards.level_match=null")._draw(0, 0)
    gold, _ = slates.gold(drawn.requests.wanted.items, drawn.requests.history)
    dead = hopeless(bare).tolist()
    assert True in dead
    for group, hopes_not in enumerate(dead):
        last = drawn.completions.items.view(8, 4, LENGTH)[group, -1]
        assert last.equal(gold[group] if hopes_not else bare.completions.items.view(8, 4, LENGTH)[group, -1])
        hit = (bare.completions.items.view(8, -1)[group] == drawn.requests.wanted.items[group]).any()
        assert not (hopes_not and bool(hit))


def test_samples_show_all_items_of_a_slate(slates, tmp_path):
    module = rl(slates, tmp_path, "objective=grpo")
    module.experience(0)
    experience, rewards, prompts = module.sampled
    catalog, codes = slates.dataset.catalog, slates.layout.codes
    shown = rollout_samples(experience, rewards, prompts, codes, catalog, 1, 2)[0].completions[0]
    titles = shown.item.split("; ")
    assert len(titles) == LENGTH
    assert len(shown.codes) == LENGTH * slates.layout.levels
    rows = [catalog.titles.index(title) for title in titles]
    assert codes[rows].flatten().tolist() == list(shown.codes)
    assert len(shown.advantages) == LENGTH


def test_what_belongs_to_traces_is_refused_and_alignment_is_that_of_single_items(slates, tmp_path):
    for options, name in (
        (("activate.foreign=0.5",), "foreign"),
        (("activate.traces=jsonl", "activate.path=x"), "path"),
    ):
        with pytest.raises(ConfigError, match=f"activate.{name} is about traces"):
            under(slates, tmp_path, *options).activate_batches()
    longer = under(slates, tmp_path, "layout.length=3")
    assert longer.align_key() == slates.align_key()
    assert longer.activate_key() != slates.activate_key()
    alone = Session.build(small_config(tmp_path, "layout=sid"))
    with_same = replace(alone, config=replace(alone.config, evaluate=slates.config.evaluate))
    assert with_same.align_key() == slates.align_key()
    assert [stage.name for stage in stages_of(slates, OBJECTIVES.build("grpo", {}))] == ["align", "activate", "rl"]


def test_slates_in_words_do_not_begin_with_what_another_tokenizer_was_aligned_with(slates, tmp_path):
    words = Session.build(small_config(tmp_path, *SLATES, "layout.space=text"))
    assert len(words.tokenizer) != len(slates.tokenizer)
    assert words.align_key() != slates.align_key()


def test_pools_that_are_shorter_than_a_slate_are_refused_before_anything_is_trained(tmp_path):
    pools = ("data.pool.size=3", "data.pool.neighbours=1", "data.pool.popular=1")
    with pytest.raises(ConfigError, match=r"longer than the candidate pools of data\.pool\.size=3"):
        Session.build(small_config(tmp_path, *SLATES, *pools))


def test_a_policy_of_items_writes_no_slates(tmp_path):
    with pytest.raises(UnsupportedError, match=r"model\.name=item writes one SID and nothing else, and layout=slate"):
        Session.build(small_config(tmp_path, *SLATES, "model.name=item", "align.text_tasks=auto"))


def test_rankings_are_slates_item_by_item_or_whole(slates, tmp_path):
    requests = next(iter(slates.batches("test")))
    for way in ("items", "whole"):
        session = under(slates, tmp_path, f"evaluate.slates={way}")
        found = session.recommender.rankings(requests, session.config.evaluate)
        assert set(found) == {"raw", "excluded"}
        wanted, _ = search(slates.policy, slates.layout, requests, LENGTH, beams=4, settle=way == "items")
        raw: Ranking = found["raw"]
        assert raw.items.shape == (len(requests), 9)
        assert raw.items[:, :LENGTH].equal(wanted.items)
        assert bool((raw.items[:, LENGTH:] == -1).all())
        assert raw.bound is None
        for listed, seen in zip(found["excluded"].items.tolist(), requests.history.tolist(), strict=True):
            assert not set(listed[:LENGTH]) & set(seen)
            assert -1 not in listed[:LENGTH]


def test_users_who_know_nearly_everything_get_short_lists(slates):
    requests = next(iter(slates.batches("test"))).rows(slice(0, 1))
    known = torch.arange(58)[None]
    found = slates.recommender.rankings(replace(requests, history=known), slates.config.evaluate, ("excluded",))
    listed = set(found["excluded"].items[0].tolist()) - {-1}
    assert listed <= {58, 59}


def test_users_who_know_most_of_their_pool_get_short_lists(slates):
    requests = next(iter(slates.batches("test"))).rows(slice(0, 1))
    known, pool = torch.arange(4)[None], torch.arange(1, 7)[None]
    asked = replace(requests, history=known, pool=pool)
    found = slates.recommender.rankings(asked, slates.config.evaluate, ("excluded",))
    listed = set(found["excluded"].items[0].tolist()) - {-1}
    assert listed
    assert listed <= {4, 5, 6}


def test_a_run_of_slates_is_scored_loaded_and_asked(run, tmp_path, capsys):
    metrics = read_json(run / "metrics.json")
    assert list(metrics["stages"]) == ["align", "activate", "rl"]
    rl_scores, aligned = metrics["test"]["rl"]["excluded"], metrics["test"]["align"]["excluded"]
    assert rl_scores["short@9"] == 1
    assert aligned["short@9"] == 0
    assert "certified@9" not in rl_scores
    assert "certified@9" in aligned
    assert rl_scores["recall@9"] == rl_scores[f"recall@{LENGTH}"]
    again = evaluate_run(run, split="test", overrides=[])
    assert again[run.name]["excluded"] == rl_scores
    evaluate_run(run, split="test", overrides=["evaluate.slates=whole"], stages=("align", "rl"))
    assert "have fewer than 9 items" in capsys.readouterr().out
    (shown,) = recommend(run, [["i3", "i7"]], LENGTH, exclude_seen=True)
    assert len({item for item, _, _ in shown.items} - {"i3", "i7"}) == LENGTH
    with pytest.warns(UserWarning, match=rf"layout\.length={LENGTH} items, so lists end before the 9"):
        (longer,) = recommend(run, [["i3", "i7"]], 9)
    assert len(longer.items) == LENGTH
    with pytest.raises(UnsupportedError, match="Leave --exact out"):
        recommend(run, [["i3"]], LENGTH, exact=True)
    _, recommender = load_recommender(run)
    assert isinstance(recommender.layout, SlateLayout)
    assert json.loads((run / "samples.jsonl").read_text().splitlines()[0])["samples"]
