from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Targets, concatenate
from genrl.config.schema import RolloutConfig
from genrl.errors import ConfigError
from genrl.policy.distribution import Sampling
from genrl.policy.rollout import check_rollout, given_text, rollout, target_rollout, targets_behind_text
from genrl.policy.score import score
from tests.helpers import assert_same
from tests.models import make_codes, make_layout, make_policy, make_prompts, make_thinking


def draw(method: str, rows: slice = slice(0, 5), seed: int = 0) -> Completions:
    policy = make_policy()
    layout = make_layout(policy)
    config = RolloutConfig(method=method, group_size=6)
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
def test_a_prompt_gets_the_same_completions_however_many_ranks_share_the_rollout(method):
    whole = draw(method)
    parts = [draw(method, slice(0, 2)), draw(method, slice(2, 5))]
    assert whole.tokens.tolist() == torch.cat([part.tokens for part in parts]).tolist()
    assert_same(torch.cat([part.logps for part in parts]), whole.logps)


@pytest.mark.parametrize("method", ["beam", "gumbel"])
def test_distinct_methods_draw_distinct_items(method):
    groups = draw(method).items.view(5, 6)
    assert all(len(set(group)) == 6 for group in groups.tolist())


@pytest.mark.parametrize("method", ["sample", "gumbel"])
def test_another_seed_draws_other_items(method):
    assert draw(method, seed=0).tokens.tolist() != draw(method, seed=1).tokens.tolist()


def test_everything_that_credit_needs_is_there():
    batch = draw("sample")
    assert bool((batch.items >= 0).all())
    assert batch.categories.tolist() == (batch.items % 4).tolist()
    assert bool((batch.logps[~batch.chosen] == 0).all())
    assert batch.step_ids[0].tolist() == [0, 1, 2]


def test_the_targets_themselves_as_completions():
    policy = make_policy()
    layout = make_layout(policy)
    prompts = make_prompts(policy)
    batch = target_rollout(layout, prompts, torch.arange(60) % 4)
    assert batch.items.tolist() == prompts.wanted.items.tolist()
    assert bool(torch.isfinite(score(policy, layout, prompts, batch).logps).all())


def test_a_group_larger_than_the_catalogue_is_refused():
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
        RolloutConfig(group_size=4, **options),
        generator=torch.Generator().manual_seed(0),
        rows=rows,
        total=5,
        categories=torch.arange(60) % 4,
    )


def test_prompts_think_the_same_however_many_ranks_share_the_rollout():
    whole = think()
    joined = concatenate(think(slice(0, 2)), think(slice(2, 5)))
    for name in ("tokens", "chosen", "step_ids", "item_mask", "codes", "items", "closed", "categories"):
        assert getattr(whole, name).tolist() == getattr(joined, name).tolist()
    assert_same(joined.logps, whole.logps)
    assert joined.states.site.tolist() == whole.states.site.tolist()


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
def test_only_what_was_chosen_in_thinking_counts(normalize):
    batch = think(normalize=normalize)
    policy = make_policy(thinking=True)
    layout = make_thinking(policy, order="interleaved", budget=4, minimum=1)
    assert batch.closed is not None
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


def free(row: int, codes: Tensor) -> list[bool]:
    """Which codes of an item are not the only ones behind the codes before them."""
    same = [(codes[:, :level] == codes[row, :level]).all(1) for level in range(3)]
    return [len(codes[rows, level].unique()) > 1 for level, rows in enumerate(same)]


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@pytest.mark.parametrize(
    "options",
    [{}, {"on_budget": "fail", "budget": 40}, {"order": "interleaved"}],
    ids=["tail", "fail", "interleaved"],
)
def test_targets_stand_behind_what_the_policy_thinks_itself(options, normalize):
    policy = make_policy(thinking=True)
    codes = make_codes()
    layout = make_thinking(policy, codes, **options)
    rows = sorted(range(60), key=lambda row: all(free(row, codes)))[:3]  # some code of these has no alternative
    prompts = replace(make_prompts(policy), targets=Targets(torch.tensor([*rows, 5, 7])[:, None]))
    config = RolloutConfig(group_size=4, normalize=normalize)
    shared: dict[str, Any] = {"rows": slice(0, 5), "total": 5, "categories": torch.arange(60) % 4}
    own, behind = (
        draw(policy, layout, prompts, config, generator=torch.Generator().manual_seed(0), **shared)
        for draw in (rollout, targets_behind_text)
    )
    whole = behind.items[:, 0] >= 0
    assert whole.equal(own.items[:, 0] >= 0)
    assert bool(whole.all()) is ("on_budget" not in options)
    assert bool(whole.any())
    targets = prompts.wanted.items.repeat_interleave(4, 0)
    assert behind.items[whole].equal(targets[whole])
    assert behind.categories.equal(torch.where(whole[:, None], targets % 4, -1))
    assert not own.items.equal(behind.items)
    first = own.item_mask.long().cumsum(1) == 0
    width = min(own.tokens.shape[1], behind.tokens.shape[1])
    same = first[:, :width]
    assert behind.tokens[:, :width][same].equal(own.tokens[:, :width][same])
    item = behind.item_mask
    assert behind.chosen[item].tolist() == [each for row in targets[whole, 0].tolist() for each in free(row, codes)]
    assert not behind.chosen[item].all()
    assert not behind.logps[item].any()
    words = behind.chosen & ~item
    logps = score(policy, layout, prompts, behind, Sampling(normalize=config.normalize)).logps
    assert_same(behind.logps[words], logps[words], 1e-4)  # they were drawn behind the codes that stand before them
    given = given_text(behind)
    assert given.chosen.equal(behind.chosen & item)
    assert not given.logps.any()
    assert not given.chosen[~whole].any()


@pytest.mark.parametrize("method", ["beam", "gumbel"])
def test_a_search_over_thinking_is_refused(method):
    layout = make_thinking(make_policy(thinking=True))
    config = RolloutConfig(method=method, group_size=2)
    with pytest.raises(ConfigError, match=rf"rollout\.method={method} searches over SID tokens alone.*method=sample"):
        check_rollout(config, layout)
    check_rollout(replace(config, method="sample"), layout)
