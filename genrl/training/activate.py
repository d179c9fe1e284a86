"""Stage `activate`: supervised training on traces, so that the policy thinks before it names an item."""

from __future__ import annotations

from torch import Tensor

from genrl.policy.model import Head
from genrl.policy.score import place_scores
from genrl.policy.share import Hidden
from genrl.prompts.packing import PackedBatch
from genrl.training.sft import PackedModule


class ActivateModule(PackedModule):
    """Cross-entropy over the legal set of every token that the policy is to choose; prompt and form count not."""

    def read(self, batch: PackedBatch, hidden: Tensor, head: Head) -> Tensor:
        """Of chosen words and SID tokens."""
        rows, columns = batch.places.unbind(1)
        logps, _ = place_scores(
            Hidden(head, hidden[rows, columns - 1]),
            self.layout,
            self.layout.start(0) if batch.states is None else batch.states,
            batch.tokens[rows, columns],
        )
        return -logps.sum()
