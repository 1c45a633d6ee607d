"""Captured output: stored, and followed by readers."""
