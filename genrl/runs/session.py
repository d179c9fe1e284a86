"""All that a configuration stands for, built once: data, SIDs, recommender."""

from __future__ import annotations

import inspect
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.pools import Pools
from genrl.catalog.sequences import Role
from genrl.config.load import experiment_folder
from genrl.config.schema import RunConfig
from genrl.config.select import selected, within
from genrl.errors import ConfigError, DataError
from genrl.files import file_hash, key_of, locked, model_hash, sweep
from genrl.layouts import LAYOUTS, Layout
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.load import sid_token
from genrl.policy.model import PolicySpec
from genrl.prompts.made_traces import make_traces
from genrl.prompts.packing import CompletionBatches, HistoryBatches, HistoryRows, TraceBatches, text_segments
from genrl.prompts.slates import WrittenSlates, read_slates
from genrl.prompts.template import EvaluationBatches, PromptMaker, PromptTemplate
from genrl.prompts.textrec import source_of
from genrl.prompts.traces import Trace, leaks, read_traces
from genrl.recommenders import Problem, Recommender
from genrl.recommenders.base import build_baseline, numerics
from genrl.recommenders.gold import GoldSlates
from genrl.recommenders.guides import RunGuide
from genrl.recommenders.policy import PolicyRecommender, problem_trie
from genrl.runs.evaluate import evaluated_rows
from genrl.runs.inputs import plugins
from genrl.sid import build_sid_table, embedding_of, sources
from genrl.sid.embed import embed_items
from genrl.sid.table import SidTable


@dataclass(frozen=True)
class Session:
    """What every stage of a run works with."""

    config: RunConfig
    dataset: Dataset
    table: SidTable
    recommender: Recommender

    @classmethod
    def build(cls, config: RunConfig) -> Session:
        """Load the data, get the SID table (built once per experiment) and make the recommender, not yet trained."""
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        dataset = load_dataset(config.data)
        problem = Problem(dataset, sid_table(config, dataset), config.model)
        config = replace(config, evaluate=within(config, len(dataset.catalog)))
        make = build_baseline if config.stages == ["baseline"] else PolicyRecommender.build
        return cls(config, dataset, problem.table, make(config, problem))

    @property
    def learner(self) -> PolicyRecommender:
        """The recommender of a run with stages of a policy."""
        assert isinstance(self.recommender, PolicyRecommender), f"{self.recommender!r} is a baseline"
        return self.recommender

    @property
    def policy(self) -> TrainablePolicy:
        """What the recommender ranks with."""
        return self.learner.policy

    @property
    def spec(self) -> Spec:
        """All of the policy but its weights."""
        return self.learner.spec

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 (transformers is untyped)
        """Of a policy that reads text."""
        return cast(PolicySpec, self.spec).tokenizer

    @property
    def layout(self) -> Layout:
        """Grammar of the policy's completions."""
        return self.learner.layout

    @cached_property
    def maker(self) -> PromptMaker:
        """Makes the requests."""
        self.recommender.template.check_users(self.dataset.sequences.user_ids)
        return PromptMaker(self.dataset, self.recommender.template, self.config.data.max_history, self.pools)

    @cached_property
    def pools(self) -> Pools | None:
        """Makes the candidate pools, where requests have some."""
        config = self.config.data.pool
        if config.size is None:
            return None
        vectors = embed_items(embedding_of(self.config.sid), self.dataset) if config.by == "embedding" else None
        return Pools(self.dataset, config, vectors)

    @cached_property
    def teacher(self) -> RunGuide | None:
        """The recommender that the policy learns from, if there is one."""
        config = self.config.teacher
        if config.run is None:
            return None
        problem = self.learner.problem
        return RunGuide(Path(config.run).expanduser(), "teacher", config, problem, problem_trie(problem), whole=True)

    @property
    def plain(self) -> Session:
        """Of stage `align`, which knows no thinking."""
        return replace(self, recommender=self.learner.under(self.layout.plain))

    def numerics(self) -> AbstractContextManager[Any]:
        """Precision of forward passes outside Lightning's loops."""
        return numerics(self.config.trainer, self.recommender.device)

    def batches(self, split: str) -> EvaluationBatches:
        """The rows of a split that tables are about, `valid` or `test`."""
        rows = evaluated_rows(self.dataset, self.config.evaluate, split)
        return EvaluationBatches(self.maker, rows, self.config.evaluate.batch)

    def prompt_positions(self) -> Tensor:
        """Where RL prompts are taken from: positions that SFT did not train on, if any are held out."""
        held_out = self.dataset.sequences.rows(Role.RL)
        return held_out if held_out.numel() else self.dataset.sequences.rows(Role.TRAIN)

    def packer(self) -> HistoryBatches | HistoryRows:
        """Supervised batches: rows of items for a policy that reads these, or packed text."""
        wanted = self.config.align.text_tasks
        text = wanted == "on" or (wanted == "auto" and not self.config.model.from_scratch)
        template, titles, history = self.maker.template, self.dataset.catalog.titles, self.config.data.max_history
        assert isinstance(template, PromptTemplate)  # options of stage `align` are refused for prompts in words
        segments = text_segments(self.tokenizer, titles, template) if text else ()
        batches = HistoryBatches(self.dataset, template, self.config.align, history, tuple(segments))
        return HistoryRows(batches) if self.spec.reads_items else batches

    @cached_property
    def traces(self) -> list[Trace]:
        """What stage `activate` learns, without those that name their target.

        Raises:
            DataError: if the file of traces cannot be used.
        """
        config = self.config
        found = (
            read_traces(str(config.activate.path), self.dataset, self.table.levels)
            if config.activate.traces == "jsonl"
            else make_traces(config.activate, config.data, self.dataset, self.table, self._taught(self._trained()))
        )
        report = leaks(found, self.dataset, self.table, sid_token)
        named = set(report.leaking)
        if named:
            warnings.warn(f"{report.line()}; they are left out.", stacklevel=2)
        if report.reading():
            warnings.warn(f"{report.reading()}.", stacklevel=2)
        return [trace for place, trace in enumerate(found) if place not in named]

    def _trained(self) -> Tensor:
        return self.dataset.sequences.rows(Role.TRAIN)

    def _taught(self, positions: Tensor) -> Tensor:
        """Those of the positions that stage `activate` learns: all, or a random part of them."""
        config = self.config.activate
        if not config.examples or len(positions) <= config.examples:
            return positions
        generator = torch.Generator().manual_seed(config.seed)
        return positions[torch.randperm(len(positions), generator=generator)[: config.examples]].sort().values

    @cached_property
    def gold(self) -> GoldSlates | None:
        """Makes the slates to imitate, where the policy writes slates."""
        if not self.layout.writes_slates:
            return None
        problem = replace(self.learner.problem, dataset=self.dataset)
        return GoldSlates.of(problem, self.layout.items, self.config.activate.labels, self.config.activate.label_days)

    @cached_property
    def slates(self) -> tuple[Tensor, Tensor, Tensor]:
        """What genrl makes for stage `activate`: positions [n], gold slates [n, L], their numbers of labels [n].

        Raises:
            DataError: if every interaction is held out or worth nothing, or the catalogue is too small.
        """
        assert self.gold is not None
        where, weights = self._trained(), self.config.activate.labels
        if not len(where):
            raise DataError("stage activate has no slates to learn: every interaction is held out. Check data.split.")
        where = self._taught(where[self.gold.labels(where)[:, 0] >= 0] if weights else where)
        if not len(where):
            columns = ", ".join(weights)
            raise DataError(
                f"stage activate has no slates to learn: no training interaction is worth more than 0 by its feedback "
                f"({columns}). Check activate.labels."
            )
        found = self.gold.labels(where), self.maker.full_history(where), self._listed(where)
        return where, *self.gold(*found, self.gold.unwanted(where))

    def _listed(self, where: Tensor) -> Tensor | None:
        """The items that prompts list, which are all that can be chosen then."""
        return self.pools.at(where).items if self.pools is not None and self.config.prompt.candidates else None

    @cached_property
    def written(self) -> WrittenSlates | None:
        """The slates of a file that stage `activate` learns beside gold slates, or instead of them.

        Raises:
            DataError: if the file cannot be used.
        """
        path = self.config.activate.path
        if path is None:
            return None
        found = read_slates(path, self.dataset, self.layout.items)
        pools = self._listed(found.positions)
        if pools is not None:
            found.check_pools(pools)
        return found

    def activate_batches(self) -> CompletionBatches:
        """Supervised batches of reasoning, or of slates."""
        config = self.config.activate
        layout = self.config.layout["name"]
        if not self.layout.writes_slates:
            asked = {"labels": config.labels, "gold": not config.gold, "label_days": config.label_days}
            if name := next((name for name, set_ in asked.items() if set_), None):
                raise ConfigError(
                    f"activate.{name} is about slates, and with layout={layout} stage "
                    f"activate learns to think. Leave it out, or add layout=slate."
                )
            return TraceBatches(self.traces, self.maker, self.layout, self.tokenizer, config)
        if config.foreign:
            raise ConfigError(
                f"activate.foreign is about traces, and with layout={layout} stage activate learns slates without any. "
                f"Leave it out."
            )
        parts = [self.slates[:2]] if config.gold else []
        if self.written is not None:
            parts.append((self.written.positions, self.written.items))
        where, slates = (torch.cat(part) for part in zip(*parts, strict=True))
        return CompletionBatches(where, self.layout.compose(slates), self.maker, self.layout, config)

    def activate_note(self) -> str:
        """What is to be said of what stage `activate` learns; "": nothing."""
        if not self.layout.writes_slates:
            return ""
        said = []
        if self.config.activate.gold:
            _, slates, labelled = self.slates
            filled = 1 - float(labelled.sum()) / slates.numel()
            days = self.config.activate.label_days
            chosen = "valued most of what came" if self.config.activate.labels else "chose"
            chosen += " next" if days is None else f" within {days:g} days"
            said.append(
                f"{len(slates):,} gold slates of {slates.shape[1]} items, {float(labelled.float().mean()):.1f} of them "
                f"what the user {chosen}; item-kNN filled {filled:.1%} of the places"
            )
        if self.written is not None:
            said.append(f"{len(self.written.items):,} slates of {self.config.activate.path}")
        return f"activate: {'; and '.join(said)}"

    def activate_key(self) -> str:
        """Changes with everything that the activate stage depends on."""
        config = self.config
        return key_of(
            self.align_key() if "align" in config.stages else key_of(self.align_key(), "untrained"),
            config.layout,
            config.activate,
            file_hash(config.activate.path) if config.activate.path else None,
            *([self.dataset.sequences.clock_hash] if config.prompt.window_days or config.activate.label_days else []),
            (config.evaluate.thinking_samples, config.evaluate.thinking_temperature, config.evaluate.empty_thought),
        )

    def align_key(self) -> str:
        """Changes with everything that the align stage depends on."""
        config = self.config
        chosen = (config.select.ranking, selected(config))
        scored = (config.evaluate.beam, config.evaluate.valid_users, config.evaluate.level, *chosen)
        prior, teacher = self.learner.prior, self.teacher if config.align.teacher_share else None
        return key_of(
            self.dataset.fingerprint,
            config.data.max_history,
            self.table.codes.tolist(),
            config.model,
            config.prompt,
            _alone(self.layout, config),
            config.align,
            config.trainer.precision,
            config.trainer.max_grad_norm,
            scored,
            *([] if config.model.from_scratch else [model_hash(config.model.name)]),
            *_layout_content(config),
            *([] if config.prompt.template is None else [source_of(config.prompt.template)]),
            *([] if config.prompt.profile is None else [file_hash(config.prompt.profile)]),
            *([] if config.data.pool.size is None else [("pool", config.data.pool)]),
            *([] if prior is None else [("prior", prior.key, prior.temperature, config.prior.weight)]),
            *([] if teacher is None else [("teacher", teacher.key, teacher.temperature)]),
        )


def _alone(layout: Layout, config: RunConfig) -> dict[str, Any]:
    """What stage `align` sees of a layout: of thinking that its tokens are there, of slates of SIDs nothing.

    Names in words are all there: the tiny tokenizer learns their texts, so its tokens have other numbers without them.
    """
    if layout.writes_text:
        return {"thinking": True}
    return {"name": "sid"} if layout.writes_slates and not layout.in_words else config.layout


def _layout_content(config: RunConfig) -> list[str]:
    """Hashes of the code that a layout of the user's own may come from; none of a built-in layout."""
    factory = LAYOUTS.entry(config.layout["name"]).factory
    if factory.__module__.partition(".")[0] == "genrl":
        return []
    return sorted({file_hash(path) for path in (Path(inspect.getfile(factory)), *plugins(config).values())})


def sid_table(config: RunConfig, dataset: Dataset) -> SidTable:
    """The SID table of a configuration, built once and shared by all runs of the experiment."""
    folder = experiment_folder(config)
    content = {name: file_hash(path) for name, path in sources(config.sid).items() if path.exists()}
    path = folder / f"sid-{key_of(dataset.fingerprint, config.sid, *([content] if content else []))}.safetensors"
    with locked(folder):
        sweep(folder, ".*.sid-*")
        if not path.exists():
            build_sid_table(config.sid, dataset).save(path)
        return SidTable.load(path, dataset.catalog)
