"""Benchmarks: each measures one line of the design's table, beside a baseline of the same run."""
