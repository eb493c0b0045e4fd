"""The benchmark suite: `python -m benchmarks --help`, docs/benchmarks.md."""
