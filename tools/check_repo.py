"""Rules of this repository that no linter knows; `python tools/check_repo.py` prints every breach and exits 1 if any.

Needs no torch: sources are read with `ast`, not imported. The same checks run as tests (tests/repo).
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    **dict.fromkeys(("errors", "options", "registry", "batches", "files", "manifest", "ops", "plots"), 0),
    **dict.fromkeys(("progress", "stopping", "terminal"), 0),
    "config": 1,
    **dict.fromkeys(("objectives", "metrics", "catalog", "sid"), 2),
    **dict.fromkeys(("layouts", "rewards"), 3),
    **dict.fromkeys(("prompts", "policy"), 4),
    **dict.fromkeys(("recommenders", "benchmarks"), 5),
    "training": 6,
    "runs": 7,
    **dict.fromkeys(("compare", "selftest"), 8),
    "cli": 9,
    **dict.fromkeys(("python", "__main__"), 10),
}
"""Room of the package -> floor; a module imports from floors below its own."""
SIBLINGS = {("batches", "ops"), ("registry", "options"), ("plots", "files"), ("manifest", "files"), ("sid", "catalog")}
SIBLINGS |= {(part, "errors") for part in ("files", "manifest", "ops", "options", "registry", "stopping")}
SIBLINGS |= {(part, "terminal") for part in ("files", "progress")}
"""Imports on one floor that are allowed: SIDs are fitted on a catalogue, and the basics know each other."""
TORCH_FREE = ("errors", "options", "registry", "stopping", "terminal", "config", "cli", "__main__")
"""Parts that answer (help, misspelt options) before torch is loaded."""
HEAVY = {"torch", "lightning", "transformers", "peft", "datasets", "sklearn", "torchmetrics", "matplotlib"}
UNTESTED = {
    "recommenders/bundle.py": "tests/unit/runs/test_recommend.py loads finished runs from it alone",
    "training/baseline.py": "tests/unit/runs/test_stage.py trains, resumes and scores every baseline",
    "config/schema.py": "only data; tests/repo checks that each field is documented and every example file fits",
}
"""Modules without tests of their own, and why."""
REGISTRIES = {"OBJECTIVES", "LAYOUTS", "REWARDS", "SID_BUILDERS", "BASELINES", "BENCHMARKS"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|tmp|work|Users)/\w")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ""}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def main() -> int:
    """Run all checks; 1 if something is wrong."""
    found = [problem for check in CHECKS for problem in check(ROOT)]
    for problem in found:
        print(problem)
    print(f"check_repo: {len(found)} problem(s)" if found else "check_repo: in order")
    return 1 if found else 0


def floors(root: Path) -> Iterator[str]:
    """A module imports only from floors below, also inside functions; basics stay free of torch."""
    for path, tree in _modules(root):
        part = path.relative_to(root / "genrl").parts[0].removesuffix(".py")
        if part == "__init__":  # the public names of the package, made lazily
            continue
        if part not in FLOORS:
            yield f"{path.relative_to(root)}: {part!r} has no floor; add it to FLOORS in tools/check_repo.py"
            continue
        for line, module in _imports(tree, path, root):
            head, _, rest = module.partition(".")
            if head in HEAVY and part in TORCH_FREE:
                yield f"{path.relative_to(root)}:{line}: {part} must work without {head}"
            target = rest.partition(".")[0]
            if head != "genrl" or target in ("", part, "__version__") or (part, target) in SIBLINGS:
                continue
            if FLOORS.get(target, 99) >= FLOORS[part]:
                yield f"{path.relative_to(root)}:{line}: {part} (floor {FLOORS[part]}) imports {module}, not below it"


def mirrored_tests(root: Path) -> Iterator[str]:
    """Tests of genrl/a/b.py are in tests/unit/a: a file test_b.py, or one that imports from genrl.a.b.

    Folders of tests are packages, so that file names may recur.
    """
    for folder in sorted({path.parent for path in (root / "tests").rglob("*.py")}):
        if not (folder / "__init__.py").is_file():
            yield f"{folder.relative_to(root)}: has no __init__.py"
    for path, _ in _modules(root):
        inside = path.relative_to(root / "genrl")
        if inside.name in ("__init__.py", "__main__.py") or inside.as_posix() in UNTESTED:
            continue
        folder = root / "tests" / "unit" / inside.parent
        module = ".".join(("genrl", *inside.with_suffix("").parts))
        tests = folder.glob("test_*.py")
        imported = (name for test in tests for _, name in _imports(_parsed(test), test, root))
        if not (folder / f"test_{inside.name}").is_file() and module not in imported:
            yield f"{path.relative_to(root)}: has no tests in {folder.relative_to(root)}"


def one_tolerance(root: Path) -> Iterator[str]:
    """Tests compare with `assert_same` of tests/helpers.py, so that nobody loosens a tolerance in passing."""
    for path, tree in _modules(root, "tests"):
        if path == root / "tests" / "helpers.py":
            continue
        for node in ast.walk(tree):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                if keyword.arg in ("rtol", "atol"):
                    yield f"{path.relative_to(root)}:{keyword.lineno}: own {keyword.arg}; use tests.helpers.assert_same"


def documentation(root: Path) -> Iterator[str]:
    """Links lead somewhere, docs/index.md leads to every page, and every component a user can name is described."""
    pages = sorted((root / "docs").rglob("*.md"))
    for page in [root / "README.md", *pages]:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                yield f"{page.relative_to(root)}: the link to {target} leads nowhere"
    index = root / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))}
    for page in pages:
        if page != index and page.resolve() not in linked:
            yield f"docs/index.md: has no link to {page.relative_to(root)}"
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for name, place in components(root):
        if f"`{name}`" not in text:
            yield f"{place}: {name!r} is registered, but no page in docs/ describes `{name}`"


def fresh(root: Path) -> Iterator[str]:
    """docs/configuration.md is what tools/config_reference.py writes."""
    from config_reference import TARGET, render

    page = root / TARGET
    if not page.is_file() or page.read_text(encoding="utf-8") != render(root):
        yield f"{TARGET}: out of date; run python tools/config_reference.py"


def portable(root: Path) -> Iterator[str]:
    """No file holds a path of one machine."""
    for path in _files(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            if MACHINE_PATH.search(line):
                yield f"{path.relative_to(root)}:{number}: path of one machine: {line.strip()[:80]}"


CHECKS = (floors, mirrored_tests, one_tolerance, documentation, fresh, portable)


def components(root: Path) -> Iterator[tuple[str, str]]:
    """Names (and places) of all built-in components, read from their `@REGISTRY.register("name")` decorators."""
    for path, tree in _modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                registry, _, method = ast.unparse(node.func).partition(".")
                if registry in REGISTRIES and method == "register":
                    yield ast.literal_eval(node.args[0]), f"{path.relative_to(root)}:{node.lineno}"


def _modules(root: Path, folder: str = "genrl") -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((root / folder).rglob("*.py")):
        yield path, _parsed(path)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Absolute names of everything imported, at the top or inside functions."""
    package = path.relative_to(root).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module == "genrl":
                yield from ((node.lineno, f"genrl.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def _files(root: Path) -> Iterator[Path]:
    """Text files that belong to the project (not what runs, tools and editors leave behind)."""
    for folder in ("genrl", "configs", "docs", "tests", "tools", ".ci"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path
    at_root = (path for path in sorted(root.iterdir()) if path.is_file() and path.name != ".git")
    yield from (path for path in at_root if path.suffix in TEXT)


if __name__ == "__main__":
    sys.exit(main())
