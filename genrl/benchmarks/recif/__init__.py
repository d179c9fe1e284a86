"""RecIF-Bench (arXiv:2512.24762) under the protocol of OpenOneRec's evaluator, version v1.0."""
