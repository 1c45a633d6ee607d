"""Log lines: one per event, with the bound context and without secrets."""

import json
import logging
from logging.config import DictConfigurator

import pytest
from structlog.contextvars import bound_contextvars

from vulcan_site import logs

HOSTILE = [
    'a"}\n{"event": "forged", "level": "critical"}',
    "a\r\n2026-01-01 [info] forged",
    "a\x1b[2Jb\x07",
    "a\u2028b\u2029c\x85d",
    "lone \ud800 surrogate",
    "\x00",
]


def formatter(format: str) -> logging.Formatter:
    configurator = DictConfigurator(logs.configuration(format, "INFO", colors=False))
    return configurator.configure_formatter(configurator.config["formatters"]["event"])


def line(text: str, format: str = "json", *args, level=logging.INFO, exc_info=None, **extra) -> str:
    record = logging.getLogger("a.logger").makeRecord(
        "a.logger", level, __file__, 1, text, args, exc_info, extra=extra
    )
    return formatter(format).format(record)


def event(text: str, *args, **extra) -> dict:
    return json.loads(line(text, "json", *args, **extra))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("format", logs.FORMATS)
def test_hostile_text_cannot_add_lines_or_control_characters(text: str, format: str):
    written = line("%s", format, text, path=text)
    assert len(written.splitlines()) == 1
    assert written.isprintable()
    assert written.encode()
    if format == "json":
        found = json.loads(written)
        assert (found["event"], found["path"], found["level"]) == (text, text, "info")


def test_bound_context_is_on_the_line():
    with bound_contextvars(request_id="r-1", workload_id="w-1"):
        found = event("something", user_id=7)
    assert (found["request_id"], found["workload_id"], found["user_id"]) == ("r-1", "w-1", 7)
    assert found["timestamp"].endswith("Z")
    assert {"level", "logger", "process"} <= {*found}


def test_extra_fields_of_libraries_are_dropped():
    """Django attaches requests and queries, Celery the arguments of tasks."""
    found = event(
        "x", request=object(), data={"args": "code"}, sql="SELECT", code="let a", body="b"
    )
    assert {*found} == {"event", "logger", "level", "timestamp", "process"}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot reach redis://:hunter2-of-redis@db:6379/0", "hunter2-of-redis"),
        ("postgres://vulcan:pass%40word@db/vulcan", "pass%40word"),
        (
            "Authorization: Token a55da6f91eaadd763a864afe8d13f23e",
            "a55da6f91eaadd763a864afe8d13f23e",
        ),
        ("authorization: bearer abc.def-ghi", "abc.def-ghi"),
        (f"the token {'a5' * 32} is unknown", "a5" * 32),
        ("{'password': 'hunter2 and more', 'x': 1}", "hunter2"),
        ("SECRET_KEY=hunter2", "hunter2"),
        ("Cookie: sessionid=abcdefgh; csrftoken=ijklmnop", "abcdefgh"),
    ],
)
def test_likely_secrets_are_redacted(text: str, secret: str):
    assert secret not in line("%s", "json", text)
    assert secret not in line("%s", "console", text)


def test_a_traceback_is_on_the_line_without_variables():
    code = "source code of a stranger"
    try:
        raise ValueError("the reason\nof two lines", len(code))
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
    written = line("it failed", exc_info=exc_info)
    assert len(written.splitlines()) == 1
    assert "the reason" in json.loads(written)["exception"]
    assert "stranger" not in written.replace('code = "source code of a stranger"', "")


def test_long_texts_are_truncated():
    found = event("x" * 1_000_000, path="y" * 1_000_000)
    assert len(found["event"]) == len(found["path"]) == logs.MAX_CHARS


@pytest.mark.parametrize(
    ("argv", "debug", "expected"),
    [
        (["/opt/vulcan/.venv/bin/gunicorn", "vulcan_site.wsgi"], False, ("json", "INFO")),
        (["gunicorn"], True, ("console", "INFO")),
        (["manage.py", "run_worker"], False, ("json", "INFO")),
        (["manage.py", "develop"], False, ("console", "INFO")),
        (["manage.py", "list_backends"], False, ("console", "WARNING")),
        (["manage.py"], False, ("console", "WARNING")),
    ],
)
def test_servers_log_json_and_commands_log_for_people(argv, debug, expected):
    assert logs.defaults(argv, debug) == expected
