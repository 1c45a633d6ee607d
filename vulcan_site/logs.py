"""Log configuration of the site: one JSON line per event, with a fixed set of keys.

This project, Django, gunicorn and Celery log with the standard library. structlog renders the
lines and adds the values bound for a request or a workload (`structlog.contextvars`).
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from backends_app.utils.text import ascii_json, escape, shorten

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FORMATS = ("json", "console")
SERVERS = ("develop", "runserver", "run_worker")  # long-running commands of manage.py

FIELDS = (
    *("request_id", "address", "user_id", "method", "path", "status", "duration_ms", "streaming"),
    *("workload_id", "owner_id", "runtime", "backend", "node", "attempt", "exit_reason"),
    *("token_key", "expires_at"),
)
"""The extra fields that are logged; other attributes of a record are dropped.

Celery attaches the arguments of tasks, Django whole requests and queries.
"""

MAX_CHARS = 2000
MAX_TRACE_CHARS = 16_000

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


def configuration(format: str, level: str, *, colors: bool | None = None) -> dict[str, Any]:
    """Return the LOGGING setting, a dictionary for `logging.config.dictConfig`."""
    if colors is None:
        colors = sys.stderr.isatty()
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if format == "json":
        final += [structlog.processors.JSONRenderer(serializer=ascii_json)]
    else:
        final += [escape_texts, structlog.dev.ConsoleRenderer(colors=colors)]
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
                    *final,
                ],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "event"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "backends_app": {"level": level},
            "vulcan_site": {"level": level},
            # Remove the default handlers of these loggers, so that each event is logged once.
            "django": {"level": "WARNING", "handlers": [], "propagate": True},
            # The access line covers the rest; errors are bugs of this site.
            "django.request": {"level": "ERROR"},
            "django.server": {"level": "CRITICAL", "handlers": [], "propagate": True},
            "django.security.DisallowedHost": {"level": "CRITICAL"},  # clients could flood the log
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": True},
            "celery": {"level": "INFO"},
            # The lines about workloads cover these.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
        },
    }


def defaults(argv: Sequence[str], debug: bool) -> tuple[str, str]:
    """Return the default format and level for this kind of process.

    Server logs are read by machines. Development servers and commands log for people, and commands
    that do not serve log only warnings beside their output.
    """
    if Path(argv[0]).name != "manage.py":
        return ("console" if debug else "json"), "INFO"
    command = argv[1] if len(argv) > 1 else ""
    human = debug or command != "run_worker"
    return ("console" if human else "json"), ("INFO" if command in SERVERS else "WARNING")


def truncate_and_redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Truncate long texts and redact likely secrets; convert other objects to strings."""
    for name, value in event.items():
        if name == "exception":
            event[name] = redact(value[-MAX_TRACE_CHARS:])  # the end names the exception
        elif not isinstance(value, int | float | None) and not name.startswith("_"):
            event[name] = shorten(redact(str(value)[: 2 * MAX_CHARS]), MAX_CHARS)
    return event


def redact(text: str) -> str:
    """Replace likely passwords, tokens and digests by ***."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def escape_texts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape texts for terminals. An event stays one line; traces keep their line ends."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escape(value, keep="\n\t" if name == "exception" else "")
    return event
