"""The parts of `tools/bench.py`: inputs, peers, and one module per kind of measurement."""
