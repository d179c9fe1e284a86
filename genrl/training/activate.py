"""Stage `activate`: supervised training on whole completions, of thinking before an item or of slates."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.config.schema import ActivateConfig
from genrl.files import read_json
from genrl.plots import read_notes
from genrl.policy.model import Head, Policy
from genrl.policy.score import place_scores
from genrl.policy.share import Hidden
from genrl.prompts.packing import PackedBatch
from genrl.recommenders.searching import rankings
from genrl.training.sft import PackedModule, items_loss

KEPT = 0.9
"""Share of what a policy could do by items alone that it should keep while it learns to write more."""


class ActivateModule(PackedModule):
    """Cross-entropy over the legal set of every token that the policy is to choose; prompt and form count not.

    The next items alone are learned beside it, with the weight `plain`: what is not practised is forgotten.
    """

    config: ActivateConfig

    def __init__(self, *arguments: Any, **stage: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **stage)
        self.plain_metrics = deepcopy(self.metrics)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.plain_metrics.reset()

    def validation_step(self, batch: Requests, index: int) -> None:
        """Rank as the layout does, and by the next item alone."""
        super().validation_step(batch, index)

        def plain(part: Requests) -> Ranking:
            return rankings(self.policy, self.layout.plain, part, self.evaluation, (self.kind,))[self.kind]

        self.plain_metrics.update(self.ranked(batch, plain), batch.wanted)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.note({f"val/plain_{name}": value for name, value in self.plain_metrics.compute().items()})

    def read(self, batch: PackedBatch, hidden: Tensor, head: Head) -> Tensor:
        """Of chosen words and SID tokens, and of the next items alone."""
        rows, columns = batch.places.unbind(1)
        logps, _ = place_scores(
            Hidden(head, hidden[rows, batch.before]),
            self.layout,
            self.layout.start(0) if batch.states is None else batch.states,
            batch.tokens[rows, columns],
        )
        thought = -logps.sum()
        if not len(batch.items):
            return thought
        plain = items_loss(batch, hidden, head.cut(*cast(Policy, self.policy).sid_rows), self.layout.plain)
        return thought + self.config.plain * plain


def forgotten(before: Path, folder: Path, metric: str, way: str = "without thinking") -> str:
    """What a policy lost of ranking by items alone while it learned more, in words; "" if it kept `KEPT` of it.

    Args:
        before: folder of stage `align`.
        folder: of stage `activate`.
        metric: validation metric that chose the weights of both.
        way: what ranking by items alone is called.
    """
    could, can = _chosen(before, metric), _chosen(folder, metric.replace("val/", "val/plain_"))
    if could is None or can is None or can >= KEPT * could:
        return ""
    return (
        f"stage activate: {way} the policy now reads {can:.4f} {metric} where stage align read {could:.4f}. "
        f"It forgets what it does not practise: raise activate.plain, or lower activate.learning_rate."
    )


def _chosen(folder: Path, name: str) -> float | None:
    """A validation value of the weights that a stage kept."""
    step = read_json(folder / "metrics.json")["best_step"]
    return read_notes(folder).get(name, {}).get(step)
