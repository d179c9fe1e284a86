"""The synthetic catalogue that ships as code, in two worlds: learnt in a minute, and hard for rankings by neighbours.

`toy`: what follows hangs on the two latest items, attribute by attribute; a policy learns it without thinking.
`hop`: what follows hangs on three mixtures of colours, one after the other, of the four latest items. It was built to
reward thinking: a policy that writes the steps down learns them, one that names the item at once hardly does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrl.catalog.interactions import Events, ItemTable
from genrl.catalog.sequences import DAY, Role
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

FOLLOW = {"toy": 0.7, "hop": 0.8}
"""World -> chance that an interaction follows its rule; the others come from the user's taste."""
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
class World:
    """Items, a grid of second-level category, colour and kind, and how users come to them."""

    leaves: Array
    """[I] index into LEAVES of each item."""
    colours: Array
    """[I] index into COLOURS."""
    kinds: Array
    """[I] index into KINDS."""
    grid: Array
    """[leaves, colours, kinds] first item of each cell, -1 where there is none."""
    popularity: Array
    """[I] weight of each item in its category when taste decides (Zipf: 1 / rank)."""
    launch: Array
    """[I] day from which an item can be bought."""
    rule: ToyRule | HopRule
    """What follows what."""

    def following(self, *recent: Array) -> Array:
        """Item that the rule puts after the latest `rule.reach` items, the latest first; -1 where there is none."""
        return self.grid[self.rule.next(*((self.leaves[row], self.colours[row], self.kinds[row]) for row in recent))]


Look = tuple[Array, Array, Array]
"""Second-level category, colour and kind of items."""


@dataclass(frozen=True, eq=False)
class ToyRule:
    """The rule of world `toy`.

    After item h and then item i comes the item with category next_leaf[leaf i, colour h], colour
    next_colour[colour i, kind h] and kind next_kind[kind i, colour h]. What follows thus hangs on the two latest items
    and their order: many items follow an item, and many precede it, equally often, so that co-occurrence tells little;
    but the rule is the same everywhere, so a model of sequences learns it quickly.
    """

    reach = 2

    next_leaf: Array
    """[leaves, colours]."""
    next_colour: Array
    """[colours, kinds]."""
    next_kind: Array
    """[kinds, colours]."""

    def next(self, latest: Look, before: Look) -> Look:
        """Look of what follows."""
        (leaf, colour, kind), (_, colour_before, kind_before) = latest, before
        return (
            self.next_leaf[leaf, colour_before],
            self.next_colour[colour, kind_before],
            self.next_kind[kind, colour_before],
        )


@dataclass(frozen=True, eq=False)
class HopRule:
    """The rule of world `hop`: colours are mixed, two at a time, and what follows hangs on the last mixture.

    The colours of the two latest items give a third, that and the colour of the item before them the next, that and the
    colour of the fourth the last one. With the kinds of the first, second and third item it gives category, colour and
    kind of what follows.
    """

    reach = 4

    mix: Array
    """[colours, colours] what two colours give."""
    next_leaf: Array
    """[kinds, colours] by kind of the latest item and the last mixture."""
    next_colour: Array
    """[kinds, colours] by kind of the second item and the last mixture."""
    next_kind: Array
    """[kinds, colours] by kind of the third item and the last mixture."""

    def mixtures(self, *recent: Look) -> list[Array]:
        """The three mixtures."""
        found = [recent[0][1]]
        for look in recent[1:]:
            found.append(self.mix[found[-1], look[1]])
        return found[1:]

    def next(self, *recent: Look) -> Look:
        """Look of what follows."""
        return self.after(self.mixtures(*recent)[-1], *recent)

    def after(self, mixture: Array, *recent: Look) -> Look:
        """Look of what follows on a last mixture."""
        one, two, three = (look[2] for look in recent[:3])
        return self.next_leaf[one, mixture], self.next_colour[two, mixture], self.next_kind[three, mixture]

    def mistaken(self, share: float, seed: int) -> Array:
        """[colours, colours] what two colours give in the eyes of a teacher who has a share of it wrong."""
        generator = np.random.default_rng((seed, 3))
        mix = self.mix.copy()
        cells = generator.choice(mix.size, size=round(share * mix.size), replace=False)
        mix.flat[cells] = (mix.flat[cells] + generator.integers(1, len(COLOURS), size=len(cells))) % len(COLOURS)
        return mix


def draw_world(config: ToyConfig) -> World:
    """Draw the items and the rule of a seed."""
    generator = np.random.default_rng((config.seed, 0))
    leaves = np.arange(config.items) * len(LEAVES) // config.items
    slots = np.arange(config.items) - np.searchsorted(leaves, leaves)
    colours, kinds = slots % len(COLOURS), slots // len(COLOURS) % len(KINDS)
    grid = np.full((len(LEAVES), len(COLOURS), len(KINDS)), -1)
    grid[leaves[::-1], colours[::-1], kinds[::-1]] = np.arange(config.items)[::-1]
    rule: ToyRule | HopRule = _toy_rule(generator)
    popularity = np.zeros(config.items)
    for leaf in range(len(LEAVES)):
        members = np.flatnonzero(leaves == leaf)
        popularity[generator.permutation(members)] = 1 / np.arange(1, len(members) + 1)
    launch = np.zeros(config.items, dtype=np.int64)
    new = generator.choice(config.items, size=round(NEW_ITEMS * config.items), replace=False)
    launch[new] = DAYS * 9 // 10
    if config.world == "hop":
        rule = _hop_rule(np.random.default_rng((config.seed, 2)))
    return World(leaves, colours, kinds, grid, popularity, launch, rule)


def _toy_rule(generator: np.random.Generator) -> ToyRule:
    siblings = np.arange(len(LEAVES)).reshape(len(TREE), -1)
    moves = generator.permutation(np.arange(len(COLOURS)) % MOVES)
    next_leaf = np.stack([np.roll(siblings, -move, axis=1).ravel() for move in moves], axis=1)
    next_colour = np.stack([generator.permutation(len(COLOURS)) for _ in KINDS], axis=1)
    shifts = generator.permutation(np.arange(len(COLOURS)) % len(KINDS))
    next_kind = (np.arange(len(KINDS))[:, None] + shifts[None]) % len(KINDS)
    return ToyRule(next_leaf, next_colour, next_kind)


def _hop_rule(generator: np.random.Generator) -> HopRule:
    colours, leaves, kinds = len(COLOURS), len(LEAVES), len(KINDS)

    def table(rows: int, values: int) -> Array:
        """[rows, colours]: what the colours lead to is spread evenly in each row."""
        even = np.arange(colours) % values
        return np.stack([generator.permutation(generator.permutation(values)[even]) for _ in range(rows)])

    return HopRule(
        mix=table(colours, colours),
        next_leaf=table(kinds, leaves),
        next_colour=table(kinds, colours),
        next_kind=table(kinds, kinds),
    )


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
    chosen = _walk(world, FOLLOW[config.world], days, generator)
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
        clock=days[inside].astype(np.int64) * DAY,
    )
    return table, events


def _walk(world: World, follow: float, days: Array, generator: np.random.Generator) -> Array:
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
        if step >= world.rule.reach:
            following = world.following(*chosen[:, step - world.rule.reach : step].T[::-1])
            follows = (generator.random(users) < follow) & (following >= 0) & ~blocked[everyone, following]
            items = np.where(follows, following, items)
        chosen[:, step] = items
        bought[everyone, items] = True
    return chosen


def _draw(weights: Array, generator: np.random.Generator) -> Array:
    """Draw one column per row with probability proportional to its weight."""
    cumulative = weights.cumsum(axis=1)
    points = (1 - generator.random((len(weights), 1))) * cumulative[:, -1:]
    return (cumulative < points).sum(axis=1)


def _titles(world: World) -> ItemTable:
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
    looks = {"colour": [COLOURS[one] for one in world.colours], "kind": [KINDS[one] for one in world.kinds]}
    return ItemTable([f"i{number}" for number in range(len(titles))], titles, categories, texts, looks)
