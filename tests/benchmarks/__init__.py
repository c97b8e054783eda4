"""Benchmarks: what a claim about speed must come from. See `python -m tests.benchmarks --help`."""
