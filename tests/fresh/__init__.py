"""Vulcan on machines that never saw it: new roots of Debian, and what a newcomer does in them."""
