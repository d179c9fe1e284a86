"""`list`: components by name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from genrl.cli.configuration import REGISTRIES
from genrl.cli.flags import add_command
from genrl.terminal import safe

if TYPE_CHECKING:
    from genrl.registry import Registry


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    listing = add_command(commands, "list", "components by name, installed plug-ins among them", run, overrides=False)
    kinds = (*REGISTRIES, *(f"{kind}s" for kind in REGISTRIES))
    listing.add_argument("kind", nargs="?", choices=kinds, metavar="KIND", help=", ".join(REGISTRIES))
    listing.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module or .py file to load first"
    )


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    from genrl.registry import load_plugin

    for plugin in options.plugin:
        load_plugin(plugin)
    for kind in REGISTRIES:
        if options.kind not in (None, kind, f"{kind}s"):
            continue
        registry = REGISTRIES[kind]()
        broken = registry.broken()
        print(f"{registry.kind}s")
        for name in registry.names():
            print(safe(f"  {name} (broken: {broken[name]})" if name in broken else f"  {_described(registry, name)}"))


def _described(registry: Registry[Any], name: str) -> str:
    entry = registry.entry(name)
    names = ", ".join([name, *registry.aliases(name)])
    paper = f"arXiv:{entry.paper}" if entry.paper[:4].isdigit() else entry.paper
    return "  ".join([f"{names:<24}", entry.title, *([f"[{paper}]"] if paper else []), f"({entry.origin})"])
