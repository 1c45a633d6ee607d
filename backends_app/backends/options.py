"""Shared checks of OPTIONS for the constructors of backends and executors."""

from ..exceptions import InvalidOption


def integer(option: str, value: object, *, least: int = 1) -> int:
    """Return `value` unchanged, or raise `InvalidOption` unless it is an int >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(option, value, f"must be a whole number of at least {least}")
    return value


def boolean(option: str, value: object) -> bool:
    """Return `value` unchanged, or raise `InvalidOption` unless it is a bool."""
    if not isinstance(value, bool):
        raise InvalidOption(option, value, "must be True or False")
    return value


def text(option: str, value: object, meaning: str) -> str:
    """Return `value` unchanged, or raise `InvalidOption` unless it is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise InvalidOption(option, value, f"must be {meaning}")
    return value


def seconds(option: str, value: object) -> float:
    """Return `value` as a float, or raise `InvalidOption` unless it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidOption(option, value, "must be a number of seconds above 0")
    return float(value)
