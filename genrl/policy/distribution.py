"""The distribution of the next token: one function for writing, searching, scoring and supervised training."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrl.errors import DataError
from genrl.layouts.base import Layout, Legal
from genrl.policy.protocol import Generative, Next

Normalize = Literal["legal", "vocab", "catalogue"]
LOGITS = 2**24
"""Logits over the vocabulary that are held at a time; with 151,936 tokens a part has 110 places."""


@dataclass(frozen=True)
class Sampling:
    """What is done to the policy's logits before they are probabilities."""

    temperature: float = 1.0
    """Divides the logits of item tokens."""
    thinking_temperature: float | None = None
    """Divides the logits of words; None: as `temperature`."""
    normalize: Normalize = "legal"
    """`legal`: probabilities sum to one over the legal set; `vocab`: over the whole vocabulary, as in published code
    that masks only its sampler; `catalogue`: over what would be legal without a filter of items, so that a filter
    leaves the scores of the items that pass as they are."""

    def __post_init__(self) -> None:
        if self.normalize not in get_args(Normalize):
            raise ValueError(f"normalize={self.normalize!r} is none of {', '.join(get_args(Normalize))}")

    def at(self, layout: Layout, site: int) -> float:
        """Temperature of the tokens of a site."""
        words = layout.kinds[site] == "word" and self.thinking_temperature is not None
        return self.thinking_temperature if words else self.temperature  # type: ignore[return-value]


RANKING = Sampling(normalize="catalogue")
"""Rankings score items as in the whole catalogue."""


def distribution(
    said: Next, legal: Legal, temperature: float = 1.0, normalize: str = "legal"
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the next token over its legal set.

    Args:
        said: what the policy says of the next token behind states [...].
        legal: the legal sets, [..., columns].
        temperature: divides the logits.
        normalize: see `Sampling.normalize`.

    Returns:
        log_probs [..., columns] with -inf where illegal, over what `normalize` says; sampling_log_probs, the same but
        always over the legal set; entropy [...] in nats over the legal set.
    """
    illegal = ~legal.mask
    if normalize == "vocab":
        logits, total = _of_all(said, legal, temperature)
    else:
        logits = said.logits(legal) / temperature
    legal_log_probs = logits.masked_fill(illegal, float("-inf")).log_softmax(-1)
    entropy = -(legal_log_probs.exp() * legal_log_probs.masked_fill(illegal, 0.0)).sum(-1)
    if normalize == "catalogue" and legal.within is not None:
        total = logits.masked_fill(~legal.within, float("-inf")).logsumexp(-1, keepdim=True)
    elif normalize != "vocab":
        return legal_log_probs, legal_log_probs, entropy
    log_probs = logits - total
    return log_probs.masked_fill(illegal, float("-inf")), legal_log_probs, entropy


def _of_all(said: Next, legal: Legal, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [..., columns] of the legal sets, and the logarithm [..., 1] of the sum over the whole vocabulary.

    Many of them are computed in parts, each again in the backward pass: memory stays that of `LOGITS`.
    """

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        everything = said[rows].logits(None) / temperature
        own = legal if legal.tokens is None else replace(legal, tokens=legal.tokens[rows])
        return own.among(everything, said.first), everything.logsumexp(-1, keepdim=True)

    count, width = len(said), said[:0].logits(None).shape[-1]
    step = max(1, LOGITS // max(1, width * math.prod(legal.mask.shape[1:-1])))
    if count <= step:
        return part(slice(None))
    rows = [slice(start, start + step) for start in range(0, count, step)]
    found = [checkpoint(part, own, use_reentrant=False) for own in rows]
    logits, totals = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(totals)


def log_prob(log_probs: Tensor, legal: Legal, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens [n] among [n, columns]; -inf for one that is not legal at all."""
    columns = legal.column(tokens)
    return log_probs.gather(1, columns.clamp(min=0)[:, None])[:, 0].masked_fill(columns < 0, float("-inf"))


def head_rows(layout: Layout, normalize: str) -> str:
    """The rows of the output head that a layout's tokens need: `legal`, those of the SID tokens, or all of `vocab`."""
    return "vocab" if normalize == "vocab" or "word" in layout.kinds or layout.in_words else "legal"


def check_tokens(policy: Generative, layout: Layout) -> None:
    """Refuse a layout whose tokens are not those of the policy's tokenizer.

    Raises:
        DataError: naming both sets of tokens.
    """
    own = layout.tokens
    if (own.first_ids, own.sizes) != (policy.first_ids, policy.sizes):
        raise DataError(
            f"the trie writes SID levels of {list(own.sizes)} codes at token ids {list(own.first_ids)}, the "
            f"policy's tokenizer has levels of {list(policy.sizes)} codes at {list(policy.first_ids)}: the trie "
            f"belongs to another tokenizer. Build the layout with policy.first_ids, from the policy's own SID table."
        )


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse of the distribution function: [n, C] and [n, 1] -> columns [n, 1]; never a column of probability 0."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding could lift u * total to the total itself
    columns = torch.searchsorted(cumulative, torch.minimum(uniforms * total, below), right=True)
    return columns.clamp_(max=probabilities.shape[-1] - 1)  # only where the policy is not a number, which callers check
