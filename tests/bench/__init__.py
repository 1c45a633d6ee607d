"""The benchmark behind `make bench`: ratios of two things measured side by side in one run."""
