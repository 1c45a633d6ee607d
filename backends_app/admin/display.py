"""How values are shown: states as colour and word, a stranger's text escaped and within bounds."""

import json
from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from typing import Any

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

MAX_CHARS = 20_000
NOTHING = "-"  # as in the rest of the admin

_SHOWN: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    **{
        code: f"⟨U+{code:04X}⟩"  # what is not seen, or turns the direction of what follows
        for code in chain(
            range(0x7F, 0xA0),
            (0x061C, 0x200E, 0x200F),
            range(0x202A, 0x202F),
            range(0x2066, 0x206A),
        )
    },
}


def state(word: str) -> SafeString:
    """A state of health or of a workload: the word says it, the colour helps."""
    return format_html('<span class="vulcan-state vulcan-{0}">{0}</span>', word)


def visible(text: str, most: int = MAX_CHARS) -> str:
    """At most that much of it, with control characters as characters that one sees."""
    shown = text[:most].translate(_SHOWN)
    return shown if len(text) <= most else f"{shown}… (and {len(text) - most:,} characters more)"


def block(text: str, label: str) -> SafeString | str:
    """A stranger's text, line by line; one can scroll in it with the keyboard, too."""
    if not text:
        return NOTHING
    return format_html(
        '<pre class="vulcan-text" role="region" aria-label="{}" tabindex="0">{}</pre>',
        label,
        visible(text),
    )


def document(value: Any, label: str) -> SafeString | str:
    """JSON for people."""
    return block("" if value is None else json.dumps(value, indent=2, ensure_ascii=False), label)


def table(header: Iterable[str], rows: Iterable[Iterable[Any]], label: str) -> SafeString:
    heads = format_html_join("", '<th scope="col">{}</th>', ((name,) for name in header))
    lines = format_html_join(
        "",
        "<tr>{}</tr>",
        ((format_html_join("", "<td>{}</td>", ((cell,) for cell in row)),) for row in rows),
    )
    return format_html(
        '<div class="vulcan-scroll" role="region" aria-label="{}" tabindex="0">'
        '<table class="vulcan-table"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>',
        label,
        heads,
        lines,
    )


def moment(value: datetime | None) -> str:
    """To the second, for whoever compares it with a log."""
    return NOTHING if value is None else f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S}"


def duration(milliseconds: int | None) -> str:
    if milliseconds is None:
        return NOTHING
    return f"{milliseconds:,} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:,.1f} s"
