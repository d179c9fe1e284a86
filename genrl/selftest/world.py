"""What the checks share: small sessions with random weights, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from genrl.batches import Requests
from genrl.config.schema import RunConfig
from genrl.runs.session import Session

SMALL = (
    *("data.source=toy", "data.toy.world=toy", "data.toy.users=80", "data.toy.items=60", "data.max_history=50"),
    *("sid.codes=8", "layout=sid", "model.name=tiny", "model.hidden=32", "model.layers=2", "model.heads=2"),
    *("model.feed_forward=48", "model.vocabulary=320", "model.dropout=0", "trainer.accelerator=cpu"),
)
"""A catalogue and a model that everything is tried on."""
LAYOUTS: dict[str, tuple[str, ...]] = {
    "sid": (),
    "blocked": ("layout=blocked", "layout.budget=5"),
    "slate": ("layout=slate", "layout.length=3", "rewards.level_match=null", "rewards.slate_ndcg.weight=1"),
    "titles": (
        *("layout=slate", "layout.space=text", "layout.length=2", "prompt.template=textrec", "stages=[activate,rl]"),
        *("rewards.level_match=null", "rewards.slate_ndcg.weight=1", "activate.plain=0", "data.pool.size=20"),
        *("data.pool.neighbours=8", "data.pool.popular=4"),
    ),
}
"""Layout -> the options that make it."""
SHARPER = 4.0
"""Random weights are multiplied by it, so that distributions are far from uniform."""
PROMPTS, GROUP = 6, 4


@dataclass(frozen=True)
class Found:
    """How far apart two ways to compute the same are."""

    difference: float
    """The largest of all, NaN if any is."""
    cases: int
    """How many numbers, runs or cases were compared."""


@dataclass(frozen=True)
class World:
    """Where checks are made."""

    compose: Callable[[Sequence[str]], RunConfig]
    """`key=value` texts -> a checked configuration."""
    device: torch.device
    folder: str
    """A temporary one."""

    @cached_property
    def sessions(self) -> dict[str, Session]:
        """Layout -> a session with sharp random weights on the device."""
        return {name: self._session(options) for name, options in LAYOUTS.items()}

    def config(self, *options: str) -> RunConfig:
        """A small configuration."""
        return self.compose([*SMALL, f"output={self.folder}", *options])

    def _session(self, options: Sequence[str]) -> Session:
        torch.manual_seed(0)
        session = Session.build(self.config(*options))
        policy = session.policy.eval()
        with torch.no_grad():
            for value in policy.trainable().values():
                if value.dim() > 1:
                    value.mul_(SHARPER)
        policy.to(self.device)
        return session

    def requests(self, session: Session) -> Requests:
        """Prompts of different lengths."""
        positions = session.prompt_positions()
        chosen = positions[torch.linspace(0, len(positions) - 1, PROMPTS).long()]
        return session.maker.at(chosen).to(self.device)

    def parts(self) -> Iterator[tuple[Session, Requests]]:
        """Each session with its requests."""
        for session in self.sessions.values():
            yield session, self.requests(session)
