from genrl.benchmarks import BENCHMARKS, registry


def test_benchmarks_are_found_by_name():
    assert registry.BENCHMARKS is BENCHMARKS
    assert "recif" in BENCHMARKS.names()
    assert BENCHMARKS.entry("recif").paper == "2512.24762"
