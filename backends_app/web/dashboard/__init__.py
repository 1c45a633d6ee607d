"""The dashboard: one page with backend health, running workloads and recent results."""
