"""Log-probabilities of completions, with the prompt computed once for its whole group."""

from __future__ import annotations

import torch
from torch import Tensor

from genrl.layouts.base import Layout, Legal
from genrl.policy.model import Policy
from genrl.policy.tree import branch_mask, branch_positions
from genrl.types import PolicyScores, RolloutBatch


def distribution(
    policy: Policy, hidden: Tensor, legal: Legal, temperature: float, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the next token over its legal set.

    Args:
        policy: supplies the rows of the head that the legal set needs.
        hidden: [n, H] or [n, G, H] hidden states, one row of `legal` for each of the n (broadcast over G).
        legal: the legal sets.
        temperature: divides the logits.
        normalize: `legal`: probabilities sum to one over the legal set; `vocab`: over the whole vocabulary, as in
            published code that masks only its sampler.

    Returns:
        log_probs [..., columns] with -inf where illegal, over what `normalize` says; sampling_log_probs, the same but
        always over the legal set; entropy [...] in nats over the legal set.
    """
    columns = legal.mask.shape[-1]
    logits = policy.logits(hidden, legal.first, columns) / temperature
    legal_log_probs = logits.masked_fill(~legal.mask, float("-inf")).log_softmax(-1)
    entropy = -(legal_log_probs.exp() * legal_log_probs.masked_fill(~legal.mask, 0.0)).sum(-1)
    if normalize == "legal":
        return legal_log_probs, legal_log_probs, entropy
    total = (policy.logits(hidden) / temperature).logsumexp(-1, keepdim=True)
    return (logits - total).masked_fill(~legal.mask, float("-inf")), legal_log_probs, entropy


def score(
    policy: Policy, layout: Layout, rollout: RolloutBatch, temperature: float = 1.0, normalize: str = "legal"
) -> PolicyScores:
    """Log-probability and entropy of every token of a rollout under the current policy, with gradient.

    Prompt and completions share one row per prompt; a block mask keeps the completions apart, so the prompt is
    computed once for its G completions. Each token's distribution is rebuilt from its `support`, which is what it was
    sampled from.
    """
    prompts, group, length = len(rollout), rollout.group_size, rollout.tokens.shape[1]
    tokens = rollout.tokens.view(prompts, group, length)
    depth = length - 1
    context = int(rollout.prompt_mask.sum(1).max())  # columns that are padding in every prompt cost time for nothing
    prompt_tokens, prompt_mask = rollout.prompt_tokens[:, -context:], rollout.prompt_mask[:, -context:]
    row = torch.cat([prompt_tokens, tokens[:, :, :depth].reshape(prompts, -1)], dim=1)
    hidden = policy.hidden(
        row,
        branch_mask(prompt_mask, group, depth),
        branch_positions(prompt_mask, group, depth),
    )
    last = hidden[:, context - 1]
    inner = hidden[:, context:].reshape(prompts * group, depth, hidden.shape[-1])
    logps, entropies = [], []
    for position in range(length):
        states = rollout.support[:, position]
        if position == 0:  # the whole group starts from one hidden state and one legal set
            legal = layout.legal(position, states[::group])
            log_probs, _, entropy = distribution(policy, last, legal, temperature, normalize)
            log_probs = log_probs.repeat_interleave(group, dim=0)
            entropy = entropy.repeat_interleave(group, dim=0)
        else:
            legal = layout.legal(position, states)
            log_probs, _, entropy = distribution(policy, inner[:, position - 1], legal, temperature, normalize)
        columns = (rollout.tokens[:, position] - legal.first)[:, None]
        logps.append(log_probs.gather(1, columns)[:, 0])
        entropies.append(entropy)
    mask = rollout.mask
    return PolicyScores(
        logps=torch.stack(logps, dim=1).masked_fill(~mask, 0.0),
        entropy=torch.stack(entropies, dim=1).masked_fill(~mask, 0.0),
    )
