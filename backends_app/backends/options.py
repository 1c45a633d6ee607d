"""Checks that the constructors of backends share for their OPTIONS."""

from ..exceptions import InvalidOption


def positive_int(option: str, value: object) -> int:
    """`value` as it is, or `InvalidOption`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(option, value, "must be a whole number of at least 1")
    return value


def text(option: str, value: object, meaning: str) -> str:
    """`value` as it is when it is a non-empty string, or `InvalidOption`."""
    if not isinstance(value, str) or not value:
        raise InvalidOption(option, value, f"must be {meaning}")
    return value
