"""Benchmarks: the same workload through every backend of this host, kept, compared and drawn."""
