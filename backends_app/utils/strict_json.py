"""Parse JSON that every parser reads alike: the common subset of RFC 8259 and I-JSON (RFC 7493).

Python's own parser accepts duplicate keys, NaN, numbers beyond a double, lone surrogates and
nesting up to its stack. Untrusted clients send all of these, and accepted values are later
rendered, stored and read by other languages.
"""

import json
import math
import re
from typing import Any, TypeAlias

from .text import short_repr

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

MAX_DEPTH = 64
MAX_VALUES = 600_000  # more than one MiB of JSON can hold
MAX_INTEGER_DIGITS = 308  # any such integer is a finite double

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[{\]}]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class InvalidJSON(ValueError):
    """The text is not JSON, or is JSON that parsers read differently; the message is the reason."""


def loads(text: str | bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """Parse one document, or raise `InvalidJSON` with a reason that is safe to show to clients."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidJSON(f"not UTF-8 (byte {error.start})") from None
    _refuse_shape(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        raise InvalidJSON(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    _refuse_unstorable(value)
    return value


def _refuse_shape(text: str, max_depth: int) -> None:
    """Check the number of values and the depth before parsing, which would build them all."""
    bare = _STRINGS.sub("", text)
    if bare.count(",") + bare.count("[") + bare.count("{") > MAX_VALUES:
        raise InvalidJSON(f"more than {MAX_VALUES:,} values")
    depth = 0
    for match in _BRACKETS.finditer(bare):
        if match.group() in "[{":
            depth += 1
            if depth > max_depth:
                raise InvalidJSON(f"nested deeper than {max_depth} levels")
        else:
            depth -= 1


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidJSON(f"duplicate key {short_repr(key)}")
            seen.add(key)
    return result


def _constant(name: str) -> JSON:
    raise InvalidJSON(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJSON(f"number {short_repr(text)} is too large")
    return value


def _int(text: str) -> int:
    if len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise InvalidJSON(f"integer {short_repr(text)} has more than {MAX_INTEGER_DIGITS} digits")
    return int(text)


def _refuse_unstorable(value: JSON) -> None:
    """Reject NUL, which PostgreSQL cannot store as text, and unpaired surrogates."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if match := _UNSTORABLE.search(item):
                raise InvalidJSON(
                    f"a string contains U+{ord(match.group()):04X}, which is not allowed"
                )
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
