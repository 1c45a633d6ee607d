"""Small helpers without knowledge of workloads."""
