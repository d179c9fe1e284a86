import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.catalog.sequences import Role
from genrl.policy.guide import Guide
from genrl.recommenders import Baseline
from genrl.recommenders.reference import ItemKNNConfig, item_knn
from genrl.runs.session import Session
from genrl.training.sft import SFTModule, _text_loss
from tests.helpers import assert_same
from tests.models import head_of, logits
from tests.runs import (
    assert_step,
    attach,
    changed,
    flat_gradient,
    learning_rates,
    one_step,
    sft_module,
    small_config,
    train,
)


def step_gradient(session: Session, folder: Path, step: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one optimiser step."""
    return one_step(attach(sft_module(session, folder), global_step=step))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session of few users, whose sequences are followed one by one."""
    options = ("data.toy.users=12", "align.items_per_step=100000")
    return Session.build(small_config(tmp_path_factory.mktemp("few"), *options))


def naive_loss(session: Session, teacher: Baseline | None = None, share: float = 0.0) -> Tensor:
    """Mean negative log-likelihood of the codes of all training items: one plain forward per user.

    A teacher has a share of every target behind a history: its probabilities of the items below each code.
    """
    sequences, layout, policy = session.dataset.sequences, session.layout, session.policy
    total, count = torch.zeros(()), 0
    for start, end in zip(sequences.offsets[:-1].tolist(), sequences.offsets[1:].tolist(), strict=True):
        items = sequences.items[start:end][sequences.roles[start:end] == int(Role.TRAIN)]
        codes = layout.compose(items[:, None])
        tokens = torch.cat([torch.tensor([policy.start_id]), codes.flatten()])
        logits = policy.model(tokens[None]).logits[0].float()
        for number, item in enumerate(codes):
            state = layout.start(1)
            for position, token in enumerate(item):
                now = logits[number * layout.length + position]
                legal = layout.legal(position, state)
                allowed = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
                likelihood = now[token] - allowed.logsumexp(0)
                if teacher is not None and number:
                    chances = teacher.likelihoods(items[None, :number])[0].exp()
                    family = (layout.codes[:, :position] == layout.codes[items[number], :position]).all(1)
                    soft = torch.zeros(())
                    for code in legal.mask[0].nonzero()[:, 0].tolist():
                        below = family & (layout.codes[:, position] == code)
                        mass = chances[below].sum() / chances[family].sum()
                        soft = soft + mass * (now[legal.first + code] - allowed.logsumexp(0))
                    likelihood = (1 - share) * likelihood + share * soft
                total = total - likelihood
                state = layout.advance(state, token[None], position)
                count += 1
    return total / count


def test_loss_and_gradient_equal_one_plain_forward_per_user(few, tmp_path):
    assert_step(few.policy, step_gradient(few, tmp_path), naive_loss(few))


def test_a_teacher_has_its_share_of_every_code_behind_a_history(few, tmp_path):
    whole = changed(few, tmp_path, "align.items_per_step=100000", "align.teacher_share=0.8", "teacher.run=somewhere")
    knn = item_knn(ItemKNNConfig(), problem=few.learner.problem)
    module = attach(sft_module(whole, tmp_path))
    module.teacher = Guide(knn, few.layout.catalogue.trie)
    assert_step(few.policy, one_step(module), naive_loss(few, knn, 0.8))


@pytest.mark.parametrize("length", [2, 300, 5000])
def test_gradients_do_not_depend_on_how_users_are_packed(session, tmp_path, length):
    reference = step_gradient(session, tmp_path, step=3)
    packed = step_gradient(changed(session, tmp_path, f"align.pack_length={length}"), tmp_path, step=3)
    assert_same(packed[0], reference[0])
    assert_same(packed[1], reference[1])


def test_the_losses_of_two_ranks_average_to_that_of_one(session, tmp_path):
    loss, gradient = step_gradient(session, tmp_path)
    parts = [one_step(attach(sft_module(session, tmp_path), world_size=2, global_rank=rank)) for rank in range(2)]
    assert_same((parts[0][0] + parts[1][0]) / 2, loss)
    assert_same((parts[0][1] + parts[1][1]) / 2, gradient)


def test_a_rank_without_a_segment_takes_part_with_a_gradient_of_zero(session, tmp_path):
    one = changed(session, tmp_path, "align.items_per_step=1")
    module = attach(sft_module(one, tmp_path), world_size=2, global_rank=1)
    batch = next(iter(module.train_dataloader()))
    assert not len(batch.items)
    loss = module.training_step(batch, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in session.policy.trainable().values())


def test_words_are_targets_over_the_whole_vocabulary(session, tmp_path):
    with_text = changed(session, tmp_path, "align.text_tasks=on", "align.items_per_step=100000")
    module = attach(sft_module(with_text, tmp_path))
    batch = next(iter(module.train_dataloader()))
    titles = session.dataset.catalog.titles
    words = session.policy.tokenizer([f"{title}" for title in titles], add_special_tokens=False)["input_ids"]
    assert len(batch.text_places) == sum(len(ids) + 1 for ids in words)  # and the end token of each title
    assert len(batch.items) == session.dataset.sequences.rows(Role.TRAIN).numel() + len(titles)
    hidden = torch.randn(*batch.tokens.shape, session.config.model.hidden)
    rows, columns = batch.text_places.unbind(1)
    wanted = torch.tensor(0.0)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        found = logits(session.policy, hidden[row, column - 1])
        wanted = wanted - found.log_softmax(-1)[batch.tokens[row, column]]
    assert_same(_text_loss(batch, hidden, head_of(session.policy)) / len(rows), wanted / len(rows))


def test_words_in_parts_have_the_same_loss_and_gradient(session, tmp_path, monkeypatch):
    with_text = changed(session, tmp_path, "align.text_tasks=on", "align.items_per_step=100000")
    batch = next(iter(attach(sft_module(with_text, tmp_path)).train_dataloader()))
    hidden = torch.randn(*batch.tokens.shape, session.config.model.hidden, requires_grad=True)
    found = []
    for most in (2**24, 10_000):  # all places, and about thirty at a time
        monkeypatch.setattr("genrl.training.sft.LOGITS", most)
        loss = _text_loss(batch, hidden, head_of(session.policy)) / len(batch.text_places)
        found.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
    for whole, parts in zip(*found, strict=True):
        assert_same(parts / whole.norm(), whole / whole.norm())


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_its_last_step(session, tmp_path):
    config = changed(session, tmp_path, "align.warmup_steps=2", "align.max_epochs=6", "align.final_learning_rate=0.1")
    module = attach(sft_module(config, tmp_path))
    steps = module.max_steps
    rates = [rate / config.config.align.learning_rate for rate in learning_rates(module, steps + 1)]
    assert_same(rates[:3], [0.5, 1.0, 1.0], 1e-9)
    half = 2 + (steps - 2) // 2
    progress = (half - 2) / (steps - 2)
    assert_same(rates[half], 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)), 1e-9)
    assert_same(rates[steps], 0.1, 1e-9)


def test_vectors_are_not_decayed(session, tmp_path):
    optimizer = attach(sft_module(session, tmp_path)).configure_optimizers()["optimizer"]
    decayed = {p.dim() > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed == {True: session.config.align.weight_decay, False: 0.0}
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == len(session.policy.trainable())


def test_training_lowers_the_loss_and_validates_after_each_round(session, tmp_path):
    whole = changed(session, tmp_path, "align.items_per_step=100000")
    before = step_gradient(whole, tmp_path)[0]
    session.policy.zero_grad()
    module = sft_module(changed(session, tmp_path, "align.validate_every=0.5", "align.max_epochs=3"), tmp_path)
    trainer = train(module, module.max_steps)
    assert trainer.global_step == module.max_steps == 3 * module.batches.steps_per_epoch
    assert module.round_steps == round(module.batches.steps_per_epoch / 2)
    assert {"val/ndcg@10", "val/recall@5", "train/grad_norm", "train/learning_rate"} <= set(trainer.callback_metrics)
    assert float(step_gradient(whole, tmp_path)[0]) < float(before) - 0.05


def test_dropout_of_a_step_depends_on_seed_and_step_alone(session, tmp_path):
    def drawn(step: int, *overrides: str) -> list[float]:
        module: SFTModule = attach(sft_module(changed(session, tmp_path, *overrides), tmp_path), global_step=step)
        next(iter(module.train_dataloader()))
        return torch.rand(3).tolist()

    torch.manual_seed(5)
    first = drawn(2)
    torch.manual_seed(6)
    assert drawn(2) == first
    assert drawn(3) != first
    assert drawn(2, "align.seed=1") != first


def test_models_that_do_not_take_masks_get_one_user_per_row_and_the_same_gradient(session, tmp_path):
    packed = step_gradient(session, tmp_path)[1]
    tried, session.policy.noticed = session.policy.refused_ways, {"tree"}
    session.policy.refused_ways = {torch.device("cpu"): {"tree": "it says so"}}
    module = attach(sft_module(session, tmp_path))
    module.on_fit_start()
    session.policy.zero_grad()
    module.training_step(next(iter(module.train_dataloader())), 0).backward()
    alone = flat_gradient(session.policy)
    session.policy.refused_ways = tried
    assert module.batches.alone
    batch = module.batches.step(0)
    assert bool((batch.segments <= 0).all())
    assert int(batch.segments.amax(1).min()) == 0
    assert_same(alone, packed)
