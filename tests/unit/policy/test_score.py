import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrl.batches import Completions, Requests
from genrl.config.schema import ModelConfig, RolloutConfig
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout
from genrl.policy.distribution import Sampling
from genrl.policy.load import load_policy
from genrl.policy.model import Policy
from genrl.policy.rollout import rollout
from genrl.policy.score import score
from genrl.policy.share import WAYS
from genrl.policy.write import write
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import (
    ARCHITECTURES,
    TEXTS,
    TINY,
    as_completions,
    every_completion,
    local_config,
    make_layout,
    make_policy,
    make_prompts,
    make_thinking,
    padded,
    save_local_model,
)


def naive_logps(policy: Policy, layout: SidLayout, batch: Completions, normalize: str, temperature: float) -> Tensor:
    """Each completion in a row of its own behind a copy of its prompt, one plain forward per row."""
    rows, prompts = [], make_prompts(policy)
    for row in range(batch.tokens.shape[0]):
        prompt = row // batch.group_size
        tokens = torch.cat([prompts.tokens[prompt][prompts.mask[prompt]], batch.tokens[row]])
        logits = policy.model(tokens[None]).logits[0].float() / temperature
        start = int(prompts.mask[prompt].sum())
        places = []
        for position in range(batch.tokens.shape[1]):
            now = logits[start + position - 1]
            legal = layout.legal(position, batch.states.each(lambda value, at=(row, position): value[at][None]))
            inside = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
            total = (inside if normalize == "legal" else now).logsumexp(0)
            places.append(now[batch.tokens[row, position]] - total)
        rows.append(torch.stack(places))
    return torch.stack(rows) * batch.chosen


def drawn(policy: Policy, normalize: str = "legal", temperature: float = 1.0) -> tuple[SidLayout, Completions]:
    layout = make_layout(policy)
    config = RolloutConfig(group_size=4, normalize=normalize, temperature=temperature)
    prompts = make_prompts(policy)
    generator = torch.Generator().manual_seed(3)
    categories = torch.arange(60) % 4
    batch = rollout(
        policy, layout, prompts, config, generator=generator, rows=slice(0, 5), total=5, categories=categories
    )
    return layout, batch


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_equal_one_forward_per_row(normalize, temperature):
    policy = make_policy()
    layout, batch = drawn(policy, normalize, temperature)
    sampling = Sampling(temperature, normalize=normalize)
    weights = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.logps)
    gradients = []
    for logps in (
        score(policy, layout, make_prompts(policy), batch, sampling).logps,
        naive_logps(policy, layout, batch, normalize, temperature),
    ):
        assert_same(logps, batch.logps)
        policy.zero_grad()
        (logps * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values()]))
    assert_same(gradients[0] / gradients[1].norm(), gradients[1] / gradients[1].norm())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_other_architectures_with_grouped_queries_agree(architecture, tmp_path):
    policy = make_policy(local_config(save_local_model(tmp_path, architecture)))
    layout, batch = drawn(policy)
    with torch.no_grad():
        assert_same(naive_logps(policy, layout, batch, "legal", 1.0), batch.logps)
        assert_same(score(policy, layout, make_prompts(policy), batch).logps, batch.logps)


def test_forced_tokens_have_no_log_probability_and_no_gradient():
    policy = make_policy(TINY)
    codes = torch.tensor([[0, 1, 2], [1, 1, 3], [1, 2, 0]])  # below code 0 everything is forced
    layout = make_layout(policy, codes)
    prompts = make_prompts(policy, items=3)
    batch = rollout(
        policy,
        layout,
        prompts,
        RolloutConfig(group_size=8),
        generator=torch.Generator().manual_seed(0),
        rows=slice(0, 5),
        total=5,
        categories=torch.zeros(3, dtype=torch.int64),
    )
    scores = score(policy, layout, make_prompts(policy), batch)
    zero = batch.codes[:, 0] == 0
    assert zero.any()
    assert (~zero).any()
    assert batch.chosen[zero].tolist() == [[True, False, False]] * int(zero.sum())
    assert_same(scores.logps[zero][:, 1:], torch.zeros(int(zero.sum()), 2))
    scores.logps[zero][:, 1:].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.trainable().values())


THINKING = {"budget": 5, "minimum": 1, "total": 12}


def thought(
    policy: Policy, normalize: str = "legal", warmth: tuple[float, float] = (1.0, 1.0), **options: Any
) -> tuple[BlockedLayout, Completions]:
    layout = make_thinking(policy, **{**THINKING, **options})
    config = RolloutConfig(
        group_size=4,
        normalize=normalize,
        temperature=warmth[0],
        thinking_temperature=warmth[1],
    )
    batch = rollout(
        policy,
        layout,
        make_prompts(policy),
        config,
        generator=torch.Generator().manual_seed(3),
        rows=slice(0, 5),
        total=5,
        categories=torch.arange(60) % 4,
    )
    return layout, batch


def gradient(policy: Policy, value: Tensor) -> Tensor:
    policy.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten().double() for p in policy.trainable().values() if p.grad is not None])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_scores_of_thinking_are_what_was_sampled(way, normalize, order):
    policy = make_policy(thinking=True)
    layout, batch = thought(policy, normalize, (0.7, 1.3), order=order)
    policy.branching = way
    with torch.no_grad():
        scores = score(policy, layout, make_prompts(policy), batch, Sampling(0.7, 1.3, normalize))
        same = score(policy, layout, make_prompts(policy), batch, Sampling(0.7, normalize=normalize))
    assert_same(scores.logps, batch.logps)
    assert_same(scores.entropy, batch.entropy)
    words = batch.chosen & ~batch.item_mask
    assert_same(same.logps[batch.item_mask], batch.logps[batch.item_mask])
    assert bool((same.logps[words] - batch.logps[words]).abs().max() > 0.1)


def test_gradients_of_thinking_equal_those_of_plain_rows():
    policy = make_policy(thinking=True).double()
    layout, batch = thought(policy, warmth=(0.7, 1.3), on_budget="fail", order="interleaved")
    assert len(set(batch.chosen.sum(1).tolist())) > 2
    weights = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.logps)
    found = {}
    for way in WAYS:
        policy.branching = way
        found[way] = gradient(
            policy, (score(policy, layout, make_prompts(policy), batch, Sampling(0.7, 1.3)).logps * weights).sum()
        )
    norm = found["naive"].norm()
    assert_same(found["expand"] / norm, found["naive"] / norm, 1e-5)
    assert_same(found["tree"] / norm, found["naive"] / norm, 1e-5)


def test_sums_over_the_vocabulary_in_parts_change_neither_scores_nor_gradients(monkeypatch):
    policy, sampling = make_policy(), Sampling(normalize="vocab")
    layout, prompts = make_layout(policy), make_prompts(policy)
    batch = write(policy, layout, prompts, 4, sampling, torch.rand(5, 4, 3))
    found, parts = [], []
    for most in (2**24, 300):  # a row or two at a time
        monkeypatch.setattr("genrl.policy.distribution.LOGITS", most)
        monkeypatch.setattr(
            "genrl.policy.distribution.checkpoint", lambda *all_, **how: parts.append(1) or checkpoint(*all_, **how)
        )
        scores = score(policy, layout, prompts, batch, sampling)
        found.append((scores.logps.detach(), gradient(policy, scores.logps.sum())))
    assert len(parts) > 3
    for whole, split in zip(*found, strict=True):
        assert_same(split / whole.norm(), whole / whole.norm(), 1e-6)


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
def test_logits_in_parts_change_neither_scores_nor_gradients(normalize, monkeypatch):
    policy = make_policy(thinking=True)
    layout, batch = thought(policy, normalize)
    found = []
    parts = []
    for most in (2**24, 300):  # a few places at a time
        monkeypatch.setattr("genrl.policy.score.LOGITS", most)
        monkeypatch.setattr(
            "genrl.policy.score.checkpoint", lambda *all_, **options: parts.append(1) or checkpoint(*all_, **options)
        )
        scores = score(policy, layout, make_prompts(policy), batch, Sampling(normalize=normalize))
        found.append(
            (scores.logps.detach(), scores.entropy.detach(), gradient(policy, (scores.logps * scores.entropy).sum()))
        )
    assert len(parts) > 20
    for whole, split in zip(*found, strict=True):
        assert_same(split / whole.norm(), whole / whole.norm(), 1e-6)


def test_forced_tokens_and_padding_of_thinking_take_no_gradient():
    policy = make_policy(thinking=True)
    layout, batch = thought(policy)
    assert not batch.chosen.all()
    scores = score(policy, layout, make_prompts(policy), batch)
    assert not scores.logps[~batch.chosen].any()
    assert not gradient(policy, scores.logps[~batch.chosen].sum()).any()


def test_a_rollout_in_which_nothing_was_chosen_has_no_gradient():
    policy = make_policy(thinking=True)
    layout, batch = thought(policy)
    nothing = replace(batch, chosen=torch.zeros_like(batch.chosen), logps=torch.zeros_like(batch.logps))
    for way in WAYS:
        policy.branching = way
        scores = score(policy, layout, make_prompts(policy), nothing)
        assert not scores.logps.any()
        assert not gradient(policy, scores.logps.sum()).any()


def tiny_thinking(levels: int, **options: Any) -> tuple[Policy, BlockedLayout]:
    """Few enough completions to list them: two words, blocks of up to two, three items."""
    sizes = ((3,), (2, 2))[levels - 1]
    config = ModelConfig(hidden=16, layers=1, heads=2, feed_forward=16, vocabulary=60, dropout=0.0)
    policy = load_policy(config, sizes, TEXTS, thinking=True).eval()
    with torch.no_grad():
        for value in policy.trainable().values():
            if value.dim() > 1:
                value.mul_(6.0)
    legal = torch.zeros_like(policy.words.legal)
    legal[[12, 20]] = True
    codes = torch.tensor([[[0], [1], [2]], [[0, 0], [0, 1], [1, 0]]][levels - 1])
    catalogue = Items(Trie.build(codes, sizes), policy.first_ids, codes)
    words = replace(policy.words, legal=legal)
    shown = BlockedLayoutConfig(budget=2, **options)
    return policy, BlockedLayout(shown, catalogue=catalogue, words=words)


@pytest.mark.parametrize(
    ("levels", "options"),
    [
        (1, {"minimum": 0}),
        (1, {"minimum": 1, "on_budget": "fail"}),
        (2, {"minimum": 0, "order": "interleaved", "total": 3}),
        (2, {"minimum": 1, "order": "tail"}),
    ],
)
@torch.no_grad()
def test_probabilities_of_all_completions_sum_to_one_and_samples_follow_them(levels, options):
    policy, layout = tiny_thinking(levels, **options)
    everything = every_completion(layout)
    prompt = torch.tensor([[1, 9, 30, 14]])
    prompts = Requests(prompt, torch.ones_like(prompt, dtype=torch.bool), prompt[:, :0])
    drawn = as_completions(layout, padded([list(row) for row in everything], 0), len(everything))
    chances = score(policy, layout, prompts, drawn, Sampling(0.7, 1.3)).logps.sum(1).exp()
    assert_same(chances.sum(), torch.tensor(1.0))
    assert float(chances.max()) > 3 * float(chances.min())

    count = 20_000
    noise = torch.rand(1, count, layout.length, generator=torch.Generator().manual_seed(0))
    written = write(policy, layout, prompts, count, Sampling(0.7, 1.3), noise)
    place = {row: number for number, row in enumerate(everything)}
    seen = torch.zeros(len(place), dtype=torch.float64)
    for row, length in zip(written.tokens.tolist(), written.written.sum(1).tolist(), strict=True):
        seen[place[tuple(row[:length])]] += 1
    expected = chances.double() * count
    assert float(expected.min()) > 5
    distance = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(place) - 1
    assert distance < freedom + 4 * math.sqrt(2 * freedom)
