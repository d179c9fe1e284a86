"""Prompts in words: what a user chose, by time and topic, who the user is, and what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, Template, TemplateError
from torch import Tensor
from typing_extensions import override

from genrl.catalog.interactions import read_profiles
from genrl.catalog.items import Catalog
from genrl.config.schema import DataConfig, PromptConfig
from genrl.errors import ConfigError, DataError
from genrl.given import read_text
from genrl.prompts.template import RequestTemplate

BUILT_IN = ("textrec",)
"""Templates that come with genrl; any other name is a file."""


def source_of(name: str) -> str:
    """Text of a template.

    Raises:
        ConfigError: if there is no such template or file.
    """
    if name in BUILT_IN:
        environment = Environment(loader=PackageLoader("genrl.prompts", "templates"))
        assert environment.loader is not None
        return environment.loader.get_source(environment, f"{name}.j2")[0]
    try:
        return read_text(name, "prompt.template")
    except DataError as error:
        raise ConfigError(
            f"prompt.template={name!r} is neither {' nor '.join(map(repr, BUILT_IN))} nor a file that can be read: "
            f"{error} Give the path of a Jinja2 template, or null for prompts of SIDs."
        ) from error


def compiled(name: str) -> Template:
    """A template by its name.

    Raises:
        ConfigError: as `source_of`, or with the line that is no Jinja2.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(source_of(name))
    except TemplateError as error:
        raise ConfigError(f"prompt.template={name!r} is no Jinja2 template: {error}.") from error


@dataclass(frozen=True)
class Writer:
    """Writes the text of a prompt, without tokens."""

    config: PromptConfig
    catalog: Catalog
    names: tuple[str, ...]
    """[I] what items are called in prompts."""
    items: int
    """Items that are asked for."""
    data: DataConfig = field(default_factory=DataConfig)
    """How files of users are read."""

    @cached_property
    def profiles(self) -> Mapping[str, Mapping[str, str]]:
        """User id -> static fields by name; read when the first user is known."""
        path = self.config.profile
        return {} if path is None else read_profiles(path, self.config.fields, self.data)

    @property
    def source(self) -> str:
        """Text of the template."""
        return source_of(str(self.config.template))

    @cached_property
    def template(self) -> Template:
        """The configured one."""
        return compiled(str(self.config.template))

    def write(
        self,
        history: Sequence[int],
        user: str | None = None,
        pool: Sequence[int] = (),
        ages: Sequence[float] | None = None,
    ) -> str:
        """The prompt of a history, oldest first, of a user who may be known, with the candidates.

        Args:
            history: catalogue rows.
            user: id.
            pool: catalogue rows of the candidates.
            ages: days from each item of the history to the latest; needed where windows are days.

        Raises:
            ConfigError: naming what the template asks for and does not get.
        """
        told = {
            "profile": {} if user is None else dict(self.profiles.get(user, {})),
            "windows": self.windows(history, ages),
            "history": [self.item(row) for row in history],
            "candidates": [self.names[row] for row in pool] if self.config.candidates else [],
            "items": self.items,
        }
        try:
            return self.template.render(told).strip()
        except TemplateError as error:
            raise ConfigError(
                f"prompt.template={self.config.template!r} cannot be filled in: {error}. It gets {', '.join(told)}."
            ) from error

    def item(self, row: int) -> dict[str, Any]:
        """What a template may say of an item: name, topic, how often it was chosen in training, and attributes."""
        category = int(self.catalog.categories[row])
        return {
            "name": self.names[row],
            "topic": self.catalog.category_names[category] if category >= 0 else "",
            "chosen": int(self.catalog.train_counts[row]),
            "attributes": {name: values[row] for name, values in self.catalog.attributes.items()},
        }

    def windows(self, history: Sequence[int], ages: Sequence[float] | None = None) -> list[dict[str, Any]]:
        """The history cut into windows, the latest first, in each its topics by falling number of items.

        Windows are counted in interactions, or by the clock: with `window_days` window n holds what was chosen more
        than `since` and at most `until` days before the latest item, and those that hold nothing are left out. Of each
        topic the latest `titles` different names are told; equally frequent topics stand with the later one first.
        """
        latest = list(reversed(history))
        ends: list[float | None] = [None] * (len(self.config.windows) + 1)
        sizes = self.config.windows
        if self.config.window_days is not None:
            if ages is None:
                raise ConfigError(
                    "the prompts of this run tell how many days ago something was chosen (prompt.window_days), and "
                    "here no days are given. Give them: recommend --days, one number for each item of the history."
                )
            ends = [*self.config.window_days, None]
            sizes = [sum(age <= end for age in ages) for end in self.config.window_days]
        cuts = [0, *[min(size, len(latest)) for size in sizes], len(latest)]
        found = []
        for (start, stop), (since, until) in zip(pairwise(cuts), pairwise([None, *ends]), strict=True):
            topics: dict[str, list[str]] = {}
            for row in latest[start:stop]:
                item = self.item(row)
                topics.setdefault(item["topic"], []).append(item["name"])
            told = [
                {"name": name, "count": len(names), "names": list(dict.fromkeys(names))[: self.config.titles]}
                for name, names in sorted(topics.items(), key=lambda pair: -len(pair[1]))
            ]
            if told:
                found.append({"count": stop - start, "topics": told, "since": since, "until": until})
        return found


@dataclass(frozen=True)
class TextTemplate(RequestTemplate):
    """Prompts in words, in the chat format of a tokenizer that has one.

    A prompt that is longer than `prompt.max_tokens` leaves out the oldest items of the history until it fits. It is not
    the beginning of the prompt for the next item, so every completion is learned behind a prompt of its own.
    """

    writer: Writer
    tokenizer: Any

    @override
    def longest(self, items: int) -> int:
        return self.writer.config.max_tokens

    @override
    def check_users(self, users: Sequence[str]) -> None:
        """Refuse a file of profiles that is about other users.

        Raises:
            DataError: if no user has a profile.
        """
        profiles = self.writer.profiles
        if self.writer.config.profile is not None and profiles.keys().isdisjoint(users):
            raise DataError(
                f"prompt.profile={self.writer.config.profile} is about none of the {len(users):,} users: ids are "
                f"{', '.join(map(repr, list(profiles)[:3])) or 'missing'} there and "
                f"{', '.join(map(repr, users[:3]))} in the interactions. Write them alike, or leave prompt.profile out."
            )

    @property
    @override
    def tells_days(self) -> bool:
        return self.writer.config.window_days is not None

    @override
    def ask(self, history: Tensor, user: str | None, pool: Tensor, ages: Tensor | None) -> Tensor:
        days = None if ages is None else ages.tolist()
        return torch.tensor(self._fitting(history.tolist(), user, pool.tolist(), days))

    def tokens_of(self, text: str) -> list[int]:
        """Tokens of the text of a prompt, up to where the completion begins."""
        if self.writer.config.chat == "auto" and getattr(self.tokenizer, "chat_template", None):
            said = [{"role": "user", "content": text}]
            whole = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(whole, add_special_tokens=False)["input_ids"])
        return [*self.head.tolist(), *self.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]]

    def _fitting(
        self, history: list[int], user: str | None, pool: list[int], ages: list[float] | None = None
    ) -> list[int]:
        """The prompt of the most recent items that it has room for."""
        most = self.writer.config.max_tokens
        low, high = -1, len(history)  # low fits (or is not known to), all above high do not
        best: list[int] | None = None
        count = high
        while low < high:
            first = len(history) - count
            days = None if ages is None else ages[first:]
            tokens = self.tokens_of(self.writer.write(history[first:], user, pool, days))
            if len(tokens) <= most:
                best, low = tokens, count
            else:
                high = count - 1
            count = (low + high + 1) // 2
        if best is None:
            raise ConfigError(
                f"a prompt without any history has {len(tokens)} tokens already, and prompt.max_tokens={most}. List "
                f"fewer candidates (data.pool.size, or the file of recommend --only); before training, a "
                f"larger prompt.max_tokens or prompt.candidates=false helps, too."
            )
        return best
