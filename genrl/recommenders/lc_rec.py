"""LC-Rec: a causal language model that learns the language of Semantic IDs and the task at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from genrl.batches import Requests
from genrl.errors import ConfigError
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.options import option
from genrl.policy.model import Head, Policy
from genrl.policy.score import item_loss
from genrl.policy.share import Hidden
from genrl.prompts.packing import Segment, SequenceBatch, text_segments
from genrl.prompts.template import PromptTemplate
from genrl.recommenders.base import BASELINES, Problem
from genrl.recommenders.searching import SearchingBaseline, SearchingConfig
from genrl.sid.trie import Trie

SHOWN_TITLES = 5
"""Latest titles that a history of words shows."""


@dataclass(frozen=True)
class LCRecConfig(SearchingConfig):
    """Options; the backbone is that of the section `model`, adapters and 4-bit weights included."""

    max_epochs: int = 7
    patience: int = 0
    batch: int = 48
    """Users per optimiser step."""
    max_length: int = 20
    learning_rate: float = 2e-3
    """Peak learning rate; far lower (1e-4) for a pre-trained backbone."""
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    warmup_steps: int = 200
    alignment: float = option(1.0, ge=0)
    """Weight of the alignment tasks beside next-item prediction; 0 leaves them out."""


@BASELINES.register("lc_rec", config=LCRecConfig, title="LC-Rec", paper="arXiv:2311.09049")
class LCRec(SearchingBaseline):
    """LC-Rec (Zheng et al. 2023, arXiv:2311.09049), on any local causal language model.

    loss = next-item prediction over Semantic IDs + alignment · one alignment example per user and step, whose task is
    drawn evenly from: title of a SID, SID of a title (explicit alignment), title of the item after a history of SIDs,
    SID of the item after a history of titles (asymmetric prediction, implicit alignment). Probabilities of SID tokens
    are over the codes that continue to an item, here and when ranking; the paper constrains its beam search alone. Its
    two tasks on intentions and preferences need texts that a larger model writes and are left out.
    """

    per: ClassVar[Literal["target", "user"]] = "user"

    def __init__(self, config: LCRecConfig, *, problem: Problem) -> None:
        from genrl.policy.load import load_policy  # takes seconds to load

        super().__init__()
        self.config: LCRecConfig = config
        self.problem = problem
        table, catalog = problem.table, problem.dataset.catalog
        saved = problem.tokenizer if problem.model.name == "tiny" else None
        self.policy = load_policy(problem.model, table.codebook_sizes, catalog.texts, saved=saved)
        trie = Trie.build(table.codes, table.codebook_sizes, catalog.train_counts)
        self.layout = SidLayout(SidLayoutConfig(), catalogue=Items(trie, self.policy.first_ids, table.codes))
        pad = self.policy.tokenizer.pad_token_id
        self.prompts = PromptTemplate(
            start_id=self.policy.start_id,
            prefix_ids=(),
            sid_tokens=table.codes + torch.tensor(self.policy.first_ids),
            pad_id=self.policy.start_id if pad is None else pad,
        )
        needed, limit = 1 + (config.max_length + 1) * table.levels, self.policy.positions
        if limit is not None and needed > limit:
            raise ConfigError(
                f"histories of {needed} tokens (baseline.max_length={config.max_length} items x {table.levels} codes) "
                f"do not fit into the {limit} positions of model {problem.model.name!r}. Lower baseline.max_length."
            )

    @cached_property
    def alignment(self) -> AlignmentTasks:
        titles = self.problem.dataset.catalog.titles
        return AlignmentTasks(self.policy.tokenizer, titles, self.prompts, self.policy.positions)

    def loss(self, batch: SequenceBatch) -> Tensor:
        if not len(batch):  # a process without rows still has a part in the step
            return torch.stack([0.0 * value.sum() for value in self.trained().values()]).sum()
        rows = [self._sequence(items, targets) for items, targets in zip(batch.items, batch.targets, strict=True)]
        total = self._loss(rows)
        examples = list(self.alignment.draw(batch)) if self.config.alignment else []
        return total + self.config.alignment * self._loss(examples) if examples else total

    @property
    def writer(self) -> Policy:
        return self.policy

    def asked(self, requests: Requests) -> list[tuple[Tensor, Requests]]:
        tokens, mask = self.prompts.render(requests.history[:, -self.config.max_length :].cpu())
        written = replace(requests, tokens=tokens, mask=mask).to(str(self.policy.device))
        return [(torch.arange(len(written), device=written.tokens.device), written)]

    @property
    def backbone(self) -> Policy:
        return self.policy

    def trained(self) -> dict[str, nn.Parameter]:
        return self.policy.trainable()

    def state(self) -> dict[str, Tensor]:
        return self.policy.state()

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        self.policy.load_state(state, origin)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.policy.tokenizer.save_pretrained(folder / "tokenizer")

    def _sequence(self, items: Tensor, targets: Tensor) -> Segment:
        """A user's items as SIDs, those of the targets to be learnt."""
        kept = items >= 0
        rows, head = items[kept].cpu(), self.prompts.head
        tokens = torch.cat([head, self.prompts.sid_tokens[rows].flatten()])
        places = torch.nonzero(targets[kept].cpu()).flatten()
        starts = len(head) + places * self.prompts.sid_tokens.shape[1]
        return Segment(tokens.numpy(), starts.numpy(), rows[places].numpy())

    def _loss(self, segments: Sequence[Segment]) -> Tensor:
        device, layout = self.policy.device, self.on_device()
        tokens, items, words = _collate(segments, self.prompts.pad_id)
        tokens = tokens.to(device)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(segment.tokens) for segment in segments])[:, None]
        positions = torch.arange(tokens.shape[1], device=device).expand(len(tokens), -1)

        def total(hidden: Tensor, head: Head) -> Tensor:
            total = hidden.new_zeros((), dtype=torch.float32)
            if len(words):
                rows, columns = words.to(device).unbind(1)
                logits = head.logits(hidden[rows, columns - 1], 0, len(head.weight))
                total = total + nn.functional.cross_entropy(logits, tokens[rows, columns], reduction="sum")
            if len(items):
                rows, columns, targets = items.to(device).unbind(1)
                before = hidden[rows[:, None], columns[:, None] + torch.arange(layout.length, device=device) - 1]
                total = total + item_loss(Hidden(head.cut(*self.policy.sid_rows), before), layout, targets[:, None])
            return total

        rows = "vocab" if len(words) else "legal"
        return self.policy(tokens, mask.to(device), positions, total, rows)


class AlignmentTasks:
    """Examples that tie Semantic IDs to words.

    Args:
        tokenizer: of the backbone.
        titles: of the catalogue; items without one are in no example.
        template: gives the SID tokens.
        limit: longest example in tokens; None: any.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
        titles: tuple[str, ...],
        template: PromptTemplate,
        limit: int | None,
    ) -> None:
        self.sids = template.sid_tokens.numpy()
        self.start = template.head.numpy()
        self.limit = limit

        def encode(words: str) -> np.ndarray:
            return np.array(tokenizer(words, add_special_tokens=False)["input_ids"], np.int64)

        self.words = [encode(title) if title else None for title in titles]
        self.after, self.next_title, self.next_sid, self.comma = map(
            encode, ("After ", " comes the title ", " comes the item ", ", ")
        )
        self.end = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], np.int64)
        named = [row for row, title in enumerate(titles) if title]
        pairs = list(text_segments(tokenizer, titles, template))
        self.explicit = {row: pairs[2 * place : 2 * place + 2] for place, row in enumerate(named)}

    def draw(self, batch: SequenceBatch) -> Iterator[Segment]:
        """One example for each row whose drawn target has a title, its task drawn evenly."""
        for items, targets in zip(batch.items.cpu(), batch.targets.cpu(), strict=True):
            places = torch.nonzero(targets).flatten()
            place = int(places[torch.randint(len(places), ())])
            task = int(torch.randint(4, ()))
            target = int(items[place])
            if self.words[target] is None:
                continue
            history = [item for item in items[:place].tolist() if item >= 0]
            example = self.explicit[target][task] if task < 2 else self._asymmetric(history, target, task == 2)
            if self.limit is None or len(example.tokens) <= self.limit:
                yield example

    def _asymmetric(self, history: list[int], target: int, to_title: bool) -> Segment:
        empty = np.empty(0, np.int64)
        if to_title:
            question = np.concatenate([self.start, self.after, *(self.sids[item] for item in history), self.next_title])
            tokens = np.concatenate([question, self.words[target], self.end])
            return Segment(tokens, empty, empty, np.arange(len(question), len(tokens)))
        shown = [self.words[item] for item in history[-SHOWN_TITLES:]]
        words = [part for title in shown if title is not None for part in (title, self.comma)]
        question = np.concatenate([self.start, self.after, *words, self.next_sid])
        return Segment(np.concatenate([question, self.sids[target]]), np.array([len(question)]), np.array([target]))


def _collate(segments: Sequence[Segment], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segments as right-padded rows: tokens [n, L], items [m, 3] (row, column, item), words [w, 2] (row, column)."""
    longest = max(len(segment.tokens) for segment in segments)
    tokens = torch.full((len(segments), longest), pad_id)
    items, words = [], []
    for row, segment in enumerate(segments):
        tokens[row, : len(segment.tokens)] = torch.from_numpy(segment.tokens)
        items += [(row, int(start), int(item)) for start, item in zip(segment.item_starts, segment.items, strict=True)]
        words += [(row, int(start)) for start in segment.text_starts]
    return tokens, torch.tensor(items).view(-1, 3), torch.tensor(words).view(-1, 2)
