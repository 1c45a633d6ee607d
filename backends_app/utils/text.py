"""Untrusted text made safe to show: unsafe characters escaped, one line, a maximum length.

Terminals, logs, pages and spreadsheets show only text that passed `escape` or `one_line`. This
module imports the standard library alone, since everything else may import it.
"""

import json
import re
import unicodedata
from typing import Any

MAX_LINE_CHARS = 200
MAX_REPR_CHARS = 80

UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of Unicode whose characters drive a terminal, end a line, reorder text or hide in it.

These are the controls (C0, DEL, C1), the formats (bidirectional and zero-width characters, soft
hyphens, byte order marks, annotations, tags), surrogates, characters of private use, unassigned
ones, and the separators of lines and paragraphs. Joiners have a use in emoji and in Arabic and
Indic scripts, too: nothing is removed, so such text stays readable.
"""

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks of other categories that show as nothing.

Not U+FE00 to U+FE0F: emoji need them, and they change only how the character before looks.
"""

_SUSPECTS = re.compile("[^ -~]")


def is_unsafe(character: str) -> bool:
    """Return whether the character must not be shown as it is."""
    unsafe = unicodedata.category(character) in UNSAFE_CATEGORIES
    return unsafe or _INVISIBLE.match(character) is not None


def escape(text: str, keep: str = "\n\t") -> str:
    r"""Write unsafe characters but those in `keep` as Python does: `\x1b`, `\u202e`, `\U000e0041`.

    The result is up to ten times as long as the text.
    """

    def shown(found: re.Match[str]) -> str:
        character = found[0]
        if character in keep or not is_unsafe(character):
            return character
        return character.encode("unicode_escape").decode()

    return _SUSPECTS.sub(shown, text)


def shorten(text: str, max_chars: int) -> str:
    """Return at most `max_chars` characters; a shortened text ends with an ellipsis."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def one_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """Return the text as one escaped line of at most `max_chars`, with single spaces."""
    start = text[: 4 * max_chars]
    line = escape(" ".join(start.split()), keep="")
    return shorten(line if len(start) == len(text) else f"{line}…", max_chars)


def short_repr(value: object) -> str:
    """Return `repr(value)`, escaped and shortened: the value may come from a client."""
    return shorten(escape(repr(value)[: MAX_REPR_CHARS + 1], keep=""), MAX_REPR_CHARS)


def ascii_json(value: object, **options: Any) -> str:
    """Return the value as JSON of printable ASCII; `json.dumps` alone does not escape DEL."""
    return json.dumps(value, **options).replace("\x7f", "\\u007f")
