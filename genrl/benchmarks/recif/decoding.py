"""Generations of a local checkpoint under the protocol of RecIF-Bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor

from genrl.batches import Requests
from genrl.benchmarks.recif.maps import ItemMap
from genrl.benchmarks.recif.rows import NO, YES, Row, Task
from genrl.benchmarks.recif.sids import CODES, END_OF_THINKING, LEVELS, OPEN, sid_text, sid_token
from genrl.config.schema import ModelConfig
from genrl.errors import ConfigError, DataError
from genrl.given import read_text
from genrl.layouts.base import Layout, TokenRanges
from genrl.layouts.codes import CodesLayout
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.ops import left_padded, seed_of
from genrl.options import option, seed_option
from genrl.policy.distribution import Sampling, invert
from genrl.policy.load import load_checkpoint
from genrl.policy.model import Policy
from genrl.policy.protocol import Next
from genrl.policy.search import search
from genrl.progress import progress_bar
from genrl.sid.trie import Trie

SIZES = (CODES,) * len(LEVELS)
SCORING = Sampling(normalize="vocab")
"""Beams are ranked by log-probabilities over the whole vocabulary, as the evaluator's are."""
Trace = tuple[int, ...]


@dataclass(frozen=True)
class DecodingConfig:
    """How a checkpoint is run; the defaults are those of the published numbers."""

    beams: int = option(32, ge=1)
    """Beams, and generations of each row."""
    among: Literal["codes", "map"] = "codes"
    """What beams may write: any three codes, as in the evaluator, or only SIDs that the benchmark's map has."""
    thinking: Literal["off", "on", "race"] = "off"
    """`on`: one thought is sampled and beams stand behind it. `race`: half of the generations with, half without."""
    thinking_tokens: int = option(1000, ge=1)
    """Tokens of a thought at most."""
    temperature: float = option(0.6, gt=0)
    """Of thoughts."""
    top_k: int = option(50, ge=1)
    """A token of a thought is one of so many likeliest ones."""
    top_p: float = option(0.95, gt=0, le=1)
    """And, of these, one of the fewest that have this share of their probability."""
    seed: int = seed_option(0)
    """Of thoughts; each row has noise of its own, whatever batch it is in."""
    batch: int = option(8, ge=1)
    """Rows that are run at a time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the weights."""
    device: str = "auto"
    """`auto`: a GPU if there is one."""
    chat_template: str | None = None
    """File with a chat template in place of the tokenizer's, that of the evaluator for one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Off unless you know the folder."""


class Checkpoint:
    """A language model that writes the SIDs of RecIF-Bench.

    Args:
        folder: of a Hugging Face causal language model whose tokenizer has the SID tokens.
        config: how it is run.
        items: the SIDs that beams are kept to; None: any three codes.

    Raises:
        ConfigError: for a folder without a model, or a tokenizer without the tokens that the protocol needs.
    """

    def __init__(self, folder: Path, config: DecodingConfig, items: ItemMap | None = None) -> None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model {folder}: no Hugging Face model there (no config.json). Give such a folder.")
        self.folder, self.config = folder, config
        names = [[sid_token(level, code) for code in range(CODES)] for level in range(len(LEVELS))]
        model = ModelConfig(name=str(folder), dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        self.policy: Policy = load_checkpoint(model, names).eval().to(_device(config.device))
        self.tokenizer: Any = self.policy.tokenizer
        if config.chat_template is not None:
            self.tokenizer.chat_template = _template(Path(config.chat_template))
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"the tokenizer of {folder} has no chat template, so there is no telling how messages are written. "
                f"Give a file with one: chat_template=FILE."
            )
        self.opening = self._token(OPEN)
        self.closing = self._token(END_OF_THINKING) if config.thinking != "off" else -1
        self.ends = self._ends()
        self.sids: Tensor | None = None
        """[S] SIDs that beams are kept to; None: all."""
        self.layout: Layout = CodesLayout(TokenRanges(self.policy.first_ids, SIZES), self.policy.device)
        if items is not None:
            self.sids = items.sids
            trie = Trie.build(items.codes, SIZES)
            catalogue = Items(trie, self.policy.first_ids, items.codes)
            self.layout = SidLayout(SidLayoutConfig(), catalogue=catalogue).to(self.policy.device)
        self.unclosed = 0
        """Thoughts so far that did not end by themselves."""

    def generate(self, task: Task, rows: Sequence[Row]) -> dict[str, list[str]]:
        """Texts of each row by its name, best first."""
        ways = {"off": (False,), "on": (True,), "race": (False, True)}[self.config.thinking]
        prompts = {thinking: [self._prompt(row, thinking) for row in rows] for thinking in ways}
        if len(ways) > 1 and prompts[False] == prompts[True]:
            raise ConfigError(
                f"thinking=race: the chat template of {self.folder} writes the same prompts with and without thinking, "
                f"so both halves would be one. Give a template with a switch, chat_template=FILE, or set thinking=on."
            )
        self._check_length(list(chain.from_iterable(prompts.values())))
        lengths = [max(len(prompts[thinking][place]) for thinking in ways) for place in range(len(rows))]
        order = sorted(range(len(rows)), key=lambda place: -lengths[place])
        texts: dict[str, list[str]] = {}
        with progress_bar(f"RecIF-Bench, {task.name}", len(rows), "rows") as advance:
            for start in range(0, len(order), self.config.batch):
                some = order[start : start + self.config.batch]
                lists = [
                    self._written(
                        task, [rows[place] for place in some], [prompts[thinking][place] for place in some], thinking
                    )
                    for thinking in ways
                ]
                for place, found in zip(some, zip(*lists, strict=True), strict=True):
                    texts[rows[place].name] = found[0] if len(ways) == 1 else self._race(task, *found)
                advance(len(some))
        return {row.name: texts[row.name] for row in rows}

    def _race(self, task: Task, plain: list[str], thoughtful: list[str]) -> list[str]:
        """Half without and half with thinking in turn; probabilities of a label are averaged when they are scored."""
        return [*plain, *thoughtful] if task.kind == "label" else merge(plain, thoughtful, self.config.beams)

    def _written(
        self, task: Task, rows: Sequence[Row], prompts: Sequence[list[int]], thinking: bool
    ) -> list[list[str]]:
        """Texts behind prompts [P], each behind a thought if there is one."""
        heads, begun = [""] * len(rows), [list(prompt) for prompt in prompts]
        if thinking:
            thoughts = self._think(rows, prompts)
            behind = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
            heads = [f"{self.tokenizer.decode(list(thought))}{END_OF_THINKING}\n" for thought in thoughts]
            begun = [
                [*prompt, *thought, self.closing, *behind] for prompt, thought in zip(prompts, thoughts, strict=True)
            ]
        if task.kind == "label":
            return [[head + said] for head, said in zip(heads, self._answers(begun), strict=True)]
        found = self._search([[*each, self.opening] for each in begun])
        return [[head + sid_text(sid) for sid in sids] for head, sids in zip(heads, found, strict=True)]

    def _search(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """SIDs by beam search behind prompts [P], best first."""
        ranking, _ = search(self.policy, self.layout, self._requests(prompts), self.config.beams, SCORING)
        items = ranking.items.cpu()
        found = items if self.sids is None else torch.where(items < 0, -1, self.sids[items.clamp(min=0)])
        return [[sid for sid in row if sid >= 0] for row in found.tolist()]

    @torch.no_grad()
    def _answers(self, prompts: Sequence[list[int]]) -> list[str]:
        """Probabilities of yes and no as the first token behind prompts [P], as JSON."""
        ids = torch.tensor([self._token(YES), self._token(NO)], device=self.policy.device)
        growth = self.policy.grow(self._requests(prompts), 1, 0, "vocab")
        found = growth.begin(lambda said: said.logits(None).double().softmax(-1)[:, ids])
        return [json.dumps({YES: yes, NO: no}, ensure_ascii=False) for yes, no in found.tolist()]

    def _think(self, rows: Sequence[Row], prompts: Sequence[list[int]]) -> list[Trace]:
        """One sampled thought behind each of the prompts [P], without what ended it."""
        noise = torch.stack([self._noise(row) for row in rows]).to(self.policy.device)
        thoughts = sample_thoughts(self.policy, self._requests(prompts), noise, self.ends, self.config)
        self.unclosed += sum(len(thought) == self.config.thinking_tokens for thought in thoughts)
        return thoughts

    def _noise(self, row: Row) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, int(row.name)))
        return torch.rand(self.config.thinking_tokens, generator=generator)

    def _prompt(self, row: Row, thinking: bool) -> list[int]:
        """Messages through the chat template, up to where the answer begins."""
        try:
            text = self.tokenizer.apply_chat_template(
                list(row.messages), tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        except (TemplateError, ValueError) as error:
            raise ConfigError(
                f"the chat template of {self.folder} does not write row {row.name}: {error}. Give another one: "
                f"chat_template=FILE."
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _requests(self, prompts: Sequence[list[int]]) -> Requests:
        tokens, mask = left_padded([torch.tensor(prompt, dtype=torch.int64) for prompt in prompts], 0)
        device = self.policy.device
        return Requests(tokens.to(device), mask.to(device), torch.full((len(prompts), 1), -1, device=device))

    def _check_length(self, prompts: Sequence[list[int]]) -> None:
        thoughts = self.config.thinking_tokens + 2 if self.config.thinking != "off" else 0
        longest = max(map(len, prompts)) + thoughts + 1 + len(LEVELS)
        limit = self.policy.positions
        if limit is not None and longest > limit:
            raise ConfigError(
                f"the longest prompt and its generation have {longest:,} tokens, more than the {limit:,} positions of "
                f"the model in {self.folder}. Lower thinking_tokens, or give a model with more positions."
            )

    def _token(self, text: str) -> int:
        """The one token of a text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"the tokenizer of {self.folder} has no token for {text}, which the protocol of RecIF-Bench needs. "
                f"Give a checkpoint that was trained on it."
            )
        return int(ids[0])

    def _ends(self) -> Tensor:
        """Tokens that end a thought: `</think>`, and those that end a message."""
        known = getattr(self.policy.model.generation_config, "eos_token_id", None)
        listed = known if isinstance(known, list) else [known]
        ends = {index for index in (self.closing, self.tokenizer.eos_token_id, *listed) if index is not None}
        return torch.tensor(sorted(ends), device=self.policy.device)


def merge(plain: Sequence[str], thoughtful: Sequence[str], count: int) -> list[str]:
    """The first halves of two lists in turn, the one without thinking first; a text in both takes two places.

    Example:
        >>> merge(["a", "b", "c"], ["x", "a", "z"], 4)
        ['a', 'x', 'b', 'a']
    """
    return list(chain.from_iterable(zip(plain, thoughtful, strict=False)))[:count]


def nucleus(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities of the tokens that may be drawn, [n, V] -> [n, k] falling, and which tokens they are, [n, k].

    First the k likeliest, then of these the fewest that together have at least `top_p` of their probability, as in the
    engine that the evaluator runs.

    Example:
        >>> kept, tokens = nucleus(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), 1.0, 3, 0.6)
        >>> kept.mul(1000).round().tolist(), tokens.tolist()
        ([[625.0, 375.0, 0.0]], [[0, 1, 2]])
    """
    values, tokens = (logits / temperature).topk(min(top_k, logits.shape[-1]), dim=-1)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    return kept / kept.sum(-1, keepdim=True), tokens


@torch.no_grad()
def sample_thoughts(
    policy: Policy, requests: Requests, noise: Tensor, ends: Tensor, config: DecodingConfig
) -> list[Trace]:
    """One text behind each request, up to one of the tokens `ends` [E] or as long as the noise [P, T]."""

    def draw(place: int, said: Next) -> Tensor:
        kept, tokens = nucleus(said.logits(None), config.temperature, config.top_k, config.top_p)
        return tokens.gather(1, invert(kept, noise[:, place : place + 1]))[:, 0]

    growth = policy.grow(requests, 1, noise.shape[1] - 1, "vocab", apart=True)
    drawn = growth.begin(partial(draw, 0))
    going, columns = ~torch.isin(drawn, ends), [drawn.masked_fill(torch.isin(drawn, ends), -1)]
    for place in range(1, noise.shape[1]):
        if not bool(going.any()):
            break
        drawn = growth.extend(drawn[:, None], partial(draw, place), live=going[:, None])
        going = going & ~torch.isin(drawn, ends)
        columns.append(drawn.masked_fill(~going, -1))
    return [tuple(token for token in row if token >= 0) for row in torch.stack(columns, dim=1).tolist()]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={name!r} cannot be used: {reason}. Leave it at auto, or name cpu or cuda."
        ) from error


def _template(path: Path) -> str:
    try:
        return read_text(path, "chat_template")
    except DataError as error:
        raise ConfigError(f"{error} Give a Jinja file.") from error
