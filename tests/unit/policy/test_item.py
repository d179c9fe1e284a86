"""The item policy against a plain computation, item by item, and as one more policy of the engine."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Requests, Targets
from genrl.config.schema import ItemModelConfig, ModelConfig
from genrl.errors import CheckpointError, UnsupportedError
from genrl.layouts.base import Layout, Legal
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.base import TrainablePolicy
from genrl.policy.distribution import Sampling
from genrl.policy.edges import child_logits
from genrl.policy.item import ItemModel, ItemPolicy, ItemSpec
from genrl.policy.load import make_policy, policy_spec
from genrl.policy.protocol import Generative
from genrl.policy.reference import Reference
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.prompts.template import ItemTemplate
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import SIZES, every_item, make_codes

CODES = torch.cat([make_codes(48), make_codes(48)[[3, 3, 20]]])
"""Three SIDs have several items."""
TRIE = Trie.build(CODES, SIZES, torch.arange(len(CODES)))
HISTORIES = torch.tensor([[-1, -1, 4, 50], [7, 3, 3, 0], [-1, -1, -1, -1], [-1, 20, 1, 30]])


SOFTMAX = {"softmax": "items"}
"""Of the policies that are made, see `softmax`."""


@pytest.fixture(params=["items", "levels"], autouse=True)
def softmax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file is about both."""
    monkeypatch.setitem(SOFTMAX, "softmax", request.param)
    return str(request.param)


def make(**options: object) -> ItemPolicy:
    """A policy with weights that are far from uniform."""
    config = ItemModelConfig(**{"hidden": 12, "layers": 2, "heads": 3, "positions": 6, **SOFTMAX, **options})
    model = ModelConfig(name="item", item=config)
    policy = make_policy(model, policy_spec(model, TRIE, ()))
    assert isinstance(policy, ItemPolicy)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for value in policy.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    return policy.eval()


def make_layout(policy: TrainablePolicy, keep: Tensor | None = None) -> SidLayout:
    return SidLayout(SidLayoutConfig(), catalogue=Items(TRIE, policy.first_ids, CODES, keep))


def ask(histories: Tensor = HISTORIES) -> Requests:
    start = ItemSpec(ItemModelConfig(), TRIE).start_id
    tokens, mask = ItemTemplate(start, (), CODES, start).render(histories)
    return Requests(tokens, mask, histories, Targets(torch.zeros(len(histories), 1, dtype=torch.int64)))


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + layer.eps).sqrt() * layer.weight + layer.bias


def plain_state(model: ItemModel, items: list[int], later: int = 0) -> Tensor:
    """The state behind a history, place by place, of which `later` further items stand in the row."""
    prefixes = [[tuple(row[: level + 1].tolist()) for row in CODES] for level in range(3)]
    edges = [sorted(set(level)) for level in prefixes]
    table = model.edges if model.inputs is None else model.inputs
    vectors = [model.start]
    for item in items:
        parts = []
        for level in range(3):
            edge = edges[level].index(prefixes[level][item])
            parts.append(table.codes[level][int(CODES[item, level])] + table.own[level][edge])
        vectors.append(parts[0] + parts[1] + parts[2])
    encoder, width = model.encoder, len(model.start)
    ages = range(len(vectors) - 1 + later, -1 + later, -1)
    x = [v * math.sqrt(width) + encoder.positions.weight[age] for v, age in zip(vectors, ages, strict=True)]
    for block in encoder.blocks:
        query, key, value = zip(*(block.project(norm(v, block.attention_norm)).split(width) for v in x), strict=True)
        size, new = width // block.heads, []
        for place in range(len(x)):
            heads = []
            for head in range(block.heads):
                own = slice(head * size, (head + 1) * size)
                weights = torch.stack([query[place][own] @ key[other][own] for other in range(place + 1)]) / size**0.5
                heads.append(sum(w * v[own] for w, v in zip(weights.softmax(0), value, strict=False)))
            new.append(x[place] + block.join(torch.cat(heads)))
        x = [v + block.network(norm(v, block.network_norm)) for v in new]
    return norm(x[-1], encoder.norm)


def plain_log_prob(model: ItemModel, state: Tensor, item: int) -> Tensor:
    """log p(SID of item | state): one softmax over all SIDs, or level by level."""
    total = torch.zeros((), dtype=state.dtype)
    edges = [sorted({tuple(row[: level + 1].tolist()) for row in CODES}) for level in range(3)]
    if SOFTMAX["softmax"] == "items":
        scores = {}
        for sid in edges[2]:
            prefixes = [sid[: level + 1] for level in range(3)]
            own = [model.edges.own[level][edges[level].index(prefix)] for level, prefix in enumerate(prefixes)]
            codes = [model.edges.codes[level][code] for level, code in enumerate(sid)]
            scores[sid] = state @ (sum(own[1:], start=own[0]) + sum(codes[1:], start=codes[0]))
        return scores[tuple(CODES[item].tolist())] - torch.stack([*scores.values()]).logsumexp(0)
    for level in range(3):
        seen = state + model.transforms[level](state)
        node = tuple(CODES[item, :level].tolist())
        logits = {
            prefix: seen @ (model.edges.codes[level][prefix[-1]] + model.edges.own[level][edge])
            + model.edges.biases[level][edge]
            for edge, prefix in enumerate(edges[level])
            if prefix[:level] == node
        }
        total = total + logits[tuple(CODES[item, : level + 1].tolist())] - torch.stack([*logits.values()]).logsumexp(0)
    return total


@pytest.mark.parametrize("tied", [True, False])
def test_log_probabilities_and_gradients_are_those_of_a_plain_computation(tied):
    policy = make(tied=tied).double()
    layout, requests = make_layout(policy), ask()
    found = score(policy, layout, requests, every_item(layout, requests)).logps.sum(1).view(len(requests), -1)
    states = [plain_state(policy.model, [item for item in row if item >= 0]) for row in HISTORIES.tolist()]
    wanted = torch.stack([torch.stack([plain_log_prob(policy.model, s, i) for i in range(len(CODES))]) for s in states])
    assert found.dtype == torch.float64
    assert_same(found, wanted)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names, own = zip(*policy.trainable().items(), strict=True)
    gradients, expected = (torch.autograd.grad((logps * weights).sum(), own) for logps in (found, wanted))
    for name, one, other in zip(names, gradients, expected, strict=True):
        assert other.abs().sum() > 0, name
        assert_same(one, other, 1e-9)


def test_it_stands_behind_the_protocol_and_its_probabilities_sum_to_one():
    policy: Generative = make()
    layout, requests = make_layout(policy), ask()
    ranking, drawn = search(policy, layout, requests, layout.completions)
    assert_same(ranking.scores[:, : layout.completions].exp().sum(1) > 0.99, [True] * 4)
    assert_same(score(policy, layout, requests, drawn).logps, drawn.logps, 1e-6)


@pytest.mark.parametrize("method", ["sample", "gumbel"])
def test_what_is_drawn_is_scored_with_the_probability_it_was_drawn_with(method):
    policy = make()
    layout, requests, sampling = make_layout(policy), ask(), Sampling(temperature=0.7)
    generator = torch.Generator().manual_seed(3)
    if method == "sample":
        drawn = write(policy, layout, requests, 16, sampling, torch.rand(4, 16, 3, generator=generator))
    else:
        gumbels = -(-torch.rand(4, 3, 16, layout.widest, generator=generator).log()).log()
        _, drawn = search(policy, layout, requests, 16, sampling, gumbels=gumbels)
    found = score(policy, layout, requests, drawn, sampling)
    assert_same(found.logps, drawn.logps, 1e-6)
    assert_same(found.entropy, drawn.entropy, 1e-6)
    assert bool((drawn.items >= 0).all())


class Wide(SidLayout):
    """A column for each code, whatever the policy likes."""

    narrow = Layout.narrow


@pytest.mark.parametrize("kept", [None, 30])
@pytest.mark.parametrize("denied", [None, 5])
def test_columns_for_children_alone_give_the_samples_that_columns_for_all_codes_give(kept, denied):
    policy, keep = make(), None if kept is None else torch.arange(len(CODES)) < kept
    layout, requests = make_layout(policy, keep), ask()
    if denied is not None:
        requests = replace(requests, deny=torch.arange(denied).expand(4, -1))
    sampling = Sampling(normalize="catalogue")
    noise = torch.rand(4, 16, 3, generator=torch.Generator().manual_seed(5))
    state = layout.start(4)
    for level in range(3):
        few, all_codes = layout.narrow(level, state, requests), layout.legal(level, state, requests)
        assert few.mask.shape[1] <= max(2, TRIE.levels[level].widest)
        for row in range(4):
            wanted = all_codes.mask[row].nonzero()[:, 0] + all_codes.first
            assert few.tokens[row][few.mask[row]].equal(wanted)
            assert few.nodes[row][few.mask[row]].equal(all_codes.nodes[row][all_codes.mask[row]])
        state = layout.advance(state, few.token(few.mask.byte().argmax(1, keepdim=True))[:, 0], level)
    narrow = write(policy, layout, requests, 16, sampling, noise)
    likeliest = write(policy, layout, requests, 2, sampling)
    layout = Wide(layout.config, catalogue=layout.catalogue)
    wide = write(policy, layout, requests, 16, sampling, noise)
    assert narrow.tokens.equal(wide.tokens)
    assert narrow.chosen.equal(wide.chosen)
    assert likeliest.tokens.equal(write(policy, layout, requests, 2, sampling).tokens)
    assert_same(narrow.logps, wide.logps, 1e-6)
    assert_same(narrow.entropy, wide.entropy, 1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_products_with_edges_are_in_float32_whatever_the_encoder_is_in(mixed):
    policy = make()
    layout, requests = make_layout(policy), ask()
    whole = score(policy, layout, requests, every_item(layout, requests)).logps
    assert policy.exact
    if not mixed:
        policy.to_bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert not policy.exact
        drawn = write(policy, layout, requests, 8, noise=torch.rand(4, 8, 3))
        assert_same(score(policy, layout, requests, drawn).logps, drawn.logps, 1e-5)
        rough = score(policy, layout, requests, every_item(layout, requests)).logps
    assert rough.dtype == torch.float32
    assert_same(rough.exp(), whole.exp(), 0.3)
    assert float((rough - whole).abs().max()) > 0


def test_padding_and_the_order_of_rows_change_nothing():
    policy = make().double()
    layout, requests = make_layout(policy), ask()
    whole = score(policy, layout, requests, every_item(layout, requests)).logps.view(4, -1)
    order = torch.tensor([2, 0, 3, 1])
    turned = requests.rows(order)
    assert_same(score(policy, layout, turned, every_item(layout, turned)).logps.view(4, -1), whole[order])
    for row in range(4):
        alone = ask(HISTORIES[row : row + 1])
        assert_same(score(policy, layout, alone, every_item(layout, alone)).logps.view(1, -1), whole[row : row + 1])


def test_filters_leave_the_scores_of_what_passes():
    policy = make()
    layout, requests = make_layout(policy), ask()
    every, _ = search(policy, layout, requests, layout.completions)
    scores = torch.full((4, len(CODES)), -math.inf).scatter(1, every.items.clamp(min=0), every.scores)
    deny, pool = torch.tensor([[5, 3], [0, -1], [9, 8], [-1, -1]]), torch.arange(10, 40).expand(4, -1)
    for asked, allowed in ((replace(requests, deny=deny), None), (replace(requests, pool=pool), pool)):
        found, _ = search(policy, layout, asked, 20)
        assert_same(found.scores, scores.gather(1, found.items), 1e-5)
        for row, items in enumerate(found.items.tolist()):
            assert not set(items) & set(deny[row].tolist()) or allowed is not None
            assert allowed is None or set(items) <= set(allowed[row].tolist())


def test_rows_of_items_give_what_each_prefix_gives():
    """But for its position, which is counted from the end of the row, as SASRec does it in training."""
    policy = make()
    layout = make_layout(policy)
    items = torch.tensor([[-1, 4, 50, 7], [7, 3, 3, 0]])
    targets = items >= 0
    targets[1, 1] = False
    wanted = items[targets]
    found = policy.along(items, targets, lambda said: said.loss(layout, wanted))
    prefixes = [([], 2), ([4], 1), ([4, 50], 0), ([], 3), ([7, 3], 1), ([7, 3, 3], 0)]
    states = [plain_state(policy.model, *prefix) for prefix in prefixes]
    plain = sum(-plain_log_prob(policy.model, s, int(i)) for s, i in zip(states, wanted, strict=True))
    assert_same(found, plain, 1e-4)


def test_products_with_children_are_those_of_each_row():
    generator = torch.Generator().manual_seed(4)
    offsets = torch.tensor([0, 3, 4, 9, 20])
    nodes = torch.randint(0, 4, (37,), generator=generator)
    states, vectors, biases = (torch.randn(shape, generator=generator) for shape in ((37, 5), (20, 5), (20,)))
    counts = offsets.diff()[nodes]
    found = child_logits(states, lambda edges: vectors[edges], biases, offsets[nodes], counts)
    for row, node in enumerate(nodes.tolist()):
        own = slice(int(offsets[node]), int(offsets[node + 1]))
        assert_same(found[row, : counts[row]], vectors[own] @ states[row] + biases[own])
    assert child_logits(states[:0], lambda edges: vectors[edges], biases, nodes[:0], counts[:0]).shape == (0, 1)


def test_the_reference_stays_and_the_policy_moves():
    policy = make()
    layout, requests = make_layout(policy), ask()
    completions = every_item(layout, requests)
    before = score(policy, layout, requests, completions).logps.detach()
    reference: Generative = Reference(policy)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.mul_(1.1)
    assert_same(score(reference, layout, requests, completions).logps, before, 1e-6)
    moved = score(policy, layout, requests, completions).logps.detach()
    assert float((moved - before).abs().max()) > 1e-3


def test_edges_begin_as_their_codes_and_may_do_without_their_own_vector():
    config = ItemModelConfig(hidden=12, heads=3, edge_start=0.0, edge_dropout=0.5)
    model = ItemModel(ItemSpec(config, TRIE))
    edges = model.edges.eval()
    codes = TRIE.levels[1].codes.long()
    assert edges(1).equal(edges.codes[1][codes])
    with torch.no_grad():
        edges.own[1].fill_(1.0)
    own = (edges.train()(1) - edges.codes[1][codes]).round(decimals=4)
    assert set(own.unique().tolist()) == {0.0, 2.0}  # those that stay make up for the others
    assert bool((own == own[:, :1]).all())
    assert_same(edges.eval()(1), edges.codes[1][codes] + 1.0)
    some = torch.tensor([[3, 0], [7, 7]])
    assert edges(1, some).equal(edges(1)[some])


def test_weights_are_kept_by_name_and_those_of_another_trie_refused():
    policy, other = make(), make(hidden=6)
    state = policy.state()
    with torch.no_grad():
        for value in policy.parameters():
            value.zero_()
    policy.load_state(state, "here")
    assert all(value.equal(state[name]) for name, value in policy.trainable().items())
    assert {name for name in policy.decays} == {f"edges.own.{level}" for level in range(3)}
    with pytest.raises(CheckpointError, match="belong to another model"):
        other.load_state(state, "there")


def test_what_it_does_not_do_is_refused_in_words():
    policy = make()
    layout, requests = make_layout(policy), ask()
    with pytest.raises(UnsupportedError, match="Use layout=sid, normalize=legal"):
        write(policy, layout, requests, 2, Sampling(normalize="vocab"))
    with pytest.raises(UnsupportedError, match="nothing but edges"):
        policy.grow(requests, 1, 0).begin(lambda said: said.logits(Legal(torch.ones(4, 2).bool())))
    for refused in (policy.checkpoint_activations, policy.compile_decoder):
        with pytest.raises(UnsupportedError, match=r"is for language models\. Leave it out"):
            refused()


def test_matrices_inside_the_model_are_those_of_the_encoder_and_not_the_tables() -> None:
    policy = make()
    names = {name for name, value in policy.trainable().items() if value.dim() == 2}
    assert policy.matrices == {name for name in names if "encoder.blocks" in name or "transforms" in name}
    assert len(names - policy.matrices) == 7  # codes and own vectors of three levels, and positions
