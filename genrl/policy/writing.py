"""Completions with thinking, written token by token; rows that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.layouts.base import ThinkingLayout
from genrl.policy.branches import grow_rows
from genrl.policy.decode import Drawn, invert
from genrl.policy.model import Head, Policy
from genrl.policy.score import check_vocabulary, distribution


@dataclass(frozen=True)
class Written:
    """What n rows wrote, padded on the right to the longest of them."""

    tokens: Tensor
    """[n, T] int64, 0 behind the end."""
    support: Tensor
    """[n, T] int64 states before each token."""
    logps: Tensor
    """[n, T] float32 log-probabilities, 0 where nothing was chosen."""
    entropy: Tensor
    """[n, T] float32 entropy of the legal distribution each token came from, nats."""
    choices: Tensor
    """[n, T] int64: number of legal tokens; 1 is a SID token without a choice, 0 a token of the form or padding."""
    states: Tensor
    """[n] int64 states behind the last token."""
    lengths: Tensor
    """[n] int64 tokens of each row."""

    @property
    def mask(self) -> Tensor:
        """[n, T] bool: tokens, no padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


def sample_thinking(
    policy: Policy,
    layout: ThinkingLayout,
    tokens: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    thinking_temperature: float | None = None,
    normalize: str = "legal",
) -> Drawn:
    """Draw independent completions with thinking; the counterpart of `genrl.policy.decode.sample`.

    Args:
        policy: the sampling policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        uniforms: [P, G, T] numbers in [0, 1), one per token of the longest completion.
        temperature: divides the logits of SID tokens.
        thinking_temperature: divides the logits of words; None: as `temperature`.
        normalize: see `genrl.policy.score.distribution`.
    """
    prompts, group, _ = uniforms.shape
    written = write(
        policy,
        layout,
        tokens,
        mask,
        layout.start(prompts * group),
        uniforms.flatten(0, 1),
        temperature=temperature,
        thinking_temperature=thinking_temperature,
        normalize=normalize,
    )
    names = ("tokens", "support", "logps", "entropy", "choices")
    parts = {name: getattr(written, name).unflatten(0, (prompts, group)) for name in names}
    return Drawn(
        **parts,
        leaves=written.states.view(prompts, group),
        scores=parts["logps"].sum(2),
        bound=torch.full((prompts,), float("inf"), device=tokens.device),
    )


@torch.no_grad()
def write(
    policy: Policy,
    layout: ThinkingLayout,
    tokens: Tensor,
    mask: Tensor,
    states: Tensor,
    uniforms: Tensor | None = None,
    *,
    temperature: float = 1.0,
    thinking_temperature: float | None = None,
    normalize: str = "legal",
    until: Callable[[Tensor], Tensor] | None = None,
) -> Written:
    """Go on with completions until each has come to its end.

    Every row grows by one token per step, forced ones too, so rows stay in step whatever each of them writes.

    Args:
        policy: what writes.
        layout: grammar of the completions.
        tokens: what stands before the first token to write [P, L], padded on any side.
        mask: [P, L].
        states: [n] states to go on from; n is a multiple of P, row i goes on behind prompt i // (n / P).
        uniforms: [n, T] numbers in [0, 1), one per token; None: take the likeliest token.
        temperature: divides the logits of SID tokens.
        thinking_temperature: divides the logits of words; None: as `temperature`.
        normalize: see `genrl.policy.score.distribution`.
        until: states [...] -> where to stop [...]; None: where the completion ends.
    """
    check_vocabulary(policy, layout)
    until = until or layout.finished
    count, most = len(states), layout.length
    rows = grow_rows(policy, tokens, mask, count // len(tokens), most)
    head = policy.head_for("vocab")
    hidden = rows.prefill()
    device = hidden.device
    whole = {name: torch.zeros(count, most, dtype=torch.int64, device=device) for name in ("tokens", "choices")}
    whole |= {name: torch.zeros(count, most, device=device) for name in ("logps", "entropy")}
    support = torch.full((count, most), -1, device=device)
    lengths = torch.zeros(count, dtype=torch.int64, device=device)
    warmth = (temperature, temperature if thinking_temperature is None else thinking_temperature)
    states = states.clone()
    owners = torch.arange(len(tokens), device=device).repeat_interleave(count // len(tokens))
    begun = ~until(states)
    live = begun.nonzero()[:, 0]
    going: Tensor | None = begun
    hidden = hidden[live]
    for position in range(most):
        if not live.numel():
            break
        noise = None if uniforms is None else uniforms[live, position]
        part = _draw(head, layout, hidden, states[live], owners[live], noise, warmth, normalize)
        for name, value in part.items():
            whole[name][live, position] = value
        support[live, position] = states[live]
        lengths[live] = position + 1
        states[live] = layout.advance(0, states[live], part["tokens"])
        ahead = ~until(states[live])
        kept = ahead if going is None else _within(going, ahead)
        live, drawn = live[ahead], part["tokens"][ahead]
        if live.numel():
            hidden = rows.extend(drawn, kept)
        going = None
    longest = int(lengths.max()) if count else 0
    cut = {name: value[:, :longest] for name, value in whole.items()}
    return Written(**cut, support=support[:, :longest], states=states, lengths=lengths)


def _within(going: Tensor, ahead: Tensor) -> Tensor:
    """Rows of a batch of which `going` had not ended before, and of these `ahead` have not ended now."""
    kept = going.clone()
    kept[going] = ahead
    return kept


def _draw(
    head: Head,
    layout: ThinkingLayout,
    hidden: Tensor,
    states: Tensor,
    owners: Tensor,
    uniforms: Tensor | None,
    warmth: tuple[float, float],
    normalize: str,
) -> dict[str, Tensor]:
    """One token per row [n], rows at the same site together; `owners` [n] are the prompts of the rows."""
    count = len(states)
    tokens = torch.zeros_like(states)
    choices = torch.zeros_like(states)
    logps, entropies = hidden.new_zeros(count, dtype=torch.float32), hidden.new_zeros(count, dtype=torch.float32)
    sites = layout.sites(states)
    for site in sites.unique().tolist():
        rows = (sites == site).nonzero()[:, 0]
        if site == layout.fixed:
            tokens[rows] = layout.forced(states[rows])
            continue
        word = site >= layout.num_steps
        legal = (layout if word else layout.requests(owners[rows])).legal(site, states[rows])
        log_probs, sampling, entropy = distribution(head, hidden[rows], legal, warmth[int(word)], normalize)
        if uniforms is None:
            columns = sampling.argmax(1, keepdim=True)
        else:
            columns = invert(sampling.exp(), uniforms[rows][:, None])
        tokens[rows] = columns[:, 0] + legal.first
        logps[rows] = log_probs.gather(1, columns)[:, 0]
        entropies[rows] = entropy
        choices[rows] = legal.mask.sum(1).expand(len(rows))
    return {"tokens": tokens, "choices": choices, "logps": logps, "entropy": entropies}
