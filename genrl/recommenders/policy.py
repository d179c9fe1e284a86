"""A policy as a recommender: built from a configuration, ranking by search, kept with the way it is to be decoded."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.config.load import load_config
from genrl.config.schema import EvaluateConfig, RunConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.files import key_of, read_metadata, read_weights, save_weights
from genrl.layouts import LAYOUTS, Items, thinks
from genrl.layouts.base import Layout
from genrl.layouts.sid import SidLayout
from genrl.metrics.functional import exclude_history
from genrl.ops import seed_of
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.distribution import RANKING
from genrl.policy.exhaustive import rank_all
from genrl.policy.load import make_policy, policy_spec
from genrl.policy.model import Policy
from genrl.policy.search import search, think
from genrl.prompts.template import ItemTemplate, PromptTemplate
from genrl.recommenders.base import WEIGHTS, Problem, deniable, equip, numerics
from genrl.recommenders.bundle import read_problem, save_problem
from genrl.sid.trie import Trie

SAYINGS = "new, only favourite popular usual rare: 1 of 2, last 3 of 4, 5 of 6, 7 of 8, 9 of 10, last"
"""What template traces say besides the words of the catalogue; the tiny tokenizer learns it once per item."""


class PolicyRecommender:
    """A policy, the grammar that it writes in and the template that it reads.

    Its weights are made when they are first asked for; a stage makes its own, and leaves the trained policy here.

    Args:
        config: of the run; its sections `evaluate`, `data.max_history` and `trainer` say how requests are ranked.
        problem: catalogue and Semantic IDs.
        spec: all of the policy but its weights.
        layout: grammar of the completions.
        template: how requests are written.
    """

    def __init__(
        self, config: RunConfig, problem: Problem, spec: Spec, layout: Layout, template: PromptTemplate
    ) -> None:
        self.config, self.problem = config, problem
        self.spec, self.layout, self.template = spec, layout, template

    @classmethod
    def build(cls, config: RunConfig, problem: Problem) -> PolicyRecommender:
        """The configured policy, not yet trained.

        Raises:
            ConfigError: if beam or prompts do not fit the catalogue or the model.
        """
        table, catalog, thinking = problem.table, problem.dataset.catalog, thinks(config)
        trie = Trie.build(table.codes, table.codebook_sizes, catalog.train_counts)
        spec = policy_spec(
            config.model,
            trie,
            catalog.texts + (SAYINGS,) * (len(catalog) if thinking else 0),
            config.prompt.prefix,
            thinking=thinking,
            add_tokens=config.layout.get("add_tokens", True),
            saved=problem.tokenizer,
        )
        spec.check(LAYOUTS.entry(config.layout["name"]))
        options = {name: value for name, value in config.layout.items() if name != "name"}
        catalogue = Items(trie, spec.first_ids, table.codes)
        layout = LAYOUTS.build(config.layout["name"], options, catalogue=catalogue, words=spec.words)
        if config.evaluate.beam > layout.completions:
            raise ConfigError(_too_wide(config.evaluate, layout.completions))
        template = (ItemTemplate if spec.reads_items else PromptTemplate)(
            start_id=spec.start_id,
            prefix_ids=spec.prefix_ids,
            sid_tokens=table.codes + torch.tensor(spec.first_ids),
            pad_id=spec.pad_id,
        )
        made = cls(config, problem, spec, layout, template)
        made._check_length()
        return made

    def _check_length(self) -> None:
        limit, history, layout = self.spec.positions, self.config.data.max_history, self.layout
        needed = len(self.template.head) + history * self.template.sid_tokens.shape[1] + layout.length
        if limit is not None and needed > limit:
            further = " or layout.budget" if layout.writes_text else ""
            raise ConfigError(
                f"prompts and completions of {needed} tokens (data.max_history={history} items x {layout.steps} "
                f"codes, completions of {layout.length}) do not fit into the {limit} positions of model "
                f"{self.config.model.name!r}. Lower data.max_history{further}."
            )

    def under(self, layout: Layout) -> PolicyRecommender:
        """The same policy under another grammar, that of the items alone for one."""
        made = copy.copy(self)
        made.layout = layout
        return made

    def make(self, start: Path | None = None) -> TrainablePolicy:
        """A new policy, with the trained weights of a file if one is given."""
        policy = make_policy(self.config.model, self.spec)
        equip(policy, self.config.trainer)
        if start is not None:
            policy.load_state(read_weights(start), str(start))
        return policy

    @cached_property
    def policy(self) -> TrainablePolicy:
        """What ranks."""
        return self.make()

    def forget(self) -> None:
        """Let go of the weights."""
        vars(self).pop("policy", None)

    @property
    def thinks(self) -> bool:
        return self.layout.writes_text

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def write(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        return self.template.render(histories[:, max(0, histories.shape[1] - self.config.data.max_history) :])

    def rank(self, requests: Requests, width: int, exact: bool = False) -> Ranking:
        return self.answer(requests, width, exact)[0]

    @torch.no_grad()
    def answer(self, requests: Requests, width: int, exact: bool = False) -> tuple[Ranking, list[list[str]] | None]:
        """Rank, and say what was thought before the first item of each request; None: the policy does not think."""
        policy, config = self.policy, self.config.evaluate
        layout, requests = _allowed(self.layout, requests)
        layout, requests = layout.to(policy.device), requests.to(policy.device)
        policy.eval()
        beam, first = max(config.beam, width), width if exact else 0
        with numerics(self.config.trainer, policy.device):
            if policy.ranks_all:
                return rank_all(policy, cast(SidLayout, layout), [requests], beam)[0], None
            noise = thinking_noise(layout, requests, config)
            sampling = replace(RANKING, thinking_temperature=config.thinking_temperature)
            ranking, found = search(policy, layout, requests, beam, sampling, noise=noise, exact=first)
        if not layout.writes_text:
            return ranking, None
        blocks = [layout.blocks(tokens) for tokens in found.tokens[:: found.group_size]]
        tokenizer = cast(Policy, policy).tokenizer
        return ranking, [[tokenizer.decode(block).strip() for block in each] for each in blocks]

    @torch.no_grad()
    def rankings(self, requests: Requests, config: EvaluateConfig) -> dict[str, Ranking]:
        self.policy.eval()
        with numerics(self.config.trainer, self.policy.device):
            return rankings(self.policy, self.layout.to(str(self.policy.device)), requests, config)

    def decoding(self) -> dict[str, Any]:
        """All that rankings depend on besides weights and SID table."""
        return decoding(self.policy, self.layout, self.config.data.max_history, self.config.evaluate)

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        self.policy.load_state(state, origin)

    def save(self, folder: Path) -> None:
        """Write trained weights with the way to decode them, catalogue and SID table, and any tokenizer."""
        save_weights(self.policy.state(), folder / WEIGHTS, {"decoding": json.dumps(self.decoding())})
        self.spec.save(folder)
        save_problem(folder, self.problem.dataset, self.problem.table)

    @classmethod
    def load(cls, folder: Path, overrides: tuple[str, ...] = ()) -> PolicyRecommender:
        """Read what `save` wrote; what is to be searched in another way than the weights were chosen with is told."""
        config = load_config([folder / "config.yaml"], {}, overrides)
        dataset, table = read_problem(folder)
        saved = folder / "tokenizer" if config.model.name == "tiny" else None
        made = cls.build(config, Problem(dataset, table, config.model, saved))
        if not {"activate", "rl"} & set(config.stages):
            made = made.under(made.layout.plain)
        weights = folder / WEIGHTS
        for notice in check_decoding(weights, made.decoding()):
            Console().print(notice)
        made.policy.load_state(read_weights(weights), str(weights))
        return made


def _too_wide(config: EvaluateConfig, most: int) -> str:
    kept = sorted(k for k in config.k if k <= most) or [most]
    lower = f"evaluate.beam to {most} or less"
    if max(config.k) > most:
        lower = f"evaluate.beam={most} evaluate.k=[{','.join(map(str, kept))}]"
    return f"evaluate.beam={config.beam} is wider than the catalogue, which has {most} distinct SIDs. Set {lower}."


def _allowed(layout: Layout, requests: Requests) -> tuple[Layout, Requests]:
    """The layout of the items that all requests may get, and the requests with what is left of their lists.

    Raises:
        DataError: if a request may get none.
    """
    pool = requests.pool
    if pool is not None and len(pool) and bool((pool == pool[:1]).all()):  # one pool for all: one filter is faster
        keep = torch.zeros(len(layout.codes), dtype=torch.bool)
        return layout.only(keep.index_fill(0, pool[0][pool[0] >= 0].cpu(), True)), replace(requests, pool=None)
    return layout, requests


def decoding(policy: TrainablePolicy, layout: Layout, max_history: int, config: EvaluateConfig) -> dict[str, Any]:
    """All that rankings depend on besides weights, data and SID table.

    `layout`: name and options; `template`: token ids around the items, of which `template_hash` is; `search`: options
    that may be chosen anew at each evaluation.
    """
    options = getattr(layout, "config", None)
    template: dict[str, Any] = {
        "start": policy.start_id,
        "prefix": list(policy.prefix_ids),
        "first_sid_tokens": list(policy.first_ids),
        "codes": list(policy.sizes),
    }
    search: dict[str, Any] = {"evaluate.beam": config.beam, "data.max_history": max_history}
    if layout.writes_text and policy.words is not None:
        words = policy.words
        template |= {"think": words.opening, "end_of_think": words.closing, "line_break": words.line_break}
        search["evaluate.thinking_samples"] = config.thinking_samples
        search["evaluate.thinking_temperature"] = config.thinking_temperature
    return {
        "layout": {
            "name": type(layout).__name__.removesuffix("Layout").lower(),
            **(asdict(options) if is_dataclass(options) and not isinstance(options, type) else {}),
        },
        "template": template,
        "template_hash": key_of(template),
        "search": search,
    }


def check_decoding(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Refuse weights that were trained with another layout or prompt template.

    Weights of versions that did not write it down pass, and so do options that one of the two sides does not know.
    What is searched in another way than the weights were chosen with is returned, a line for each option.

    Raises:
        CheckpointError: naming everything that differs.
    """
    text = read_metadata(path).get("decoding")
    if text is None:
        return []
    saved = json.loads(text)
    wrong = [
        f"{section}.{name} is {before!r} there and {value!r} here"
        for section in ("layout", "template")
        for name, before, value in _differences(saved.get(section, {}), now[section])
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: these weights are to be decoded in another way: {'; '.join(wrong)}. Use the configuration that "
            f"they were trained with (config.yaml in the run folder) and leave its layout, prompt and data as they are."
        )
    return [
        f"{name}={value}; the weights were chosen with {before}"
        for name, before, value in _differences(saved.get("search", {}), now["search"])
    ]


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, saved value and present value of the options that both have and that differ."""
    plain = json.loads(json.dumps(now))
    return [(name, saved[name], plain[name]) for name in plain if name in saved and saved[name] != plain[name]]


def rankings(policy: TrainablePolicy, layout: Layout, prompts: Requests, config: EvaluateConfig) -> dict[str, Ranking]:
    """Rankings of the whole catalogue, `raw` and with each user's history `excluded`, behind the same thinking."""
    unseen = replace(prompts, deny=deniable(prompts.history, len(layout.codes)))
    if policy.ranks_all:
        raw, left = rank_all(policy, cast(SidLayout, layout), [prompts, unseen], config.beam)
        return {"raw": raw, "excluded": exclude_history(left, prompts.history)}
    noise = thinking_noise(layout, prompts, config)
    sampling = replace(RANKING, thinking_temperature=config.thinking_temperature)
    behind = think(policy, layout, prompts, sampling, noise)
    find = partial(search, policy, layout, width=config.beam, sampling=sampling, noise=noise, behind=behind)
    if not config.exact:
        raw, _ = find(prompts)
        return {"raw": raw, "excluded": exclude_history(raw, prompts.history)}
    first = max(config.k)
    left, _ = find(unseen, exact=first)
    raw, _ = find(prompts, exact=first)
    return {"raw": raw, "excluded": exclude_history(left, prompts.history)}


def thinking_noise(layout: Layout, prompts: Requests, config: EvaluateConfig) -> Tensor | None:
    """Noise [P, samples, longest completion] in [0, 1) that thinking is drawn with; None for the likeliest words.

    The seed of a prompt is a number made of its tokens, so its noise depends neither on the batch that it is in nor on
    the number of processes, and `recommend` thinks as `evaluate` did.
    """
    if config.thinking_samples == 0 or not layout.writes_text:
        return None
    shape = (config.thinking_samples, layout.length)
    seeds = [seed_of(*row[real].tolist()) for row, real in zip(prompts.tokens.cpu(), prompts.mask.cpu(), strict=True)]
    noise = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(prompts.tokens.device)
