"""The dashboard: one page that tells which backends work, what runs, and how it went lately."""
