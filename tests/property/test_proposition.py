"""Proposition 1 of SAPO on policies small enough to write every expectation out.

With one target per prompt, per-level matches and the exact match have one optimum, and SAPO's expected gradient leads
to it. Where the target is random this ends: per-level matches lead to the most frequent code of each level.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.objectives import OBJECTIVES, Objective
from genrl.objectives.sapo import Match, matched

SPACES = {
    "2 levels of 3 codes": [list(sid) for sid in product(range(3), repeat=2)],
    "3 levels of 2 codes": [list(sid) for sid in product(range(2), repeat=3)],
    "a trie with forced codes": [[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [2, 1, 0], [2, 1, 1]],
}
spaces = pytest.mark.parametrize("space", SPACES)
matches = pytest.mark.parametrize("match", ["per_level", "prefix", "nested"])


@dataclass(frozen=True)
class Tabular:
    """Every SID of a catalogue, under a softmax over the legal codes behind each prefix."""

    sids: Tensor

    @cached_property
    def prefixes(self) -> Tensor:
        """[I, K] number of the prefix before each code."""
        levels = self.sids.shape[1]
        before = torch.stack([self.sids.masked_fill(torch.arange(levels) >= k, -1) for k in range(levels)], dim=1)
        return before.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(self.sids.shape)

    @cached_property
    def legal(self) -> Tensor:
        """[prefixes, C] bool."""
        legal = torch.zeros(int(self.prefixes.max()) + 1, int(self.sids.max()) + 1, dtype=torch.bool)
        legal[self.prefixes, self.sids] = True
        return legal

    def start(self, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(self.legal.shape, generator=draw, dtype=torch.float64)

    def logps(self, logits: Tensor) -> Tensor:
        """[I, K] log-probability of each code of each SID."""
        logs = logits.masked_fill(~self.legal, -torch.inf).log_softmax(1)
        return logs[self.prefixes, self.sids]

    def probabilities(self, logits: Tensor) -> Tensor:
        """[I]."""
        return self.logps(logits).sum(1).exp()

    def values(self, targets: Tensor, match: Match) -> Tensor:
        """[I] expected sum of match rewards of each SID; `targets` [I] are the chances of being the target."""
        equal = (self.sids[:, None] == self.sids).double()  # SID, target, level
        return (matched(equal.flatten(0, 1), match).sum(1).view(len(self.sids), -1) * targets).sum(1)


def tabular(space: str) -> Tabular:
    return Tabular(torch.tensor(SPACES[space]))


def certain(policy: Tabular, target: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(target), len(policy.sids)).double()


def gradient(policy: Tabular, logits: Tensor, values: Tensor) -> Tensor:
    """Of the expectation of values [I], over all SIDs."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad((policy.probabilities(leaf) * values).sum(), leaf)[0]


class Expectation:
    """Minus the expected gradient of an objective on policy, over all targets and all groups of completions.

    On policy the gradient by a log-probability is weight times advantage, see `test_relations.py`.
    """

    def __init__(self, policy: Tabular, targets: Tensor, objective: Objective, group_size: int = 2) -> None:
        drawn = list(product(targets.nonzero()[:, 0].tolist(), *[range(len(policy.sids))] * group_size))
        target, self.members = torch.tensor(drawn).tensor_split([1], dim=1)
        self.policy, self.chances = policy, targets[target[:, 0]]
        rows = self.members.flatten()
        sids = policy.sids[rows]
        match = (sids == policy.sids[target.repeat_interleave(group_size)]).double()
        mask = (policy.legal.sum(1) > 1)[policy.prefixes][rows]
        rollout = Completions(
            tokens=sids,
            chosen=mask,
            step_ids=torch.arange(sids.shape[1]).expand(sids.shape),
            item_ids=torch.zeros_like(sids),
            codes=sids,
            items=rows[:, None],
            logps=torch.zeros(mask.shape, dtype=torch.float64),
            group_size=group_size,
            num_steps=sids.shape[1],
        )
        values = {"level_match": match, "exact_match": match.prod(1)}
        rewards = Rewards(values, dict.fromkeys(values, 1.0))
        experience = objective.prepare(rollout, rewards)
        pull = experience.weights * experience.advantages * len(drawn)  # weights are of a mean over groups
        self.pull = pull.view(len(drawn), group_size, -1)

    def direction(self, logits: Tensor) -> Tensor:
        leaf = logits.clone().requires_grad_()
        logps = self.policy.logps(leaf)[self.members]
        chances = self.chances * logps.detach().sum((1, 2)).exp()
        return torch.autograd.grad((chances * (self.pull * logps).sum((1, 2))).sum(), leaf)[0]

    def climbed(self, logits: Tensor, steps: int, rate: float) -> Tensor:
        """Probabilities [I] behind so many steps."""
        for _ in range(steps):
            logits = logits + rate * self.direction(logits)
        return self.policy.probabilities(logits)


def sapo(**options: object) -> Objective:
    return OBJECTIVES.build("sapo", {"kl_coef": 0.0, **options})


@spaces
@matches
def test_with_one_target_the_best_sid_is_the_exact_match_and_no_other(space, match):
    policy = tabular(space)
    for target in range(len(policy.sids)):
        values = policy.values(certain(policy, target), match)
        others = values[torch.arange(len(values)) != target]
        assert values[target] > others.max()


@spaces
@matches
def test_ascent_of_the_expected_match_ends_at_the_exact_match(space, match):
    policy, target = tabular(space), 4
    values = policy.values(certain(policy, target), match)
    for seed in range(3):
        logits = policy.start(seed)
        for _ in range(60):
            logits = logits + 50 * gradient(policy, logits, values)
        assert policy.probabilities(logits)[target] > 0.99


@spaces
@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        *({"match": match} for match in ("per_level", "prefix", "nested")),
        {"normalize": "mean"},
        {"reduction": "token"},
        {"ablation": "no_match_reward"},
        {"ablation": "outcome"},
    ],
    ids=str,
)
def test_the_expected_gradient_raises_the_exact_match(space, group_size, options):
    policy = tabular(space)
    for seed, target in enumerate((0, 3, 4)):
        logits, only = policy.start(seed), certain(policy, target)
        direction = Expectation(policy, only, sapo(**options), group_size).direction(logits)
        assert (direction * gradient(policy, logits, only)).sum() > 0


def test_the_summed_match_can_lower_the_exact_match_where_sapo_raises_it():
    """The policy is right about levels 2 and 3 under the wrong code of level 1 only."""
    policy, only = tabular("3 levels of 2 codes"), certain(tabular("3 levels of 2 codes"), 0)
    logits = policy.start(0) * 0
    first = policy.sids[:, 0] == 0
    for level in (1, 2):
        logits[policy.prefixes[first, level], 0] = -3.0
        logits[policy.prefixes[~first, level], 0] = 3.0
    exact = gradient(policy, logits, only)
    for options, sign in (({}, 1), ({"ablation": "no_step_advantage"}, -1)):
        direction = Expectation(policy, only, sapo(**options)).direction(logits)
        assert (direction * exact).sum() * sign > 0


@spaces
def test_following_the_expected_gradient_ends_at_the_exact_match(space):
    policy, target = tabular(space), 4
    expectation = Expectation(policy, certain(policy, target), sapo())
    for seed in range(2):
        assert expectation.climbed(policy.start(seed), steps=60, rate=50.0)[target] > 0.98


# Chances of being the target: the SID that is chosen most, [0, 0], has the most frequent code of neither first level.
SPLIT = {(0, 0): 0.40, (1, 0): 0.35, (1, 1): 0.25}
APART = {(0, 0): 0.40, (1, 1): 0.35, (1, 2): 0.25}  # the most frequent codes, 1 and 0, are never chosen together


def random_target(chances: dict[tuple[int, int], float]) -> tuple[Tabular, Tensor]:
    policy = tabular("2 levels of 3 codes")
    targets = torch.tensor([chances.get((a, b), 0.0) for a, b in SPACES["2 levels of 3 codes"]], dtype=torch.float64)
    return policy, targets


@pytest.mark.parametrize(
    ("chances", "match", "best", "value", "exact"),
    [
        (SPLIT, "per_level", (1, 0), 0.60 + 0.75, 0.35),
        (SPLIT, "prefix", (1, 0), 0.60 + 0.35, 0.35),
        (APART, "per_level", (1, 0), 0.60 + 0.40, 0.00),
        (APART, "prefix", (1, 1), 0.60 + 0.35, 0.35),
    ],
)
def test_with_a_random_target_matches_lead_away_from_the_item_that_is_chosen_most(chances, match, best, value, exact):
    policy, targets = random_target(chances)
    values = policy.values(targets, match)
    assert policy.sids[values.argmax()].tolist() == list(best)
    assert values.max().item() == pytest.approx(value)
    assert targets[values.argmax()].item() == exact
    assert policy.sids[targets.argmax()].tolist() == [0, 0]
    found = Expectation(policy, targets, sapo(match=match)).climbed(policy.start(0), steps=200, rate=100.0)
    assert policy.sids[found.argmax()].tolist() == list(best)
    assert found.max() > 0.9
