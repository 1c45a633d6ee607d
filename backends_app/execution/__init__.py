"""One workload, from admission to its recorded end."""
