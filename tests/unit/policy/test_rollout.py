from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genrl.batches import Completions, concatenate
from genrl.config.schema import RolloutConfig
from genrl.errors import ConfigError
from genrl.policy.rollout import check_rollout, rollout, target_rollout
from genrl.policy.score import score
from tests.helpers import assert_same
from tests.models import make_layout, make_policy, make_prompts, make_thinking


def draw(method: str, rows: slice = slice(0, 5), seed: int = 0) -> Completions:
    policy = make_policy()
    layout = make_layout(policy)
    config = RolloutConfig(method=method, group_size=6)  # type: ignore[arg-type]
    return rollout(
        policy,
        layout,
        make_prompts(policy).rows(rows),
        config,
        generator=torch.Generator().manual_seed(seed),
        rows=rows,
        total=5,
        categories=torch.arange(60) % 4,
    )


@pytest.mark.parametrize("method", ["sample", "beam", "gumbel"])
def test_a_prompt_gets_the_same_completions_however_many_ranks_share_the_rollout(method: str) -> None:
    whole = draw(method)
    parts = [draw(method, slice(0, 2)), draw(method, slice(2, 5))]
    assert whole.tokens.tolist() == torch.cat([part.tokens for part in parts]).tolist()
    assert_same(torch.cat([part.logps for part in parts]), whole.logps)


@pytest.mark.parametrize("method", ["beam", "gumbel"])
def test_distinct_methods_draw_distinct_items(method: str) -> None:
    groups = draw(method).items.view(5, 6)
    assert all(len(set(group)) == 6 for group in groups.tolist())


@pytest.mark.parametrize("method", ["sample", "gumbel"])
def test_another_seed_draws_other_items(method: str) -> None:
    assert draw(method, seed=0).tokens.tolist() != draw(method, seed=1).tokens.tolist()


def test_everything_that_credit_needs_is_there() -> None:
    batch = draw("sample")
    assert bool((batch.items >= 0).all())
    assert batch.categories is not None
    assert batch.categories.tolist() == (batch.items % 4).tolist()
    assert bool((batch.logps[~batch.chosen] == 0).all())
    assert batch.step_ids[0].tolist() == [0, 1, 2]


def test_the_targets_themselves_as_completions() -> None:
    policy = make_policy()
    layout = make_layout(policy)
    prompts = make_prompts(policy)
    batch = target_rollout(layout, prompts, torch.arange(60) % 4)
    assert batch.items.tolist() == prompts.wanted.items.tolist()
    assert bool(torch.isfinite(score(policy, layout, prompts, batch).logps).all())


def test_a_group_larger_than_the_catalogue_is_refused() -> None:
    layout = make_layout(make_policy())
    config = RolloutConfig(method="beam", group_size=61)
    with pytest.raises(ConfigError, match="group_size=61 distinct items, but the catalogue has 60"):
        check_rollout(config, layout)
    check_rollout(replace(config, method="sample"), layout)


def think(rows: slice = slice(0, 5), **options: object) -> Completions:
    policy = make_policy(thinking=True)
    layout = make_thinking(policy, order="interleaved", budget=4, minimum=1)
    return rollout(
        policy,
        layout,
        make_prompts(policy).rows(rows),
        RolloutConfig(group_size=4, **options),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
        rows=rows,
        total=5,
        categories=torch.arange(60) % 4,
    )


def test_prompts_think_the_same_however_many_ranks_share_the_rollout() -> None:
    whole = think()
    joined = concatenate(think(slice(0, 2)), think(slice(2, 5)))
    for name in ("tokens", "chosen", "step_ids", "item_mask", "codes", "items", "closed", "categories"):
        assert getattr(whole, name).tolist() == getattr(joined, name).tolist()
    assert_same(joined.logps, whole.logps)
    assert joined.states is not None
    assert whole.states is not None
    assert joined.states.site.tolist() == whole.states.site.tolist()


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
def test_only_what_was_chosen_in_thinking_counts(normalize: str) -> None:
    batch = think(normalize=normalize)
    policy = make_policy(thinking=True)
    layout = make_thinking(policy, order="interleaved", budget=4, minimum=1)
    assert batch.entropy is not None
    assert batch.closed is not None
    assert batch.states is not None
    sites = batch.states.site
    words = (sites >= layout.steps) & (sites < layout.fixed)
    assert batch.chosen[words].all()
    assert not batch.chosen[sites == layout.fixed].any()
    codes = (sites >= 0) & (sites < layout.steps)
    assert codes.equal(batch.item_mask)
    assert batch.chosen[codes].all().item() is (normalize == "vocab")
    assert not batch.logps[~batch.chosen].any()
    assert not batch.entropy[~batch.chosen].any()
    assert bool((batch.logps[words] < 0).all())
    assert (batch.items >= 0).all()
    ends = batch.tokens.eq(policy.words.closing) & batch.chosen
    assert batch.closed.sum().item() == ends.sum().item()
    assert 0 < batch.closed.sum().item() < batch.closed.numel()
    for step in range(3):
        assert batch.closed[:, step].equal((ends & (batch.step_ids == step)).any(1))


@pytest.mark.parametrize("method", ["beam", "gumbel"])
def test_a_search_over_thinking_is_refused(method: str) -> None:
    layout = make_thinking(make_policy(thinking=True))
    config = RolloutConfig(method=method, group_size=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"rollout\.method={method} searches over SID tokens alone.*method=sample"):
        check_rollout(config, layout)
    check_rollout(replace(config, method="sample"), layout)
