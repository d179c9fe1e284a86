"""All that a configuration stands for, built once: data, SIDs, policy, layout, prompts."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import RunConfig, TrainerConfig
from genrl.errors import ConfigError
from genrl.layouts import LAYOUTS, Items, Layout
from genrl.policy.branching import wrong_ways
from genrl.policy.load import load_policy, sid_token
from genrl.policy.model import Policy
from genrl.prompts.packing import Packer, text_segments
from genrl.prompts.prompts import EvaluationBatches, PromptMaker, PromptTemplate
from genrl.prompts.reasoning import TraceBatches
from genrl.prompts.template_traces import template_traces
from genrl.prompts.traces import Trace, leaks, read_traces
from genrl.sid import build_sid_table
from genrl.sid.table import SidTable
from genrl.sid.trie import Trie
from genrl.runs.evaluate import evaluated_rows
from genrl.files import file_hash, key_of, locked
from genrl.runs.stages import supervised_stages, thinks

SAYINGS = "new, only favourite popular usual rare: 1 of 2, last 3 of 4, 5 of 6, 7 of 8, 9 of 10, last"
"""What template traces say besides the words of the catalogue; the tiny tokenizer learns it once per item."""


@dataclass(frozen=True)
class Session:
    """What every stage of a run works with."""

    config: RunConfig
    dataset: Dataset
    table: SidTable
    policy: Policy
    layout: Layout
    maker: PromptMaker

    @classmethod
    def build(cls, config: RunConfig) -> Session:
        """Load the data, get the SID table (built once per experiment), make the policy and the layout."""
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        dataset = load_dataset(config.data)
        table = sid_table(config, dataset)
        thinking = thinks(config)
        sayings = (SAYINGS,) * (len(dataset.catalog) if thinking else 0)
        policy = load_policy(
            config.model,
            table.codebook_sizes,
            dataset.catalog.texts + sayings,
            config.prompt.prefix,
            thinking=thinking,
            add_tokens=config.layout.get("add_tokens", True),
        )
        equip(policy, config.trainer)
        trie = Trie.build(table.codes, table.codebook_sizes, dataset.catalog.train_counts)
        options = {name: value for name, value in config.layout.items() if name != "name"}
        catalogue = Items(trie, policy.first_ids, table.codes)
        layout = LAYOUTS.build(config.layout["name"], options, catalogue=catalogue, words=policy.words)
        if config.evaluate.beam > layout.completions:
            raise ConfigError(
                f"evaluate.beam={config.evaluate.beam} is wider than the catalogue, which has {layout.completions} "
                f"distinct SIDs. Set evaluate.beam to {layout.completions} or less."
            )
        pad = policy.tokenizer.pad_token_id
        template = PromptTemplate(
            start_id=policy.start_id,
            prefix_ids=policy.prefix_ids,
            sid_tokens=table.codes + torch.tensor(policy.first_ids),
            pad_id=policy.start_id if pad is None else pad,
        )
        maker = PromptMaker(dataset, template, config.data.max_history)
        _check_length(config, policy, maker, layout)
        return cls(config, dataset, table, policy, layout, maker)

    @property
    def plain(self) -> Session:
        """Of stage `align`, which knows no thinking."""
        return replace(self, layout=self.layout.plain)

    @property
    def activates(self) -> bool:
        """Whether there is something for stage `activate` to teach, and the stage is asked for."""
        return "activate" in supervised_stages(self.config)

    def numerics(self) -> AbstractContextManager[Any]:
        """Precision of forward passes outside Lightning's loops."""
        return numerics(self.config.trainer, self.policy.device)

    def batches(self, split: str) -> EvaluationBatches:
        """The rows of a split that tables are about, `valid` or `test`."""
        rows = evaluated_rows(self.dataset, self.config.evaluate, split)
        return EvaluationBatches(self.maker, rows, self.config.evaluate.batch)

    def prompt_positions(self) -> Tensor:
        """Where RL prompts are taken from: positions that SFT did not train on, if any are held out."""
        held_out = self.dataset.sequences.rows(Role.RL)
        return held_out if held_out.numel() else self.dataset.sequences.rows(Role.TRAIN)

    def packer(self) -> Packer:
        """Supervised batches."""
        wanted = self.config.align.text_tasks
        text = wanted == "on" or (wanted == "auto" and self.config.model.name != "tiny")
        segments = (
            text_segments(self.policy.tokenizer, self.dataset.catalog.titles, self.maker.template) if text else ()
        )
        packer = Packer(
            self.dataset,
            self.maker.template,
            self.config.align,
            self.config.data.max_history,
            tuple(segments),
        )
        packer.alone = "tree" in wrong_ways(self.policy, packer.longest)
        return packer

    @cached_property
    def traces(self) -> list[Trace]:
        """What stage `activate` learns, without those that name their target.

        Raises:
            DataError: if the file of traces cannot be used.
        """
        config = self.config.activate
        if config.traces == "jsonl":
            found = read_traces(str(config.path), self.dataset, self.table.levels)
        else:
            history = self.config.data.max_history
            found = template_traces(self.dataset, self.table, self._taught(), history, config.words)
        report = leaks(found, self.dataset, self.table, sid_token)
        named = set(report.leaking)
        if named:
            warnings.warn(f"{report.line()}; they are left out.", stacklevel=2)
        return [trace for place, trace in enumerate(found) if place not in named]

    def _taught(self) -> Tensor:
        """Positions of the items that stage `activate` learns: all, or a random part of them."""
        config, positions = self.config.activate, self.dataset.sequences.rows(Role.TRAIN)
        if not config.examples or len(positions) <= config.examples:
            return positions
        generator = torch.Generator().manual_seed(config.seed)
        return positions[torch.randperm(len(positions), generator=generator)[: config.examples]].sort().values

    def activate_batches(self) -> TraceBatches:
        """Supervised batches of reasoning."""
        config = self.config.activate
        batches = TraceBatches(self.traces, self.maker, self.layout, self.policy.tokenizer, config)
        batches.alone = "tree" in wrong_ways(self.policy, batches.longest)
        return batches

    def activate_key(self) -> str:
        """Changes with everything that the activate stage depends on."""
        config = self.config
        return key_of(
            self.align_key() if "align" in config.stages else key_of(self.align_key(), "untrained"),
            config.layout,
            config.activate,
            file_hash(config.activate.path) if config.activate.path else None,
            (config.evaluate.thinking_samples, config.evaluate.thinking_temperature),
        )

    def align_key(self) -> str:
        """Changes with everything that the align stage depends on."""
        config = self.config
        scored = (config.evaluate.beam, config.evaluate.k, config.evaluate.valid_users, config.evaluate.level)
        return key_of(
            self.dataset.fingerprint,
            config.data.max_history,
            self.table.codes.tolist(),
            config.model,
            config.prompt,
            {"thinking": True} if self.layout.writes_text else config.layout,  # thinking comes later, its tokens are there
            config.align,
            config.trainer.precision,
            config.trainer.max_grad_norm,
            scored,
        )


def numerics(config: TrainerConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Precision of forward passes outside Lightning's loops."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed")


def equip(policy: Policy, config: TrainerConfig) -> None:
    """Give a policy what the trainer says of its passes."""
    if config.precision == "bf16-true":
        policy.to_bfloat16()
    policy.branching = config.branching
    if config.checkpointing:
        policy.checkpoint_activations()
    if config.compile:
        policy.compile_decoder()


def sid_table(config: RunConfig, dataset: Dataset) -> SidTable:
    """The SID table of a configuration, built once and shared by all runs of the experiment."""
    folder = Path(config.output) / config.experiment
    path = folder / f"sid-{key_of(dataset.fingerprint, config.sid)}.safetensors"
    with locked(folder):
        if not path.exists():
            build_sid_table(config.sid, dataset).save(path)
        return SidTable.load(path, dataset.catalog)


def _check_length(config: RunConfig, policy: Policy, maker: PromptMaker, layout: Layout) -> None:
    limit = policy.positions
    needed = maker.longest + layout.length
    if limit is not None and needed > limit:
        further = " or layout.budget" if layout.writes_text else ""
        raise ConfigError(
            f"prompts and completions of {needed} tokens (data.max_history={config.data.max_history} items x "
            f"{layout.steps} codes, completions of {layout.length}) do not fit into the {limit} positions of model "
            f"{config.model.name!r}. Lower data.max_history{further}."
        )
