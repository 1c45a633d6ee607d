"""Unsafe characters are escaped wherever untrusted text is shown."""

import csv
import io
import json
import logging
import re

import pytest
from django.core.management import call_command

from backends_app.backends.base import Health
from backends_app.benchmarks import kept
from backends_app.logs import store
from backends_app.utils.text import ascii_json, escape, one_line, short_repr, shorten
from backends_app.workloads import Status
from tests.site.test_logs import line as log_line
from tests.support.workloads import recorded

UNSAFE = {
    "NUL": ("\x00", r"\x00"),
    "bell": ("\x07", r"\x07"),
    "backspace": ("\x08", r"\x08"),
    "carriage return": ("\r", r"\r"),
    "vertical tab": ("\x0b", r"\x0b"),
    "escape": ("\x1b", r"\x1b"),
    "delete": ("\x7f", r"\x7f"),
    "next line": ("\x85", r"\x85"),
    "control sequence introducer": ("\x9b", r"\x9b"),
    "soft hyphen": ("\xad", r"\xad"),
    "grapheme joiner": ("\u034f", r"\u034f"),
    "Arabic letter mark": ("\u061c", r"\u061c"),
    "Hangul filler": ("\u3164", r"\u3164"),
    "Mongolian vowel separator": ("\u180e", r"\u180e"),
    "zero-width space": ("\u200b", r"\u200b"),
    "zero-width joiner": ("\u200d", r"\u200d"),
    "left-to-right mark": ("\u200e", r"\u200e"),
    "right-to-left mark": ("\u200f", r"\u200f"),
    "line separator": ("\u2028", r"\u2028"),
    "paragraph separator": ("\u2029", r"\u2029"),
    "left-to-right embedding": ("\u202a", r"\u202a"),
    "right-to-left override": ("\u202e", r"\u202e"),
    "word joiner": ("\u2060", r"\u2060"),
    "left-to-right isolate": ("\u2066", r"\u2066"),
    "pop directional isolate": ("\u2069", r"\u2069"),
    "private use": ("\ue000", r"\ue000"),
    "byte order mark": ("\ufeff", r"\ufeff"),
    "annotation anchor": ("\ufff9", r"\ufff9"),
    "noncharacter": ("\uffff", r"\uffff"),
    "tag": ("\U000e0041", r"\U000e0041"),
    "variation selector 17": ("\U000e0100", r"\U000e0100"),
    "unpaired surrogate": ("\ud800", r"\ud800"),
}
SAFE = [
    "plain ~",
    "Grüße",
    "中文、かな",
    "עברית العربية",
    "हिन्दी",
    "😀 ❤️ ⚠️ 1️⃣",
    "no\xa0break",
    "\ufffd",
]
WHITESPACE = ("\r", "\x0b", "\x85", "\u2028", "\u2029")  # a space in what is one line

STYLE = re.compile(r"\x1b\[[0-9;]*m")  # what the commands write themselves

every = pytest.mark.parametrize(("raw", "shown"), UNSAFE.values(), ids=UNSAFE.keys())
stored = pytest.mark.parametrize(("raw", "shown"), [*UNSAFE.values()][:-1], ids=[*UNSAFE][:-1])
"""All but the surrogate, which no database stores."""


class Terminal(io.StringIO):
    """A stream that is a terminal, so that commands write for people."""

    def isatty(self) -> bool:
        return True


@every
def test_an_unsafe_character_is_escaped(raw: str, shown: str):
    assert escape(f"a{raw}b") == f"a{shown}b"
    assert escape(raw, keep=raw) == raw
    assert one_line(f"a{raw}b") == ("a b" if raw in WHITESPACE else f"a{shown}b")
    assert raw not in short_repr(f"a{raw}b")


@pytest.mark.parametrize("text", SAFE)
def test_visible_text_stays(text: str):
    assert escape(text, keep="") == text


def test_line_ends_and_tabs_are_kept_in_texts_of_several_lines():
    assert escape("a\n\tb") == "a\n\tb"
    assert escape("a\n\tb", keep="") == r"a\n\tb"


def test_a_line_has_single_spaces_and_a_maximum_length():
    assert one_line("a\nb\tc  d") == "a b c d"
    assert one_line("") == ""
    assert one_line("x" * 10_000_000) == "x" * 199 + "…"
    assert one_line("short" + " " * 1_000 + "x") == "short…"
    assert len(one_line("\x1b" * 200)) == 200


def test_texts_and_representations_are_shortened():
    assert (shorten("four", 4), shorten("fives", 4)) == ("four", "fiv…")
    assert short_repr("x" * 1_000) == f"'{'x' * 78}…"
    assert short_repr(None) == "None"


@every
def test_log_lines_have_no_unsafe_characters(raw: str, shown: str):
    text = f"a{raw}b"
    console, line = (log_line("%s", kind, text, path=text) for kind in ("console", "json"))
    assert raw not in console + line
    assert console.count(f"a{shown}b") == 2
    assert json.loads(line)["event"] == json.loads(line)["path"] == text


@every
def test_a_traceback_on_a_console_has_no_unsafe_characters(raw: str, shown: str):
    try:
        raise ValueError(f"a{raw}b")
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
    written = log_line("it failed", "console", level=logging.ERROR, exc_info=exc_info)
    assert raw not in written
    assert f"a{shown}b" in written


@stored
@pytest.mark.django_db
def test_commands_write_no_unsafe_characters_to_a_terminal(raw: str, shown: str):
    text = f"a{raw}b"
    workload = recorded(Status.FAILED, error=text)
    store.save_blocks(workload.pk, [store.Block(1, "stdout", f"{text}\n", 1)])
    for arguments in (["logs", workload.pk], ["list"], ["list", "--format", "json"]):
        terminal = Terminal()
        call_command("workload", *arguments, stdout=terminal)
        written = STYLE.sub("", terminal.getvalue())
        assert raw not in written
        if arguments[0] == "logs":
            assert written == f"a{shown}b\n"


@every
@pytest.mark.django_db
def test_the_dashboard_shows_no_unsafe_characters(raw: str, shown: str, serve, filled, fakes):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy(f"a{raw}b"))
    page = serve(filled).get("/").content.decode()
    assert raw not in page
    assert f"a{shown}b" in page


@stored
@pytest.mark.django_db
def test_the_admin_shows_no_unsafe_characters(raw: str, shown: str, admin_client):
    workload = recorded(Status.FAILED, stdout=f"a{raw}b", error=f"a{raw}b")
    url = f"/admin/backends_app/workload/{workload.pk}/change/"
    page = admin_client.get(url).content.decode()
    assert raw not in page
    assert page.count(f"a{shown}b") >= 2


@stored
@pytest.mark.django_db
def test_exports_have_no_unsafe_characters(raw: str, shown: str, admin_client):
    workload = recorded(Status.FAILED, error=f"a{raw}b")
    exported = {}
    for kind in ("csv", "json"):
        answer = admin_client.post(
            "/admin/backends_app/workload/",
            {"action": f"export_{kind}", "index": "0", "_selected_action": [workload.pk]},
        )
        exported[kind] = b"".join(answer.streaming_content).decode()
        assert raw not in exported[kind].replace("\r\n", "\n")
    [row] = csv.DictReader(io.StringIO(exported["csv"], newline=""))
    assert row["error"] == f"a{shown}b"
    assert json.loads(exported["json"])[0]["error"] == f"a{raw}b"


@every
def test_a_benchmark_name_has_no_unsafe_characters(raw: str, shown: str):
    assert kept.name_problem(f"a{raw}b") is not None
    assert kept.name_problem("a b") is None


@every
def test_json_is_ascii_where_it_has_to_be(raw: str, shown: str):
    text = ascii_json([raw], indent=2)
    assert raw not in text
    assert json.loads(text) == [raw]
