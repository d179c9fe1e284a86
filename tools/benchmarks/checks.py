"""What must be equal before a ratio of times means anything."""

import math

import torch
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.peers import PrefixFunction, legal_log_probs
from genrl.batches import Completions
from genrl.policy.model import Policy
from genrl.policy.score import score

TOLERANCE = 1e-4


class DifferenceError(AssertionError):
    """Two ways to compute the same thing disagree: the figures mean nothing."""


def require(holds: bool, what: str) -> None:
    """Raise a `DifferenceError` that says what does not hold."""
    if not holds:
        raise DifferenceError(what)


def all_items(tokens: Tensor, sid_tokens: Tensor, who: str) -> None:
    """Every completion [n, K] is the SID of an item; compared as tuples, without the trie."""
    known = {tuple(sid) for sid in sid_tokens.tolist()}
    wrong = sum(tuple(sid) not in known for sid in tokens.tolist())
    require(wrong == 0, f"{who}: {wrong} of {len(tokens)} completions are no catalogue item.")


def same_completions(inputs: Inputs, drawn: dict[str, list[Tensor]], lengths: dict[str, list[Tensor]]) -> str:
    """Completions [B, T] of all rounds are items, their first choice has the right frequencies, and none writes longer.

    Lengths are tokens [B] of each completion of the rounds that count; `genrl` comes first.
    """
    position, chances = first_choice(inputs)
    for who, rounds in drawn.items():
        for tokens in rounds:
            missing = int((inputs.layout.read(tokens, inputs.layout.replay(tokens)).items < 0).sum())
            require(missing == 0, f"{who}: {missing} of {len(tokens)} completions are no item.")
        expected_frequencies(chances, rounds[-1][:, position], who)
    ours, *others = (torch.cat(values).double() for values in lengths.values())
    for theirs in others:
        apart = float(ours.mean() - theirs.mean())
        error = math.sqrt(float(ours.var() / len(ours) + theirs.var() / len(theirs)))
        wrong = f"completions differ in length by {apart:.1f} tokens, with an error of {error:.1f}."
        require(abs(apart) <= 5 * error, wrong)
    spread = ", ".join(f"{float(ours.quantile(share)):.0f}" for share in (0.1, 0.5, 0.9))
    return (
        "all samples are items; first choices as frequent as they should be; equally long "
        f"(10%, 50%, 90%: {spread} tokens)"
    )


def same_log_probs(inputs: Inputs, drawn: Completions) -> str:
    """The rollout's log-probabilities are those of plain forward passes over repeated prompts.

    Legal sets of SIDs come from a Python function; of thinking and slates, from the layout.
    """
    apart = inputs.layout.writes_text or inputs.layout.writes_slates
    few = slice(0, 1 if apart else max(1, 512 // drawn.group_size))
    part, prompts, policy = drawn.groups(few), inputs.prompts.rows(few), inputs.policy
    if apart:
        policy.branching = "naive"
        with torch.no_grad():
            wanted = score(policy, inputs.layout, prompts, part).logps
        policy.branching = "auto"
    else:
        allowed = PrefixFunction(inputs.sid_tokens, prompts.tokens.shape[1])
        wanted = legal_log_probs(policy.model, prompts, part.tokens, allowed)
    gap = float((part.logps - wanted).abs().max())
    require(gap <= TOLERANCE, f"genrl's log-probabilities differ by {gap:.2g} from those of plain forward passes.")
    return f"log-probs of {len(part.tokens)} samples equal plain forward passes (max diff {gap:.0e})"


def gradient(policy: Policy) -> Tensor:
    """The gradient of the trained weights as one vector."""
    return torch.cat([value.grad.flatten() for value in policy.trainable().values() if value.grad is not None])


def same_updates(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], what: str) -> str:
    """Log-probabilities [B, T] and gradients of two ways to compute an update are equal."""
    apart = float((ours[0] - theirs[0]).abs().max())
    relative = float((ours[1] - theirs[1]).norm() / theirs[1].norm())
    require(apart <= TOLERANCE, f"log-probabilities of the two {what} differ by {apart:.2g}.")
    require(relative <= TOLERANCE, f"gradients of the two {what} differ by {relative:.2g} of their norm.")
    return f"log-probs equal to {apart:.0e}, gradients to {relative:.0e} of their norm"


@torch.no_grad()
def first_choice(inputs: Inputs) -> tuple[int, Tensor]:
    """Position of the first token of a completion that is not forced, and its exact probabilities [P, V]."""
    layout, tokens, mask = inputs.layout, inputs.prompts.tokens, inputs.prompts.mask
    state = layout.start(len(tokens))
    position = 0
    while (legal := layout.legal(int(state.site[0]), state)).tokens is not None:
        forced = legal.tokens.expand(len(tokens), 1)
        tokens, mask = torch.cat([tokens, forced], dim=1), torch.cat([mask, torch.ones_like(forced) > 0], dim=1)
        state = layout.advance(state, forced[:, 0])
        position += 1
    logits = inputs.policy.model(input_ids=tokens, attention_mask=mask.long()).logits[:, -1].float()
    columns = slice(legal.first, legal.first + legal.mask.shape[1])
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    allowed[:, columns] = legal.mask
    return position, logits.masked_fill(~allowed, float("-inf")).softmax(-1)


def expected_frequencies(probabilities: Tensor, tokens: Tensor, who: str) -> None:
    """First tokens [P * G] are distributed as they should be: chi-square within 5 standard deviations of its mean.

    Tokens expected fewer than 5 times are counted together.
    """
    group = len(tokens) // len(probabilities)
    expected = probabilities.double().sum(0) * group
    seen = torch.bincount(tokens, minlength=expected.numel()).double()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    used = expected > 0
    value = float(((seen - expected)[used] ** 2 / expected[used]).sum())
    freedom = max(1, int(used.sum()) - 1)
    limit = freedom + 5 * math.sqrt(2 * freedom)
    require(value <= limit, f"{who}: first choices are not as frequent as they should be (chi-square {value:.0f}).")


def same_rankings(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> str:
    """Two beam searches rank the same completions [P, W, K] with the same scores [P, W], up to ties.

    A completion that only one of them has must score like the other's last one.
    """
    (our_tokens, our_scores), (their_tokens, their_scores) = ours, theirs
    apart = float((our_scores - their_scores).abs().max())
    require(apart <= TOLERANCE, f"beam scores differ by {apart:.2g}.")
    swapped = 0
    for prompt in range(len(our_tokens)):
        mine = dict(zip(map(tuple, our_tokens[prompt].tolist()), our_scores[prompt].tolist(), strict=True))
        others = dict(zip(map(tuple, their_tokens[prompt].tolist()), their_scores[prompt].tolist(), strict=True))
        require(len(mine) == len(others) == our_tokens.shape[1], "a beam holds a completion twice.")
        last = min(*mine.values(), *others.values())
        for sid in mine.keys() | others.keys():
            gap = abs(mine.get(sid, last) - others.get(sid, last))
            require(gap <= 2 * TOLERANCE, f"prompt {prompt}: the beams disagree about {sid} by {gap:.2g}.")
        swapped += int((our_tokens[prompt] != their_tokens[prompt]).any())
    return f"ranked lists equal for {len(our_tokens) - swapped} of {len(our_tokens)} prompts, the rest up to ties"
