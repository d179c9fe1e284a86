"""What a teacher says of completions that the policy wrote."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genrl.batches import Completions, Requests, State
from genrl.layouts.base import Layout
from genrl.policy.distribution import Sampling, distribution, head_rows, log_prob
from genrl.policy.guide import Guide, Masses
from genrl.policy.protocol import Generative, Next
from genrl.policy.write import by_site


@torch.no_grad()
def taught(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    completions: Completions,
    teacher: Guide,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Completions:
    """The completions with `teacher_gap` and `teacher_kl` at each SID token that the policy chose, 0 elsewhere.

    Both compare distributions over the codes that may follow, the policy's at the temperature that it was sampled with.

    Args:
        policy: that wrote them.
        layout: that they were written under.
        requests: P prompts.
        completions: G for each of them.
        teacher: over the trie of the layout.
        sampling: that they were written with.
    """
    assert completions.states is not None
    owner = torch.arange(len(completions.tokens), device=completions.tokens.device) // completions.group_size
    states = replace(completions.states, owner=owner[:, None].expand_as(completions.tokens))
    read = partial(_compared, layout, requests, completions, states, teacher.masses(requests.history), sampling)
    rows = head_rows(layout, "legal")
    gap, divergence = policy.follow(requests, completions.tokens, completions.chosen, read, rows)
    return replace(completions, teacher_gap=gap, teacher_kl=divergence)


def _compared(
    layout: Layout,
    requests: Requests,
    completions: Completions,
    states: State,
    masses: Masses,
    sampling: Sampling,
    first: Next,
    inner: Next,
) -> tuple[Tensor, Tensor]:
    tokens, judged = completions.tokens, completions.chosen & completions.item_mask
    gap = torch.zeros_like(tokens, dtype=torch.float32)
    divergence = torch.zeros_like(gap)
    share = len(tokens) // len(first)
    for opens, said in ((True, first), (False, inner)):
        places = judged & ((torch.arange(tokens.shape[1], device=tokens.device) == 0) == opens)
        rows, columns = places.nonzero(as_tuple=True)
        here = said[rows // share] if opens else said[rows, columns - 1]
        before = states.each(lambda value, at=(rows, columns): value[at])  # type: ignore[misc]
        for site, some in by_site(before.site):
            own = before.rows(some)
            legal = layout.legal(site, own, requests)
            _, student, _ = distribution(here[some], legal, sampling.at(layout, site))
            illegal = ~legal.mask
            teacher = masses.behind(legal, own.owner).masked_fill(illegal, float("-inf")).log_softmax(-1)
            apart = (teacher - student).masked_fill(illegal, 0.0)
            at = rows[some], columns[some]
            gap[at] = log_prob(apart, legal, tokens[at]).to(gap.dtype)
            divergence[at] = -(student.exp() * apart).sum(-1).to(gap.dtype)
    return gap, divergence
