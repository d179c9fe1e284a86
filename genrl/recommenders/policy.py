"""A policy as a recommender: built from a configuration, ranking by search, kept with the way it is to be decoded."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.catalog.items import Catalog
from genrl.config.saved import read_saved, refuse_remote_code
from genrl.config.schema import EvaluateConfig, RunConfig
from genrl.errors import CheckpointError, ConfigError, UnsupportedError
from genrl.files import key_of, read_metadata, read_weights, save_weights
from genrl.layouts import LAYOUTS, Items, thinks
from genrl.layouts.base import Layout
from genrl.layouts.sid import SidLayout
from genrl.layouts.text import TextConfig
from genrl.layouts.titles import Titles, name_items, shown
from genrl.metrics.functional import pass_at_k, sid_keys, to_keys
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.distribution import RANKING, Sampling
from genrl.policy.exhaustive import rank_all
from genrl.policy.guide import Prior
from genrl.policy.information import greedy_information, tells
from genrl.policy.load import make_policy, policy_spec
from genrl.policy.model import Policy, PolicySpec
from genrl.policy.search import WIDEST, search
from genrl.policy.write import write
from genrl.prompts.template import ItemTemplate, PromptTemplate, RequestTemplate
from genrl.prompts.textrec import TextTemplate, Writer, source_of
from genrl.recommenders.base import KINDS, WEIGHTS, Problem, deniable, equip, numerics
from genrl.recommenders.bundle import read_problem, save_problem
from genrl.recommenders.guides import RunGuide
from genrl.recommenders.searching import noise_of, rankings, slates, thinking_noise
from genrl.sid.trie import Trie
from genrl.terminal import verbatim

PRIOR = "prior"
"""Folder, in that of a run, of the prior that its policy has."""
SAYINGS = "new, only favourite popular usual rare: 1 of 2, last 3 of 4, 5 of 6, 7 of 8, 9 of 10, last"
"""What template traces say besides the words of the catalogue; the tiny tokenizer learns it once per item."""

PASSES = 1
"""Tells the noise of samples for Pass@K from that of thinking."""


class PolicyRecommender:
    """A policy, the grammar that it writes in and the template that it reads.

    Its weights are made when they are first asked for; a stage makes its own, and leaves the trained policy here.

    Args:
        config: of the run; its sections `evaluate`, `data.max_history` and `trainer` say how requests are ranked.
        problem: catalogue and Semantic IDs.
        spec: all of the policy but its weights.
        layout: grammar of the completions.
        template: how requests are written.
        prior: the recommender that has its say, if there is one.
    """

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        spec: Spec,
        layout: Layout,
        template: RequestTemplate,
        prior: RunGuide | None = None,
    ) -> None:
        self.config, self.problem = config, problem
        self.spec, self.layout, self.template, self.prior = spec, layout, template, prior

    @classmethod
    def build(cls, config: RunConfig, problem: Problem) -> PolicyRecommender:
        """The configured policy, not yet trained.

        Raises:
            ConfigError: if prompts do not fit the model.
        """
        table, catalog, thinking = problem.table, problem.dataset.catalog, thinks(config)
        trie = problem_trie(problem)
        spec = policy_spec(
            config.model,
            trie,
            catalog.texts + (SAYINGS,) * (len(catalog) if thinking else 0) + _spelled(config, catalog),
            config.prompt.prefix,
            thinking=thinking,
            add_tokens=config.layout.get("add_tokens", True),
            saved=problem.tokenizer,
        )
        spec.check(LAYOUTS.entry(config.layout["name"]))
        options = {name: value for name, value in config.layout.items() if name != "name"}
        catalogue = named_items(config, catalog, Items(trie, spec.first_ids, table.codes), spec)
        layout = LAYOUTS.build(config.layout["name"], options, catalogue=catalogue, words=spec.words)
        template = _template(config, catalog, table.codes, spec, layout)
        prior = None
        if problem.prior is not None or config.prior.run is not None:
            folder, whole = problem.prior or Path(str(config.prior.run)), problem.prior is None
            prior = RunGuide(folder, "prior", config.prior, problem, trie, whole=whole)
        made = cls(config, problem, spec, layout, template, prior)
        made._check_length()
        made._check_pool()
        return made

    def _check_pool(self) -> None:
        size, wanted = self.config.data.pool.size, self.layout.items
        if size is not None and size < wanted:
            raise ConfigError(
                f"a slate of layout.length={wanted} different items is longer than the candidate pools of "
                f"data.pool.size={size}. Set data.pool.size={wanted} or more, or layout.length={size} or less."
            )

    def _check_length(self) -> None:
        limit, history, layout = self.spec.positions, self.config.data.max_history, self.layout
        needed = self.template.longest(history) + layout.length
        if limit is not None and needed > limit:
            further = " or layout.budget" if layout.writes_text else " or layout.length" if layout.items > 1 else ""
            asked = f"data.max_history={history} items x {self.template.levels} codes"
            lower = "data.max_history"
            if isinstance(self.template, TextTemplate):
                asked = lower = "prompt.max_tokens"
            raise ConfigError(
                f"prompts and completions of {needed} tokens ({asked}, completions of {layout.length}) do not fit into "
                f"the {limit} positions of model {self.config.model.name!r}. Lower {lower}{further}."
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
        if self.prior is not None:
            policy.prior = Prior(self.prior, self.config.prior.weight)
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

    def write(self, histories: Tensor, pool: Tensor | None = None, ages: Tensor | None = None) -> tuple[Tensor, Tensor]:
        prompt = self.config.prompt
        if ages is not None and not self.template.tells_days:
            raise ConfigError(
                "the prompts of this run do not say how many days ago something was chosen (prompt.window_days). Leave "
                "the days out (recommend --days)."
            )
        if prompt.candidates and pool is None:
            said = "lists the items that there are to choose from (prompt.candidates=true), and here every item may be"
            self._warn_of_prompts(f"{said}, so none is listed. Say which (recommend --only FILE)")
        if prompt.profile is not None:
            self._warn_of_prompts(
                "tells the user's profile (prompt.profile), and here no user is known, so none is told"
            )
        hidden = max(0, histories.shape[1] - self.config.data.max_history)
        days = None if ages is None else ages[:, hidden:]
        return self.template.render(histories[:, hidden:], pool=pool, ages=days)

    @staticmethod
    def _warn_of_prompts(said: str) -> None:
        warnings.warn(f"in training each prompt of this run {said}. Rankings may be worse for it.", stacklevel=3)

    def rank(self, requests: Requests, width: int, exact: bool = False) -> Ranking:
        return self.answer(requests, width, exact)[0]

    @torch.no_grad()
    def answer(self, requests: Requests, width: int, exact: bool = False) -> tuple[Ranking, list[list[str]] | None]:
        """Rank, and say what was thought before the first item of each request; None: the policy does not think."""
        policy, config = self.policy, self.config.evaluate
        layout, requests = _allowed(self.layout, requests)
        layout, requests = layout.to(policy.device), requests.to(policy.device)
        policy.eval()
        if layout.writes_slates:
            if exact:
                raise UnsupportedError(
                    "the slate of a policy is found item by item or by beams, and none is known to be the likeliest "
                    "of all. Leave --exact out."
                )
            if width > layout.items:
                said = f"a slate has layout.length={layout.items} items, so lists end before the {width} asked for."
                warnings.warn(said, stacklevel=2)
            with numerics(self.config.trainer, policy.device):
                return slates(policy, layout, requests, width, config), None
        beam, first = max(config.beam, width), width if exact else 0
        with numerics(self.config.trainer, policy.device):
            if policy.ranks_all:
                return rank_all(policy, cast(SidLayout, layout), [requests], beam)[0], None
            noise = thinking_noise(layout, requests, config)
            sampling = replace(RANKING, thinking_temperature=config.thinking_temperature)
            plain = config.empty_thought
            ranking, found = search(policy, layout, requests, beam, sampling, noise=noise, exact=first, plain=plain)
        if not layout.writes_text:
            return ranking, None
        blocks = [layout.blocks(tokens) for tokens in found.tokens[:: found.group_size]]
        tokenizer = cast(Policy, policy).tokenizer
        return ranking, [[tokenizer.decode(block).strip() for block in each] for each in blocks]

    @torch.no_grad()
    def rankings(self, requests: Requests, config: EvaluateConfig, kinds: Sequence[str] = KINDS) -> dict[str, Ranking]:
        self.policy.eval()
        with numerics(self.config.trainer, self.policy.device):
            return rankings(self.policy, self.layout.to(str(self.policy.device)), requests, config, kinds)

    @torch.no_grad()
    def passes(self, requests: Requests, config: EvaluateConfig, kind: str) -> dict[str, Tensor]:
        """`pass@K` [P] of each K of `evaluate.pass_at`, from as many sampled completions as the largest says.

        With `kind` excluded the items of the history are not legal. A K below the number of samples has the unbiased
        estimate of all of them (`pass_at_k`).
        """
        counts = config.pass_at or []
        policy, layout, samples = self.policy, self.layout.to(str(self.policy.device)), max(counts)
        if kind == "excluded":
            requests = replace(requests, deny=deniable(requests, len(layout.codes), layout.items))
        policy.eval()
        noise = noise_of(requests, (samples, layout.length), PASSES)
        sampling = Sampling(thinking_temperature=config.thinking_temperature)
        with numerics(self.config.trainer, policy.device):
            drawn = write(policy, layout, requests, samples, sampling, noise)
        keys = sid_keys(layout.codes) if config.level == "sid" else None
        named = to_keys(drawn.items, keys).view(len(requests), samples, -1, 1)
        wanted = to_keys(requests.wanted.items, keys)[:, None, None]
        hits = ((named == wanted) & (named >= 0)).flatten(2).any(2).sum(1)
        return {f"pass@{k}": pass_at_k(hits, samples, k) for k in counts}

    @torch.no_grad()
    def information(self, requests: Requests) -> Tensor | None:
        """Of its likeliest words [P], see `genrl.policy.information`; None: it does not think before an item."""
        layout = self.layout.to(str(self.policy.device))
        if not tells(layout):
            return None
        self.policy.eval()
        with numerics(self.config.trainer, self.policy.device):
            return greedy_information(self.policy, layout, requests)

    @torch.no_grad()
    def log_probs(self, requests: Requests) -> Tensor:
        """By a search that gives up no SID, or all at once; items of one SID share its probability equally.

        What the policy reads is written anew from the histories.
        """
        policy, layout = self.policy, self.layout.to(self.device)
        if not policy.ranks_all and (layout.writes_text or layout.items > 1 or layout.completions > WIDEST):
            raise UnsupportedError(
                f"a policy of layout {self.config.layout['name']!r} with {layout.completions:,} distinct completions "
                f"cannot say how likely each item is: that takes layout sid and at most {WIDEST:,} SIDs. "
                f"Take a run of sasrec or item_knn, or one with model.name=item."
            )
        policy.eval()
        history = requests.history.cpu()
        asked = Requests(*self.write(history), history).to(str(policy.device))
        _, own, sharing = layout.codes.unique(dim=0, return_inverse=True, return_counts=True)
        parts = []
        for rows in torch.arange(len(asked), device=policy.device).split(max(1, WIDEST // layout.completions)):
            with numerics(self.config.trainer, policy.device):
                width = len(own)
                if policy.ranks_all:
                    (found,) = rank_all(policy, cast(SidLayout, layout), [asked.rows(rows)], width)
                else:
                    found, _ = search(policy, layout, asked.rows(rows), width, beams=layout.completions)
            parts.append(torch.empty_like(found.scores).scatter_(1, found.items, found.scores))
        return torch.cat(parts) - sharing[own].log()

    def decoding(self) -> dict[str, Any]:
        """All that rankings depend on besides weights and SID table."""
        found = decoding(self.policy, self.layout, self.config.data.max_history, self.config.evaluate)
        if isinstance(self.template, TextTemplate):
            found["template"]["words"] = key_of(self.template.writer.source, asdict(self.config.prompt))
        return found

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        self.policy.load_state(state, origin)

    def save(self, folder: Path) -> None:
        """Write trained weights with the way to decode them, catalogue and SID table, and any tokenizer."""
        save_weights(self.policy.state(), folder / WEIGHTS, {"decoding": json.dumps(self.decoding())})
        self.spec.save(folder)
        save_problem(folder, self.problem.dataset, self.problem.table)
        if self.prior is not None:
            self.prior.save(folder / PRIOR)

    @classmethod
    def load(cls, folder: Path, overrides: tuple[str, ...] = ()) -> PolicyRecommender:
        """Read what `save` wrote; what is to be searched in another way than the weights were chosen with is told."""
        config = read_saved(folder, overrides)
        refuse_remote_code(folder, config, overrides)
        dataset, table = read_problem(folder)
        saved = folder / "tokenizer" if config.model.name == "tiny" else None
        named = read_saved(folder).prior.run
        prior = folder / PRIOR if named is not None and config.prior.run == named else None
        made = cls.build(config, Problem(dataset, table, config.model, saved, prior))
        if not {"activate", "rl"} & set(config.stages):
            made = made.under(made.layout.plain)
        weights = folder / WEIGHTS
        for notice in check_decoding(weights, made.decoding()):
            Console().print(verbatim(notice))
        made.policy.load_state(read_weights(weights), str(weights))
        return made


def problem_trie(problem: Problem) -> Trie:
    """The trie of a catalogue's SIDs, items of one SID in the order of their popularity."""
    table = problem.table
    return Trie.build(table.codes, table.codebook_sizes, problem.dataset.catalog.train_counts)


def named_items(config: RunConfig, catalog: Catalog, sids: Items, spec: Spec) -> Items | Titles:
    """The items under the names that the layout writes: their SIDs, or their titles for `layout.space: text`.

    Raises:
        ConfigError: for a policy without words.
        DataError: for titles that its tokenizer cannot write.
    """
    text = _text_of(config)
    if text is None:
        return sids
    if not isinstance(spec, PolicySpec):
        raise ConfigError(
            f"layout.space=text names items by words, and model.name={config.model.name} writes none. Use a language "
            f"model, or layout.space=sid."
        )
    return Titles(name_items(catalog, spec.tokenizer, text.show, text.tokens), sids, spec.tokenizer)


def _template(config: RunConfig, catalog: Catalog, codes: Tensor, spec: Spec, layout: Layout) -> RequestTemplate:
    """How requests are written: as SIDs, as items, or in words."""
    sids: dict[str, Any] = {
        "start_id": spec.start_id,
        "prefix_ids": spec.prefix_ids,
        "sid_tokens": codes + torch.tensor(spec.first_ids),
        "pad_id": spec.pad_id,
    }
    if config.prompt.template is None:
        return ItemTemplate(**sids) if spec.reads_items else PromptTemplate(**sids)
    called = layout.item_names or tuple(
        title or name for title, name in zip(catalog.titles, catalog.item_ids, strict=True)
    )
    writer = Writer(config.prompt, catalog, called, layout.items, config.data)
    return TextTemplate(**sids, writer=writer, tokenizer=cast(PolicySpec, spec).tokenizer)


def _text_of(config: RunConfig) -> TextConfig | None:
    """How the configured layout names items in words; None: by SIDs."""
    options = {name: value for name, value in config.layout.items() if name != "name"}
    filled = LAYOUTS.options(config.layout["name"], options)
    return filled.text if getattr(filled, "space", "sid") == "text" else None


def _spelled(config: RunConfig, catalog: Catalog) -> tuple[str, ...]:
    """What names of items and prompts hold besides the words of the catalogue; the tiny tokenizer learns it."""
    text, template = _text_of(config), config.prompt.template
    names = () if text is None else (*shown(catalog, text.show), "|", *(f"({number})" for number in range(10)))
    return names if template is None else (*names, *[source_of(template)] * 10, "0123456789")


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

    `layout`: name and options; `template`: token ids around the items, of which `template_hash` is; `prior`: content
    and temperature of the prior, None if there is none; `search`: options that may be chosen anew at each evaluation.
    """
    guide = policy.prior.guide if policy.prior is not None else None
    template: dict[str, Any] = {
        "start": policy.start_id,
        "prefix": list(policy.prefix_ids),
        "first_sid_tokens": list(policy.first_ids),
        "codes": list(policy.sizes),
    }
    search: dict[str, Any] = {"evaluate.beam": config.beam, "data.max_history": max_history}
    if policy.prior is not None:
        search["prior.weight"] = policy.prior.weight
    if layout.writes_text and policy.words is not None:
        words = policy.words
        template |= {"think": words.opening, "end_of_think": words.closing, "line_break": words.line_break}
        search["evaluate.thinking_samples"] = config.thinking_samples
        search["evaluate.thinking_temperature"] = config.thinking_temperature
    return {
        "layout": layout.settings,
        "template": template,
        "template_hash": key_of(template),
        "prior": {"content": guide and guide.key, "temperature": guide and guide.temperature},
        "search": search,
    }


def check_decoding(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Refuse weights that were trained with another layout, prompt template or prior.

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
        for section in ("layout", "template", "prior")
        for name, before, value in _differences(saved.get(section, {}), now[section])
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: these weights are to be decoded in another way: {'; '.join(wrong)}. Use the configuration that "
            f"they were trained with (config.yaml in the run folder) and leave its layout, prompt, data and prior as "
            f"they are; prior.weight may change, and 0 ranks without the prior."
        )
    return [
        f"{name}={value}; the weights were chosen with {before}"
        for name, before, value in _differences(saved.get("search", {}), now["search"])
    ]


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, saved value and present value of the options that both have and that differ."""
    plain = json.loads(json.dumps(now))
    return [(name, saved[name], plain[name]) for name in plain if name in saved and saved[name] != plain[name]]
