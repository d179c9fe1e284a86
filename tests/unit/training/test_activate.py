import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.errors import DataError
from genrl.runs.session import Session
from genrl.training.activate import ActivateModule, forgotten
from tests.helpers import assert_same
from tests.runs import activate_module, anew, assert_step, attach, begun, changed, one_step, small_config, train

THINKING = (
    "layout=blocked",
    "layout.budget=6",
    "activate.examples=12",
    "activate.examples_per_step=6",
    "activate.foreign=0",
    "activate.plain=0",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, dict[str, Tensor]]:
    return begun(tmp_path_factory.mktemp("activate"), *THINKING)


@pytest.fixture
def session(built: tuple[Session, dict[str, Tensor]]) -> Session:
    return anew(*built)


def other(session: Session, folder: Path, *overrides: str) -> Session:
    """The same session under other options."""
    return changed(session, folder, *THINKING, *overrides)


def step_gradient(module: ActivateModule, step: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one optimiser step."""
    return one_step(attach(module, global_step=step))


def naive_plain(session: Session) -> Tensor:
    """Summed negative log-likelihood of the SIDs of all targets of traces: one forward per target, without thinking."""
    layout, policy, total = session.layout.plain, session.policy, torch.zeros(())
    for trace in session.traces:
        prompt = session.maker.at(torch.tensor([trace.position]))
        sid = layout.compose(prompt.targets.items)[0]
        logits = policy.model(torch.cat([prompt.tokens[prompt.mask], sid])[None]).logits[0].float()
        state = layout.start(1)
        for place, token in enumerate(sid):
            legal = layout.legal(place, state)
            now = logits[int(prompt.mask.sum()) + place - 1]
            allowed = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
            total = total - (now[token] - allowed.logsumexp(0))
            state = layout.advance(state, token[None], place)
    return total


def naive_loss(session: Session) -> Tensor:
    """Mean negative log-likelihood of what is chosen in all traces: one plain forward per trace, token by token."""
    layout, policy = session.layout, session.policy
    total, count = torch.zeros(()), 0
    for trace in session.traces:
        prompt = session.maker.at(torch.tensor([trace.position]))
        ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in trace.blocks]
        tokens = layout.compose(prompt.targets.items, [ids])
        start = int(prompt.mask.sum())
        logits = policy.model(torch.cat([prompt.tokens[prompt.mask], tokens[0]])[None]).logits[0].float()
        state = layout.start(1)
        for place, token in enumerate(tokens[0]):
            site = int(state.site)
            if layout.kinds[site] != "form":
                legal = layout.legal(site, state)
                now = logits[start + place - 1]
                allowed = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
                total = total - (now[token] - allowed.logsumexp(0))
                count += 1
            state = layout.advance(state, token[None])
    return total / count


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_loss_and_gradient_equal_one_plain_forward_per_trace(session, tmp_path, order):
    layout = Session.build(small_config(tmp_path, *THINKING, f"layout.order={order}")).layout
    whole = other(session, tmp_path, "activate.examples_per_step=100")
    whole = replace(whole, recommender=whole.recommender.under(layout))
    assert_step(session.policy, step_gradient(activate_module(whole, tmp_path)), naive_loss(whole))


def test_items_without_thinking_are_learned_beside_with_their_weight(session, tmp_path):
    whole = other(session, tmp_path, "activate.examples_per_step=100", "activate.plain=3")
    found = step_gradient(activate_module(whole, tmp_path))
    every = other(session, tmp_path, "activate.examples_per_step=100").activate_batches().step(0)
    said, targets = len(every.places), len(session.traces) * session.table.levels
    wanted = (said * naive_loss(session) + 3 * naive_plain(session)) / (said + targets)
    assert_step(session.policy, found, wanted)


@pytest.mark.parametrize("plain", [0, 1])
def test_gradients_do_not_depend_on_how_traces_are_packed(session, tmp_path, plain):
    session = other(session, tmp_path, f"activate.plain={plain}")
    loss, gradient = step_gradient(activate_module(session, tmp_path))
    own = "activate.pack_length=2000", f"activate.plain={plain}"
    longer = step_gradient(activate_module(other(session, tmp_path, *own), tmp_path))
    alone = activate_module(session, tmp_path)
    alone.batches.alone = True
    for again in (longer, step_gradient(alone)):
        assert_same(again[0], loss)
        assert_same(again[1], gradient)


def test_the_losses_of_two_ranks_average_to_that_of_one(session, tmp_path):
    loss, gradient = step_gradient(activate_module(session, tmp_path), step=1)
    modules = [activate_module(session, tmp_path) for _ in range(2)]
    parts = []
    for rank, module in enumerate(modules):
        module.batches = session.activate_batches()
        parts.append(one_step(attach(module, world_size=2, global_rank=rank, global_step=1)))
    assert_same((parts[0][0] + parts[1][0]) / 2, loss)
    assert_same((parts[0][1] + parts[1][1]) / 2, gradient)


@pytest.mark.parametrize("alone", [False, True])
def test_a_rank_without_a_trace_takes_part_with_a_gradient_of_zero(session, tmp_path, alone):
    one = other(session, tmp_path, "activate.examples_per_step=1")
    module = attach(activate_module(one, tmp_path), world_size=50, global_rank=49)
    module.batches = one.activate_batches()
    module.batches.alone = alone
    loss = module.training_step(next(iter(module.train_dataloader())), 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in session.policy.trainable().values())


def test_training_lowers_the_loss_and_validates_after_each_round(session, tmp_path):
    short = ("activate.max_epochs=3", "activate.learning_rate=0.02", "evaluate.valid_users=8")
    module = activate_module(other(session, tmp_path, *short), tmp_path)
    before = float(naive_loss(session).detach())
    trainer = train(module, module.max_steps)
    assert trainer.global_step == module.max_steps == 6
    assert module.round_steps == 2
    logged = {"train/loss", "train/grad_norm", "train/learning_rate", "val/ndcg@10", "val/plain_ndcg@10"}
    assert logged <= set(trainer.callback_metrics)
    session.policy.eval()
    assert float(naive_loss(session).detach()) < before - 0.1


def test_the_key_changes_with_what_the_stage_depends_on_and_nothing_else(session, tmp_path):
    session = other(session, tmp_path)
    key = session.activate_key()
    same = ("seed=4", "rl.learning_rate=0.5", "objective=grpo", "evaluate.batch=7", "evaluate.test_users=9")
    for override in (*same, "stages=[align,activate]"):
        assert other(session, tmp_path, override).activate_key() == key, override
    file = tmp_path / "traces.jsonl"
    file.write_text("one\n")
    own = f"activate={{traces: jsonl, path: {file}}}"
    different = ("layout.order=interleaved", "layout.budget=7", "activate.foreign=0.5", "activate.seed=1", own)
    different += ("evaluate.thinking_samples=2", "evaluate.beam=15", "align.seed=3", "stages=[activate,rl]")
    keys = [other(session, tmp_path, override).activate_key() for override in different]
    assert len({key, *keys}) == len(different) + 1
    file.write_text("two\n")
    assert other(session, tmp_path, own).activate_key() != keys[4]


def test_thinking_changes_the_key_of_stage_align_once(session, tmp_path):
    key = session.align_key()
    assert other(session, tmp_path, "layout.order=interleaved", "layout.budget=9").align_key() == key
    assert Session.build(small_config(tmp_path)).align_key() != key  # its tokenizer has no `<think>`


def test_traces_that_name_their_target_are_left_out_with_a_warning(session, tmp_path):
    dataset = session.dataset
    kept, leaking = session.traces[:2]
    lines = []
    for trace, words in ((kept, "plain words"), (leaking, "")):
        user = dataset.sequences.user_ids[int(dataset.sequences.users(torch.tensor([trace.position])))]
        item = dataset.catalog.item_ids[int(dataset.sequences.items[trace.position])]
        title = words or dataset.catalog.titles[int(dataset.sequences.items[trace.position])]
        lines.append(f'{{"user": "{user}", "item": "{item}", "blocks": {[title] * session.table.levels}}}')
    file = tmp_path / "traces.jsonl"
    file.write_text("\n".join(lines).replace("'", '"'))
    own = other(session, tmp_path, f"activate={{traces: jsonl, path: {file}}}")
    with pytest.warns(UserWarning, match="1 of 2 traces name their target .*; they are left out"):
        assert [trace.blocks[0] for trace in own.traces] == ["plain words"]


def test_a_file_of_traces_that_is_not_there_is_named(session, tmp_path):
    own = other(session, tmp_path, f"activate={{traces: jsonl, path: {tmp_path / 'nowhere.jsonl'}}}")
    with pytest.raises(DataError, match=r"nowhere.jsonl: cannot be read"):
        own.activate_key()


@pytest.mark.parametrize(("now", "said"), [(0.44, True), (0.46, False)])
def test_what_was_forgotten_is_told_at_the_steps_that_were_kept(tmp_path, now, said):
    for name, step, notes in (
        ("align", 4, [{"step": 2, "val/ndcg@10": 0.9}, {"step": 4, "val/ndcg@10": 0.5}]),
        ("activate", 6, [{"step": 6, "val/plain_ndcg@10": now}, {"step": 8, "val/plain_ndcg@10": 0.0}]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"best_step": step}))
        (tmp_path / name / "history.jsonl").write_text("".join(f"{json.dumps(note)}\n" for note in notes))
    told = forgotten(tmp_path / "align", tmp_path / "activate", "val/ndcg@10")
    assert bool(told) == said
    assert not said or "reads 0.4400 val/ndcg@10 where stage align read 0.5000" in told
