"""What machines read: metrics, probes and the audit log."""
