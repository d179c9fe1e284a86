"""Worked examples of rollouts in the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from genrl.compare.html.markup import Markup, element, join
from genrl.compare.html.verdict import signed

Record = Mapping[str, Any]


def example(sample: Record) -> Markup:
    """One prompt: its history and target, and a table with what the policy wrote and which way it is pushed.

    Args:
        sample: a record of `genrl.training.samples.Sample`.
    """
    arrow = element("span", "→", class_="arrow")
    history = join(
        part for place, title in enumerate(sample["history"]) for part in ((arrow,) * bool(place) + (title,))
    )
    target = (_code(code, hit=False) for code in sample["target_codes"])
    return element(
        "div",
        element("p", element("b", "history"), history or "(empty)"),
        element("p", element("b", "target"), element("strong", sample["target"]), " ", target),
        _completions(sample) if sample["completions"] else element("p", "No completion was kept."),
        class_="example",
    )


def _completions(sample: Record) -> Markup:
    completions = sample["completions"]
    rewards = list(completions[0]["components"])
    steps = max(len(completion["codes"]) for completion in completions)
    heads = ["reward", *rewards, *(f"step {step + 1}" for step in range(steps)), "log-prob"]
    largest = max((abs(value) for row in completions for value in row["advantages"]), default=0.0)
    table = element(
        "table",
        element(
            "thead",
            element(
                "tr",
                element("th", "completion", scope="col"),
                (element("th", head.replace("_", " "), scope="col") for head in heads),
            ),
        ),
        element("tbody", (_row(row, sample["target_codes"], rewards, steps, largest) for row in completions)),
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="completions of one prompt")


def _row(completion: Record, target: Sequence[int], rewards: Sequence[str], steps: int, largest: float) -> Markup:
    chosen = zip_longest(completion["codes"], target, completion["advantages"], range(steps))
    drawn, thinking = completion.get("drawn", 1), " / ".join(completion.get("thinking", ()))
    return element(
        "tr",
        element(
            "th",
            completion["item"],
            f" (drawn {drawn} times)" if drawn > 1 else None,
            element("small", " ", thinking) if thinking else None,
            scope="row",
            class_="item",
        ),
        element("td", element("strong", f"{completion['reward']:.2f}")),
        (element("td", f"{completion['components'].get(name, 0.0):.2f}") for name in rewards),
        (
            _step(code, code == wanted, advantage or 0.0, largest)
            for code, wanted, advantage, _ in islice(chosen, steps)
        ),
        element("td", f"{completion['log_prob']:.2f}".replace("-", "−")),
    )


def _step(code: int | None, hit: bool, advantage: float, largest: float) -> Markup:
    if code is None:
        return element("td")
    way = " more" if advantage > 0 else " less" if advantage < 0 else ""
    strength = abs(advantage) / largest if largest else 0.0
    shown = signed(advantage, 2) if advantage else "0"
    return element(
        "td", _code(code, hit), element("small", shown), class_=f"push{way}", style=f"--strength:{strength:.2f}"
    )


def _code(code: int, hit: bool) -> Markup:
    return element("span", str(code), class_="code hit" if hit else "code")
