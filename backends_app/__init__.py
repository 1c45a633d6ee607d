"""Vulcan runs untrusted code in the isolation that suits it."""
