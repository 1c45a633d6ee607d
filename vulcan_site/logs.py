"""How this site's logs are written: one line of JSON for each event, with a fixed set of keys.

Everybody logs with the standard library: this project, Django, gunicorn and Celery. structlog makes
the lines, and adds what is bound for a request or a workload (`structlog.contextvars`).
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FORMATS = ("json", "console")
SERVERS = ("develop", "runserver", "run_worker")  # commands of manage.py that serve

FIELDS = (
    *("request_id", "address", "user_id", "method", "path", "status", "duration_ms", "streaming"),
    *("workload_id", "owner_id", "runtime", "backend", "node", "attempt", "exit_reason"),
    *("token_key", "expires_at"),
)
"""What an event may say beside its text; what else a library attaches to a record stays there.

Celery attaches the arguments of tasks, Django whole requests and queries.
"""

MAX_CHARS = 2000
MAX_TRACE_CHARS = 16_000
CUT = "…"

SECRETS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1***@"),  # a password in a URL
    (re.compile(r"\b(Token|Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "***"),  # a token by itself, or a digest
    (
        re.compile(
            r"((?:password|passwd|secret(?:_key)?|api_?key|sessionid|csrftoken)['\"]?\s*[=:]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s,;&}]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LINE_ENDS = re.compile(r"[\t\n]")


def configuration(format: str, level: str, *, colors: bool | None = None) -> dict[str, Any]:
    """A dictionary for `logging.config.dictConfig`, which is what LOGGING is."""
    if colors is None:
        colors = sys.stderr.isatty()
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if format == "json":
        last += [structlog.processors.JSONRenderer()]
    else:
        last += [escape_controls, structlog.dev.ConsoleRenderer(colors=colors)]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "event": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [
                    structlog.contextvars.merge_contextvars,
                    structlog.stdlib.ExtraAdder(allow=FIELDS),
                    structlog.stdlib.add_logger_name,
                    structlog.stdlib.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.CallsiteParameterAdder(
                        [structlog.processors.CallsiteParameter.PROCESS]
                    ),
                ],
                "processors": [
                    structlog.processors.format_exc_info,
                    truncate_and_redact,
                    *last,
                ],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "event"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "backends_app": {"level": level},
            "vulcan_site": {"level": level},
            # Whatever these have of their own by default writes nothing beside the line.
            "django": {"level": "WARNING", "handlers": [], "propagate": True},
            # The access line says it; what is left is what went wrong here.
            "django.request": {"level": "ERROR"},
            "django.server": {"level": "CRITICAL", "handlers": [], "propagate": True},
            "django.security.DisallowedHost": {"level": "CRITICAL"},  # anybody could fill the log
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": True},
            "celery": {"level": "INFO"},
            # The lines about the workload say it.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
        },
    }


def defaults(argv: Sequence[str], debug: bool) -> tuple[str, str]:
    """The format and the level that suit what this process is.

    A server has everything read by machines. Whoever develops, or uses a command, reads it; and
    wants to see of a command what it prints, and what goes wrong.
    """
    if Path(argv[0]).name != "manage.py":
        return ("console" if debug else "json"), "INFO"
    command = argv[1] if len(argv) > 1 else ""
    human = debug or command != "run_worker"
    return ("console" if human else "json"), ("INFO" if command in SERVERS else "WARNING")


def truncate_and_redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """No text is longer than it needs to be, none holds what looks like a secret."""
    for name, value in event.items():
        if name == "exception":
            event[name] = redact(value[-MAX_TRACE_CHARS:])  # how it ends says what it was
        elif isinstance(value, str):
            text = redact(value[: 2 * MAX_CHARS])
            event[name] = text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + CUT
        elif not isinstance(value, int | float | None) and not name.startswith("_"):
            event[name] = str(value)[:MAX_CHARS]
    return event


def redact(text: str) -> str:
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def escape_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """On a terminal an event is one line, too, and drives nothing; a trace may have several."""
    for name, value in event.items():
        if isinstance(value, str):
            text = CONTROLS.sub(_escaped, value)
            event[name] = text if name == "exception" else LINE_ENDS.sub(_escaped, text)
    return event


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
