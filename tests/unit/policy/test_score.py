from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.config.schema import RolloutConfig
from genrl.policy.model import Policy
from genrl.policy.rollout import rollout
from genrl.policy.score import score
from genrl.types import RolloutBatch
from tests.helpers import assert_same
from tests.models import (
    ARCHITECTURES,
    TINY,
    every_item,
    local_config,
    make_layout,
    make_policy,
    make_prompts,
    save_local_model,
)


def naive_logps(policy: Policy, layout: object, batch: RolloutBatch, normalize: str, temperature: float) -> Tensor:
    """Each completion in a row of its own behind a copy of its prompt, one plain forward per row."""
    rows = []
    for row in range(batch.tokens.shape[0]):
        prompt = row // batch.group_size
        tokens = torch.cat([batch.prompt_tokens[prompt][batch.prompt_mask[prompt]], batch.tokens[row]])
        logits = policy.model(tokens[None]).logits[0].float() / temperature
        start = int(batch.prompt_mask[prompt].sum())
        places = []
        for position in range(batch.tokens.shape[1]):
            now = logits[start + position - 1]
            legal = layout.legal(position, batch.support[row, position][None])  # type: ignore[attr-defined]
            inside = now[legal.first : legal.first + legal.mask.shape[1]][legal.mask[0]]
            total = (inside if normalize == "legal" else now).logsumexp(0)
            places.append(now[batch.tokens[row, position]] - total)
        rows.append(torch.stack(places))
    return torch.stack(rows) * batch.mask


def drawn(policy: Policy, normalize: str = "legal", temperature: float = 1.0) -> tuple[object, RolloutBatch]:
    layout = make_layout(policy)
    config = RolloutConfig(group_size=4, normalize=normalize, temperature=temperature)  # type: ignore[arg-type]
    prompts = make_prompts(policy)
    generator = torch.Generator().manual_seed(3)
    categories = torch.arange(60) % 4
    batch = rollout(
        policy, layout, prompts, config, generator=generator, rows=slice(0, 5), total=5, categories=categories
    )
    return layout, batch


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_equal_one_forward_per_row(normalize: str, temperature: float) -> None:
    policy = make_policy()
    layout, batch = drawn(policy, normalize, temperature)
    assert_same(score(policy, layout, batch, temperature, normalize).logps, batch.old_logps)

    weights = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.old_logps)
    gradients = []
    for logps in (
        score(policy, layout, batch, temperature, normalize).logps,
        naive_logps(policy, layout, batch, normalize, temperature),
    ):
        assert_same(logps, batch.old_logps)
        policy.zero_grad()
        (logps * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values()]))
    assert_same(gradients[0] / gradients[1].norm(), gradients[1] / gradients[1].norm())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_other_architectures_with_grouped_queries_agree(architecture: str, tmp_path: Path) -> None:
    policy = make_policy(local_config(save_local_model(tmp_path, architecture)))
    layout, batch = drawn(policy)
    with torch.no_grad():
        assert_same(naive_logps(policy, layout, batch, "legal", 1.0), batch.old_logps)
        assert_same(score(policy, layout, batch).logps, batch.old_logps)


def test_more_padding_changes_nothing() -> None:
    policy = make_policy()
    layout, batch = drawn(policy)
    wide = torch.nn.functional.pad
    padded = RolloutBatch(
        prompt_tokens=wide(batch.prompt_tokens, (3, 0)),
        prompt_mask=wide(batch.prompt_mask, (3, 0)),
        **{
            name: getattr(batch, name)
            for name in (
                "tokens",
                "mask",
                "step_ids",
                "item_mask",
                "support",
                "choices",
                "items",
                "old_logps",
                "group_size",
                "num_steps",
            )
        },
    )
    with torch.no_grad():
        assert_same(score(policy, layout, padded).logps, score(policy, layout, batch).logps)


def test_probabilities_of_all_items_sum_to_one() -> None:
    policy = make_policy()
    layout = make_layout(policy)
    prompts = make_prompts(policy)
    batch = every_item(layout, prompts)
    with torch.no_grad():
        total = score(policy, layout, batch).logps.sum(1).view(5, 60).exp().sum(1)
    assert_same(total, torch.ones(5))


def test_forced_tokens_have_no_log_probability_and_no_gradient() -> None:
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
    scores = score(policy, layout, batch)
    zero = batch.choices[:, 0] == 0
    assert zero.any()
    assert (~zero).any()
    assert batch.mask[zero].tolist() == [[True, False, False]] * int(zero.sum())
    assert_same(scores.logps[zero][:, 1:], torch.zeros(int(zero.sum()), 2))
    scores.logps[zero][:, 1:].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.trainable().values())
