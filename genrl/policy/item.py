"""The item policy: one position per item of the history, no decode passes.

A history is read by the encoder of SASRec (Kang and McAuley 2018, arXiv:1808.09781), each item as the sum of the
vectors of its K trie edges. The state h behind it says all K codes of what comes next, by one of two softmaxes:

- `items`: over all SIDs y at once, p(y) = softmax of h . v_y, where v_y is the sum of the vectors of the edges of y, as
  it is read. A code is as likely as all SIDs behind it together,

      p(child | node) = sum over y behind the child of p(y) / sum over y behind the node of p(y).

- `levels`: at each node of level l,

      p(child | node) = softmax over the children of z_l(h) . e_child + b_child,    z_l(h) = h + MLP_l(h)

  and p(y) is the product over its levels: a hierarchical softmax (Morin and Bengio 2005) over the tree of the SIDs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from genrl.batches import Requests
from genrl.config.schema import ItemModelConfig
from genrl.errors import UnsupportedError
from genrl.layouts.base import Layout, Legal
from genrl.layouts.sid import SidLayout
from genrl.ops import exact, read_as
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.catalogue_loss import catalogue_cross_entropy
from genrl.policy.edges import EdgeVectors, child_logits, log_masses
from genrl.policy.encoder import Encoder, length_groups
from genrl.policy.guide import following, growing
from genrl.policy.protocol import Next, Say
from genrl.policy.score import item_loss
from genrl.registry import Entry
from genrl.sid.trie import Trie

T = TypeVar("T")


@dataclass(frozen=True)
class ItemSpec(Spec):
    """An item policy but its weights."""

    config: ItemModelConfig
    trie: Trie
    """Of the catalogue; every edge gets a vector."""
    words = None
    prefix_ids = ()
    reads_items: ClassVar[bool] = True

    @property
    def sizes(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(level.size for level in self.trie.levels)

    @property
    def first_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(sum(self.sizes[:level]) for level in range(len(self.sizes)))

    @property
    def start_id(self) -> int:  # type: ignore[override]
        return sum(self.sizes)

    @override
    def check(self, layout: Entry[Layout]) -> None:
        if not (isinstance(layout.factory, type) and issubclass(layout.factory, SidLayout)):
            raise UnsupportedError(
                f"model.name=item writes one SID and nothing else, and layout={layout.name} asks for more. Use "
                f"layout=sid, or a policy that writes: model.name=tiny or the folder of a language model."
            )

    @override
    def save(self, folder: Path) -> None:
        """Nothing: the trie is that of the SID table."""


class ItemModel(nn.Module):
    """The weights of an item policy."""

    def __init__(self, spec: ItemSpec) -> None:
        super().__init__()
        config, hidden = spec.config, spec.config.hidden
        parts = spec.trie, hidden, config.edge_start, config.edge_dropout
        self.start = nn.Parameter(torch.randn(hidden) * 0.02)
        levels = config.softmax == "levels"
        self.edges = EdgeVectors(*parts, biases=levels)
        self.inputs = None if config.tied else EdgeVectors(*parts, biases=False)
        self.encoder = Encoder(hidden, config.layers, config.heads, config.dropout, config.positions + 1)
        self.transforms = nn.ModuleList(_transform(hidden, config.dropout) for _ in spec.sizes if levels)
        self.paths: Tensor
        self.register_buffer("paths", paths(spec.trie), persistent=False)
        self.named: Tensor
        """[leaves] a catalogue row of each SID."""
        self.register_buffer("named", spec.trie.leaf_items[spec.trie.leaf_offsets[:-1].long()].long(), persistent=False)
        self.first_ids = spec.first_ids


def _transform(hidden: int, dropout: float) -> nn.Sequential:
    """What a level makes of the state, beside the state itself."""
    first, last = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), last)


def paths(trie: Trie) -> Tensor:
    """Edges [I, K] on the way to each catalogue row, each numbered inside its level."""
    items = trie.leaf_items.long()
    nodes = torch.stack(trie.ancestors(torch.arange(len(items), device=items.device))[1:], dim=1)
    return torch.empty_like(nodes).index_copy(0, items, nodes)


class Vectors:
    """The vectors of edges in one pass: those of a level are all made where it is asked for many of them."""

    def __init__(self, model: ItemModel) -> None:
        self.model = model
        self._made: dict[tuple[int, int], Tensor] = {}
        self._masses: tuple[Tensor, list[Tensor]] | None = None

    def whole(self, edges: EdgeVectors, level: int) -> Tensor:
        """Float32 (or float64) vectors [edges, hidden] of a level."""
        key = id(edges), level
        if key not in self._made:
            self._made[key] = exact(edges(level))
        return self._made[key]

    def of(self, edges: EdgeVectors, level: int, which: Tensor) -> Tensor:
        """Vectors [..., hidden] of some edges [...] of a level."""
        made = (id(edges), level) in self._made
        if made or edges.dropping or which.numel() > len(edges.own[level]):
            return functional.embedding(which, self.whole(edges, level))
        return exact(edges(level, which))

    def read(self, inputs: Tensor) -> Tensor:
        """Vectors [B, L, hidden] of what is read, see `genrl.ops.read_as`, in the precision of the encoder."""
        model = self.model
        edges, paths = model.inputs or model.edges, model.paths[(inputs - 1).clamp(min=0)]
        parts = [self.of(edges, level, path) for level, path in enumerate(paths.unbind(-1))]
        total = sum(parts[1:], start=parts[0])
        return torch.where(inputs[..., None] == 0, exact(model.start), total).to(model.start.dtype)

    def scores(self, states: Tensor) -> Tensor:
        """Products h . v_y with all SIDs [leaves, n] behind states [n, hidden]; for one softmax over the items."""
        with torch.autocast(states.device.type, enabled=False):
            return self.leaves @ exact(states).T

    @cached_property
    def leaves(self) -> Tensor:
        """The vectors v_y of all SIDs [leaves, hidden]."""
        model = self.model
        paths = model.paths[model.named].unbind(1)
        parts = [functional.embedding(path, self.whole(model.edges, level)) for level, path in enumerate(paths)]
        return sum(parts[1:], start=parts[0])

    def masses(self, states: Tensor) -> list[Tensor]:
        """What `genrl.policy.edges.log_masses` makes of the scores, worked out once for the same states."""
        if self._masses is None or self._masses[0] is not states:
            self._masses = states, log_masses(self.scores(states), self.model.edges.counts())
        return self._masses[1]

    def seen(self, level: int, states: Tensor) -> Tensor:
        """States [n, hidden] as a level sees them."""
        return exact(states + self.model.transforms[level](states))

    def biases(self, level: int) -> Tensor:
        """[edges] of a level."""
        assert self.model.edges.biases is not None
        return exact(self.model.edges.biases[level])


@dataclass(frozen=True)
class Standing:
    """What an item policy says of the next code: the state behind the history [n, hidden], whatever was chosen.

    This one has a softmax at each node.
    """

    vectors: Vectors
    states: Tensor
    owner: Tensor | None = None
    """[...] number of each row's state where rows share them; None: each state is a row."""
    first, narrow = 0, True

    def logits(self, legal: Legal | None) -> Tensor:
        """See `Next.logits`; columns that are no edge hold 0, and so does an only child: that is as good as any logit.

        Raises:
            UnsupportedError: where no trie stands behind the columns.
        """
        if legal is None or legal.child is None:
            raise UnsupportedError(
                "model.name=item says nothing but edges of the trie. Use layout=sid, normalize=legal."
            )
        level, size, narrow = legal.level, legal.mask.shape[-1], legal.tokens is not None
        codes, siblings = self.vectors.model.edges.code(level), self.vectors.model.edges.siblings(level)
        lead = self.states.shape[:-1] if self.owner is None else self.owner.shape
        owner = None if self.owner is None else self.owner.flatten()
        if level == 0:
            known = self._roots()
            known = _padded(known, size) if narrow else known.new_zeros(len(known), size).index_copy(1, codes, known)
            return (known if owner is None else known[owner]).unflatten(0, lead)
        nodes = legal.child.expand(lead).flatten()
        rows = (siblings[nodes] > 1).nonzero()[:, 0]
        first = nodes[rows]
        counts = siblings[first]
        known = self._children(level, rows if owner is None else owner[rows], first, counts)
        if narrow:
            known = _padded(known, size)
        else:
            place = torch.arange(known.shape[1], device=known.device)
            edges = (first[:, None] + place).clamp(max=len(codes) - 1)
            columns = torch.where(place < counts[:, None], codes[edges], size)  # the last column takes what is no edge
            known = known.new_zeros(len(rows), size + 1).scatter(1, columns, known)[:, :size]
        return known.new_zeros(len(nodes), size).index_copy(0, rows, known).unflatten(0, lead)

    def _roots(self) -> Tensor:
        """Logits [n, edges] of level 0."""
        seen, biases = self.vectors.seen(0, self.states), self.vectors.biases(0)
        with torch.autocast(seen.device.type, enabled=False):
            return torch.addmm(biases, seen, self.vectors.whole(self.vectors.model.edges, 0).T)

    def _children(self, level: int, owner: Tensor, first: Tensor, counts: Tensor) -> Tensor:
        """Logits [m, W] of `counts` [m] edges from `first` [m] on, for states `owner` [m]; others mean nothing."""
        vectors, edges = self.vectors, self.vectors.model.edges
        seen = vectors.seen(level, self.states)[owner]
        with torch.autocast(seen.device.type, enabled=False):
            return child_logits(seen, partial(vectors.of, edges, level), vectors.biases(level), first, counts)

    def edges(self, level: int, which: Tensor) -> Tensor:
        """See `genrl.policy.exhaustive.Everything`."""
        seen, biases = self.vectors.seen(level, self.states), self.vectors.biases(level)
        with torch.autocast(seen.device.type, enabled=False):
            return (self.vectors.of(self.vectors.model.edges, level, which) @ seen.T).add_(biases[which][:, None])

    def leaves(self) -> Tensor | None:
        """See `genrl.policy.exhaustive.Everything`."""
        return None

    def loss(self, layout: Layout, items: Tensor, **lesson: Any) -> Tensor:  # noqa: ANN401 (of `item_loss`)
        """Negative log-likelihood of catalogue rows [n], one behind each state; see `genrl.policy.score.item_loss`."""
        owner = torch.arange(len(items), device=items.device)[:, None].expand(-1, layout.length)
        return item_loss(replace(self, owner=owner), layout, items[:, None], **lesson)

    def __getitem__(self, index: Any) -> Standing:  # noqa: ANN401 (any index of tensors)
        if self.owner is not None:
            return replace(self, owner=self.owner[index])
        return replace(self, states=self.states[index])

    def __len__(self) -> int:
        return len(self.states) if self.owner is None else len(self.owner)


class Together(Standing):
    """One with a softmax over all items: the logit of a code is the log of the mass of all SIDs behind it."""

    @override
    def _roots(self) -> Tensor:
        return self.vectors.masses(self.states)[0].T

    @override
    def _children(self, level: int, owner: Tensor, first: Tensor, counts: Tensor) -> Tensor:
        places = torch.arange(int(counts.max()) if len(counts) else 1, device=first.device)
        edges = first[:, None] + torch.minimum(places, counts[:, None] - 1)
        return self.vectors.masses(self.states)[level][edges, owner[:, None]]

    @override
    def edges(self, level: int, which: Tensor) -> Tensor:
        return self.vectors.masses(self.states)[level][which]

    @override
    def leaves(self) -> Tensor:
        return self.vectors.scores(self.states)

    @override
    def loss(self, layout: Layout, items: Tensor, **lesson: Any) -> Tensor:
        """The codes of an item make up the item: without a teacher there is no need to take them one by one."""
        if lesson or not isinstance(layout, SidLayout) or layout.catalogue.keep is not None:
            return super().loss(layout, items, **lesson)
        leaves = self.vectors.model.paths[items, -1]
        return catalogue_cross_entropy(exact(self.states), self.vectors.leaves, leaves)


def _padded(known: Tensor, size: int) -> Tensor:
    """Columns up to `size`; more of them hold 0."""
    return functional.pad(known, (0, size - known.shape[1]))


class ItemPolicy(TrainablePolicy):
    """A policy that reads items and writes SIDs; see the module.

    It has one state per history, so completions grow without any pass of the encoder.
    """

    ranks_all: ClassVar[bool] = True

    def __init__(self, spec: ItemSpec) -> None:
        super().__init__(ItemModel(spec), spec)
        self.edge_decay = spec.config.edge_decay
        self.says = Together if spec.config.softmax == "items" else Standing

    def forward(
        self,
        inputs: Tensor,
        wanted: Tensor | None,
        read: Callable[[Standing], T],
        said: Standing | None = None,
    ) -> T:
        """What `read` makes of the states behind places of histories: the one door to the weights.

        Args:
            inputs: [B, L], see `genrl.ops.read_as`.
            wanted: [B, L] bool: places whose states are asked for, [n, hidden] row by row; None: the last of each row.
            read: runs inside the pass, where the weights are whole also if a strategy shards them.
            said: of an earlier pass, with what it has worked out, instead of reading `inputs`.
        """
        vectors = Vectors(self.model)
        return read(self.says(vectors, self._states(vectors, inputs, wanted)) if said is None else said)

    def _states(self, vectors: Vectors, inputs: Tensor, wanted: Tensor | None) -> Tensor:
        """Rows of like length go through the encoder together."""
        real = inputs >= 0
        read, number = vectors.read(inputs[real]), (real.flatten().cumsum(0) - 1).clamp(min=0).view_as(inputs)
        numbers = None if wanted is None else (wanted.flatten().cumsum(0) - 1).view_as(wanted)
        states, places = [], []
        for rows, length in length_groups(inputs):
            some = functional.embedding(number[rows, -length:], read)
            found, _ = self.model.encoder.encode(some, real[rows, -length:], last=wanted is None)
            if wanted is None or numbers is None:
                states.append(found[:, 0])
                places.append(rows)
            else:
                here = wanted[rows, -length:]
                states.append(found[here])
                places.append(numbers[rows, -length:][here])
        found = torch.cat(states)
        return torch.empty_like(found).index_copy(0, torch.cat(places), found)

    def along(self, items: Tensor, targets: Tensor, say: Callable[[Standing], T]) -> T:
        """Say what follows before targets of rows of items, with gradient.

        Args:
            items: catalogue rows [B, L], right-aligned, -1 pads.
            targets: [B, L] bool.
            say: gets the states before the n targets, row by row.
        """
        return self(read_as(items), targets, say)

    def _inputs(self, requests: Requests) -> Tensor:
        return torch.where(requests.mask, requests.tokens - self.start_id, -1)

    @growing
    @override
    def grow(self, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False) -> Slots:
        return Slots(self, self._inputs(requests))

    @following
    @override
    def follow(
        self, requests: Requests, written: Tensor, chosen: Tensor, say: Callable[[Next, Next], T], rows: str = "legal"
    ) -> T:
        group, later = len(written) // len(requests), written.shape[1] - 1

        def spread(said: Standing) -> T:
            each = torch.arange(len(said), device=written.device).repeat_interleave(group)
            return say(said, replace(said, owner=each[:, None].expand(-1, later)))

        return self(self._inputs(requests), None, spread)

    @property
    @override
    def exact(self) -> bool:
        autocast = torch.is_autocast_enabled(self.device.type)
        return self.model.start.dtype in (torch.float32, torch.float64) and not autocast

    @property
    @override
    def decays(self) -> Mapping[str, float]:
        return {name: self.edge_decay for name in self.trainable() if ".own." in name}

    @override
    def to_bfloat16(self) -> None:
        self.model.bfloat16()

    @override
    def checkpoint_activations(self) -> None:
        raise UnsupportedError("trainer.checkpointing is for language models. Leave it out with model.name=item.")

    @override
    def compile_decoder(self, **options: Any) -> None:
        raise UnsupportedError("trainer.compile is for language models. Leave it out with model.name=item.")


class Slots:
    """Completions behind requests; see `Growth`. What was written changes nothing but where in the trie they stand."""

    said: Standing

    def __init__(self, policy: ItemPolicy, inputs: Tensor) -> None:
        self.policy, self.inputs = policy, inputs

    def begin(self, say: Say[T]) -> T:
        self.said, found = self.policy(self.inputs, None, lambda said: (said, say(said)))
        return found

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        owner = torch.arange(len(tokens), device=tokens.device).repeat_interleave(tokens.shape[1])
        return self.policy(self.inputs[:0], None, say, replace(self.said, owner=owner))
