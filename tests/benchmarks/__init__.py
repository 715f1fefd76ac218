"""Benchmarks: each prints one line per figure, against a peer in the same run. None asserts a time."""
