"""A frozen recommender seen through the trie of the policy: what it says of each code, as a prior or as a teacher.

A recommender that knows the probability of every item knows that of every prefix of a Semantic ID: the mass of the
items below a trie node. So at each node it has a distribution over the children, exact and without any search, which
can be mixed into the policy's own (`Mixed`) or serve as its target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from genrl.batches import Requests
from genrl.errors import UnsupportedError
from genrl.layouts.base import Legal
from genrl.policy.protocol import Growth, Next, Say
from genrl.sid.trie import Trie

if TYPE_CHECKING:
    from genrl.policy.protocol import Generative

T = TypeVar("T")


class Scorer(Protocol):
    """Whatever knows how likely each item of the catalogue is."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def log_probs(self, requests: Requests) -> Tensor:
        """Log-probabilities [P, I] of the catalogue as the next item, in nats, all finite."""


class Masses:
    """What a guide says of P requests: the log-mass of the items below each node that is asked for.

    Sums are made over the items below a node alone, relative to the largest of them, so that codes behind a prefix of
    probability e^-100 are as exact as those behind the root.

    Args:
        trie: over I items.
        paths: [K, I] nodes of levels 1 .. K on the way to each place, see `Trie`.
        log_probs: [R, I] of R different histories.
        rows: [P] int64: row of each request there.
    """

    def __init__(self, trie: Trie, paths: Tensor, log_probs: Tensor, rows: Tensor) -> None:
        self.trie = trie
        self.paths = paths
        self.log_probs = log_probs[:, trie.leaf_items.long()]
        self.rows = rows

    def behind(self, legal: Legal, owner: Tensor) -> Tensor:
        """Log-mass [n, columns] in nats of the node behind each column of legal sets, -inf where there is none.

        Args:
            legal: of SID tokens, behind n states (or [n, t]).
            owner: [n] request of each.
        """
        assert legal.child is not None
        if legal.level < 0:
            raise UnsupportedError(
                "a prior or teacher says how likely items are behind SID tokens, and this layout names items by words. "
                "Set prior.run=null and teacher.run=null, or layout.space=sid."
            )
        edges = legal.edges
        rows, size = self.rows[owner.flatten()], self.trie.levels[legal.level].size
        if legal.level == 0:  # there is one root, whatever the number of states
            masses = _sums(self.log_probs, self._codes(0, self.paths[0]).expand(self.log_probs.shape), size)[rows]
        else:
            first = legal.child.flatten()
            last = first + edges.sum(-1).flatten() - 1
            start = self.trie.places_below(legal.level + 1, first)[0][:, None]
            stop = self.trie.places_below(legal.level + 1, last)[1][:, None]
            places = start + torch.arange(int((stop - start).amax()), device=rows.device)
            inside = places < stop
            places = torch.where(inside, places, 0)
            logs = self.log_probs[rows[:, None], places].masked_fill(~inside, float("-inf"))
            masses = _sums(logs, self._codes(legal.level, self.paths[legal.level][places]), size)
        masses = legal.among(masses.view(*edges.shape[:-1], size), legal.first)
        return masses.masked_fill(~edges, float("-inf"))

    def edges(self, level: int, which: Tensor, owner: Tensor) -> Tensor:
        """Log-mass [m, n] of the nodes behind edges [m] of a level, for states of requests `owner` [n]."""
        every = _sums(
            self.log_probs, self.paths[level].expand(self.log_probs.shape), len(self.trie.levels[level].codes)
        )
        return every[:, which].T[:, self.rows[owner]]

    def _codes(self, level: int, nodes: Tensor) -> Tensor:
        return self.trie.levels[level].codes[nodes].long()


def _sums(logs: Tensor, groups: Tensor, size: int) -> Tensor:
    """Log of the probabilities summed by group: logs and groups [n, m] -> [n, size]."""
    largest = logs.amax(1, keepdim=True)
    sums = torch.zeros(len(logs), size, dtype=torch.float64, device=logs.device)
    return sums.scatter_add_(1, groups, (logs - largest).double().exp_()).log().float() + largest


class Guide:
    """A frozen recommender with the trie that its policy writes in.

    Args:
        recommender: never trained and never changed here.
        trie: over the items of the same catalogue.
        temperature: divides its log-probabilities; above 1 it is less sure.
        key: a name that changes with the recommender's content.
    """

    def __init__(self, recommender: Scorer, trie: Trie, temperature: float = 1.0, key: str = "") -> None:
        self.recommender, self.trie = recommender, trie
        self.temperature, self.key = temperature, key
        self.paths = torch.stack(trie.ancestors(torch.arange(trie.leaf_items.numel(), device=trie.device))[1:])

    @torch.no_grad()
    def masses(self, histories: Tensor) -> Masses:
        """What it says behind histories [P, H], -1 pads on the left; equal ones are computed once."""
        device = histories.device
        self.trie, self.paths = self.trie.to(device), self.paths.to(device)
        if isinstance(self.recommender, nn.Module):
            self.recommender.to(device)
        histories, rows = pad(histories, (1, 0), value=-1).unique(dim=0, return_inverse=True)
        nothing = histories[:, :0]
        asked = Requests(nothing, nothing >= 0, histories).to(str(self.recommender.device))
        with torch.autocast(device.type, enabled=False):
            log_probs = self.recommender.log_probs(asked).float().to(device)
            return Masses(self.trie, self.paths, (log_probs / self.temperature).log_softmax(1), rows)


@dataclass(frozen=True)
class Prior:
    """A guide that has its say at every node that a policy comes to."""

    guide: Guide
    weight: float
    """w of pi^(1 - w) p^w."""


@dataclass(frozen=True)
class Mixed:
    """What a policy and its prior say together: (1 - w) log pi + w log p, to be normalised over the legal set.

    Each of the two is known up to a constant per state, which normalising takes out. Of words the prior says nothing.
    No gradient goes through it.
    """

    said: Next
    masses: Masses
    weight: float
    owner: Tensor
    """Request of each state."""

    @property
    def first(self) -> int:
        """See `Next.first`."""
        return self.said.first

    @property
    def narrow(self) -> bool:
        """See `Next.narrow`."""
        return self.said.narrow

    def logits(self, legal: Legal | None) -> Tensor:
        """See `Next.logits`.

        Raises:
            UnsupportedError: if all tokens are asked for, SID tokens among them.
        """
        if legal is None:
            raise UnsupportedError(
                "a prior says how likely codes are among those that lead to an item, not in the whole vocabulary. "
                "Set rollout.normalize=legal, or leave the prior out."
            )
        logits = self.said.logits(legal)
        if legal.child is None:
            return logits
        masses = self.masses.behind(legal, self.owner)
        return (1 - self.weight) * logits + self.weight * masses.masked_fill(masses == float("-inf"), 0.0)

    def edges(self, level: int, which: Tensor) -> Tensor:
        """See `genrl.policy.exhaustive.Everything`; of policies that rank all."""
        logits = cast(Any, self.said).edges(level, which)
        return (1 - self.weight) * logits + self.weight * self.masses.edges(level, which, self.owner)

    def leaves(self) -> None:
        """Edges are mixed one by one."""

    def __getitem__(self, index: Any) -> Mixed:  # noqa: ANN401 (any index of tensors)
        return Mixed(self.said[index], self.masses, self.weight, self.owner[index])

    def __len__(self) -> int:
        return len(self.said)


class MixedGrowth:
    """Completions that grow under a policy and its prior; see `genrl.policy.protocol.Growth`."""

    def __init__(self, growth: Growth, masses: Masses, weight: float) -> None:
        self.growth, self.masses, self.weight = growth, masses, weight

    def begin(self, say: Say[T]) -> T:
        """See `Growth.begin`."""
        return self.growth.begin(lambda said: say(self._mixed(said, 1)))

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        """See `Growth.extend`."""
        return self.growth.extend(tokens, lambda said: say(self._mixed(said, tokens.shape[1])), parents, live)

    def _mixed(self, said: Next, width: int) -> Mixed:
        return Mixed(said, self.masses, self.weight, _owners(self.masses, width))


def _owners(masses: Masses, width: int) -> Tensor:
    return torch.arange(len(masses.rows), device=masses.rows.device).repeat_interleave(width)


def growing(grow: Callable[..., Growth]) -> Callable[..., Growth]:
    """`Generative.grow` of a policy whose attribute `prior`, if it is not None, has its say."""

    @wraps(grow)
    def grown(policy: Generative, requests: Requests, *arguments: Any, **options: Any) -> Growth:  # noqa: ANN401
        growth, prior = grow(policy, requests, *arguments, **options), prior_of(policy)
        return growth if prior is None else MixedGrowth(growth, prior.guide.masses(requests.history), prior.weight)

    return grown


def following(follow: Callable[..., Any]) -> Callable[..., Any]:
    """`Generative.follow` of a policy whose attribute `prior`, if it is not None, has its say."""

    @wraps(follow)
    def followed(
        policy: Generative, requests: Requests, written: Tensor, chosen: Tensor, say: Callable[..., T], *rows: str
    ) -> T:
        prior = prior_of(policy)
        if prior is None:
            return follow(policy, requests, written, chosen, say, *rows)
        masses, count = prior.guide.masses(requests.history), len(requests)

        def mixed(first: Next, inner: Next) -> T:
            opens, behind = _owners(masses, len(first) // count), _owners(masses, len(inner) // count)
            shape = (len(behind), written.shape[1] - 1)
            return say(
                Mixed(first, masses, prior.weight, opens),
                Mixed(inner, masses, prior.weight, behind[:, None].expand(shape)),
            )

        return follow(policy, requests, written, chosen, mixed, *rows)

    return followed


def prior_of(policy: Generative) -> Prior | None:
    """The prior of a policy, if it has one."""
    return getattr(policy, "prior", None)
