"""Checks that the constructors of backends share for their OPTIONS."""

from ..exceptions import InvalidOption


def integer(option: str, value: object, *, least: int = 1) -> int:
    """`value` as it is, or `InvalidOption`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(option, value, f"must be a whole number of at least {least}")
    return value


def boolean(option: str, value: object) -> bool:
    """`value` as it is, or `InvalidOption`."""
    if not isinstance(value, bool):
        raise InvalidOption(option, value, "must be True or False")
    return value


def text(option: str, value: object, meaning: str) -> str:
    """`value` as it is when it is a non-empty string, or `InvalidOption`."""
    if not isinstance(value, str) or not value:
        raise InvalidOption(option, value, f"must be {meaning}")
    return value
