"""A report for tests of its page, and a reader of pages."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from genrl.compare.record import Choice, Cost, Difference, Line, Pair, Point, Report, Row, Table

VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """What a page holds: texts, elements with their attributes, cells of table rows; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def row(self, name: str, table: int = 0) -> list[str]:
        """Cells of the row of that name, of the n-th table that has one."""
        return [row for row in self.rows if row and row[0] == name][table]

    def named(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of the elements of a name."""
        return [attributes for found, attributes in self.elements if found == name]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{tag} is closed, but nothing is open"
        assert self._open[-1] == tag, f"{tag} is closed inside of {self._open[-1]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        if data.strip():
            self.texts.append(" ".join(data.split()))
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


def difference(effect: float, p_holm: float = 0.001, **further: Any) -> Difference:
    """One as reports hold it."""
    found = Difference(effect, effect - 0.02, effect + 0.02, effect / 0.2, p_holm, 0.001, 600, True, [])
    return replace(found, **further)


def line(ndcg: float, *seeds: int, **further: Any) -> Line:
    """One of a table; cold recall has no rows."""
    metrics = {"ndcg@10": ndcg, "recall@10": 2 * ndcg, "mrr@10": ndcg, "entropy@10": 1.5, "cold_recall@10": None}
    metrics |= {"coverage@10": 0.25, "top1pct_share@10": ndcg / 2}
    interval = {"by_seed": [ndcg] * len(seeds), "interval": [ndcg - 0.01, ndcg + 0.01]} if seeds else {}
    return Line(metrics, list(seeds), **{**interval, **further})


def table(**lines: Line) -> Table:
    """A table with a row that is higher than `align`, one that is lower, and one that is neither; or these lines."""
    few = ["One training seed."]
    known = {
        "most_popular": line(0.0125),
        "item_knn": line(0.2250),
        "sasrec": line(0.2150, 0, differences={"ndcg@10": difference(0.0150, 0.3, warnings=few)}),
        "align": line(0.2000),
        "grpo": line(0.2375, 0, 1, differences={"ndcg@10": difference(0.0375), "recall@10": difference(0.0750)}),
        "sapo": line(0.1750, 0, 1, differences={"ndcg@10": difference(-0.0250), "recall@10": difference(-0.0500, 0.4)}),
        "sage": line(0.2050, 0, differences={"ndcg@10": difference(0.0050, 0.5, warnings=few)}),
    }
    pairs = [Pair("sapo", "grpo", {"ndcg@10": difference(-0.0625, 0.002), "recall@10": difference(-0.1250, 0.1)})]
    return Table(10, 600, 30, lines or known, [] if lines else pairs)


def row(kind: str = "objective", **further: Any) -> Row:
    """What a row is."""
    own = {"pieces": "Pieces(one=1)", "rewards": {"exact_match": {"weight": 1.0}}} if kind == "objective" else {}
    return Row(**{"kind": kind, "name": "name", "title": "A Title", "paper": "arXiv:1", **own, **ROW, **further})


ROW: dict[str, Any] = {"options": {}, "seeds": [0], "runs": ["run"]}


def report(**further: Any) -> Report:
    """A whole one with every part but that of thinking."""
    spent = {"steps": 30, "prompts": 960, "completions": 15360, "tokens": 46080}
    points = [Point("a", {"lr": "1e-5"}, None), Point("b", {"lr": "1e-3"}, 0.5)]
    found = Report(
        experiment="toy",
        data={"name": "toy", "fingerprint": "f00d"},
        sid={"codes": [8, 8], "fingerprint": "cafe"},
        shared={"align": "align-1"},
        versions={"python": "3", "torch": "2"},
        baseline="align",
        planned=True,
        unfinished=[],
        notes=[],
        choices={"grpo": Choice("valid raw ndcg@10", points, {"lr": "1e-3"})},
        tables={split: {kind: table() for kind in ("raw", "excluded")} for split in ("test", "valid")},
        rows={
            "sasrec": row("baseline", title="SASRec", paper="", options={"layers": 2}),
            "grpo": row(spent=spent),
            "sapo": row(spent={**spent, "tokens": None}),
            "sage": row(name="sage", title=""),
        },
        commands={"grpo-s0": "python -m genrl fit --seed 0", "sapo-s0": "python -m genrl fit --seed 1"},
        cost={"align": Cost(12.34, 99.6), "grpo": Cost(24.0, 1200.0)},
    )
    return replace(found, **further)


def notes() -> dict[str, list[dict[str, dict[int, float]]]]:
    """Of two seeds of two rows."""
    return {
        row: [
            {
                "train/reward": {5: 1.0 + seed, 10: 2.0 + seed},
                "val/ndcg@10": {0: 0.2, 5: 0.25 + 0.01 * seed},
                "train/match/step1": {5: 0.5},
                "train/match/step2": {5: 0.25},
            }
            for seed in (0, 1)
        ]
        for row in ("grpo", "sapo")
    }


def samples() -> dict[str, list[dict[str, Any]]]:
    """A worked example of one row."""
    completion = {
        "item": "Blue Pan",
        "codes": [0, 8, 6],
        "log_prob": -4.5,
        "reward": 2.0,
        "components": {"exact_match": 0.0, "level_match": 2.0},
        "advantages": [1.5, -0.25, 0.0],
    }
    sample = {
        "history": ["Red Shoe", "Red Pan"],
        "target": "Green Pan",
        "target_codes": [0, 8, 7],
        "completions": [completion],
    }
    return {"grpo": [sample], "sapo": []}
