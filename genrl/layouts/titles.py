"""The items that completions name by their titles: the trie of SIDs, over the tokens of a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.catalog.items import Catalog
from genrl.errors import ConfigError, DataError, suggest
from genrl.layouts.base import Legal
from genrl.layouts.items import Items, Listed, among, cut, distinct, listed_rows, look_up
from genrl.sid.trie import Trie

SEPARATOR = " | "
"""Between the columns of a name."""
MARKER = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*")
"""What a line of a list may begin with: 3. or - or *."""
LONGEST = 32
"""Tokens of a name at most, where the options say nothing."""


@dataclass(frozen=True)
class Names:
    """What each item is called, all different, and how that came about."""

    texts: tuple[str, ...]
    """[I] as the tokenizer writes them back."""
    tokens: tuple[tuple[int, ...], ...]
    """[I] token ids, at least one each, without the end mark."""
    end: int
    """Id of the end mark, which no name holds."""
    cut: int
    """Items whose name was too long."""
    untitled: int
    """Items that are named by their id, because they have no title."""
    numbered: tuple[int, ...]
    """Catalogue rows with a number behind their name, because an earlier row has the same."""

    def lines(self) -> list[str]:
        """What there is to say of them."""
        sizes = torch.tensor([len(tokens) for tokens in self.tokens]).float()
        said = [f"names of {len(self.texts):,} items: {sizes.mean():.1f} tokens on average, {int(sizes.max())} at most"]
        if self.cut:
            said.append(f"{self.cut:,} names were cut to {int(sizes.max())} tokens")
        if self.untitled:
            said.append(f"{self.untitled:,} items without a title are named by their id")
        if self.numbered:
            example = self.texts[self.numbered[0]]
            said.append(f"{len(self.numbered):,} names that an earlier item has got a number, e.g. {example!r}")
        return said


def name_items(catalog: Catalog, tokenizer: Any, show: Sequence[str] = ("title",), longest: int = LONGEST) -> Names:  # noqa: ANN401
    """Give every item a name of its own that the tokenizer can write.

    A name is the columns of `show` that are not empty, joined by " | " and cut to `longest` tokens; an item without any
    is called by its id. Two names are the same if they differ in case or blanks alone: of the items with one name the
    first row keeps it, the others get " (2)", " (3)" ... behind it.

    Args:
        catalog: I items.
        tokenizer: of transformers.
        show: `title`, `category` and columns of `data.columns.attributes`, in order.
        longest: tokens of a name at most.

    Raises:
        ConfigError: for a column that there is not, or a tokenizer without any end mark.
        DataError: if the tokenizer cannot write a name back, with the number of such items and the first of them.
    """
    wanted = [" ".join(text.split()) for text in shown(catalog, show)]
    untitled = sum(not text for text in wanted)
    wanted = [text or name for text, name in zip(wanted, catalog.item_ids, strict=True)]
    end = end_mark(tokenizer)
    ids = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    _check_written(wanted, ids, tokenizer, end, catalog)
    cut = sum(len(tokens) > longest for tokens in ids)
    kept = [tuple(tokens[:longest]) for tokens in ids]
    texts = [text.strip() for text in tokenizer.batch_decode([list(tokens) for tokens in kept], **RAW)]
    taken: dict[str, int] = {}
    for row, text in enumerate(texts):
        taken.setdefault(normal(text), row)
    numbered: list[int] = []
    latest: dict[str, int] = {}
    for row, text in enumerate(texts):
        key = normal(text)
        if taken[key] == row:
            continue
        number = latest.get(key, 1)
        while normal(texts[row]) in taken and taken[normal(texts[row])] != row:
            number += 1
            kept[row], texts[row] = _with_number(ids[row], number, longest, tokenizer)
        latest[key] = number
        taken[normal(texts[row])] = row
        numbered.append(row)
    return Names(tuple(texts), tuple(kept), end, cut, untitled, tuple(numbered))


RAW = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
"""Arguments of a tokenizer that decodes what stands there and no more."""


def shown(catalog: Catalog, show: Sequence[str]) -> list[str]:
    """The columns of every item that are not empty, joined.

    Raises:
        ConfigError: for a column that there is not.
    """
    categories = [catalog.category_names[number] if number >= 0 else "" for number in catalog.categories.tolist()]
    known: dict[str, Sequence[str]] = {"title": catalog.titles, "category": categories, **catalog.attributes}
    for name in show:
        if name not in known:
            raise ConfigError(
                f"names of items cannot show {name!r}.{suggest(name, known)} There are: {', '.join(known)}. Further "
                f"columns of the item table are read where data.columns.attributes names them."
            )
    if not show:
        raise ConfigError("names of items show no column at all. Name one or more, e.g. [title].")
    return [SEPARATOR.join(part for part in parts if part) for parts in zip(*(known[n] for n in show), strict=True)]


def end_mark(tokenizer: Any) -> int:  # noqa: ANN401
    """The token that closes a name: a line break, or where that is no token of its own the end of a text.

    Raises:
        ConfigError: if the tokenizer has neither.
    """
    breaks = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(breaks) == 1 and breaks[0] != tokenizer.unk_token_id:
        return int(breaks[0])
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has neither one token for a line break nor an end token, so no name of an item can be "
            "closed. Use another model, or name items by SIDs."
        )
    return int(tokenizer.eos_token_id)


def _check_written(
    wanted: Sequence[str],
    ids: Sequence[Sequence[int]],
    tokenizer: Any,  # noqa: ANN401
    end: int,
    catalog: Catalog,
) -> None:
    """Refuse names with unknown or special tokens, or that come back as something else."""
    special = {*tokenizer.all_special_ids, end}
    back = tokenizer.batch_decode([list(tokens) for tokens in ids], **RAW)
    wrong = [
        row
        for row, (text, tokens, read) in enumerate(zip(wanted, ids, back, strict=True))
        if not tokens or not special.isdisjoint(tokens) or _bare(read) != _bare(text)
    ]
    if wrong:
        shown = ", ".join(f"{catalog.item_ids[row]!r} {wanted[row][:60]!r} as {back[row][:60]!r}" for row in wrong[:3])
        raise DataError(
            f"the tokenizer cannot write the names of {len(wrong):,} of {len(wanted):,} items; it reads {shown}. Take "
            f"a model whose tokenizer knows these characters, raise model.vocabulary of the tiny model, or clean the "
            f"titles."
        )


def _with_number(
    tokens: Sequence[int],
    number: int,
    longest: int,
    tokenizer: Any,  # noqa: ANN401
) -> tuple[tuple[int, ...], str]:
    """A name with a number behind it, cut so that both fit."""
    behind = tokenizer(f" ({number})", add_special_tokens=False)["input_ids"]
    if len(behind) >= longest:
        raise ConfigError(
            f"names of at most {longest} tokens have no room for the number {number} that tells equal ones apart. "
            f"Allow {len(behind) + 1} or more."
        )
    if tokenizer.unk_token_id in behind:
        raise DataError(
            f"the tokenizer cannot write the number in ' ({number})' that tells items of one name apart. Give the "
            f"items different titles, or take a model whose tokenizer knows digits."
        )
    whole = [*tokens[: longest - len(behind)], *behind]
    return tuple(whole), tokenizer.decode(whole, **RAW).strip()


def normal(text: str) -> str:
    r"""A text by which names are compared: one Unicode form, without case, single blanks.

    Example:
        >>> normal("  OPI  Nail\tLacquer ")
        'opi nail lacquer'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _bare(text: str) -> str:
    """Without blanks, of which some tokenizers add and drop some."""
    return "".join(normal(text).split())


class Titles:
    """The part of a grammar that names an item by its title, token by token, until an end mark closes it.

    It has the interface of `Items`, but for a level: names have no fixed length, so a node of any depth has a number of
    its own and stands at level 0, and `whole` says where a name is complete. The end mark closes it also where another
    name goes on: "Red" and "Red pen" are two.

    Names come from a `Trie` in which shorter ones are filled up with the end mark; of what is behind the first mark no
    node is kept. Legal sets have a column for each edge, and never one for each token of the vocabulary.

    Args:
        names: what the items are called.
        sids: the same items by their SIDs.
        tokenizer: that the names were made with, SID tokens included.
    """

    levels = 1

    def __init__(self, names: Names, sids: Items, tokenizer: Any) -> None:  # noqa: ANN401
        self.names, self.sids, self.tokenizer = names, sids, tokenizer
        vocabulary = len(tokenizer)
        self.end = names.end
        self.words = torch.ones(min(sids.tokens.first_ids), dtype=torch.bool)
        """[first SID token] bool: what a free line may hold, the end mark not among it."""
        self.words[[index for index in {*tokenizer.all_special_ids, self.end} if index < len(self.words)]] = False
        self.lengths = torch.tensor([len(one) + 1 for one in names.tokens])
        """[I] tokens of each name, end mark included."""
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0
        filled = [[*one, *[self.end] * (self.longest - len(one))] for one in names.tokens]
        self.written = torch.tensor(filled, dtype=torch.int64).view(len(filled), self.longest)
        """[I, longest] names with end marks behind them."""
        self.trie = Trie.build(self.written, (vocabulary,) * self.longest)
        self._tables = _flat(self.trie, self.end)
        self._rows = {normal(text): row for row, text in enumerate(names.texts)}
        self._kept = self._counts()
        self._last: tuple[Requests, ListedNames] | None = None
        self._move(sids.codes.device)

    @property
    def keep(self) -> Tensor | None:
        """[I] bool items there are; None: all."""
        return self.sids.keep

    def _counts(self) -> Tensor:
        """[I + 1] how many items there are before each place."""
        items = self.trie.leaf_items.long()
        there = torch.ones_like(items) if self.keep is None else self.keep.to(items.device)[items].long()
        return torch.cat([there.new_zeros(1), there.cumsum(0)])

    def _move(self, device: torch.device | str) -> None:
        self.trie = self.trie.to(device)
        self.offsets, self.edge_tokens, self.first, self.behind = (table.to(device) for table in self._tables)
        """Edges offsets[g] .. offsets[g + 1] of node g [N + 1], of which edge e leads to node e + 1; token [E] of each;
        place [N] of the first item below a node, and the one behind its last."""
        self.written, self.lengths = self.written.to(device), self.lengths.to(device)
        self.sids, self._kept, self.words = self.sids.to(device), self._kept.to(device), self.words.to(device)
        self.codes = self.sids.codes
        self.items = self.trie.leaf_items.long()
        """[I] catalogue row at each place."""
        self.places = torch.empty_like(self.items)
        """[I] place of each catalogue row."""
        self.places[self.items] = torch.arange(len(self.items), device=self.items.device)

    def _like(self) -> Titles:
        made = Titles.__new__(Titles)
        vars(made).update(vars(self))
        made._last = None
        return made

    def to(self, device: str | torch.device) -> Titles:
        if torch.device(device) == self.codes.device:
            return self
        made = self._like()
        made._move(device)
        return made

    def only(self, keep: Tensor) -> Titles:
        """Some of the items [I] bool."""
        made = self._like()
        made.sids = self.sids.only(keep)
        made._kept = made._counts()
        return made

    @property
    def distinct(self) -> int:
        """Number of names."""
        return int(self._kept[-1])

    @property
    def widest(self) -> int:
        """Columns of the widest legal set."""
        return max(2, int(self.offsets.diff().max()))

    def nbytes(self) -> int:
        """Bytes of all tables."""
        tables = (self.offsets, self.edge_tokens, self.first, self.behind, self.written, self.lengths, self.places)
        return self.trie.nbytes() + sum(table.numel() * table.element_size() for table in tables)

    def whole(self, node: Tensor) -> Tensor:
        """Whether nodes [...] are complete names, behind their end mark; -1 is none."""
        known = node.clamp(min=0)
        return (self.offsets[known] == self.offsets[known + 1]) & (node >= 0)

    def single(self, node: Tensor) -> Tensor:
        """Whether one name alone goes through nodes [...], so that all that follows is forced."""
        known = node.clamp(min=0)
        return (self.behind[known] - self.first[known] == 1) & (node >= 0)

    def item(self, node: Tensor) -> Tensor:
        """Catalogue row of complete names [...]; -1 of all other nodes."""
        return torch.where(self.whole(node), self.items[self.first[node.clamp(min=0)].long()], -1)

    def child(self, level: int, node: Tensor, tokens: Tensor) -> Tensor:
        """Nodes behind tokens, any shape; -1 where no name goes on like that."""
        known = node.clamp(min=0)
        edge, last = self.offsets[known].long(), self.offsets[known + 1].long() - 1
        exists = (node >= 0) & (last >= edge)
        last = last.clamp(min=0)
        for bit in reversed(range((self.widest - 1).bit_length())):  # the last edge whose token is not larger
            probe = torch.minimum(edge + (1 << bit), last)
            edge = torch.where((probe > edge) & (self.edge_tokens[probe] <= tokens), probe, edge)
        edge = torch.minimum(edge, last)
        return torch.where(exists & (self.edge_tokens[edge] == tokens), edge + 1, -1)

    def legal(
        self, level: int, node: Tensor, owner: Tensor, requests: Requests | None = None, taken: Tensor | None = None
    ) -> Legal:
        """The tokens that may follow nodes [n], for requests `owner` [n] of P, with a column for each edge.

        A node of -1 gets the root's row, one that is complete the end mark alone. Catalogue rows `taken` [n, t], -1
        pads, must not be named again; that is of the grammar, so probabilities of the whole catalogue leave them out,
        too.

        Raises:
            DataError: if a request has no item left.
        """
        node = node.clamp(min=0)
        edge, behind = self.offsets[node].long(), self.offsets[node + 1].long()
        count = behind - edge
        place = torch.arange(max(2, int(count.max())) if len(node) else 2, device=node.device)
        exists = place < count[:, None]
        edges = torch.minimum(edge[:, None] + place, (behind[:, None] - 1).clamp(min=0))
        tokens = self.edge_tokens[edges].long().masked_fill((count == 0)[:, None], self.end)
        some = exists | ((count == 0)[:, None] & (place == 0))
        listed = self._listed(requests)
        if listed is None and taken is None and self.keep is None:
            return Legal(some, tokens=tokens, child=edge + 1)
        low, high = self.first[edges + 1].long(), self.behind[edges + 1].long()
        gone = None if taken is None else distinct(look_up(self.places, taken), len(self.items))
        within = some
        if gone is not None:
            within = exists & (high - low - _between(gone, low, high) > 0)
            within = torch.where(within.any(1, keepdim=True), within, some)
        mask = within
        if listed is not None or self.keep is not None:
            mask = exists & (self._left(listed, owner, gone, low, high) > 0)
            mask = torch.where(mask.any(1, keepdim=True), mask, within)
        whole = None if gone is None else some
        return Legal(mask, tokens=tokens, within=within, child=edge + 1, whole=whole)

    def narrow(
        self, level: int, node: Tensor, owner: Tensor, requests: Requests | None = None, taken: Tensor | None = None
    ) -> Legal:
        """As `legal`."""
        return self.legal(level, node, owner, requests, taken)

    def _left(
        self, listed: ListedNames | None, owner: Tensor, gone: Tensor | None, low: Tensor, high: Tensor
    ) -> Tensor:
        """How many items are left at places low .. high [n, e], for rows `owner` [n] behind those at `gone`."""
        left = self._kept[high] - self._kept[low] if listed is None else listed.between(owner, low, high, self._kept)
        if gone is None:
            return left
        absent = len(self.items)
        if self.keep is not None:
            there = self.keep[self.items[gone.clamp(max=absent - 1)]]
            gone = gone.masked_fill(~there, absent).sort(1).values
        if listed is not None:
            gone = gone.masked_fill(~listed.allows(owner, gone), absent).sort(1).values
        return left - _between(gone, low, high)

    def _listed(self, requests: Requests | None) -> ListedNames | None:
        """What the requests say of items, made once for each batch of them."""
        if requests is None or (requests.pool is None and requests.deny is None):
            return None
        if self._last is None or self._last[0] is not requests:
            rows, allow = listed_rows(requests.pool, requests.deny, len(self.items))
            rows = rows if self.keep is None else rows.masked_fill(~self.keep[rows.clamp(min=0)], -1)
            made = ListedNames(look_up(self.places, rows), allow, len(self.items))
            made.check(self._kept[-1:])
            self._last = requests, made
        return self._last[1]

    def left(self, requests: Requests | None) -> Tensor:
        """How many items each of P requests, or [1] any request, may get."""
        lists, every = self._listed(requests), self._kept[-1:]
        return every if lists is None else lists.left(every)

    def open_leaves(self, requests: Requests | None) -> Tensor | None:
        """[P, I] or [1, I] bool, place by place: names that are left for each request; None: all."""
        listed = self._listed(requests)
        if listed is None:
            return None if self.keep is None else (self._kept.diff() > 0)[None]
        count = len(self.items)
        place = torch.arange(count, device=self.items.device).expand(len(listed.places), -1)
        return listed.between(torch.arange(len(place), device=place.device), place, place + 1, self._kept) > 0

    def rank(self, nodes: Tensor, scores: Tensor, width: int, requests: Requests | None) -> tuple[Tensor, Tensor]:
        """Ranked nodes [P, W] of complete names to ranked items [P, width], -1 and -inf behind them."""
        items = self.item(nodes)
        order = (items < 0).byte().argsort(dim=1, stable=True)
        return cut(items.gather(1, order), scores.gather(1, order), width)

    def render(self, items: Tensor) -> Tensor:
        """Tokens [..., longest] of catalogue rows [...], with end marks behind them; `lengths` says how many count."""
        return self.written[items]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens of a line."""
        return str(self.tokenizer.decode(list(tokens), **RAW))

    def parse(self, line: str) -> int:
        """Catalogue row of the item with this name; -1: there is none.

        Case, blanks and what a line of a list begins with do not count.
        """
        row = self._rows.get(normal(line))
        return self._rows.get(normal(MARKER.sub("", line)), -1) if row is None else row


class ListedNames(Listed):
    """Lists of places in `Titles.items`."""

    def allows(self, owner: Tensor, places: Tensor) -> Tensor:
        """Which places [n, t] requests `owner` [n] may get."""
        found = among(self.places[owner], places)
        return (found if self.allow else ~found) & (places < self.absent)

    def between(self, owner: Tensor, low: Tensor, high: Tensor, kept: Tensor) -> Tensor:
        """How many items requests `owner` [n] may get at places low .. high [n, e]; `kept` [I + 1] are there before."""
        listed = _between(self.places[owner], low, high)
        return listed if self.allow else kept[high] - kept[low] - listed


def _between(places: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many of ascending places [n, M] are at least low [n, e] and below high [n, e]."""
    return torch.searchsorted(places, high.contiguous()) - torch.searchsorted(places, low.contiguous())


def _flat(trie: Trie, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tables over the nodes of all levels in turn, without those behind the first end mark of a name.

    Returns:
        offsets [N + 1] of each node's edges, of which edge e leads to node e + 1; token [N - 1] of each edge; first
        place [N] below each node, and the one behind the last; all int32.
    """
    firsts, behinds = [trie.leaf_offsets[:-1]], [trie.leaf_offsets[1:]]
    for level in reversed(trie.levels):
        firsts.append(firsts[-1][level.offsets[:-1].long()])
        behinds.append(behinds[-1][level.offsets[1:].long() - 1])
    firsts, behinds = firsts[::-1], behinds[::-1]
    reached = torch.ones(1, dtype=torch.bool)
    goes = reached
    degrees, tokens, lows, highs = [], [], [firsts[0]], [behinds[0]]
    for number, level in enumerate(trie.levels):
        counts = level.offsets.diff().long()
        degrees.append(torch.where(goes, counts, 0)[reached])
        reached = goes.repeat_interleave(counts)
        codes = level.codes.long()
        tokens.append(codes[reached])
        lows.append(firsts[number + 1][reached])
        highs.append(behinds[number + 1][reached])
        goes = reached & (codes != end)
    degrees.append(torch.zeros(int(reached.sum()), dtype=torch.int64))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(degrees).cumsum(0)])
    return offsets.int(), torch.cat(tokens).int(), torch.cat(lows).int(), torch.cat(highs).int()
