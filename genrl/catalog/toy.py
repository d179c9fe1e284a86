"""The synthetic catalogue that ships as code: learnt in a minute, and hard for rankings that ignore order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrl.catalog.interactions import Events, ItemTable
from genrl.catalog.sequences import Role
from genrl.config.schema import ToyConfig

Array = np.ndarray

TREE = {
    "Kitchen": {
        "Knives": ("Chef Knife", "Cleaver", "Paring Knife"),
        "Pans": ("Frying Pan", "Wok", "Skillet"),
        "Tea": ("Teapot", "Infuser", "Kettle"),
    },
    "Garden": {
        "Seeds": ("Tomato Seeds", "Basil Seeds", "Sunflower Seeds"),
        "Tools": ("Trowel", "Rake", "Pruner"),
        "Pots": ("Clay Pot", "Planter", "Hanging Basket"),
    },
    "Sport": {
        "Running": ("Running Shoe", "Running Belt", "Running Sock"),
        "Cycling": ("Bike Light", "Bike Bell", "Bike Pump"),
        "Climbing": ("Climbing Rope", "Chalk Bag", "Carabiner"),
    },
    "Music": {
        "Strings": ("Guitar String", "Violin Bow", "Guitar Strap"),
        "Drums": ("Drum Stick", "Snare Drum", "Cymbal"),
        "Keys": ("Piano Bench", "Sustain Pedal", "Keyboard Stand"),
    },
}
"""First-level category -> second-level category -> nouns of its titles."""
LEAVES = tuple((root, leaf, nouns) for root, children in TREE.items() for leaf, nouns in children.items())
COLOURS = ("Amber", "Blue", "Crimson", "Green", "Ivory", "Olive", "Silver", "White")
KINDS = ("Basic", "Plus", "Pro")

FOLLOW = 0.7
"""Chance that an interaction follows the rule; the others come from the user's taste."""
TASTE = 0.15
"""Concentration of a user's taste over second-level categories: most users like two or three."""
MOVES = 2
"""Second-level categories of the same first-level one that the rule can lead to: the same, or the next."""
NEW_ITEMS = 0.06
"""Share of items that come on the market in the last tenth of the days."""
DAYS = 400
"""Days in which users start."""
MEAN_LENGTH = 13
"""Mean interactions per user; at least 7, at most 30."""


@dataclass(frozen=True, eq=False)
class ToyWorld:
    """The rule behind the toy data.

    Items are a grid of second-level category, colour and kind. After item h and then item i comes, with chance FOLLOW,
    the item with category next_leaf[leaf i, colour h], colour next_colour[colour i, kind h] and kind
    next_kind[kind i, colour h]. What follows thus hangs on the two latest items and their order: many items follow an
    item, and many precede it, equally often, so that co-occurrence tells little; but the rule is the same everywhere,
    so a model of sequences learns it quickly.
    """

    leaves: Array
    """[I] index into LEAVES of each item."""
    colours: Array
    """[I] index into COLOURS."""
    kinds: Array
    """[I] index into KINDS."""
    next_leaf: Array
    """[leaves, colours]."""
    next_colour: Array
    """[colours, kinds]."""
    next_kind: Array
    """[kinds, colours]."""
    grid: Array
    """[leaves, colours, kinds] first item of each cell, -1 where there is none."""
    popularity: Array
    """[I] weight of each item in its category when taste decides (Zipf: 1 / rank)."""
    launch: Array
    """[I] day from which an item can be bought."""

    def following(self, latest: Array, before: Array) -> Array:
        """Item that the rule puts after `latest`, which came after `before`; -1 where there is no such item."""
        leaf = self.next_leaf[self.leaves[latest], self.colours[before]]
        colour = self.next_colour[self.colours[latest], self.kinds[before]]
        kind = self.next_kind[self.kinds[latest], self.colours[before]]
        return self.grid[leaf, colour, kind]


def draw_world(config: ToyConfig) -> ToyWorld:
    """Draw the rule of a seed."""
    generator = np.random.default_rng((config.seed, 0))
    leaves = np.arange(config.items) * len(LEAVES) // config.items
    slots = np.arange(config.items) - np.searchsorted(leaves, leaves)
    colours, kinds = slots % len(COLOURS), slots // len(COLOURS) % len(KINDS)
    grid = np.full((len(LEAVES), len(COLOURS), len(KINDS)), -1)
    grid[leaves[::-1], colours[::-1], kinds[::-1]] = np.arange(config.items)[::-1]
    siblings = np.arange(len(LEAVES)).reshape(len(TREE), -1)
    moves = generator.permutation(np.arange(len(COLOURS)) % MOVES)
    next_leaf = np.stack([np.roll(siblings, -move, axis=1).ravel() for move in moves], axis=1)
    next_colour = np.stack([generator.permutation(len(COLOURS)) for _ in KINDS], axis=1)
    shifts = generator.permutation(np.arange(len(COLOURS)) % len(KINDS))
    next_kind = (np.arange(len(KINDS))[:, None] + shifts[None]) % len(KINDS)
    popularity = np.zeros(config.items)
    for leaf in range(len(LEAVES)):
        members = np.flatnonzero(leaves == leaf)
        popularity[generator.permutation(members)] = 1 / np.arange(1, len(members) + 1)
    launch = np.zeros(config.items, dtype=np.int64)
    new = generator.choice(config.items, size=round(NEW_ITEMS * config.items), replace=False)
    launch[new] = DAYS * 9 // 10
    return ToyWorld(leaves, colours, kinds, next_leaf, next_colour, next_kind, grid, popularity, launch)


def generate(config: ToyConfig) -> tuple[ItemTable, Events]:
    """Draw the items and the interactions, sorted by user and day: no item twice, no two on a day of a user."""
    world = draw_world(config)
    generator = np.random.default_rng((config.seed, 1))
    table = _titles(world)
    lengths = 6 + generator.geometric(1 / (MEAN_LENGTH - 6), size=config.users).clip(max=24)
    steps = int(lengths.max())
    gaps = generator.geometric(0.2, size=(config.users, steps))
    gaps[:, 0] += generator.integers(DAYS, size=config.users)
    days = gaps.cumsum(axis=1)
    chosen = _walk(world, days, generator)
    inside = np.arange(steps) < lengths[:, None]
    users = np.repeat(np.arange(config.users), lengths)
    events = Events(
        users=users,
        items=chosen[inside],
        order=days[inside],
        times=np.unique(days[inside], return_inverse=True)[1].astype(np.int64),
        parts=np.full(len(users), Role.TRAIN, dtype=np.uint8),
        rows=np.arange(len(users)),
        user_ids=[f"u{number}" for number in range(config.users)],
        item_ids=table.item_ids,
    )
    return table, events


def _walk(world: ToyWorld, days: Array, generator: np.random.Generator) -> Array:
    """Item of every user and step [U, steps]."""
    users, steps = days.shape
    taste = generator.dirichlet(np.full(len(LEAVES), TASTE), size=users) + 1e-3
    weights = taste[:, world.leaves] * world.popularity
    everyone = np.arange(users)
    chosen = np.zeros((users, steps), dtype=np.int64)
    bought = np.zeros(weights.shape, dtype=bool)
    for step in range(steps):
        blocked = bought | (world.launch > days[:, step : step + 1])
        items = _draw(np.where(blocked, 0, weights), generator)
        if step >= 2:
            following = world.following(chosen[:, step - 1], chosen[:, step - 2])
            follows = (generator.random(users) < FOLLOW) & (following >= 0) & ~blocked[everyone, following]
            items = np.where(follows, following, items)
        chosen[:, step] = items
        bought[everyone, items] = True
    return chosen


def _draw(weights: Array, generator: np.random.Generator) -> Array:
    """Draw one column per row with probability proportional to its weight."""
    cumulative = weights.cumsum(axis=1)
    points = (1 - generator.random((len(weights), 1))) * cumulative[:, -1:]
    return (cumulative < points).sum(axis=1)


def _titles(world: ToyWorld) -> ItemTable:
    """Titles of a colour, a noun of the category and the kind, e.g. "Olive Wok Pro"; distinct."""
    titles: list[str] = []
    seen: dict[tuple[int, int, int], int] = {}
    for cell in zip(world.leaves.tolist(), world.colours.tolist(), world.kinds.tolist(), strict=True):
        number = seen.get(cell, 0)
        seen[cell] = number + 1
        leaf, colour, kind = cell
        nouns = LEAVES[leaf][2]
        model = f" {number // len(nouns) + 1}" if number >= len(nouns) else ""
        titles.append(f"{COLOURS[colour]} {nouns[number % len(nouns)]} {KINDS[kind]}{model}")
    categories = [LEAVES[leaf][1] for leaf in world.leaves.tolist()]
    texts = [f"{title} {LEAVES[leaf][0]} {LEAVES[leaf][1]}" for title, leaf in zip(titles, world.leaves, strict=True)]
    return ItemTable([f"i{number}" for number in range(len(titles))], titles, categories, texts)
