"""All ways of computing completions give the same hidden states, log-probabilities and gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Requests
from genrl.config.schema import LoraConfig
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.distribution import Sampling
from genrl.policy.load import load_policy
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.share import WAYS, Copied, Hidden, Naive, Shared, grow
from genrl.policy.write import write
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import (
    ARCHITECTURES,
    TEXTS,
    TINY,
    every_item,
    local_config,
    make_codes,
    make_layout,
    make_policy,
    make_prompts,
    save_local_model,
)

Maker = Callable[[Path], Policy]


def architecture(name: str, **changes: object) -> Maker:
    return lambda folder: make_policy(local_config(save_local_model(folder, name, **changes)))


POLICIES: dict[str, Maker] = {
    "tiny": lambda _: make_policy(),
    **{name: architecture(name) for name in ARCHITECTURES},
    "window": architecture("qwen3", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "lora": lambda folder: make_policy(local_config(save_local_model(folder, "llama"), lora=LoraConfig(rank=4))),
    "nf4": lambda folder: make_policy(
        local_config(save_local_model(folder, "qwen2"), lora=LoraConfig(rank=4), quantize="nf4")
    ),
}


def states(said: Hidden) -> Tensor:
    return said.states


def ways_of(policy: Policy) -> tuple[str, ...]:
    return tuple(way for way in WAYS if not (way == "tree" and policy.window))


def some_items(policy: Policy) -> tuple[SidLayout, Completions]:
    """Eight completions for each of five prompts, some of them cut short."""
    layout = make_layout(policy)
    whole = every_item(layout, make_prompts(policy))
    chosen = torch.arange(8) * 7
    rows = (torch.arange(5)[:, None] * 60 + chosen).flatten()
    mask = whole.chosen[rows].clone()
    mask[::3, 2] = False
    part = replace(replace(whole, group_size=1).rows(rows), group_size=8)
    return layout, replace(part, tokens=part.tokens.masked_fill(~mask, 0), chosen=mask)


def scored(policy: Policy, way: str, layout: SidLayout, batch: Completions, normalize: str) -> tuple[Tensor, Tensor]:
    policy.branching = way
    policy.zero_grad()
    logps = score(policy, layout, make_prompts(policy), batch, Sampling(0.8, normalize=normalize)).logps
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights).sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten().float() for p in policy.trainable().values()])


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
@pytest.mark.parametrize("kind", sorted(POLICIES))
def test_scores_and_gradients_are_those_of_plain_rows(kind, normalize, tmp_path):
    policy = POLICIES[kind](tmp_path)
    layout, batch = some_items(policy)
    wanted, gradient = scored(policy, "naive", layout, batch, normalize)
    assert gradient.norm() > 0
    for way in ways_of(policy)[:-1]:
        logps, found = scored(policy, way, layout, batch, normalize)
        assert float((logps - wanted).abs().max()) < 1e-5
        assert float((found - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("kind", sorted(POLICIES))
def test_samples_and_beams_are_the_same_in_every_way(kind, tmp_path):
    policy = POLICIES[kind](tmp_path)
    layout, prompts = make_layout(policy), make_prompts(policy)
    uniforms = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for way in ways_of(policy):
        policy.branching = way
        found[way] = write(policy, layout, prompts, 6, noise=uniforms), search(policy, layout, prompts, 9)[1]
    for way in ways_of(policy)[:-1]:
        for drawn, wanted in zip(found[way], found["naive"], strict=True):
            assert drawn.tokens.tolist() == wanted.tokens.tolist()
            assert_same(drawn.logps, wanted.logps)
            assert_same(drawn.entropy, wanted.entropy)


def moved(prompts: Requests, side: str) -> Requests:
    """The same prompts with their padding elsewhere."""
    width = prompts.mask.shape[1] + 2
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (ids, real) in enumerate(zip(prompts.tokens, prompts.mask, strict=True)):
        kept = ids[real]
        places = {
            "right": torch.arange(len(kept)),
            "both": 1 + torch.arange(len(kept)),
            "between": torch.cat([torch.arange(len(kept) - 1), torch.tensor([width - 1])]),
        }[side]
        tokens[row, places] = kept
        mask[row, places] = True
    return replace(prompts, tokens=tokens, mask=mask)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["right", "both", "between"])
def test_padding_may_stand_anywhere(way, side):
    policy = make_policy()
    layout, batch = some_items(policy)
    prompts = make_prompts(policy)
    policy.branching = way
    with torch.no_grad():
        assert_same(
            score(policy, layout, moved(prompts, side), batch).logps,
            score(policy, layout, make_prompts(policy), batch).logps,
        )
    policy.branching = "auto"
    shifted = moved(prompts, side)
    found, wanted = (search(policy, layout, each, 4)[1] for each in (shifted, prompts))
    assert found.tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_slots_may_change_their_number_and_order(way):
    policy = make_policy()
    prompts = make_prompts(policy)
    levels = [torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]]), torch.tensor([[10, 11, 12, 13]])]
    parents = [torch.tensor([[0, 0, 0]]), torch.tensor([[2, 0]]), torch.tensor([[1, 0, 1, 1]])]
    policy.branching = way
    with torch.no_grad():
        branches = grow(policy, prompts, 4, 3)
        branches.begin(states)
        for tokens, chosen in zip(levels, parents, strict=True):
            hidden = branches.extend(tokens.expand(5, -1), states, chosen.expand(5, -1))
        paths = [[5, 9, 10], [7, 8, 11], [5, 9, 12], [5, 9, 13]]
        for row in range(5):
            start = prompts.tokens[row][prompts.mask[row]]
            for slot, path in enumerate(paths):
                plain = policy.decoder(input_ids=torch.cat([start, torch.tensor(path)])[None]).last_hidden_state
                assert_same(hidden.view(5, 4, -1)[row, slot], plain[0, -1])


@pytest.mark.parametrize("kind", ["tiny", "lora"])
def test_activation_checkpointing_changes_no_gradient(kind, tmp_path):
    policy = POLICIES[kind](tmp_path)
    layout, batch = some_items(policy)
    wanted, gradient = scored(policy, "tree", layout, batch, "legal")
    policy.checkpoint_activations()
    policy.update_mode()
    calls = counted(policy)
    for way in ("tree", "naive", "auto"):
        calls.clear()
        logps, found = scored(policy, way, layout, batch, "legal")
        assert len(calls) == 2  # the first layer ran again in the backward pass
        assert float((logps - wanted).abs().max()) < 1e-5
        assert float((found - gradient).norm() / gradient.norm()) < 1e-5


def counted(policy: Policy) -> list[int]:
    """Grows by one with every pass through the first layer's attention."""
    calls: list[int] = []
    layer = next(iter(policy.decoder.layers))
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_an_update_has_no_dropout():
    policy = make_policy(replace(TINY, dropout=0.5))
    layout, batch = some_items(policy)
    policy.checkpoint_activations()
    policy.update_mode()
    with torch.no_grad():
        first, second = (score(policy, layout, make_prompts(policy), batch).logps for _ in range(2))
    assert_same(first, second)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_autocast_to_bfloat16_stays_close(way):
    policy = make_policy()
    layout, prompts = make_layout(policy), make_prompts(policy)
    policy.branching = way
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn = write(policy, layout, prompts, 6, noise=torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0)))
        scored = score(policy, layout, prompts, drawn).logps
    policy.branching = "naive"
    exact = score(policy, layout, prompts, drawn).logps
    assert drawn.logps.dtype == scored.dtype == torch.float32
    assert float((scored - exact).abs().max()) > 0
    for difference in ((scored - exact).abs(), (scored - drawn.logps).abs()):
        assert float(difference.max()) < 0.3
        assert float(difference.mean()) < 0.03


def computed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass through the decoder."""
    sizes: list[int] = []
    forward = Policy.forward

    def counted(self: Policy, tokens: Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(tokens.numel())
        return forward(self, tokens, *rest, **options)

    monkeypatch.setattr(Policy, "forward", counted)
    return sizes


@pytest.mark.parametrize("way", WAYS)
def test_completions_that_are_settled_cost_nothing_more(way, monkeypatch):
    policy = make_policy()
    layout, prompts = make_layout(policy, make_codes(25)), make_prompts(policy)
    uniforms = torch.rand(5, 9, 3, generator=torch.Generator().manual_seed(0))
    gumbels = -torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(1)).log().neg().log()
    policy.branching = way

    def draw() -> list[Completions]:
        return [
            write(policy, layout, prompts, 9, noise=uniforms),
            search(policy, layout, prompts, 12)[1],
            search(policy, layout, prompts, 9, gumbels=gumbels)[1],
        ]

    sizes = computed(policy, monkeypatch)
    found = draw()
    some = sum(sizes)
    sizes.clear()
    monkeypatch.setattr(type(layout), "settled", lambda self, state, site: torch.zeros_like(state.site).bool())
    for drawn, wanted in zip(found, draw(), strict=True):
        assert drawn.items.tolist() == wanted.items.tolist()
        assert_same(drawn.logps, wanted.logps)
        assert_same(drawn.entropy, wanted.entropy)
    assert some < sum(sizes)


def test_tokens_that_no_chosen_token_follows_are_left_out_of_the_update(monkeypatch):
    policy = make_policy()
    layout, prompts = make_layout(policy, make_codes(25)), make_prompts(policy)
    uniforms = torch.rand(5, 9, 3, generator=torch.Generator().manual_seed(0))
    batch = write(policy, layout, prompts, 9, noise=uniforms)
    full = replace(batch, chosen=torch.ones_like(batch.chosen))
    sizes = computed(policy, monkeypatch)
    results = [scored(policy, "tree", layout, whole, "legal") for whole in (batch, full)]
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
    needed = (batch.chosen[:, 1:].flip(1).cumsum(1) > 0).view(5, -1).sum(1)
    assert sizes[0] == 5 * (11 + int(needed.max())) < sizes[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("items", [1, 6])
def test_sids_of_one_level_and_catalogues_of_one_item(way, items):
    policy = load_policy(TINY, (8,), TEXTS).eval()
    codes = torch.arange(items)[:, None]
    layout = SidLayout(SidLayoutConfig(), catalogue=Items(Trie.build(codes, (8,)), policy.first_ids, codes))
    prompts = make_prompts(policy, items)
    policy.branching = way
    batch = write(policy, layout, prompts, 4, noise=torch.rand(5, 4, 1))
    logps = score(policy, layout, make_prompts(policy), batch).logps
    assert_same(logps, batch.logps)
    logps.sum().backward()
    found, _ = search(policy, layout, prompts, 8)
    assert (found.items >= 0).sum(1).tolist() == [items] * 5


def test_the_tree_is_right_inside_a_window(tmp_path):
    folder = save_local_model(tmp_path, "qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    policy = make_policy(local_config(folder))
    layout, batch = some_items(policy)
    assert_same(scored(policy, "tree", layout, batch, "legal")[0], scored(policy, "naive", layout, batch, "legal")[0])


def test_scores_under_a_filter_are_those_of_its_beams():
    policy = make_policy()
    layout, prompts = make_layout(policy), make_prompts(policy)
    prompts = replace(prompts, deny=torch.arange(50).view(5, 10))
    for sampling in (Sampling(), Sampling(normalize="catalogue")):
        _, batch = search(policy, layout, prompts, 8, sampling)
        with torch.no_grad():
            assert_same(score(policy, layout, prompts, batch, sampling).logps, batch.logps)


def test_branches_that_left_slots_out_ask_for_the_next_ones():
    policy = make_policy()
    prompts = make_prompts(policy)
    with torch.no_grad():
        branches = grow(policy, prompts, 2, 2)
        branches.begin(states)
        branches.extend(torch.full((5, 2), 5), states, live=torch.tensor([[True, False]] * 5))
        with pytest.raises(ValueError, match="say which of the new ones are live"):
            branches.extend(torch.full((5, 2), 6), states)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_slots_go_on_to_change_their_number_when_none_of_them_is_live(way):
    policy = make_policy()
    policy.branching = way
    branches = grow(policy, make_prompts(policy), 6, 4)
    branches.begin(states)
    branches.extend(torch.full((5, 2), 5), states)
    nothing = torch.zeros(5, 6, dtype=torch.bool)
    parents = torch.tensor([0, 0, 0, 1, 1, 1]).expand(5, -1)
    branches.extend(torch.full((5, 6), 5), states, parents, nothing)
    found = branches.extend(torch.full((5, 6), 5), states, torch.arange(6).expand(5, -1), nothing)
    assert found.shape[0] == 30


@pytest.mark.parametrize(("way", "kind"), [("auto", Shared), ("tree", Shared), ("naive", Naive)])
def test_rows_that_end_apart_have_no_tree(way, kind):
    policy = make_policy()
    policy.branching = way
    prompts = make_prompts(policy)
    assert type(grow(policy, prompts, 8, 20, apart=True)) is kind


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "window"])
def test_rows_leave_the_batch_and_the_others_stay_what_they_are(name, tmp_path):
    policy = POLICIES[name](tmp_path)
    prompts = make_prompts(policy)
    tokens = torch.randint(4, 60, (15, 6), generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(1, 7, (15,), generator=torch.Generator().manual_seed(1))
    hidden = {}
    for way in ("expand", "naive"):
        policy.branching = way
        rows = grow(policy, prompts, 3, 6, apart=True)
        assert isinstance(rows, Naive if way == "naive" else Copied if name == "window" else Shared)
        found = [rows.begin(states)]
        for place in range(6):
            live = lengths > place
            found.append(rows.extend(tokens[:, place].view(5, 3), states, live=live.view(5, 3))[live])
        assert len(rows.owners) < 15
        hidden[way] = found
    for cached, plain in zip(hidden["expand"], hidden["naive"], strict=True):
        assert_same(cached, plain)
