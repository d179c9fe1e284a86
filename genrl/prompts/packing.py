"""Supervised batches: user histories packed into rows, every position a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrl.batches import Batch
from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import AlignConfig
from genrl.errors import DataError
from genrl.prompts.prompts import PromptTemplate


@dataclass(frozen=True, slots=True)
class PackedBatch(Batch):
    """Rows of several segments each; segments do not see each other."""

    tokens: Tensor
    """[R, L] int64."""
    positions: Tensor
    """[R, L] int64, starting anew in each segment."""
    segments: Tensor
    """[R, L] int64 segment ids; -1 is padding."""
    item_places: Tensor
    """[n, 2] int64: row and column of the first SID token of each target item."""
    items: Tensor
    """[n] int64 catalogue rows of the target items."""
    text_places: Tensor
    """[m, 2] int64: row and column of each target word token."""
    share: Tensor
    """[] float: target tokens of the whole step over all ranks; divides the loss."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens that is seen as a whole: a window of a user's history or a text example."""

    tokens: np.ndarray
    item_starts: np.ndarray
    items: np.ndarray
    text_starts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class Packer:
    """Plans and builds the optimiser steps of supervised training; a step depends on (seed, step) alone.

    A user's training items are cut into windows of at most `max_history` + 1 items. Windows behind the first repeat
    half a window of items as context without training on them again, so every training position is a target once per
    pass.

    Args:
        dataset: sequences and roles.
        template: start token, prefix and SID tokens.
        config: the align section.
        max_history: items of history that a prompt shows.
        text: segments of SID <-> title examples, trained on once per pass.
        rank: this process.
        world: number of processes.

    Raises:
        DataError: if there is nothing to train on.
    """

    def __init__(
        self,
        dataset: Dataset,
        template: PromptTemplate,
        config: AlignConfig,
        max_history: int,
        text: tuple[Segment, ...] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.config = config
        self.rank, self.world = rank, world
        self.alone = False
        """One segment per row, for models whose layers do not take the mask that keeps segments apart."""
        self.text = text
        self.levels = template.sid_tokens.shape[1]
        self.sid_tokens = template.sid_tokens.numpy()
        self.head = template.head.numpy()
        self.pad_id = template.pad_id
        sequences = dataset.sequences
        self.items = sequences.items.numpy()
        self.roles = sequences.roles.numpy()
        offsets = sequences.offsets.numpy()
        self.ties = _ties(offsets, sequences.times.numpy(), self.roles)
        trained = np.isin(self.roles, [Role.TRAIN, Role.HISTORY])
        self.windows = _windows(offsets, trained, self.roles == Role.TRAIN, max_history + 1)
        targets = int(self.windows[:, 2].sum())
        if targets == 0:
            raise DataError(
                "no training positions: every interaction is held out. Lower data.rl_holdout or check the split."
            )
        self.targets = np.concatenate([self.windows[:, 2], np.array([len(s.items) or 1 for s in text], np.int64)])
        self.steps_per_epoch = min((int(self.targets.sum()) - 1) // config.items_per_step + 1, len(self.targets))
        self.longest = max(len(self.head) + (max_history + 1) * self.levels, *(len(s.tokens) for s in text), 0)
        """Tokens of the longest segment there may be."""
        self.length = max(config.pack_length, self.longest)
        self._plan: tuple[int, list[np.ndarray], np.ndarray] | None = None

    def step(self, index: int) -> PackedBatch:
        """The batch of optimiser step `index`, counted from the start of the stage."""
        epoch, within = divmod(index, self.steps_per_epoch)
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, *self._make_plan(epoch))
        _, steps, items = self._plan
        chosen = [self._segment(window, items, epoch) for window in steps[within].tolist()]
        share = sum(len(s.items) * self.levels + len(s.text_starts) for s in chosen)
        return pack(chosen[self.rank :: self.world], self.length, self.pad_id, share, alone=self.alone)

    def _make_plan(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        random = np.random.default_rng((self.config.seed, epoch))
        items = self.items
        if self.config.shuffle_ties:
            places = np.arange(len(items), dtype=np.float64)
            shuffled_places = np.where(self.roles == Role.TRAIN, random.random(len(items)), places)
            items = items[np.lexsort((shuffled_places, self.ties))]
        shuffled = random.permutation(len(self.targets))
        ends = np.cumsum(self.targets[shuffled])
        owner = np.minimum((ends - 1) // self.config.items_per_step, self.steps_per_epoch - 1)
        steps = np.arange(1, self.steps_per_epoch)
        cuts = np.searchsorted(owner, steps)
        cuts = np.maximum.accumulate(np.maximum(cuts - steps, 0)) + steps  # a window with more targets than a step
        cuts = np.minimum(cuts, len(shuffled) - self.steps_per_epoch + steps)  # must not leave other steps empty
        return np.split(shuffled, cuts), items

    def _segment(self, window: int, items: np.ndarray, epoch: int) -> Segment:
        if window >= len(self.windows):
            return self.text[window - len(self.windows)]
        start, stop, count = self.windows[window]
        shown = items[start:stop]
        target = np.arange(stop - start) >= stop - start - count
        if self.config.item_dropout:
            random = np.random.default_rng((self.config.seed, epoch, window))
            kept = random.random(len(shown)) >= self.config.item_dropout
            kept[-1] |= not (kept & target).any()
            shown, target = shown[kept], target[kept]
        tokens = np.concatenate([self.head, self.sid_tokens[shown].reshape(-1)])
        places = target.nonzero()[0]
        return Segment(tokens, len(self.head) + places * self.levels, shown[places])


def pack(segments: Sequence[Segment], length: int, pad_id: int, share: int, *, alone: bool) -> PackedBatch:
    """Put segments beside each other into rows.

    Args:
        segments: of this rank.
        length: tokens of a row at most.
        pad_id: fills what is left.
        share: target tokens of the whole step over all ranks.
        alone: one segment per row.
    """
    fitted = first_fit([len(segment.tokens) for segment in segments], length, alone)
    rows = [[segments[one] for one in row] for row in fitted]
    width = max((sum(len(s.tokens) for s in row) for row in rows), default=1)
    tokens = np.full((max(len(rows), 1), width), pad_id, np.int64)  # a rank without a segment: one padding
    positions = np.zeros_like(tokens)
    ids = np.full_like(tokens, -1)
    item_places, items, text_places = [], [], []
    for row, members in enumerate(rows):
        column = 0
        for number, segment in enumerate(members):
            end = column + len(segment.tokens)
            tokens[row, column:end] = segment.tokens
            positions[row, column:end] = np.arange(end - column)
            ids[row, column:end] = number
            item_places += [(row, column + place) for place in segment.item_starts]
            text_places += [(row, column + place) for place in segment.text_starts]
            items.append(segment.items)
            column = end
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(ids),
        item_places=torch.tensor(item_places, dtype=torch.int64).view(-1, 2),
        items=torch.from_numpy(np.concatenate(items) if items else np.empty(0, np.int64)),
        text_places=torch.tensor(text_places, dtype=torch.int64).view(-1, 2),
        share=torch.tensor(float(share)),
    )


def first_fit(sizes: Sequence[int], length: int, alone: bool) -> list[list[int]]:
    """Put segments into rows of at most `length` tokens, longest first, each into the first row with room.

    Args:
        sizes: tokens of each segment.
        length: tokens of a row.
        alone: one segment per row.

    Example:
        >>> first_fit([3, 5, 2], 8, alone=False)
        [[1, 0], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for one in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        row = next((number for number, left in enumerate(room) if left >= sizes[one]), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row].append(one)
        room[row] = 0 if alone else room[row] - sizes[one]
    return rows


def _ties(offsets: np.ndarray, times: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Number the runs of neighbouring interactions of one user with the same time and role."""
    first = np.zeros(len(times), bool)
    first[offsets[:-1][offsets[:-1] < len(times)]] = True
    first[1:] |= (times[1:] != times[:-1]) | (roles[1:] != roles[:-1])
    return np.cumsum(first)


def _windows(offsets: np.ndarray, trained: np.ndarray, target: np.ndarray, size: int) -> np.ndarray:
    """Windows [w, 3]: first position, end, and how many of the last positions are targets."""
    windows = []
    for start, stop in pairwise(offsets.tolist()):
        end = start + int(trained[start:stop].sum())  # training positions are a prefix of the user's sequence
        first_target = start + int((~target[start:end]).sum())
        done = first_target
        while done < end:
            low = max(start, done - size // 2) if end - start > size else start
            high = min(low + size, end)
            windows.append((low, high, high - max(done, low)))
            done = high
    return np.array(windows, np.int64).reshape(-1, 3)


def text_segments(
    tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
    titles: tuple[str, ...],
    template: PromptTemplate,
) -> Iterator[Segment]:
    """SID -> title and title -> SID examples for every item with a title."""

    def encode(words: str) -> np.ndarray:
        return np.array(tokenizer(words, add_special_tokens=False)["input_ids"], np.int64)

    sids = template.sid_tokens.numpy()
    empty = np.empty(0, np.int64)
    ask_title, ask_sid, arrow = encode("What is the title of "), encode("Which item has the title "), encode("? ")
    start = np.array([template.start_id])
    end = start if tokenizer.eos_token_id is None else np.array([tokenizer.eos_token_id])
    for row, title in enumerate(titles):
        if not title:
            continue
        words = encode(title)
        question = np.concatenate([start, ask_title, sids[row], arrow])
        tokens = np.concatenate([question, words, end])
        yield Segment(tokens, empty, empty, np.arange(len(question), len(tokens)))
        question = np.concatenate([start, ask_sid, words, arrow])
        yield Segment(np.concatenate([question, sids[row]]), np.array([len(question)]), np.array([row]))
