"""Hands genrl broken and hostile inputs: each must end in success or in one of its own errors, nothing left behind.

`python tools/fuzz.py --examples 20000` shares the examples out over the kinds and prints what became of each kind when
it is through, so that what is ended early has told what it knows; it exits with 1 if any ended otherwise. The same
examples come every time.
"""

import argparse
import gzip
import json
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from genrl.catalog import load_dataset
from genrl.cli.configuration import REGISTRIES
from genrl.cli.recommend import read_histories
from genrl.compare.finished import Finished
from genrl.config import dotted_keys, load_config
from genrl.config.schema import ColumnsConfig, DataConfig, ToyConfig
from genrl.errors import GenRLError
from genrl.files import read_json
from genrl.manifest import seal
from genrl.progress import Display
from genrl.prompts.slates import read_slates
from genrl.prompts.traces import read_traces, trace_positions
from genrl.runs.fit import fit
from genrl.runs.recommend import answer, load_recommender
from genrl.runs.verify import verify
from genrl.sid import build_sid_table
from genrl.sid.embedding_files import read_embeddings
from genrl.sid.table import SidTable, _digest
from genrl.sid.trie import Trie
from genrl.training.checkpoints import latest

SECONDS = 30
"""After which an example counts as one that hangs."""
ODD_TEXTS = ["", " ", "0", "-1", "1e400", "nan", ".inf", "9" * 30, "9" * 5000, "true", "null", "~", "[1, 2]", "{a: 1}"]
ODD_TEXTS += [
    "[" * 50,
    "../x",
    "/",
    "a\x00b",
    "\ud800",
    "\u202e",
    "é",
    "x" * 300,
    "${seed}",
    "${oc.env:NONE}",
    "*",
    "&a",
]
ODD_TEXTS += ["!!python/object:os.system", "2020-13-45", "12:30:45", "cpu", "sapo", "tiny", "i1", "u1", '"', "'", "a,b"]
ODD_VALUES: list[Any] = [None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan")]
ODD_VALUES += [float("inf"), [], {}, [[]], {"a": {}}, [None], *ODD_TEXTS]
ODD = st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    ODD, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4), part, max_size=3)
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "double", "end"]), st.floats(0, 1), st.binary(max_size=6)),
    max_size=3,
)
Edits = list[tuple[str, float, bytes]]
Target = Callable[[Path, Any], object]


def edited(content: bytes, edits: Edits) -> bytes:
    """Bytes with some of them flipped, cut out, inserted or doubled, or the end cut off."""
    for kind, place, more in edits:
        at = int(place * len(content))
        head, tail = content[:at], content[at:]
        content = {
            "flip": head + bytes([tail[0] ^ (1 << len(more))] if tail else b"") + tail[1:],
            "cut": head + tail[1 + 3 * len(more) :],
            "insert": head + more + tail,
            "double": head + tail[:40] + tail,
            "end": head,
        }[kind]
    return content


def as_json(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """JSON of a value, whose integers may be longer than Python writes."""
    try:
        return json.dumps(value)
    except ValueError:
        return "9" * 5000


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind."""

    name: str
    inputs: st.SearchStrategy[Any]
    target: Target
    """Writes an input into an empty folder and has genrl read it."""
    share: float
    """Of the examples."""


@dataclass
class Count:
    """What became of the inputs of a kind."""

    tried: int = 0
    passed: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Fault -> the input that showed it first."""


# configurations

OPTIONS = st.dictionaries(
    st.sampled_from([*dotted_keys(), "sid.codes", "objective.kl_coef", "rewards.exact_match", "trainer.extra.max_time"])
    | st.text(max_size=9),
    ODD,
    max_size=4,
)


def read_configuration(folder: Path, given_: tuple[dict[str, Any], list[str], Edits]) -> None:
    """Options as a YAML file and as overrides of the command line."""
    options, overrides, edits = given_
    lines = []
    for key, value in options.items():
        *groups, name = key.split(".")
        lines += [f"{'  ' * depth}{group}:" for depth, group in enumerate(groups)]
        lines.append(f"{'  ' * len(groups)}{name}: {value if isinstance(value, str) else as_json(value)}")
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / "config.yaml").write_bytes(edited(text, edits))
    load_config([folder / "config.yaml"], None, overrides, REGISTRIES, imports=False)


def _overrides(pair: tuple[str, Any]) -> str:
    return f"{pair[0]}={pair[1] if isinstance(pair[1], str) else as_json(pair[1])}"


# interactions

ROWS = st.lists(st.tuples(*[ODD | st.sampled_from(["u1", "i1", "i2", 3])] * 3), max_size=4)
FORMS = st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "inter"])
TYPES = [
    pa.string(),
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.time32("s"),
    pa.date32(),
    pa.duration("us"),
]
TYPES += [pa.binary(), pa.bool_(), pa.list_(pa.int64()), pa.decimal128(9, 2), pa.timestamp("ns", "UTC"), pa.null()]
NAMES = ("user_id", "item_id", "timestamp")


def _plain(form: str) -> list[tuple[Any, ...]]:
    return [(f"u{user}", f"i{(user * 7 + time * 3) % 12}", time) for user in range(8) for time in range(5)]


def read_interactions(folder: Path, given_: tuple[str, list[Any], int, pa.DataType, Edits]) -> None:
    """A file of good rows with some odd ones, in some form, with some bytes changed."""
    form, odd, column, kind, edits = given_
    rows, path = [*_plain(form), *odd], folder / f"log.{form}"
    if form == "parquet":
        columns: dict[str, Any] = {name: [row[at] for row in _plain(form)] for at, name in enumerate(NAMES)}
        try:
            columns[NAMES[column]] = pa.array(range(len(_plain(form)))).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # integers become none of these, but nulls do
            columns[NAMES[column]] = pa.nulls(len(_plain(form)), kind)
        pq.write_table(pa.table(columns), path)
    elif form == "jsonl":
        lines = [as_json(dict(zip(NAMES, row, strict=True))) for row in _plain(form)] + [as_json(row) for row in odd]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    else:
        mark = "," if form.startswith("csv") else "\t"
        cells = [mark.join(cell if isinstance(cell, str) else as_json(cell) for cell in row) for row in (NAMES, *rows)]
        content = "\n".join(cells).encode("utf-8", "surrogatepass")
        path.write_bytes(gzip.compress(content, mtime=0) if form.endswith("gz") else content)
    path.write_bytes(edited(path.read_bytes(), edits))
    load_dataset(DataConfig(source="files", interactions=str(path), columns=ColumnsConfig(title=None, category=None)))


# tables of Semantic IDs, published ones and embeddings

DATASET = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=20, items=48)))
TABLE = build_sid_table({"name": "kmeans", "levels": 2, "codes": 8}, DATASET)
IDS = DATASET.catalog.item_ids


def read_sids(folder: Path, given_: tuple[str, Any, Any, int, Edits]) -> None:
    """A table signed with odd sizes, codes or facts; a published index; embeddings; with some bytes changed."""
    form, sizes, odd, factor, edits = given_
    path = folder / f"given.{form.split('-')[0]}"
    if form == "safetensors-table":
        TABLE.save(path)
        codes = TABLE.codes * factor
        about = {"format": "genrl-sid-table-2", "catalog": DATASET.catalog.fingerprint}
        about |= {"codebook_sizes": as_json(sizes), "report": as_json(odd)}
        if factor == 1:
            about["report"] = json.dumps({**TABLE.report.__dict__})
        about["sha256"] = _digest(about, codes)
        path.write_bytes(edited(save({"codes": codes}, metadata=about), edits))
        table = SidTable.load(path, DATASET.catalog)
        Trie.build(table.codes, table.codebook_sizes)
    elif form == "json":
        index: dict[str, Any] = {name: [f"a_{row}", f"b_{row % 5}"] for row, name in enumerate(IDS)}
        index[IDS[0]] = sizes
        path.write_bytes(edited(as_json(index if factor else odd).encode("utf-8", "surrogatepass"), edits))
        build_sid_table({"name": "import", "path": str(path)}, DATASET)
    else:
        matrix = np.arange(2 * len(IDS), dtype=np.float32).reshape(-1, 2)
        if form == "npy":
            np.save(path, matrix)
        elif form == "parquet":
            pq.write_table(pa.table({"id": list(IDS), "vector": list(matrix)}), path)
        else:
            save_file({"a": torch.from_numpy(matrix)}, path)
        path.write_bytes(edited(path.read_bytes(), edits))
        read_embeddings(str(path), DATASET.catalog)


# traces, slates, histories

PLACE = trace_positions(DATASET)[:1]
USER = DATASET.sequences.user_ids[int(DATASET.sequences.users(PLACE))]
ITEM = IDS[int(DATASET.sequences.items[PLACE])]


def read_lines(folder: Path, given_: tuple[list[dict[str, Any]], Any, Edits]) -> None:
    """Lines of a file that is read as traces, as slates and as histories; one of them must not hide another's fault."""
    records, odd, edits = given_
    good = {"user": USER, "item": ITEM, "blocks": ["it is red", "and new"], "items": list(IDS[:3])}
    lines = "\n".join(
        [as_json(good), *(as_json({**good, **record}) for record in records), *([] if odd is None else [as_json(odd)])]
    )
    path = folder / "given.jsonl"
    path.write_bytes(edited(lines.encode("utf-8", "surrogatepass"), edits))
    refused = []
    for read in (
        lambda: read_traces(path, DATASET, 2),
        lambda: read_slates(path, DATASET, 3),
        lambda: read_histories(None, path),
    ):
        try:
            read()
        except GenRLError as error:
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]


# run folders

RUNS: list[Path] = []
FILES = "config.yaml metrics.json manifest.json inputs.json catalog.json catalog.safetensors sids.safetensors "
FILES += "weights.safetensors ranks.safetensors versions.json history.jsonl samples.jsonl "
FILES += "resume-00000001-0123456789abcdef.ckpt"


def make_run(folder: Path) -> None:
    """A small finished run, whose copies are damaged."""
    words = ["data.toy.world=toy", "data.toy.users=20", "data.toy.items=48", "sid.codes=8", "baseline=most_popular"]
    words += ["stages=[baseline]", f"output={folder}", "trainer.accelerator=cpu"]
    RUNS[:] = [fit(load_config(overrides=words, registries=REGISTRIES))]


def read_run(folder: Path, given_: tuple[str, Edits, str, Any, bool]) -> None:
    """A copy of a finished run with a file changed, or a value of its metrics, and maybe sealed again."""
    name, edits, key, odd, sealed = given_
    run = folder / RUNS[0].name
    shutil.copytree(RUNS[0], run)
    path = run / name
    path.write_bytes(edited(path.read_bytes() if path.exists() else b'{"step": 1}\n', edits))
    if sealed:
        metrics = read_json(RUNS[0] / "metrics.json")
        seal(run, {**metrics, key: odd} if key else metrics)
    refused = None
    for use in (lambda: _asked(run), lambda: verify(run), lambda: Finished.read(run), lambda: latest(run)):
        try:
            use()
        except GenRLError as error:
            refused = error
    if refused is not None:
        raise refused


def _asked(run: Path) -> None:
    _, recommender = load_recommender(run)
    answer(recommender, [[recommender.problem.dataset.catalog.item_ids[0]]], 5)


FIELDS = ["user", "item", "blocks", "text", "items", "history"]
KINDS = (
    Kind(
        "configurations",
        st.tuples(
            OPTIONS, st.lists(st.tuples(st.sampled_from([*dotted_keys()]), ODD).map(_overrides), max_size=2), EDITS
        ),
        read_configuration,
        0.2,
    ),
    Kind(
        "interactions",
        st.tuples(FORMS, ROWS, st.integers(0, 2), st.sampled_from(TYPES), EDITS),
        read_interactions,
        0.25,
    ),
    Kind(
        "Semantic IDs",
        st.tuples(
            st.sampled_from(["safetensors-table", "safetensors-table", "json", "npy", "parquet", "safetensors"]),
            st.lists(ODD | st.just(8), max_size=3) | JSON,
            JSON,
            st.sampled_from([1, 1, 0, -1, 10**12]),
            EDITS,
        ),
        read_sids,
        0.25,
    ),
    Kind(
        "traces",
        st.tuples(
            st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2), max_size=2), st.none() | JSON, EDITS
        ),
        read_lines,
        0.25,
    ),
    Kind(
        "run folders",
        st.tuples(
            st.sampled_from(FILES.split()),
            EDITS,
            st.sampled_from(
                [
                    "",
                    "",
                    *["name", "seed", "data", "sid", "test", "valid", "stages", "command", "experiment", "baseline"],
                ]
            ),
            JSON,
            st.booleans(),
        ),
        read_run,
        0.05,
    ),
)


@contextmanager
def in_time() -> Iterator[None]:
    """End what hangs."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, value: Any, folder: Path, count: Count) -> None:  # noqa: ANN401
    """Try one input and count what became of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    count.tried += 1
    try:
        with warnings.catch_warnings(), in_time():
            warnings.simplefilter("ignore")
            kind.target(folder, value)
        count.passed += 1
    except GenRLError as error:
        count.refused += 1
        left = [path.name for path in folder.rglob(".[0-9]*")] if str(error) else ["no message"]
        if left:
            count.faults[f"left behind: {left[0]}"] += 1
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/genrl/" in frame.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "tools/fuzz.py"
        name = f"{type(error).__name__} at {where}"
        count.faults[name] += 1
        count.first.setdefault(name, f"{str(error)[:200]!r} of {value!r}"[:900])


def fuzz(
    examples: int, folder: Path, tell: Callable[[str, int], None] = lambda name, done: None
) -> Iterator[tuple[str, Count]]:
    """Try inputs of all kinds, always the same ones, and yield what became of each kind."""
    make_run(folder / "made")
    for kind in KINDS:
        count = Count()
        _try_all(kind, max(1, round(kind.share * examples)), folder / "input", count, tell)
        yield kind.name, count


def _try_all(kind: Kind, examples: int, folder: Path, count: Count, tell: Callable[[str, int], None]) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs)
    def one(value: Any) -> None:  # noqa: ANN401
        outcome(kind, value, folder, count)
        tell(kind.name, count.tried)

    one()


def main() -> int:
    """Try, and print the table of docs/reliability.md; 1 if there was any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, metavar="N", help="inputs in all (default: 2000)")
    examples = parser.parse_args().examples
    with tempfile.TemporaryDirectory() as folder, Display() as display:
        task = display.add("inputs", examples, "inputs")
        done = dict.fromkeys((kind.name for kind in KINDS), 0)

        def tell(name: str, count: int) -> None:
            done[name] = count
            display.move(task, sum(done.values()), name=name)

        tried = failed = 0
        for name, count in fuzz(examples, Path(folder), tell):
            faults = sum(count.faults.values())
            if not tried:
                print("| inputs | tried | success | refused | faults |\n|---|---|---|---|---|")
            print(f"| {name} | {count.tried:,} | {count.passed:,} | {count.refused:,} | {faults:,} |", flush=True)
            tried, failed = tried + count.tried, failed + faults
            for fault, times in count.faults.most_common():
                print(f"{name}: {times} x {fault}: {count.first.get(fault, '')}", file=sys.stderr, flush=True)
        print(f"| in all | {tried:,} | | | {failed:,} |")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
