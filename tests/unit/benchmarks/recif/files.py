"""Small files of RecIF-Bench, and the sample of real ones."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from genrl.benchmarks.recif.sids import number_of, sid_text

SAMPLE = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "recif_bench_ad_sample"
"""100 real rows with 32 generations each, and 1,000 with 10, beside the repository where there are any."""
sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="real rows, shared/data/recif_bench_ad_sample, are not there")


def sid(a, b, c):
    return sid_text(number_of((a, b, c)))


def chat(user="喜欢什么？", parts=False):
    """Messages as the files hold them: JSON, contents as text or in parts."""
    contents = ("你是推荐专家。", user)
    made = [[{"type": "text", "text": text}] for text in contents] if parts else list(contents)
    return json.dumps([{"role": role, "content": text} for role, text in zip(("system", "user"), made, strict=True)])


def write_rows(folder, task="ad", answers=(), messages=None, metadata=None, **columns):
    """TASK/TASK_test.parquet with answers (text, ids); metadata and messages may be given as they are."""
    metadata = metadata or [json.dumps({"uid": 7, "answer": text, "answer_pid": ids}) for text, ids in answers]
    messages = messages or [chat() for _ in metadata]
    path = folder / task / f"{task}_test.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"messages": messages, "metadata": metadata, **columns}), path)
    return path


def write_map(folder, entries, name="sid2pid.json", id_name="pid"):
    """A map of (a, b, c) -> [(id, count after down-sampling), ..]."""
    listed = {
        str(number_of(codes)): [{id_name: item, "count": 9, "count_after_downsample": count} for item, count in items]
        for codes, items in entries.items()
    }
    (folder / name).write_text(json.dumps(listed))
    return folder / name


def write_samples(path, task, samples):
    """A file of generations, samples as name -> (generations, answer, metadata)."""
    made = {
        str(name): {"generations": texts, "ground_truth": answer, "metadata": about}
        for name, (texts, answer, about) in samples.items()
    }
    path.write_text(json.dumps({"task_name": task, "split": "test", "samples": made}))
    return path
