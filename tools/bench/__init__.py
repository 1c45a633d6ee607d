"""The benchmark of `make bench`: performance ratios of pairs measured side by side."""
