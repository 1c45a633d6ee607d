"""Benchmarks: run the same workload on every backend of this host; store, compare and chart it."""
