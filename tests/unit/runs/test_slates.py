"""Slates through all stages of a run."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking, Targets
from genrl.catalog.sequences import Role
from genrl.config.load import save_config
from genrl.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from genrl.files import read_json
from genrl.layouts.slate import SlateLayout
from genrl.metrics.functional import distinct
from genrl.objectives import OBJECTIVES
from genrl.policy.search import search
from genrl.policy.write import targets_as_completions
from genrl.prompts.slates import held_out_items
from genrl.runs.fit import fit
from genrl.runs.inputs import input_files
from genrl.runs.recommend import load_recommender, recommend
from genrl.runs.rescore import evaluate_run, load_run
from genrl.runs.session import Session
from genrl.runs.slates import _asked, _drawn, _usable, write_slates
from genrl.runs.stage import build_objective, make_verifier, stages_of
from genrl.training.drawing import hopeless
from genrl.training.portions import Portions
from genrl.training.rl import RLModule
from genrl.training.samples import rollout_samples
from tests.helpers import assert_same
from tests.runs import activate_module, anew, assert_step, attach, begun, changed, one_step, rl_module, small_config

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
    return begun(tmp_path_factory.mktemp("slates"), *SLATES)


@pytest.fixture
def slates(built: tuple[Session, dict[str, Tensor]]) -> Session:
    return anew(*built)


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
    with pytest.raises(ConfigError, match=r"activate\.foreign is about traces"):
        under(slates, tmp_path, "activate.foreign=0.5").activate_batches()
    longer = under(slates, tmp_path, "layout.length=3")
    assert longer.align_key() == slates.align_key()
    assert longer.activate_key() != slates.activate_key()
    alone = Session.build(small_config(tmp_path, "layout=sid"))
    with_same = replace(alone, config=replace(alone.config, evaluate=slates.config.evaluate))
    assert with_same.align_key() == slates.align_key()
    assert [stage.name for stage in stages_of(slates, OBJECTIVES.build("grpo", {}))] == ["align", "activate", "rl"]


def told(session: Session, path: Path, position: int, items: list[int]) -> str:
    """Add a slate to a file."""
    sequences, ids = session.dataset.sequences, session.dataset.catalog.item_ids
    user = sequences.user_ids[int(sequences.users(torch.tensor([position])))]
    line = {"user": user, "item": ids[int(sequences.items[position])], "items": [ids[item] for item in items]}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return str(path)


def some_slate(session: Session, position: int, first: int = 0) -> list[int]:
    """The first L items from one on that a slate for a position may hold."""
    refused = held_out_items(session.dataset.sequences, torch.tensor([position]))[0].tolist()
    return [item for item in range(first, 60) if item not in refused][:LENGTH]


def test_stage_activate_learns_the_slates_of_a_file_beside_gold_slates_or_alone(slates, tmp_path):
    sequences, path = slates.dataset.sequences, tmp_path / "slates.jsonl"
    asked = sequences.rows(Role.RL)[:3].tolist()
    asked.append(asked[0])  # one prompt has two slates
    lists = [some_slate(slates, position, first) for position, first in zip(asked, (0, 9, 5, 30), strict=True)]
    for position, items in zip(asked, lists, strict=True):
        told(slates, path, position, items)
    file = ("activate.traces=jsonl", f"activate.path={path}", "activate.plain=0", "activate.examples_per_step=20")
    alone = under(slates, tmp_path, *file, "activate.gold=false")
    assert alone.activate_note() == f"activate: 4 slates of {path}"
    found = one_step(attach(activate_module(alone, tmp_path)))
    total = torch.zeros(())
    for position, items in zip(asked, lists, strict=True):
        prompt = slates.maker.at(torch.tensor([position]))
        total = total + likelihood(slates, prompt.tokens[prompt.mask], torch.tensor(items))
    assert_step(slates.policy, found, -total / len(lists) / LENGTH / slates.layout.levels)

    beside = under(slates, tmp_path, *file)
    where, gold, _ = beside.slates
    batches = beside.activate_batches()
    assert batches.where.equal(torch.cat([where, torch.tensor(asked)]))
    assert batches.tokens.equal(slates.layout.compose(torch.cat([gold, torch.tensor(lists)])))
    assert f"of the places; and 4 slates of {path}" in beside.activate_note()
    before = beside.activate_key()
    assert before != alone.activate_key()
    told(slates, path, asked[1], lists[1])
    assert under(slates, tmp_path, *file).activate_key() != before  # the file is known by its content
    assert input_files(beside.config)["activate.path"][0] == str(path)


def test_files_of_slates_are_checked_before_anything_trains(slates, tmp_path):
    position = int(slates.dataset.sequences.rows(Role.RL)[0])
    later = int(held_out_items(slates.dataset.sequences, torch.tensor([position]))[0, 0])
    path = told(slates, tmp_path / "slates.jsonl", position, [later, *some_slate(slates, position)[1:]])
    session = under(slates, tmp_path, "activate.traces=jsonl", f"activate.path={path}")
    with pytest.raises(DataError, match=r"slates\.jsonl:1: the slate holds item .* it would leak into training"):
        stages_of(session, OBJECTIVES.build("grpo", {}))


def test_what_belongs_to_slates_is_refused_of_layouts_that_think(tmp_path):
    more = ("layout=blocked", "activate.traces=jsonl", "activate.path=x", "activate.gold=false")
    session = Session.build(small_config(tmp_path, *more))
    with pytest.raises(ConfigError, match=r"activate\.gold is about slates, and with layout=blocked"):
        session.activate_batches()


def test_labels_are_weighted_by_behaviour(slates, tmp_path):
    sequences = slates.dataset.sequences
    liked = torch.rand(len(sequences), generator=torch.Generator().manual_seed(1)).gt(0.6).float()
    dataset = replace(slates.dataset, sequences=replace(sequences, feedback={"like": liked}))
    config = under(slates, tmp_path, "activate.examples=0").config
    weighted = replace(config, activate=replace(config.activate, labels={"like": 2.0}))
    session = replace(slates, dataset=dataset, config=weighted)
    where, gold, counts = session.slates
    trained = sequences.rows(Role.TRAIN).tolist()
    users = sequences.users(torch.arange(len(sequences))).tolist()
    wanted = {
        position: [p for p in trained if p >= position and users[p] == users[position] and liked[p]][:LENGTH]
        for position in trained
    }
    assert where.tolist() == [position for position in trained if wanted[position]]
    assert len(where) < len(trained)
    for position, slate, count in zip(where.tolist(), gold.tolist(), counts.tolist(), strict=True):
        items = list(dict.fromkeys(sequences.items[wanted[position]].tolist()))
        assert slate[:count] == items
        others = [p for p in trained if p >= position and users[p] == users[position] and not liked[p]]
        assert not set(slate[count:]) & set(sequences.items[others].tolist())
    assert "of them what the user valued most of what came next" in session.activate_note()
    nothing = replace(config, activate=replace(config.activate, labels={"like": -1.0}))
    with pytest.raises(DataError, match=r"no training interaction is worth more than 0 by its feedback \(like\)"):
        _ = replace(session, config=nothing).slates


def test_the_best_slates_of_a_run_are_written_and_learned(run, tmp_path):
    path = tmp_path / "kept" / "slates.jsonl"
    kept = write_slates(run, path, above=0.1, prompts=20, overrides=["rollout.group_size=6"])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert 0 < kept.slates == len(records) <= kept.prompts == 20
    assert kept.written == 120
    assert min(record["reward"] for record in records) > 0.1
    assert kept.mean < float(kept.rewards.mean())
    assert {record["run"] for record in records} == {"toy/sage-s0"}
    assert {len(record["weights"]) for record in records} == {16}
    session = load_run(run, [*_learning(path), "rollout.group_size=6"])
    found = session.written
    assert found.items.shape == (len(records), LENGTH)
    assert set(found.positions.tolist()) <= set(session.prompt_positions().tolist())
    assert found.positions.tolist() == sorted(set(found.positions.tolist()))  # one of each group
    rewards = make_verifier(session, build_objective(session.config))
    requests = session.maker.at(found.positions)
    written = targets_as_completions(session.layout, replace(requests, targets=Targets(found.items)))
    assert_same(rewards(written, requests).outcome, torch.tensor([record["reward"] for record in records]), 1e-5)
    total = {name: sum(record["rewards"][name] for record in records) for name in records[0]["rewards"]}
    assert set(total) == set(rewards.rewards)
    assert session.activate_batches().tokens[-len(records) :].equal(session.layout.compose(found.items))


def test_slates_that_are_kept_are_the_best_of_their_groups(run, tmp_path):
    everything = tmp_path / "all.jsonl"
    kept = write_slates(run, everything, above=-1.0, prompts=12)
    session = load_run(run)
    verifier = make_verifier(session, build_objective(session.config))
    positions = _asked(session, 12)
    drawn, rewards = _drawn(session, verifier, positions, 0, session.dataset.catalog.categories, Portions("rollout"))
    usable = _usable(drawn.items, held_out_items(session.dataset.sequences, positions), drawn.group_size)
    best = rewards.outcome.masked_fill(~usable, -torch.inf).view(12, -1).amax(1)
    assert_same(kept.rewards, best[best > -1].float())
    assert kept.refused == int((~usable).sum())
    again = tmp_path / "again.jsonl"
    write_slates(run, again, above=-1.0, prompts=12)
    assert again.read_text() == everything.read_text()
    said = "\n".join(kept.lines())
    assert f"activate.traces=jsonl activate.path={everything}" in said
    assert f"{len(best[best > -1])} slates of 12 prompts" in said


def test_slates_that_cannot_be_written_are_refused(run, tmp_path):
    path = tmp_path / "slates.jsonl"
    with pytest.raises(
        DataError, match=r"no slate that can be kept earns more than 99 for 5 prompts; the best of them"
    ):
        write_slates(run, path, above=99, prompts=5)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(DataError, match=r"slates\.jsonl is there already"):
        write_slates(run, path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("options", [("layout=sid",), ("layout=slate", "stages=[align,activate]")])
def test_a_run_without_slates_that_were_judged_writes_none(tmp_path, options):
    save_config(small_config(tmp_path, *options), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"has layout=.* and stages=.*: there are no slates that rewards have judged"):
        write_slates(tmp_path, tmp_path / "slates.jsonl")


def test_what_is_no_run_writes_none(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        write_slates(tmp_path, tmp_path / "slates.jsonl")


def _learning(path: Path) -> list[str]:
    return ["activate.traces=jsonl", f"activate.path={path}"]


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
