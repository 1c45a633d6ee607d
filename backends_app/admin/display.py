"""Rendering of values in the admin: state badges, and untrusted text escaped and truncated."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..utils.text import escape

MAX_CHARS = 20_000
NOTHING = "-"  # Django's `empty_value_display`


def state_badge(word: str) -> SafeString:
    """Render the state of a backend or a workload as a coloured word."""
    return format_html('<span class="vulcan-state vulcan-{0}">{0}</span>', word)


def escape_controls(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return the first `max_chars` characters, escaped, and the number of the others."""
    shown = escape(text[:max_chars])
    rest = len(text) - max_chars
    return shown if rest <= 0 else f"{shown}… (and {rest:,} more characters)"


def text_block(text: str, label: str) -> SafeString | str:
    """Render untrusted text as a block that scrolls, also by keyboard."""
    if not text:
        return NOTHING
    return format_html(
        '<pre class="vulcan-text" role="region" aria-label="{}" tabindex="0">{}</pre>',
        label,
        escape_controls(text),
    )


def json_block(value: Any, label: str) -> SafeString | str:
    """Render a value as indented JSON."""
    return text_block(
        "" if value is None else json.dumps(value, indent=2, ensure_ascii=False), label
    )


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


def format_datetime(value: datetime | None) -> str:
    """Format a time to the second, so that it can be compared with a log."""
    return NOTHING if value is None else f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S}"
