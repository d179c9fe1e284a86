"""The SID table: codes of every item, collisions told apart and counted, saved beside the run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.files import write_bytes
from genrl.given import parsed
from genrl.ops import expect

FORMAT = "genrl-sid-table-2"
LEVELS = 26
"""Codes of an item at most: tokens name a level by its letter."""
CODES = 2**16
"""Codes of a level at most, or as many as there are items, which is what a collision level may need."""
CROWDED = 0.1
"""Share of colliding items above which more codes are proposed."""
LEFT = 2 / 3
"""Share of the collisions that is left with twice the codes: .57 to .75 on Beauty, Toys and Video Games."""


@dataclass(frozen=True)
class CollisionReport:
    """How well the codes tell items apart, before and after the collision level."""

    items: int
    """Items in the catalogue."""
    built: int
    """Distinct SIDs as the builder made them."""
    colliding_items: int
    """Items that share their SID, as the builder made it, with another item."""
    largest_collision: int
    """Items on the most crowded of those SIDs."""
    colliding_traffic: float
    """Share of training interactions on colliding items."""
    distinct: int
    """Distinct SIDs in the table: equal to `items` unless collisions are kept."""
    used_codes: tuple[int, ...]
    """Codes in use per level."""
    perplexity: tuple[float, ...]
    """exp(entropy) of the codes per level, over items: how many codes are in effective use."""

    @property
    def collision_level(self) -> bool:
        """Whether the last level is none of the builder's and only tells colliding items apart."""
        return self.built < self.distinct

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        share, short = self.colliding_items / self.items, self.items - self.distinct
        left = f"{short:,} SIDs short, collisions kept" if short else "none left"
        levels = [
            f"level {level + 1}: {used} codes in use, perplexity {perplexity:.1f}"
            for level, (used, perplexity) in enumerate(zip(self.used_codes, self.perplexity, strict=True))
        ]
        return [
            f"items: {self.items:,}",
            f"distinct SIDs as built: {self.built:,}",
            f"colliding items: {self.colliding_items:,} ({share:.1%} of items, {self.colliding_traffic:.1%} of "
            f"training interactions), at most {self.largest_collision} on one SID",
            f"distinct SIDs in the table: {self.distinct:,} ({left})",
            *levels,
            *([f"warning: {share:.1%} of the items collide. {self._remedy(share)}"] if share > CROWDED else []),
        ]

    def _remedy(self, share: float) -> str:
        """How many codes a level needs for so few collisions that they do not matter, as far as that can be guessed."""
        codes = max(self.used_codes[: len(self.used_codes) - self.collision_level])
        wanted = 2 ** math.ceil(math.log2(codes) + math.log(CROWDED / share, LEFT) - 1e-9)
        if wanted > self.items:
            return "More levels tell more of them apart (kmeans: sid.levels)."
        return f"About {wanted:,} codes per level suit {self.items:,} items (kmeans: sid.codes={wanted})."


@dataclass(frozen=True, eq=False)
class SidTable:
    """Codes of every catalogue row."""

    codes: Tensor
    """[I, K] int64; K includes the collision level if there is one."""
    codebook_sizes: tuple[int, ...]
    """Number of codes of each of the K levels."""
    catalog_fingerprint: str
    """Fingerprint of the catalogue that the rows belong to."""
    report: CollisionReport

    def __post_init__(self) -> None:
        expect(self.codes, "SidTable.codes", (None, len(self.codebook_sizes)), torch.int64)
        if wrong := misfit(self.codes, self.codebook_sizes):
            raise DataError(f"these are no Semantic IDs: {wrong}.")

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def levels(self) -> int:
        """Codes per item (K)."""
        return len(self.codebook_sizes)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all."""
        from safetensors.torch import save

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "format": FORMAT,
            "catalog": self.catalog_fingerprint,
            "codebook_sizes": json.dumps(self.codebook_sizes),
            "report": json.dumps(asdict(self.report)),
        }
        metadata["sha256"] = _digest(metadata, self.codes)
        write_bytes(path, save({"codes": self.codes.contiguous()}, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog | None = None) -> SidTable:
        """Read a table and check that it belongs to this catalogue, if one is given.

        Raises:
            DataError: if the file is missing, damaged, no SID table, made for another catalogue, or asks for more
                codes than a catalogue of its size can use.
        """
        metadata, codes = _read(Path(path))
        if catalog is not None and (metadata["catalog"] != catalog.fingerprint or len(codes) != len(catalog)):
            raise DataError(
                f"{path}: made for another catalogue ({len(codes):,} items, fingerprint {metadata['catalog']}); "
                f"this one has {len(catalog):,} items, fingerprint {catalog.fingerprint}. "
                f"Remove it; 'genrl sid' builds it again."
            )
        try:
            report = parsed(metadata["report"])
            report = {key: tuple(value) if isinstance(value, list) else value for key, value in report.items()}
            sizes = tuple(parsed(metadata["codebook_sizes"]))
            return cls(codes, sizes, metadata["catalog"], CollisionReport(**report))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: damaged: {error} Remove it; 'genrl sid' builds it again.") from error


def make_table(
    codes: Tensor, sizes: tuple[int, ...], catalog: Catalog, collisions: Literal["token", "keep"] = "token"
) -> SidTable:
    """Turn a builder's codes [I, K0], one row per catalogue row, and its K0 codebook sizes into a table.

    With collisions `token` a level is appended that numbers the items of a SID, most frequent in training first, if any
    SID has two items; `keep` lets them share.

    Raises:
        DataError: if the codes do not fit the catalogue or the sizes.

    Example:
        >>> catalog = Catalog.from_table(["a", "b", "c"], train_counts=torch.tensor([1, 5, 2]))
        >>> make_table(torch.tensor([[0, 1], [0, 1], [1, 0]]), (2, 2), catalog).codes.tolist()
        [[0, 1, 1], [0, 1, 0], [1, 0, 0]]
    """
    _check_codes(codes, sizes, catalog)
    _, groups, members = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    crowded = members[groups] > 1
    if collisions == "token" and bool(crowded.any()):
        codes = torch.cat([codes, places_within(groups, catalog.train_counts)[:, None]], dim=1)
        sizes = (*sizes, int(members.max()))
    counts = catalog.train_counts
    report = CollisionReport(
        items=len(catalog),
        built=len(members),
        colliding_items=int(crowded.sum()),
        largest_collision=int(members.max()),
        colliding_traffic=int(counts[crowded].sum()) / max(int(counts.sum()), 1),
        distinct=len(torch.unique(codes, dim=0)),
        used_codes=tuple(len(torch.unique(level)) for level in codes.T),
        perplexity=tuple(_perplexity(level) for level in codes.T),
    )
    return SidTable(codes, tuple(sizes), catalog.fingerprint, report)


def misfit(codes: Tensor, sizes: tuple[int, ...]) -> str:
    """What is wrong with codes [I, K] and the sizes of their codebooks, in words; "" if nothing is.

    Nothing is made from them here, however large they are.

    Example:
        >>> misfit(torch.tensor([[0, 3]]), (2, 4)), misfit(torch.tensor([[0, 3]]), (2, 10**12))
        ('', 'level 2 has 1,000,000,000,000 codes, and a level of 1 items may have 65,536')
    """
    if not 1 <= len(sizes) <= LEVELS:
        return f"there are {len(sizes)} levels, that of collisions among them, and there may be {LEVELS}"
    most = max(CODES, len(codes))
    for level, size in enumerate(sizes, start=1):
        if type(size) is not int or not 1 <= size <= most:
            shown = f"{size:,}" if type(size) is int else repr(size)
            return f"level {level} has {shown} codes, and a level of {len(codes):,} items may have {most:,}"
    outside = (codes < 0) | (codes >= torch.tensor(sizes))
    if not bool(outside.any()):
        return ""
    row, level = outside.nonzero()[0].tolist()
    return f"code {int(codes[row, level])} of row {row} on level {level + 1} is outside 0 .. {sizes[level] - 1}"


def places_within(groups: Tensor, counts: Tensor) -> Tensor:
    """Number the members [I] of each group from 0, highest count first, then by row: [I] int64."""
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    ordered = groups[order]
    starts = torch.searchsorted(ordered, ordered)
    places = torch.empty_like(groups)
    places[order] = torch.arange(len(groups)) - starts
    return places


def _perplexity(level: Tensor) -> float:
    shares = torch.bincount(level).double()
    shares = shares[shares > 0] / len(level)
    return float(torch.exp(-(shares * shares.log()).sum()))


def _check_codes(codes: Tensor, sizes: tuple[int, ...], catalog: Catalog) -> None:
    if codes.dim() != 2 or codes.dtype != torch.int64 or tuple(codes.shape) != (len(catalog), len(sizes)):
        raise DataError(
            f"the SID builder returned {codes.dtype} codes of shape {list(codes.shape)} for {len(catalog):,} items and "
            f"{len(sizes)} codebook sizes. It must return int64 codes [items, levels] and one size per level."
        )
    if wrong := misfit(codes, sizes):
        raise DataError(f"the SID builder returned no Semantic IDs: {wrong}. It must stay inside its codebook sizes.")


def _digest(metadata: dict[str, str], codes: Tensor) -> str:
    """SHA-256 of codes [I, K] and all that is said of them."""
    said = json.dumps({name: value for name, value in metadata.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(said.encode() + codes.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> tuple[dict[str, str], Tensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path}: no such SID table. Build it with 'genrl sid'.")
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            codes = stream.get_tensor("codes") if "codes" in stream.keys() else None  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: damaged or no safetensors file ({error}). Remove it; 'genrl sid' builds it again."
        ) from error
    if codes is None or metadata.get("format") != FORMAT:
        raise DataError(
            f"{path}: a safetensors file, but no SID table of format {FORMAT!r}. Remove it; 'genrl sid' builds it "
            f"again."
        )
    if metadata.get("sha256") != _digest(metadata, codes):
        raise DataError(
            f"{path}: damaged: its codes are not those that were written into it. Remove it; 'genrl sid' builds it "
            f"again."
        )
    return metadata, codes
