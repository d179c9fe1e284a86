"""The item policy beside SASRec, whose encoder it has, and beside the token policy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.checks import require
from benchmarks.figures import Figure, compare, interleave, timed
from benchmarks.inputs import Sizes, clustered_codes, distinct_codes, make_inputs
from genrl.batches import Requests
from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Sequences
from genrl.config.schema import ModelConfig
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.base import TrainablePolicy
from genrl.policy.exhaustive import rank_all
from genrl.policy.item import ItemPolicy, ItemSpec
from genrl.policy.load import make_policy
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.prompts.packing import SequenceBatch
from genrl.prompts.template import ItemTemplate
from genrl.recommenders.base import Problem
from genrl.recommenders.sasrec import SASRec, SASRecConfig
from genrl.sid.table import make_table
from genrl.sid.trie import Trie

STEP_GOAL = 1.5
RANKING_GOAL = 2.0
ROLLOUT_GOAL = 20.0
LARGE = 100_000
"""Items of the large catalogue."""
USERS = 1000
"""That are ranked."""
BATCH = 256
"""Users of a training step."""
WIDTH = 20


def items(sizes: Sizes, repeats: int) -> list[Figure]:
    """Training steps and exact rankings against SASRec of the same size, rollouts against the token policy."""
    found = _beside_sasrec(sizes, clustered_codes(sizes.items, sizes.codes), repeats, goals=True)
    found.append(_rollout(sizes, repeats))
    if sizes.items > USERS:
        found += _beside_sasrec(sizes, distinct_codes(LARGE, sizes.codes, 3), max(2, repeats // 3), goals=False)
    return found


def make_item_policy(trie: Trie, device: str = "cpu", **options: float) -> ItemPolicy:
    """An item policy with the default options."""
    config = ModelConfig(name="item")
    policy = make_policy(config, ItemSpec(replace(config.item, **options), trie))  # type: ignore[arg-type]
    assert isinstance(policy, ItemPolicy)
    return policy.to(device)


def _layout(policy: TrainablePolicy, trie: Trie, codes: Tensor) -> SidLayout:
    return SidLayout(SidLayoutConfig(), catalogue=Items(trie, policy.first_ids, codes).to(policy.device))


def _histories(users: int, items: int, longest: int) -> Tensor:
    """Most users have a few items, some have many, as in data sets of reviews: [users, longest], -1 pads."""
    generator = torch.Generator().manual_seed(0)
    lengths = (2 + torch.empty(users).exponential_(1 / 5, generator=generator)).long().clamp(max=longest)
    rows = torch.randint(items, (users, longest), generator=generator)
    return torch.where(torch.arange(longest) >= longest - lengths[:, None], rows, -1)


def _beside_sasrec(sizes: Sizes, codes: Tensor, repeats: int, *, goals: bool) -> list[Figure]:
    count = len(codes)
    trie = Trie.build(codes, tuple(int(column.max()) + 1 for column in codes.unbind(1)))
    policy = make_item_policy(trie, sizes.device).eval()
    layout = _layout(policy, trie, codes)
    peer = _sasrec(codes).to(sizes.device)
    rows = _histories(BATCH, count, 21).to(sizes.device)
    targets = (rows >= 0) & (torch.arange(21, device=rows.device) > (rows < 0).sum(1, keepdim=True))
    batch = SequenceBatch(rows, targets, targets.sum().float())
    wanted = rows[targets]
    setting = f"{count:,} items"

    def loss() -> Tensor:
        return policy.along(rows, targets, lambda said: said.loss(layout, wanted))

    first = float(loss().detach())
    steps = {"genrl": timed(_step(policy, loss)), "sasrec": timed(_step(peer, lambda: peer.loss(batch)))}
    seconds = interleave(f"step, {setting}", steps, repeats)
    policy.eval()
    last = float(loss().detach())
    require(last < first, f"the loss rises from {first:.4g} to {last:.4g}")
    beside = partial(compare, "items", better="lower")
    step = beside(
        f"training step, {setting}, {BATCH} users, SASRec",
        seconds["genrl"],
        seconds["sasrec"],
        goal=STEP_GOAL if goals else None,
        checked=f"{repeats + 1} steps on {len(wanted)} targets lower the loss from {first:.5g} to {last:.5g}",
    )
    peer.eval()
    requests = _requests(policy, layout, _histories(USERS, count, 20))
    rankings = {
        "genrl": timed(lambda: [rank_all(policy, layout, [part], WIDTH) for part in _parts(requests)]),
        "sasrec": timed(lambda: [peer.best(part.history, WIDTH) for part in _parts(requests)]),
    }
    seconds = interleave(f"ranking, {setting}", rankings, repeats)
    ranking = beside(
        f"exact ranking, {setting}, {USERS:,} users, SASRec",
        seconds["genrl"],
        seconds["sasrec"],
        goal=RANKING_GOAL if goals else None,
        checked=_exact(policy, layout, requests),
    )
    return [step, ranking]


def _sasrec(codes: Tensor) -> SASRec:
    none = torch.empty(0, dtype=torch.int64)
    sequences = Sequences(none, none.to(torch.uint8), none, torch.zeros(1, dtype=torch.int64), ())
    dataset = Dataset(Catalog.from_table([str(item) for item in range(len(codes))]), sequences, "random")
    table = make_table(codes, tuple(int(column.max()) + 1 for column in codes.unbind(1)), dataset.catalog)
    return SASRec(SASRecConfig(dropout=0.3), problem=Problem(dataset, table, ModelConfig()))


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step: forward, backward, AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        model.train()
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return run


def _requests(policy: ItemPolicy, layout: SidLayout, histories: Tensor) -> Requests:
    template = ItemTemplate(policy.start_id, (), layout.codes.cpu(), policy.start_id)
    return Requests(*template.render(histories), histories).to(policy.device)


def _parts(requests: Requests) -> list[Requests]:
    """Batches of 256 users."""
    return [requests.rows(slice(start, start + 256)) for start in range(0, len(requests), 256)]


def _exact(policy: ItemPolicy, layout: SidLayout, requests: Requests) -> str:
    """The first users' rankings are those of a search that is made wider until they are certain."""
    some = requests.rows(slice(0, 4))
    (found,) = rank_all(policy, layout, [some], WIDTH)
    wanted, _ = search(policy, layout, some, WIDTH, exact=WIDTH)
    gap = float((wanted.scores - found.scores).abs().max())
    require(gap < 1e-4, f"scores of a ranking differ from those of an exact search by {gap:.2g}")
    return f"the best {WIDTH} are those of an exact search, to {gap:.1g}"


@torch.no_grad()
def _rollout(sizes: Sizes, repeats: int) -> Figure:
    inputs = make_inputs(replace(sizes, prompts=2 * sizes.prompts))
    codes = inputs.layout.codes.cpu()
    trie = inputs.layout.catalogue.trie.to("cpu")  # type: ignore[attr-defined]
    policy = make_item_policy(trie, sizes.device).eval()
    layout = _layout(policy, trie, codes)
    histories = inputs.maker.full_history(inputs.positions)
    requests, group = _requests(policy, layout, histories), sizes.groups[0]
    noise = torch.rand(len(requests), group, layout.length, generator=torch.Generator().manual_seed(0))
    noise = noise.to(sizes.device)
    variants = {
        "genrl": timed(lambda: write(policy, layout, requests, group, noise=noise)),
        "tokens": timed(lambda: write(inputs.policy, inputs.layout, inputs.prompts, group, noise=noise)),
    }
    seconds = interleave("rollout", variants, repeats)
    drawn = write(policy, layout, requests, group, noise=noise)
    gap = float((score(policy, layout, requests, drawn).logps - drawn.logps).abs().max())
    require(gap < 1e-4, f"scoring differs from sampling by {gap:.2g}")
    return compare(
        "items",
        f"rollout {len(requests)} x {group}, token policy",
        seconds["genrl"],
        seconds["tokens"],
        goal=ROLLOUT_GOAL,
        checked=f"sampling and scoring agree to {gap:.1g}",
    )
