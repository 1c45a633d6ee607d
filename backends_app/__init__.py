"""Vulcan: run code you do not trust behind the isolation that suits it."""
