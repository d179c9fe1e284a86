"""Name -> component tables for the few things a user chooses by name."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.abc import SourceLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from genrl.errors import ComponentError, ConfigError, UnknownComponentError, suggest
from genrl.foreign import calling, described
from genrl.options import bounds, fill, node_of, out_of_bounds, plain

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered component: how it is called, configured and built."""

    name: str
    factory: Callable[..., T]
    config: type | None
    title: str
    paper: str
    origin: str
    advice: Mapping[str, Any]


class Registry(Generic[T]):
    """Components of one kind, by name.

    Three doors lead in: the `register` decorator, an installed entry point of the group, and (for objects made in
    Python) no registry at all. Entry points are listed without importing them and loaded when asked for.

    Args:
        kind: what one entry is, in the singular ("objective"), for messages.
        group: entry-point group of installed plug-ins, e.g. "genrl.objectives".
        of: what every factory returns; None: nothing is checked but that it returns something.
    """

    def __init__(self, kind: str, group: str, of: type[T] | None = None) -> None:
        self.kind = kind
        self.group = group
        self.of = of
        self._entries: dict[str, Entry[T]] = {}
        self._aliases: dict[str, str] = {}

    def register(
        self,
        name: str,
        *,
        config: type | None = None,
        aliases: tuple[str, ...] = (),
        title: str = "",
        paper: str = "",
        advice: Mapping[str, Any] | None = None,
    ) -> Callable[[Factory], Factory]:
        """Register a class or factory under `name`; it is called as `factory(config)` (or `factory()` without config).

        Args:
            name: what users write in the configuration.
            config: dataclass of the options; by default the `Config` attribute of a class, if it has one.
            aliases: further names for the same entry.
            title: full name, shown by `genrl list` and at the start of a run.
            paper: arXiv id or other source, shown with the title.
            advice: dotted options of other sections -> the values to take where a configuration gives none of them.

        Raises:
            ConfigError: if the name is taken by another object.
        """

        def decorate(factory: Factory) -> Factory:
            options = config if config is not None else getattr(factory, "Config", None)
            origin = f"{factory.__module__}:{factory.__qualname__}"
            entry = Entry(name, factory, options, title or name, paper, origin, advice or {})
            for key in (name, *aliases):
                taken = self._entries.get(self._aliases.get(key, key))
                if taken is not None and taken.origin != origin:
                    raise ConfigError(
                        f"{self.kind} {key!r} is registered twice: by {taken.origin} and by {origin}. "
                        "Rename one of them."
                    )
            self._entries[name] = entry
            self._aliases.update(dict.fromkeys(aliases, name))
            return factory

        return decorate

    def names(self) -> tuple[str, ...]:
        """Names of everything that can be asked for, built in or installed, without importing plug-ins."""
        return tuple(sorted({*self._entries, *self._installed()}))

    def aliases(self, name: str) -> tuple[str, ...]:
        """Further names of the entry `name`."""
        return tuple(sorted(alias for alias, target in self._aliases.items() if target == name))

    def entry(self, name: str) -> Entry[T]:
        """Return the entry called `name` (or an alias of it), loading an installed plug-in if need be.

        Raises:
            UnknownComponentError: with the closest known name and all known names.
            ConfigError: if the entry point of that name cannot be imported.
        """
        key = self._aliases.get(name, name)
        if key not in self._entries:
            installed = self._installed().get(key)
            if installed is None:
                known = [*self.names(), *self._aliases]
                raise UnknownComponentError(
                    f"unknown {self.kind} {name!r}.{suggest(name, known)} Known: {', '.join(self.names())}."
                )
            self._load(key, installed)
        return self._entries[key]

    def build(self, name: str, options: object = None, **context: object) -> T:
        """Build the component `name` from `options`: a mapping, an instance of its config dataclass, or nothing.

        Raises:
            ComponentError: if its factory raises, or returns something else than a component of this kind.
        """
        entry = self.entry(name)
        if entry.config is None and options:
            raise ConfigError(f"{self.kind} {name!r} takes no options, got {options!r}.")
        given = [] if entry.config is None else [self.options(name, options)]
        with calling(f"{self.kind} {name!r}", entry.factory):
            made = entry.factory(*given, **context)
        if made is None or not isinstance(made, self.of or object):
            what = "something" if self.of is None else f"{self.of.__module__}.{self.of.__qualname__}"
            raise ComponentError(
                f"{self.kind} {name!r}: {entry.origin} must return {what}; it returned {described(made)}."
            )
        return made

    def options(self, name: str, options: object = None) -> Any:  # noqa: ANN401 (the entry's own dataclass)
        """Return the config dataclass of `name` filled with `options`, or raise a ConfigError with all `problems`."""
        entry = self.entry(name)
        if entry.config is None:
            return options
        values = vars(options) if isinstance(options, entry.config) else dict(options or {})  # type: ignore[call-overload]
        found = [reason for _, reason in self.problems(name, values)]
        if found:
            raise ConfigError(" ".join(found))
        if isinstance(options, entry.config):
            return options
        try:
            return OmegaConf.to_object(OmegaConf.merge(node_of(entry.config), values))
        except (TypeError, ValueError) as error:  # the dataclass checks its values when it is made
            raise ConfigError(f"{self.kind} {name!r}: {error}") from error

    def problems(self, name: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return (option, what is wrong with it) for everything that keeps `options` from fitting the entry `name`."""
        config = self.entry(name).config

        def unknown(key: str, names: Sequence[str]) -> str:
            listed = f"Options: {', '.join(names)}." if names else "It takes no options."
            entries = sorted(self._entries.items())
            others = [other for other, entry in entries if key in getattr(entry.config, "__dataclass_fields__", ())]
            hint = suggest(key.rpartition(".")[2], names) or (f" It belongs to {', '.join(others)}." if others else "")
            return f"has no option {key!r}.{hint} {listed}"

        if config is None or not is_dataclass(config):
            return [(key, f"{self.kind} {name!r} {unknown(key, ())}") for key in options]
        node = node_of(config)
        found = []
        for key, value, reason in fill(node, config, options, unknown):
            place = "" if reason.startswith("has no option") else f", option {key!r}: {value!r}"
            found.append((key, f"{self.kind} {name!r}{place} {reason}"))
        wrong = {key for key, _ in found}
        missing = OmegaConf.missing_keys(node) - wrong
        values: Any = OmegaConf.to_container(node)
        for key, reason in out_of_bounds(config, values):
            if key not in wrong | missing:
                found.append((key, f"{self.kind} {name!r}, option {key!r}: {plain(node, key)!r} {reason}."))
        for key in sorted(missing):
            what = bounds(config, key).get("says")
            found.append((key, f"{self.kind} {name!r} needs the option {key!r}{f': {what}' if what else ''}."))
        return found

    def broken(self) -> dict[str, str]:
        """Installed plug-ins that do not import, with the reason; for `genrl list`."""
        reasons = {}
        for name, point in self._installed().items():
            try:
                self._load(name, point)
            except ConfigError as error:
                reasons[name] = str(error.__cause__ or error)
        return reasons

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self._entries}

    def _load(self, name: str, point: EntryPoint) -> None:
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self.kind} {name!r} from {point.value!r} does not import: {type(error).__name__}: {error}. "
                f"Mend or uninstall the package."
            ) from error
        if name not in self._entries:  # the module may have used the decorator under the same name itself
            self.register(name)(loaded)


_known: dict[str, list[str]] = {}
"""Plug-in module -> SHA-256 of each content that was imported under its name, the latest last; of installed ones ""."""


def imported(reference: str, digest: str | None, *, latest: bool = False) -> bool:
    """Whether this process has imported a plug-in already.

    Args:
        reference: a dotted name, or a path whose last part counts.
        digest: SHA-256 of the file; None stands for any content.
        latest: what was imported last under this name must be it.
    """
    if not reference.endswith(".py"):
        return reference in _known
    found = _known.get(_module(reference), [])
    return bool(found) if digest is None else digest in (found[-1:] if latest else found)


def _module(reference: str) -> str:
    """Name of the module that a plug-in file becomes."""
    return f"genrl_plugin_{Path(reference).stem}"


class _Source(SourceLoader):
    """Imports text that was read once; byte code that lies beside its file is neither read nor written."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: str) -> bytes:
        return self.content


def load_plugin(reference: str) -> None:
    """Import a user's module by dotted name, or a Python file by path; a ConfigError if that is not possible."""
    try:
        if not reference.endswith(".py"):
            importlib.import_module(reference)
            _known[reference] = [""]
            return
        path = Path(reference).expanduser()
        if not path.is_file():
            raise ConfigError(f"plugin {reference!r}: no such file. Give a path to a .py file or an importable module.")
        name, content = _module(reference), path.read_bytes()
        loader = _Source(path, content)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader.exec_module(module)
        digest = hashlib.sha256(content).hexdigest()
        _known[name] = [*(each for each in _known.get(name, []) if each != digest), digest]
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in that ends the process has not done what was asked
        raise ConfigError(f"plugin {reference!r} does not import: {type(error).__name__}: {error}") from error
