"""What genrl is compared with: `transformers.generate` under a trie, and plain teacher-forced forward passes."""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from benchmarks.inputs import Inputs
from genrl.batches import Completions, Requests
from genrl.layouts.base import Layout
from genrl.policy.write import by_site

Constraint: TypeAlias = Callable[[int], dict[str, Any]]
"""Rows of a call of `generate` -> its arguments that constrain what is written."""


class PrefixFunction:
    """The usual constraint of generative recommenders: a Python function from a row's prefix to its legal tokens.

    SID tokens of the catalogue are [I, K]; a prompt has `prompt_length` columns.
    """

    def __init__(self, sid_tokens: Tensor, prompt_length: int) -> None:
        allowed: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for sid in sid_tokens.tolist():
            for level, token in enumerate(sid):
                allowed[tuple(sid[:level])].add(token)
        self.allowed = {prefix: sorted(tokens) for prefix, tokens in allowed.items()}
        self.prompt_length = prompt_length

    def __call__(self, row: int, sequence: Tensor) -> list[int]:
        """Legal next tokens of one row."""
        return self.allowed[tuple(sequence[self.prompt_length :].tolist())]


class SlateFunction(PrefixFunction):
    """The same for slates, in which no item stands twice."""

    def __init__(self, sid_tokens: Tensor, prompt_length: int) -> None:
        super().__init__(sid_tokens, prompt_length)
        self.levels = sid_tokens.shape[1]
        sids = [tuple(sid) for sid in sid_tokens.tolist()]
        self.below = Counter(sid[:level] for sid in sids for level in range(self.levels + 1))

    def __call__(self, row: int, sequence: Tensor) -> list[int]:
        written = tuple(sequence[self.prompt_length :].tolist())
        start = len(written) // self.levels * self.levels
        prefix = written[start:]
        taken = Counter(written[place : place + len(prefix) + 1] for place in range(0, start, self.levels))
        ahead = [(token, (*prefix, token)) for token in self.allowed[prefix]]
        return [token for token, child in ahead if taken[child] < self.below[child]]


class GrammarProcessor(LogitsProcessor):
    """genrl's grammar of completions as a constraint for all rows at once; `CompletionEnds` moves it on."""

    def __init__(self, layout: Layout, rows: int) -> None:
        self.layout = layout
        self.state = layout.start(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [n, V] with -inf where a token is illegal."""
        layout, masked = self.layout, torch.full_like(scores, float("-inf"))
        masked[self.state.site < 0, 0] = 0.0
        for site, rows in by_site(self.state.site):
            legal = layout.legal(site, self.state.rows(rows))
            if legal.tokens is not None:
                masked[rows[:, None], legal.tokens] = 0.0
                continue
            columns = slice(legal.first, legal.first + legal.mask.shape[1])
            masked[rows, columns] = scores[rows, columns].masked_fill(~legal.mask, float("-inf"))
        return masked


class CompletionEnds(StoppingCriteria):
    """Ends each row with its completion, and moves the grammar on by the token that was drawn."""

    eos_token_id = None  # transformers pads rows that have ended if a criterion has this name

    def __init__(self, processor: GrammarProcessor) -> None:
        self.processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: object) -> Tensor:
        """Rows [n] that have ended."""
        layout, state = self.processor.layout, self.processor.state
        site = int(state.site[0]) if layout.in_step else None
        self.processor.state = layout.advance(state, input_ids[:, -1], site)
        return self.processor.state.site < 0


def grammar(layout: Layout, rows: int) -> dict[str, Any]:
    """Arguments of one call of `generate` for `rows` completions under genrl's grammar."""
    processor = GrammarProcessor(layout, rows)
    return {"logits_processor": [processor], "stopping_criteria": [CompletionEnds(processor)]}


def constraint(kind: str, inputs: Inputs) -> Constraint:
    """Arguments of `generate` under a constraint, `function` or `processor`, given the number of rows."""
    if kind == "processor":
        return partial(grammar, inputs.layout)
    function = SlateFunction if inputs.layout.writes_slates else PrefixFunction
    limits = {"prefix_allowed_tokens_fn": function(inputs.sid_tokens, inputs.prompts.tokens.shape[1])}
    return lambda rows: limits


@torch.no_grad()
def generate_samples(inputs: Inputs, group: int, limits: Constraint) -> Tensor:
    """Sampled completions [P * G, T] by `transformers.generate`."""
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "use_cache": True, "eos_token_id": None}
    return _generate(inputs, group, limits, **plain)[:, inputs.prompts.tokens.shape[1] :]


def generate_beams(inputs: Inputs, width: int, limits: Constraint, normalize: str) -> tuple[Tensor, Tensor]:
    """Beams [P, W, length], best first, and their scores [P, W]: sums of log-probabilities.

    With `normalize` "legal" those over the legal tokens (`renormalize_logits`), else over the vocabulary.
    """
    prompts, scored = inputs.prompts, {"return_dict_in_generate": True, "output_scores": True}
    beam = {"do_sample": False, "num_beams": width, "length_penalty": 0.0, "renormalize_logits": normalize == "legal"}
    found = _generate(inputs, width, limits, **beam, **scored)
    tokens = found.sequences[:, prompts.tokens.shape[1] :]
    return tokens.view(len(prompts), width, -1), found.sequences_scores.view(len(prompts), width)


@torch.no_grad()
def _generate(inputs: Inputs, width: int, limits: Constraint, **options: object) -> Any:  # noqa: ANN401
    prompts = inputs.prompts
    return inputs.policy.model.generate(
        input_ids=prompts.tokens,
        attention_mask=prompts.mask.long(),
        num_return_sequences=width,
        max_new_tokens=inputs.layout.length,
        **options,
        **limits(len(prompts) * width),
    )


def behind_copies(prompts: Requests, tokens: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Completions [P * G, T] each behind its own copy of its prompt, and their mask as int64."""
    group = len(tokens) // len(prompts)
    rows = torch.cat([prompts.tokens.repeat_interleave(group, dim=0), tokens], dim=1)
    return rows, torch.cat([prompts.mask.repeat_interleave(group, dim=0), written], dim=1).long()


@torch.no_grad()
def legal_log_probs(model: Any, prompts: Requests, tokens: Tensor, allowed: PrefixFunction) -> Tensor:  # noqa: ANN401
    """Log-probabilities [P * G, K] of completions over their legal sets, each behind its own copy of the prompt.

    The slow and obvious way: one full forward pass per row, legal sets from the Python function.
    """
    rows, mask = behind_copies(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    start = prompts.tokens.shape[1]
    parts = []
    for chunk, shown in zip(rows.split(128), mask.split(128), strict=True):
        logits = model(input_ids=chunk, attention_mask=shown).logits[:, start - 1 : -1].float()
        illegal = torch.ones_like(logits, dtype=torch.bool)
        for row, sequence in enumerate(chunk):
            for place in range(tokens.shape[1]):
                illegal[row, place, allowed(row, sequence[: start + place])] = False
        log_probs = logits.masked_fill(illegal, float("-inf")).log_softmax(-1)
        parts.append(log_probs.gather(2, chunk[:, start:, None])[:, :, 0])
    return torch.cat(parts)


def repeated_log_probs(model: Any, prompts: Requests, rollout: Completions) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Log-probabilities [B, T] over the vocabulary with gradient, and entropies, each row behind a copy of its prompt.

    What TRL's `GRPOTrainer` computes in an update.
    """
    rows, seen = behind_copies(prompts, rollout.tokens, rollout.written)
    length = rollout.tokens.shape[1]
    logits = model(input_ids=rows, attention_mask=seen, logits_to_keep=length + 1, use_cache=False).logits[:, :-1]
    chosen = logits.gather(2, rollout.tokens[:, :, None])[:, :, 0] - logits.logsumexp(-1)
    with torch.no_grad():
        log_probs = logits.log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
    return chosen, entropies
