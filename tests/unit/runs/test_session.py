import re
import shutil
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from genrl.catalog.sequences import Role
from genrl.config.load import save_config
from genrl.config.schema import PoolConfig
from genrl.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from genrl.recommenders.policy import PolicyRecommender
from genrl.runs import tables
from genrl.runs.recommend import answer
from genrl.runs.record import references
from genrl.runs.session import Session, sid_table
from genrl.runs.stage import build_objective
from genrl.sid import embedding_of
from genrl.sid.embed import embed_items
from tests.helpers import assert_same
from tests.models import save_local_model
from tests.runs import changed, small_config


def test_a_prompt_is_a_prefix_of_what_the_align_stage_trains_on(session):
    sequences = session.dataset.sequences
    position = session.dataset.sequences.rows(Role.TEST)[:1]
    prompt = session.maker.at(position)
    first, last = int(sequences.offsets[0]), int(position)
    wanted = session.layout.catalogue.render(sequences.items[first:last]).flatten().tolist()
    assert prompt.tokens[prompt.mask].tolist() == [session.policy.start_id, *wanted]
    whole = session.packer()
    assert whole.template is session.maker.template
    assert whole.template.head.tolist() == [session.policy.start_id]
    assert whole.template.pad_id == session.policy.tokenizer.pad_token_id


def test_the_words_of_the_prefix_stand_before_every_history(tmp_path):
    session = Session.build(small_config(tmp_path, "prompt.prefix='Blue Basic'"))
    prompt = session.maker.at(session.dataset.sequences.rows(Role.TEST)[:3])
    ids = session.policy.tokenizer("Blue Basic", add_special_tokens=False)["input_ids"]
    for row in range(3):
        assert prompt.tokens[row][prompt.mask[row]][: len(ids) + 1].tolist() == [session.policy.start_id, *ids]


def test_the_sid_table_is_built_once_and_shared(tmp_path):
    config = small_config(tmp_path)
    built = Session.build(config).table
    (path,) = (tmp_path / "toy").glob("sid-*.safetensors")
    written = path.stat().st_mtime_ns
    again = Session.build(small_config(tmp_path, "objective=grpo", "seed=3", "model.hidden=32")).table
    assert torch.equal(again.codes, built.codes)
    assert path.stat().st_mtime_ns == written
    Session.build(small_config(tmp_path, "sid.codes=10"))
    assert len(list((tmp_path / "toy").glob("sid-*.safetensors"))) == 2


def test_the_table_of_another_catalogue_is_refused(session, tmp_path):
    other = replace(session.dataset, catalog=replace(session.dataset.catalog, titles=("other",) * 60))
    config = small_config(tmp_path)
    sid_table(config, session.dataset)
    (path,) = (tmp_path / "toy").glob("sid-*.safetensors")
    sid_table(config, other)
    (theirs,) = set((tmp_path / "toy").glob("sid-*.safetensors")) - {path}
    shutil.copy(path, theirs)
    with pytest.raises(DataError, match="made for another catalogue"):
        sid_table(config, other)


def test_rl_prompts_are_positions_that_were_held_out_if_there_are_any(session, tmp_path):
    held_out = session.prompt_positions()
    assert set(session.dataset.sequences.roles[held_out].tolist()) == {int(Role.RL)}
    shared = Session.build(small_config(tmp_path, "data.rl_holdout=0")).prompt_positions()
    assert shared.numel() > 80


def test_the_key_of_the_align_stage_changes_with_what_it_depends_on_and_nothing_else(session, tmp_path):
    key = session.align_key()
    same = (
        "seed=5",
        "objective=grpo",
        "rl.max_steps=99",
        "rollout.group_size=7",
        "trainer.threads=1",
        "trainer.strategy=fsdp",
        "name=x",
    )
    for override in same:
        assert changed(session, tmp_path, override).align_key() == key, override
    other = ("align.seed=1", "model.hidden=32", "prompt.prefix=a", "data.max_history=9", "evaluate.beam=30")
    keys = {changed(session, tmp_path, override).align_key() for override in other}
    assert len(keys | {key}) == len(other) + 1
    codes = session.table.codes.flip(0)
    assert replace(session, table=replace(session.table, codes=codes)).align_key() != key


def test_prompts_longer_than_the_model_are_refused(tmp_path):
    folder = save_local_model(tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"prompts and completions of \d+ tokens .*256 positions.*Lower data.max_history"
    ):
        Session.build(small_config(tmp_path, f"model.name={folder}", "data.max_history=100"))


def test_text_examples_are_for_models_that_know_words(session, tmp_path):
    assert session.packer().text == ()
    assert len(changed(session, tmp_path, "align.text_tasks=on").packer().text) == 2 * 60
    folder = save_local_model(tmp_path / "model")
    local = Session.build(small_config(tmp_path, f"model.name={folder}"))
    assert len(local.packer().text) == 2 * 60
    assert changed(local, tmp_path, f"model.name={folder}", "align.text_tasks=off").packer().text == ()


def test_the_number_of_threads_is_set(tmp_path):
    before = torch.get_num_threads()
    try:
        Session.build(small_config(tmp_path, f"trainer.threads={before + 1}"))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_options_of_the_trainer_reach_the_policy(tmp_path):
    flags = ("trainer.branching=expand", "trainer.checkpointing=true", "trainer.compile=true")
    policy = Session.build(small_config(tmp_path, *flags)).policy
    assert policy.branching == "expand"
    assert policy.checkpointing
    assert "_forward" in vars(policy)  # compiled when first called
    plain = Session.build(small_config(tmp_path)).policy
    assert (plain.branching, plain.checkpointing, "_forward" in vars(plain)) == ("auto", False, False)


@pytest.mark.parametrize(("cutoffs", "left"), [("[5,1000]", [5]), ("[1000]", [60]), ("[60,5]", [60, 5])])
def test_cut_offs_above_the_catalogue_are_left_out_and_any_beam_will_do(tmp_path, cutoffs, left):
    session = Session.build(small_config(tmp_path, f"evaluate.k={cutoffs}", "evaluate.beam=5000"))
    assert session.config.evaluate.k == left
    batch = session.maker.at(session.batches("valid").positions[:2])
    for exact in (True, False):
        found = session.recommender.rankings(batch, replace(session.config.evaluate, exact=exact))
        assert found["raw"].items.shape == (2, max(left) if exact else 60)


def test_runs_of_other_candidate_pools_share_no_stage_and_no_reference_lines(session: Session) -> None:
    keys = {session.align_key()}
    for size in (20, 30):
        pool = PoolConfig(size=size, neighbours=5, popular=5)
        config = replace(session.config, data=replace(session.config.data, pool=pool))
        keys.add(replace(session, config=config).align_key())
        assert references(config, session.dataset, session.table.codes, "test") == {}
    assert len(keys) == 3


def test_neighbours_by_embedding_are_those_of_the_sid_table(session: Session) -> None:
    pool = PoolConfig(size=20, neighbours=5, popular=5, by="embedding")
    found = replace(session, config=replace(session.config, data=replace(session.config.data, pool=pool))).maker.pools
    assert found is not None
    assert_same(found.vectors, embed_items(embedding_of(session.config.sid), session.dataset))


WORDS = (
    "layout=slate",
    "layout.space=text",
    "layout.length=3",
    "layout.text.show=[title,category]",
    "stages=[activate,rl]",
    "prompt.template=textrec",
    "prompt.candidates=true",
    "activate.plain=0",
    "data.pool.size=12",
    "data.pool.neighbours=3",
    "data.pool.popular=2",
    "data.max_history=6",
)


def test_slates_in_words_are_learned_behind_prompts_of_their_own_and_kept_with_the_run(tmp_path):
    session = Session.build(small_config(tmp_path, *WORDS))
    layout, maker = session.layout, session.maker
    where, slates, _ = session.slates
    batches = session.activate_batches()
    segments = batches.segments(batches.plan(0)[0])
    prompts = {position: maker.at(torch.tensor([position])) for position in batches.where.tolist()[:40]}
    known = {tuple(one.tokens[0][one.mask[0]].tolist()): position for position, one in prompts.items()}
    found = 0
    for segment in segments:
        start = int(segment.chosen[0])
        position = known.get(tuple(segment.tokens[:start].tolist()))
        if position is None:
            continue
        found += 1
        row = int((where == position).nonzero()[0])
        wanted = layout.compose(slates[row][None])[0]
        assert segment.tokens[start:].tolist() == wanted[: len(segment.tokens) - start].tolist()
        assert set(slates[row].tolist()) <= set(prompts[position].pool[0].tolist())
    assert found
    assert len(batches.groups) == len(where)
    assert all(" | " in name for name in layout.item_names)
    session.recommender.save(tmp_path)
    save_config(session.config, tmp_path / "config.yaml")
    again = PolicyRecommender.load(tmp_path)
    assert again.layout.names.names == layout.names.names
    history, pool = torch.tensor([[3, 7]]), torch.tensor([[5, 9, 11]])
    assert_same(again.write(history, pool)[0], session.recommender.write(history, pool)[0])
    with pytest.raises(CheckpointError, match=r"template.words is"):
        PolicyRecommender.load(tmp_path, ("prompt.titles=1",))
    with pytest.raises(CheckpointError, match=r"layout.length is 3 there and 2 here"):
        PolicyRecommender.load(tmp_path, ("layout.length=2",))
    with pytest.raises(CheckpointError, match=r": layout.text.show is \['title', 'category'\] there and"):
        PolicyRecommender.load(tmp_path, ("layout.text.show=[title]",))
    with pytest.raises(CheckpointError, match=r": layout.space is 'text' there and 'sid' here"):
        PolicyRecommender.load(tmp_path, ("layout.space=sid",))


def test_sage_on_slates_in_words_says_at_the_start_which_ratio_these_want(tmp_path):
    session = Session.build(small_config(tmp_path, *WORDS, "objective=sage", "rewards.level_match=null"))
    text = StringIO()
    tables.header(Console(file=text, width=500), session, build_objective(session.config))
    assert "Set objective.ratio_level=token for items in words." in text.getvalue()


def test_recommendations_are_asked_for_with_the_candidates_that_prompts_list(tmp_path):
    recommender = Session.build(small_config(tmp_path, *WORDS)).recommender
    catalog, read = recommender.problem.dataset.catalog, []
    template = recommender.template
    recommender.template = replace(template, tokenizer=Heard(template.tokenizer, read))
    allowed = list(range(20, 32))
    (found,) = answer(recommender, [[catalog.item_ids[3]]], 3, only=allowed)
    names = recommender.template.writer.names
    listed = read[-1]
    assert all(names[row] in listed for row in allowed)
    assert not any(names[row] in listed for row in range(40, 60))
    assert {catalog.row_of(name) for name, _, _ in found.items} <= set(allowed)
    with pytest.warns(UserWarning, match=r"lists the items .* \(prompt.candidates=true\).*recommend --only FILE"):
        answer(recommender, [[catalog.item_ids[3]]], 3)
    assert not any(name in read[-1] for name in names[20:])
    recommender.config.prompt.profile = "users.csv"
    with pytest.warns(UserWarning, match=r"tells the user's profile \(prompt.profile\), and here no user is known"):
        answer(recommender, [[catalog.item_ids[3]]], 3, only=allowed)


class Heard:
    """A tokenizer that keeps what it is asked to write."""

    def __init__(self, tokenizer, read):
        self.tokenizer, self.read = tokenizer, read

    def __call__(self, text, **options):
        self.read.append(text)
        return self.tokenizer(text, **options)


def test_slates_in_words_need_a_policy_with_words(tmp_path):
    with pytest.raises((ConfigError, UnsupportedError), match="writes one SID and nothing else"):
        Session.build(small_config(tmp_path, "layout=slate", "layout.space=text", "model.name=item"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prompt.template=textrec",), "has `align`, which teaches prompts of SIDs"),
        (("prompt.candidates=true",), "is told in words alone"),
        (("prompt.template=textrec", "stages=[rl]", "prompt.candidates=true"), "there is none. Add data.pool.size=100"),
        (("prompt.template=textrec", "stages=[rl]", "prompt.profile=a.csv"), "needed by prompt.profile"),
        (("prompt.template=textrec", "stages=[rl]", "prompt.prefix=a"), "write it into a template of your own"),
        (("prompt.template=textrec", "stages=[rl]", "model.name=item"), "model.name=item does not read"),
    ],
)
def test_prompts_in_words_that_cannot_be_are_refused(tmp_path, words, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        small_config(tmp_path, *words)
