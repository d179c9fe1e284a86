"""Supervised batches: which examples an optimiser step trains on, packed into rows and shared out over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Batch, State, concatenate, widened
from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, AlignConfig
from genrl.errors import DataError
from genrl.layouts.base import Layout
from genrl.prompts.template import PromptMaker, PromptTemplate, RequestTemplate
from genrl.prompts.traces import Trace

NOTHING = np.empty(0, np.int64)
KNOWN = (Role.TRAIN, Role.RL)
"""What baselines learn from: all that a policy has seen at its end."""


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
    """[m, 2] int64: row and column of each target word, to be told from the whole vocabulary."""
    places: Tensor
    """[c, 2] int64: row and column of each target token that a layout lets the policy choose."""
    before: Tensor
    """[c] int64: column of what stands before each of these tokens, in the same branch or in the text it leaves."""
    share: Tensor
    """[] float: target tokens of the whole step over all ranks; divides the loss."""
    states: State | None = None
    """Of [c]: where the layout stands before the chosen tokens; None: there are none."""
    leaves: Tensor | None = None
    """[R, L] int64 position at which the branch of a token leaves the text of its segment; 0 for the text itself. None:
    there are no branches."""
    histories: Tensor | None = None
    """[n, H] int64 catalogue rows shown before each target item, -1 pads on the left; None: nobody asks for them."""

    def __len__(self) -> int:
        """Rows."""
        return self.tokens.shape[0]

    def portion(self, own: slice) -> PackedBatch:
        """Some rows with their targets; `share` stays that of the step, so that losses of portions add up."""
        of_items, of_words, of_choices = (
            (places[:, 0] >= own.start) & (places[:, 0] < own.stop)
            for places in (self.item_places, self.text_places, self.places)
        )
        first = self.tokens.new_tensor([own.start, 0])
        return PackedBatch(
            tokens=self.tokens[own],
            positions=self.positions[own],
            segments=self.segments[own],
            item_places=self.item_places[of_items] - first,
            items=self.items[of_items],
            text_places=self.text_places[of_words] - first,
            places=self.places[of_choices] - first,
            before=self.before[of_choices],
            share=self.share,
            states=None if self.states is None else self.states.rows(of_choices),
            leaves=None if self.leaves is None else self.leaves[own],
            histories=None if self.histories is None else self.histories[of_items],
        )


@dataclass(frozen=True, slots=True)
class SequenceBatch(Batch):
    """Rows of items, each as long as its user's history reaches back, for models that do not read tokens."""

    items: Tensor
    """[B, L] int64 catalogue rows, right-aligned: the latest item is last, -1 pads on the left."""
    targets: Tensor
    """[B, L] bool: items to be predicted from those left of them."""
    share: Tensor
    """[] float: targets of the whole step over all ranks; divides the loss."""

    def __len__(self) -> int:
        """Rows."""
        return self.items.shape[0]

    def portion(self, own: slice) -> SequenceBatch:
        """Some rows; `share` stays that of the step, so that losses of portions add up."""
        return SequenceBatch(self.items[own], self.targets[own], self.share)

    @property
    def histories(self) -> Tensor:
        """[n, L] items before each target, row by row, right-aligned, -1 pads."""
        rows, columns = self.targets.nonzero(as_tuple=True)
        places = columns[:, None] - torch.arange(self.items.shape[1], 0, -1, device=rows.device)
        return torch.where(places >= 0, self.items[rows[:, None], places.clamp(min=0)], -1)


BatchT = TypeVar("BatchT", PackedBatch, SequenceBatch)


class Planner(ABC, Generic[BatchT]):
    """Plans and builds the optimiser steps of supervised training; a step depends on (seed, step) alone."""

    steps_per_epoch: int
    rank: int = 0
    """This process, which gets every `world`-th example of a step."""
    world: int = 1
    """Number of processes."""
    _latest: tuple[int, Sequence[Any]] | None = None
    _ahead: tuple[int, Any] | None = None

    @property
    def mine(self) -> slice:
        """This rank's part of the examples of a step."""
        return slice(self.rank, None, self.world)

    def step(self, index: int) -> BatchT:
        """The batch of optimiser step `index`, counted from the start of the stage."""
        if self._ahead is not None and self._ahead[0] == index:
            found: BatchT = self._ahead[1]
            return found
        epoch, within = divmod(index, self.steps_per_epoch)
        if self._latest is None or self._latest[0] != epoch:
            self._latest = epoch, self.plan(epoch)
        return self.batch(self._latest[1][within])

    def prepare(self, index: int) -> None:
        """Make the batch of a step before it is asked for, while the host has nothing else to do."""
        self._ahead = index, self.step(index)

    @abstractmethod
    def plan(self, epoch: int) -> Sequence[Any]:
        """What each step of a pass over the data trains on."""

    @abstractmethod
    def batch(self, planned: Any) -> BatchT:  # noqa: ANN401 (what `plan` says of the step)
        """Build this rank's part of a step."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens that is seen as a whole, and what of it is to be learned, by places in it."""

    tokens: np.ndarray
    item_starts: np.ndarray
    items: np.ndarray
    text_starts: np.ndarray = field(default_factory=lambda: NOTHING)
    chosen: np.ndarray = field(default_factory=lambda: NOTHING)
    states: State | None = None
    histories: np.ndarray | None = None
    """[n, h] items before each target, -1 pads on the left; None: there are none, or nobody asks for them."""
    leaves: np.ndarray | None = None
    """Of branches behind a text, as in `PackedBatch`; None: there are none."""

    @property
    def positions(self) -> np.ndarray:
        """Of each token in its text or branch."""
        places = np.arange(len(self.tokens))
        if self.leaves is None:
            return places
        first = np.flatnonzero(np.diff(self.leaves, prepend=0))  # where each branch begins
        return np.where(self.leaves, places - first[np.searchsorted(first, places, "right") - 1] + self.leaves, places)

    @property
    def before(self) -> np.ndarray:
        """[c] place of what stands before each chosen token; a branch begins behind the text that it leaves."""
        if self.leaves is None:
            return self.chosen - 1
        opens = self.leaves[self.chosen] * (self.leaves[self.chosen] == self.positions[self.chosen])
        return np.where(opens, opens - 1, self.chosen - 1)


Branch = tuple[np.ndarray, np.ndarray, State]
"""Tokens of a completion, the places in them that are learned, and the states there."""


class SegmentPlanner(Planner[PackedBatch]):
    """Steps whose examples are segments of at most `longest` tokens, in rows of `pack_length` or what that needs."""

    def __init__(self, template: RequestTemplate, longest: int, pack_length: int) -> None:
        self.template = template
        self.longest = longest
        self.length = max(pack_length, longest)
        self.alone = False
        """One segment per row, for models whose layers do not take the mask that keeps segments apart."""

    @abstractmethod
    def segments(self, planned: Any) -> list[Segment]:  # noqa: ANN401
        """The examples of a step, over all ranks."""

    def batch(self, planned: Any) -> PackedBatch:  # noqa: ANN401
        segments = self.segments(planned)
        share = sum(len(s.items) * self.template.levels + len(s.text_starts) + len(s.chosen) for s in segments)
        return pack(segments[self.mine], self.length, self.template.pad_id, share, alone=self.alone)


class HistoryBatches(SegmentPlanner):
    """The steps of stage `align`: windows of histories, every position a target.

    A user's training items are cut into windows of at most `max_history` + 1 items. Windows behind the first repeat
    half a window of items as context without training on them again, so every training position is a target once per
    pass. In a window only the first item of a moment is a target; the others have a window of their own, behind what
    was before the moment.

    Segments of SID <-> title examples (`text`) are trained on once per pass, too.

    Raises:
        DataError: if there is nothing to train on.
    """

    template: PromptTemplate

    def __init__(
        self,
        dataset: Dataset,
        template: PromptTemplate,
        config: AlignConfig,
        max_history: int,
        text: tuple[Segment, ...] = (),
    ) -> None:
        longest = max(template.longest(max_history + 1), *(len(s.tokens) for s in text), 0)
        super().__init__(template, longest, config.pack_length)
        self.config = config
        self.text = text
        sequences = dataset.sequences
        self.items = sequences.items.numpy()
        self.past = sequences.past(torch.arange(len(sequences))).numpy()
        self.windows = _windows(sequences.offsets.numpy(), sequences.roles.numpy(), self.past, max_history + 1)
        if not len(self.windows):
            raise DataError(
                "no training positions: every interaction is held out. Lower data.rl_holdout or check the split."
            )
        self.targets = np.concatenate([self.windows[:, 3], np.array([len(s.items) or 1 for s in text], np.int64)])
        self.steps_per_epoch = min((int(self.targets.sum()) - 1) // config.items_per_step + 1, len(self.targets))

    def plan(self, epoch: int) -> Sequence[tuple[int, np.ndarray]]:
        """The pass, and the numbers of each step's windows and texts."""
        bits = np.random.PCG64((self.config.seed, epoch)).advance(len(self.items))  # draws that once ordered ties
        random = np.random.Generator(bits)
        shuffled = random.permutation(len(self.targets))
        steps = shared_out(self.targets[shuffled], self.config.items_per_step, self.steps_per_epoch)
        return [(epoch, windows) for windows in np.split(shuffled, steps)]

    def segments(self, planned: tuple[int, np.ndarray]) -> list[Segment]:
        epoch, windows = planned
        return [self._segment(window, epoch) for window in windows.tolist()]

    def _segment(self, window: int, epoch: int) -> Segment:
        if window >= len(self.windows):
            return self.text[window - len(self.windows)]
        shown, target = self.shown(window, epoch)
        tokens, starts = self.template.write(torch.from_numpy(shown))
        behind = _before(shown, target) if self.config.teacher_share else None
        return Segment(tokens.numpy(), starts.numpy()[target], shown[target], histories=behind)

    def shown(self, window: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of a window in a pass, oldest first, and which of them are targets."""
        start, first, stop, _ = self.windows[window].tolist()
        places = np.concatenate([np.arange(start, self.past[first]), np.arange(first, stop)])
        moment = self.past[places] == places  # only the first of each moment is a target
        shown, target = self.items[places], (places >= first) & (moment | (places == first))
        if self.config.item_dropout:
            random = np.random.default_rng((self.config.seed, epoch, window))
            kept = random.random(len(shown)) >= self.config.item_dropout
            kept[-1] |= not (kept & target).any()
            shown, target = shown[kept], target[kept]
        return shown, target


class HistoryRows(Planner[SequenceBatch]):
    """The steps of stage `align` for a policy that reads items: each window of `HistoryBatches` is a row.

    The start stands before the first item of a row, so that every item may be a target; `share` counts codes.
    """

    def __init__(self, histories: HistoryBatches) -> None:
        self.histories = histories
        self.steps_per_epoch = histories.steps_per_epoch

    def plan(self, epoch: int) -> Sequence[tuple[int, np.ndarray]]:
        return self.histories.plan(epoch)

    def batch(self, planned: tuple[int, np.ndarray]) -> SequenceBatch:
        epoch, windows = planned
        rows = [self.histories.shown(window, epoch) for window in windows.tolist()]
        share = sum(int(target.sum()) for _, target in rows) * self.histories.template.levels
        rows = rows[self.mine]
        width = max((len(shown) for shown, _ in rows), default=1)
        items, targets = np.full((len(rows), width), -1, np.int64), np.zeros((len(rows), width), bool)
        for row, (shown, target) in enumerate(rows):
            items[row, width - len(shown) :], targets[row, width - len(shown) :] = shown, target
        return SequenceBatch(torch.from_numpy(items), torch.from_numpy(targets), torch.tensor(float(share)))


class CompletionBatches(SegmentPlanner):
    """The steps of stage `activate`: prompts with given completions behind them; and the next item alone.

    Completions of one user whose prompts begin with the same item are branches behind one text, which is computed once;
    the items alone are learned in that text. A step has whole texts of about `examples_per_step` completions.

    The layout is on the CPU.

    Args:
        where: [n] positions of the items that the prompts ask for.
        tokens: [n, T] completions, 0 behind the end.
        maker: makes the prompts.
        layout: grammar of the completions.
        config: the stage's section.
    """

    def __init__(
        self, where: Tensor, tokens: Tensor, maker: PromptMaker, layout: Layout, config: ActivateConfig
    ) -> None:
        self.where, self.tokens = where, tokens
        self.maker, self.layout, self.config = maker, layout, config
        self.items = maker.dataset.sequences.items[self.where]
        self.states = layout.replay(self.tokens)
        self.chosen = self._kind(self.states, "item", "word")
        longest = maker.template.longest(maker.max_history + 1) + self.tokens.shape[1]
        super().__init__(maker.template, longest, config.pack_length)
        sequences = maker.dataset.sequences
        self.ends = sequences.past(self.where)
        starts = sequences.offsets[sequences.users(self.where)]
        self.firsts = torch.maximum(starts, self.ends - max(maker.max_history, 1))
        """[n] positions of the first item of each prompt, and behind its last one."""
        self.groups = self._grouped()
        self._known: dict[tuple[bool, int], list[Segment]] = {}
        self.steps_per_epoch = min(-(-len(self.where) // config.examples_per_step), len(self.groups))

    def plan(self, epoch: int) -> Sequence[tuple[list[Tensor], Tensor]]:
        """Texts of each step as the completions behind them, and for every one that whose thinking is shown."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        others = torch.randperm(len(self.where), generator=generator)
        foreign = torch.rand(len(self.where), generator=generator) < self.config.foreign
        thinking = torch.where(foreign, others, torch.arange(len(others)))
        order = torch.randperm(len(self.groups), generator=generator).tolist()
        groups = [self.groups[number] for number in order]
        sizes = np.array([len(group) for group in groups])
        cuts = [0, *shared_out(sizes, self.config.examples_per_step, self.steps_per_epoch).tolist(), len(groups)]
        return [(groups[start:stop], thinking) for start, stop in pairwise(cuts)]

    def segments(self, planned: tuple[list[Tensor], Tensor]) -> list[Segment]:
        """Texts with their branches, up to the last token that is learned; made once unless thinking is foreign."""
        groups, thinking = planned
        known = self._known if self.config.max_epochs > 1 and not self.config.foreign else {}
        new = [group for group in groups if (self.alone, int(group[0])) not in known]
        for group, made in zip(new, self._written(new, thinking), strict=True):
            known[self.alone, int(group[0])] = made
        return [segment for group in groups for segment in known[self.alone, int(group[0])]]

    def _written(self, groups: Sequence[Tensor], thinking: Tensor) -> list[list[Segment]]:
        """The segments of each group."""
        if not groups:
            return []
        rows = torch.cat(list(groups))
        tokens, states, chosen = self._completions(rows, thinking[rows])
        branches: list[Branch] = []
        for number, (text, is_chosen) in enumerate(zip(tokens, chosen, strict=True)):
            places = is_chosen.nonzero()[:, 0]
            own = states.each(lambda value, at=(number, places): value[at])  # type: ignore[misc]
            branches.append((text[: int(places[-1]) + 1].numpy(), places.numpy(), own))
        behind = iter(branches)
        found: list[list[Segment]] = []
        for group in groups:
            mine = [next(behind) for _ in group]
            parts = [] if self.alone else list(self._pieces(group, mine))
            together = [self._together(group[part], mine[part]) for part in parts]
            found.append(together or self._alone(group, mine))
        return found

    def _together(self, group: Tensor, branches: Sequence[Branch]) -> Segment:
        """One text with all its branches."""
        text, starts = self._text(group)
        leaves, chosen, length = [np.zeros(len(text), np.int64)], [], len(text)
        for start, (tokens, places, _) in zip(starts.tolist(), branches, strict=True):
            leaves.append(np.full(len(tokens), start, np.int64))
            chosen.append(length + places)
            length += len(tokens)
        return Segment(
            np.concatenate([text, *(tokens for tokens, _, _ in branches)]),
            *self._plain(group, starts),
            chosen=np.concatenate(chosen),
            states=reduce(concatenate, [states for _, _, states in branches]),
            leaves=np.concatenate(leaves),
        )

    def _alone(self, group: Tensor, branches: Sequence[Branch]) -> list[Segment]:
        """Each branch behind a text of its own, and the whole text for the items without thinking."""
        text, starts = self._text(group)
        found = [
            Segment(np.concatenate([text[:start], tokens]), NOTHING, NOTHING, NOTHING, start + places, states)
            for start, (tokens, places, states) in zip(starts.tolist(), branches, strict=True)
        ]
        return [*found, Segment(text, *self._plain(group, starts))] if self.config.plain else found

    def _text(self, group: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The text from the first item of the prompts to the last target, and where in it each target begins."""
        if not isinstance(self.template, PromptTemplate):  # each prompt is a text of its own
            asked = self.maker.at(self.where[group])
            text, sid = asked.tokens[0], self.template.sid_tokens[self.items[group[0]]]
            own = np.array([len(text)])
            return torch.cat([text, sid] if self.config.plain else [text]).numpy(), own
        first, last = int(self.firsts[group[-1]]), group[-1:]
        items = self.maker.dataset.sequences.items
        text, starts = self.template.write(torch.cat([items[first : int(self.ends[last])], items[self.where[last]]]))
        places = starts[self.ends[group] - first]
        stop = int(places[-1]) + (self.template.levels if self.config.plain else 0)
        return text[:stop].numpy(), places.numpy()

    def _plain(self, group: Tensor, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where items without thinking begin, and which they are."""
        return (starts, self.items[group].numpy()) if self.config.plain else (NOTHING, NOTHING)

    def _pieces(self, group: Tensor, branches: Sequence[Branch]) -> Iterator[slice]:
        """Runs of traces that fit into a row behind one text, each at a position of its own."""
        start, size = 0, 0
        for number, (row, (tokens, _, _)) in enumerate(zip(group.tolist(), branches, strict=True)):
            size += len(tokens)
            same = number > start and self.ends[row] == self.ends[group[number - 1]]
            if number > start and (same or self._longest_text(row) + size > self.length):
                yield slice(start, number)
                start, size = number, len(tokens)
        yield slice(start, len(group))

    def _longest_text(self, row: int) -> int:
        return self.template.longest(int(self.ends[row] - self.firsts[row]) + 1)

    def _grouped(self) -> list[Tensor]:
        """Traces whose prompts begin at the same item, by position; one whose history ends earlier stands alone."""
        if not isinstance(self.template, PromptTemplate):  # each prompt is a text of its own
            return list(torch.arange(len(self.where)).split(1))
        apart = len(self.maker.dataset.sequences) + torch.arange(len(self.where))
        text = torch.where(self.ends == self.where, self.firsts, apart)
        order = self.where.argsort(stable=True)
        order = order[text[order].argsort(stable=True)]
        return list(order.split(torch.unique_consecutive(text[order], return_counts=True)[1].tolist()))

    def _completions(self, rows: Tensor, thinking: Tensor) -> tuple[Tensor, State, Tensor]:
        """Completions `rows` [n], with the thinking of others `thinking` [n]: tokens, states, what is learned, [n, T].

        There is no thinking to be exchanged here.
        """
        return self.tokens[rows], self.states.rows(rows), self.chosen[rows].clone()

    def _kind(self, states: State, *kinds: str) -> Tensor:
        """Places [n, T] where a token of these kinds comes next."""
        wanted = torch.tensor([kind in kinds for kind in self.layout.kinds])
        return (states.site >= 0) & wanted[states.site.clamp(min=0)]


class TraceBatches(CompletionBatches):
    """The steps of stage `activate` for thinking: a prompt, the thinking of a trace, the item.

    Raises:
        DataError: without traces, or naming the first one that no completion can hold.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        maker: PromptMaker,
        layout: Layout,
        tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
        config: ActivateConfig,
    ) -> None:
        if not traces:
            raise DataError(
                "stage activate has no traces: every interaction is held out, or each trace names its target. Check "
                "data.split, or the file of traces."
            )
        where = torch.tensor([trace.position for trace in traces])
        blocks = [trace.blocks for trace in traces]
        ids = iter(known(tokenizer, [text.strip() for parts in blocks for text in parts]))
        self.blocks = [[next(ids) for _ in parts] for parts in blocks]
        tokens = layout.compose(maker.dataset.sequences.items[where][:, None], self.blocks)
        super().__init__(where, tokens, maker, layout, config)

    @override
    def _completions(self, rows: Tensor, thinking: Tensor) -> tuple[Tensor, State, Tensor]:
        """Traces `rows` [n] with the thinking of traces `thinking` [n]: tokens, states, what is learned, each [n, T].

        With foreign thinking only the SID is learned.
        """
        tokens, states, chosen = super()._completions(rows, thinking)
        foreign = (rows != thinking).nonzero()[:, 0]
        if foreign.numel():
            blocks = [self.blocks[row] for row in thinking[foreign].tolist()]
            other = widened(self.layout.compose(self.items[rows[foreign]][:, None], blocks), tokens.shape[1])
            there = self.layout.replay(other)
            tokens[foreign], chosen[foreign] = other, self._kind(there, "item")
            states = states.put(foreign, there)
        return tokens, states, chosen


class SequenceBatches(Planner[SequenceBatch]):
    """The steps of recommenders that read items, not tokens: rows of 2 to `length` items, `batch` rows over all ranks.

    Per `target`, a row ends at every target and has it as its only one; per `user`, rows are windows of a user's
    targets, and windows behind the first repeat half a window as context, so that every target counts once per pass.
    Of a moment the first item is a target in the rows of others, the rest have rows of their own.

    Raises:
        DataError: if there is nothing to train on, or rows have no room for a target.
    """

    def __init__(
        self, dataset: Dataset, per: Literal["target", "user"], length: int, batch: int, seed: int = 0
    ) -> None:
        if length < 2:
            raise DataError(f"length={length}: a row needs an item and its target. Choose at least 2.")
        self.sequences = dataset.sequences
        self.length, self.per_step, self.seed = length, batch, seed
        roles = torch.tensor([int(role) for role in KNOWN], dtype=self.sequences.roles.dtype)
        places = torch.arange(len(self.sequences))
        known = torch.isin(self.sequences.roles, roles) & (self.sequences.seen(places) > 0)
        if not bool(known.any()):
            raise DataError("no training positions: every interaction is held out. Check data.split.")
        leads = self.sequences.past(places) == places
        self.leads = known & leads
        """[N] bool: targets that stand behind their history in the rows of others."""
        alone = torch.nonzero(known if per == "target" else known & ~leads).flatten()
        self.rows = torch.stack([alone, alone + 1], dim=1)
        """[n, 2] first and past-the-last target of each row."""
        if per == "user":
            self.rows = torch.cat([self._windows(leads.cumsum(0)), self.rows])
        self.steps_per_epoch = -(-len(self.rows) // batch)

    def plan(self, epoch: int) -> Sequence[Tensor]:
        order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)))
        return order.split(self.per_step)

    def batch(self, planned: Tensor) -> SequenceBatch:
        rows = self.rows[planned]
        before = torch.nn.functional.pad(self.leads.cumsum(0), (1, 0))
        share = (1 + before[rows[:, 1]] - before[rows[:, 0] + 1]).sum().float()
        rows = rows[self.mine]
        ends = rows[:, 1]
        width = int((self.sequences.seen(ends - 1) + 1).clamp(max=self.length).max()) if len(rows) else 2
        histories = self.sequences.histories(ends - 1, width - 1)
        items = torch.cat([histories, self.sequences.items[ends - 1][:, None]], dim=1)
        places = ends[:, None] - torch.arange(width, 0, -1)
        targets = (places > rows[:, :1]) & self.leads[places.clamp(min=0)] | (places == rows[:, :1])
        return SequenceBatch(items, targets, share)

    def _windows(self, moments: Tensor) -> Tensor:
        """Runs of targets of consecutive moments of a user, cut to at most a window (behind the first: half a window).

        `moments` [N] numbers them.
        """
        targets = torch.nonzero(self.leads).flatten()
        users, numbers = self.sequences.users(targets), moments[targets]
        place = targets - self.sequences.offsets[users]
        half = max(1, self.length // 2)
        piece = torch.where(place < self.length, 0, 1 + (place - self.length) // half)
        new = torch.ones_like(targets, dtype=torch.bool)
        new[1:] = (users[1:] != users[:-1]) | (piece[1:] != piece[:-1]) | (numbers[1:] != numbers[:-1] + 1)
        first = torch.nonzero(new).flatten()
        last = torch.cat([first[1:], torch.tensor([len(targets)])]) - 1
        return torch.stack([targets[first], targets[last] + 1], dim=1)


def _before(shown: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Items [n, h] shown before each target, -1 pads on the left.

    Example:
        >>> _before(np.array([4, 7, 9]), np.array([False, True, True])).tolist()
        [[-1, -1, 4], [-1, 4, 7]]
    """
    places = np.flatnonzero(target)[:, None] - np.arange(len(shown), 0, -1)
    return np.where(places >= 0, shown[np.maximum(places, 0)], -1)


def _histories(segments: Sequence[Segment]) -> Tensor | None:
    """Those of all targets [n, H]; a target that has none gets padding."""
    known = [s.histories for s in segments if s.histories is not None]
    if not known:
        return None
    width = max(part.shape[1] for part in known)
    parts = [np.full((len(s.items), 0), -1) if s.histories is None else s.histories for s in segments]
    wide = [np.pad(part, ((0, 0), (width - part.shape[1], 0)), constant_values=-1) for part in parts]
    return torch.from_numpy(np.concatenate(wide))


def pack(segments: Sequence[Segment], length: int, pad_id: int, share: int, *, alone: bool) -> PackedBatch:
    """Put segments of this rank beside each other into rows of at most `length` tokens, or each into its own."""
    rows = [[segments[one] for one in row] for row in first_fit([len(s.tokens) for s in segments], length, alone)]
    width = max((sum(len(s.tokens) for s in row) for row in rows), default=1)
    tokens = np.full((max(len(rows), 1), width), pad_id, np.int64)  # a rank without a segment: one padding
    positions = np.zeros_like(tokens)
    ids = np.full_like(tokens, -1)
    leaves = np.zeros_like(tokens)
    packed: list[tuple[int, int, Segment]] = []
    for row, members in enumerate(rows):
        column = 0
        for number, segment in enumerate(members):
            packed.append((row, column, segment))
            end = column + len(segment.tokens)
            tokens[row, column:end] = segment.tokens
            positions[row, column:end] = segment.positions
            ids[row, column:end] = number
            if segment.leaves is not None:
                leaves[row, column:end] = segment.leaves
            column = end

    def places(name: str) -> Tensor:
        found = [(row, column + place) for row, column, s in packed for place in getattr(s, name).tolist()]
        return torch.tensor(found, dtype=torch.int64).view(-1, 2)

    def values(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([NOTHING, *(getattr(segment, name) for _, _, segment in packed)]))

    before = np.concatenate([NOTHING, *(column + segment.before for _, column, segment in packed)])
    states = [segment.states for _, _, segment in packed if segment.states is not None]
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(ids),
        item_places=places("item_starts"),
        items=values("items"),
        text_places=places("text_starts"),
        places=places("chosen"),
        before=torch.from_numpy(before),
        share=torch.tensor(float(share)),
        states=reduce(concatenate, states) if states else None,
        leaves=torch.from_numpy(leaves) if leaves.any() else None,
        histories=_histories([segment for _, _, segment in packed]),
    )


def shared_out(targets: np.ndarray, each: int, steps: int) -> np.ndarray:
    """Where to cut examples with so many `targets` into `steps` runs of about `each` targets, none of them empty.

    Example:
        >>> shared_out(np.array([2, 3, 1, 4]), 5, 2).tolist()
        [2]
    """
    ends = np.cumsum(targets)
    owner = np.minimum((ends - 1) // each, steps - 1)
    numbers = np.arange(1, steps)
    cuts = np.searchsorted(owner, numbers)
    cuts = np.maximum.accumulate(np.maximum(cuts - numbers, 0)) + numbers  # an example with more targets than a step
    return np.minimum(cuts, len(targets) - steps + numbers)  # must not leave other steps empty


def first_fit(sizes: Sequence[int], length: int, alone: bool) -> list[list[int]]:
    """Numbers of the segments in each row of at most `length` tokens: longest first, each into the first with room.

    Example:
        >>> first_fit([3, 5, 2], 8, alone=False)
        [[1, 0], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for one in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        row = next((number for number, left in enumerate(room) if left >= sizes[one]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(one)
        room[row] = 0 if alone else room[row] - sizes[one]
    return rows


def _windows(offsets: np.ndarray, roles: np.ndarray, past: np.ndarray, size: int) -> np.ndarray:
    """Windows [w, 4]: first position shown, first target, end, and how many targets there are.

    The history of position n ends at past[n] [N]; the first target stands behind its history, the others in line.
    """
    windows = []
    leads = past == np.arange(len(past))
    wanted = roles == Role.TRAIN
    trained = wanted | (roles == Role.HISTORY)
    for start, stop in pairwise(offsets.tolist()):
        end = start + int(trained[start:stop].sum())  # training positions are a prefix of the user's sequence
        done = start + int((~wanted[start:end]).sum())
        while done < end:
            low = max(start, done - size // 2) if end - start > size else start
            high = min(low + size, end)
            targets = max(done, low) + np.flatnonzero(leads[max(done, low) : high])
            if len(targets):
                windows.append((low, int(targets[0]), int(targets[-1]) + 1, len(targets)))
            done = high
    for place in np.flatnonzero(wanted & ~leads).tolist():
        user = int(offsets[np.searchsorted(offsets, place, side="right") - 1])
        windows.append((max(user, int(past[place]) - size + 1), place, place + 1, 1))
    return np.array(windows, np.int64).reshape(-1, 4)


def text_segments(
    tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
    titles: tuple[str, ...],
    template: RequestTemplate,
) -> Iterator[Segment]:
    """SID -> title and title -> SID examples for every item with a title."""

    def encode(words: str) -> np.ndarray:
        return np.array(tokenizer(words, add_special_tokens=False)["input_ids"], np.int64)

    sids = template.sid_tokens.numpy()
    ask_title, ask_sid, arrow = encode("What is the title of "), encode("Which item has the title "), encode("? ")
    start, eos = np.array([template.start_id]), tokenizer.eos_token_id
    end = start if eos is None else np.array([eos])
    for row, title in enumerate(titles):
        if not title:
            continue
        words = encode(title)
        question = np.concatenate([start, ask_title, sids[row], arrow])
        tokens = np.concatenate([question, words, end])
        yield Segment(tokens, NOTHING, NOTHING, np.arange(len(question), len(tokens)))
        question = np.concatenate([start, ask_sid, words, arrow])
        yield Segment(np.concatenate([question, sids[row]]), np.array([len(question)]), np.array([row]))


def known(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Token ids of texts, without what the tokenizer has no token for; a text that comes again is read once."""
    unknown = tokenizer.unk_token_id
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    read = {text: [one for one in tokens if one != unknown] for text, tokens in zip(distinct, ids, strict=True)}
    return [read[text] for text in texts]
