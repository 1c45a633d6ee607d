"""The benchmark page: stored benchmarks as charts and tables."""
