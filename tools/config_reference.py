"""Write docs/configuration.md from the docstrings in genrl/config/schema.py: `python tools/config_reference.py`."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "genrl/config/schema.py"
TARGET = "docs/configuration.md"
BAR = r"\|"
LITERAL = re.compile(r"Literal\[([^]]*)\]")
HEAD = """\
# Configuration

<!-- Written by tools/config_reference.py from genrl/config/schema.py; do not edit. -->

Every option with its type and default. Set one on the command line as `key=value` (`rl.max_steps=100`), or in a YAML
file given with `--config` (nested: `rl: {max_steps: 100}`).

Later wins: defaults, the files that a file names under `include:` (relative to itself), the file, further `--config`
files, flags (`--objective`, `--baseline`, `--layout`, `--stage`, `--seed`, `--experiment`, `--output`), `key=value`.
Naming another objective, layout, baseline or SID builder drops the options of the one before. `${oc.env:NAME}` is the
value of an environment variable, `${seed}` that of another option. Text stays as it is written: `001` and `no` need no
quotes. All mistakes are reported together, with file and line, before anything is built; a run folder holds the
complete configuration as `config.yaml`, which `--config` accepts.

The sections `sid`, `objective`, `layout`, `baseline` and `rewards` hold components; their options are described on the
pages of the [documentation](index.md), not here.
"""


@dataclass(frozen=True)
class Field:
    """One option as it stands in the schema."""

    name: str
    type: str
    default: str
    meaning: str


def main() -> int:
    """Write the page."""
    page = ROOT / TARGET
    page.write_text(render(ROOT), encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


def render(root: Path) -> str:
    """The page as Markdown: one table per section, in the order of `RunConfig`.

    Raises:
        ValueError: if an option has no docstring.
    """
    schema = ast.parse((root / SOURCE).read_text(encoding="utf-8"))
    classes = {node.name: node for node in schema.body if isinstance(node, ast.ClassDef)}
    return "\n".join([HEAD, *_section(classes, "RunConfig", "")]).rstrip() + "\n"


def _section(classes: dict[str, ast.ClassDef], name: str, prefix: str) -> Iterator[str]:
    fields = list(_fields(classes, name))
    yield f"## {prefix.rstrip('.') or 'The run'}\n"
    if prefix:
        yield (ast.get_docstring(classes[name]) or "") + "\n"
    yield "| option | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in fields:
        if field.type not in classes:
            default = f"`{field.default}`" if field.default else ""
            cells = (f"`{prefix}{field.name}`", f"`{field.type}`", default, field.meaning)
            yield f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
    yield ""
    for field in fields:
        if field.type in classes:
            yield from _section(classes, field.type, f"{prefix}{field.name}.")


def _fields(classes: dict[str, ast.ClassDef], name: str) -> Iterator[Field]:
    """Options of a class in the order of the dataclass; a new default keeps the meaning it had in the base."""
    node = classes[name]
    found = {field.name: field for base in node.bases for field in _fields(classes, ast.unparse(base))}
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        option = statement.target.id
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            meaning = " ".join(text.value.split())
        elif option in found:
            meaning = found[option].meaning
        else:
            raise ValueError(f"{SOURCE}:{statement.lineno}: {option} has no docstring below it.")
        kind = ast.unparse(statement.annotation)
        kind = LITERAL.sub(lambda match: match[1].replace("'", "").replace(", ", " | "), kind)
        value = statement.value
        if isinstance(value, ast.Call):  # option(default, bounds ..), or field(default_factory=..) of a group
            value = value.args[0] if value.args else None
        found[option] = Field(option, kind, _yaml(value) if value is not None else "", meaning)
    yield from found.values()


def _yaml(value: ast.expr) -> str:
    """A literal as flow YAML.

    Example:
        >>> _yaml(ast.parse("{'name': ['sapo', None, True]}").body[0].value)
        '{name: [sapo, null, true]}'
    """
    if isinstance(value, ast.List):
        return f"[{', '.join(map(_yaml, value.elts))}]"
    if isinstance(value, ast.Dict):
        pairs = (f"{_yaml(key)}: {_yaml(item)}" for key, item in zip(value.keys, value.values, strict=True) if key)
        return f"{{{', '.join(pairs)}}}"
    literal = ast.literal_eval(value)
    if literal is None or isinstance(literal, bool):
        return json.dumps(literal)
    return str(literal) or '""'


if __name__ == "__main__":
    sys.exit(main())
