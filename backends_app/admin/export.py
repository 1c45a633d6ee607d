"""Export of workloads as a file, streamed row by row in constant memory."""

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Q, QuerySet
from django.http import StreamingHttpResponse

from ..models import LARGE_FIELDS, Workload
from ..utils.text import ascii_json, escape

COLUMNS = (
    *("id", "owner", "status", "runtime", "source_format", "isolation", "isolation_used", "rule"),
    *("node", "attempt", "cpus", "mem_mb", "timeout_s", "created_at", "started_at", "finished_at"),
    *("exit_reason", "exit_code", "signal", "error", "duration_ms", "compile_ms"),
    *("cpu_time_ms", "memory_bytes"),
    *("log_lines", "stdout_truncated", "stderr_truncated", "stdout_encoding", "stderr_encoding"),
)
"""All columns except the large ones, which the API serves."""

BATCH_SIZE = 500
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Prefixes that make a spreadsheet evaluate a cell (OWASP, "CSV Injection")."""

Row = dict[str, Any]
Audit = Callable[[Sequence[Workload]], object]


def export_response(
    kind: str, workloads: QuerySet[Workload], audit: Audit
) -> StreamingHttpResponse:
    """Stream the workloads as `csv` or `json`; call `audit` with each batch before sending it."""
    write, content_type = {"csv": (_csv, "text/csv"), "json": (_json, "application/json")}[kind]
    name = f"workloads-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{kind}"
    return StreamingHttpResponse(
        write(_rows(workloads, audit)),
        content_type=f"{content_type}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _rows(workloads: QuerySet[Workload], audit: Audit) -> Iterator[Row]:
    """Yield rows, newest first, in batches.

    Each batch is a query of its own: an open cursor would keep SQLite from writing the audit log.
    """
    newest_first = workloads.order_by("-created_at", "-id").select_related("owner")
    rest = newest_first = newest_first.defer(None).defer(*LARGE_FIELDS, "candidates")
    while batch := list(rest[:BATCH_SIZE]):
        audit(batch)
        for workload in batch:
            yield {
                **{name: getattr(workload, name) for name in COLUMNS},
                "owner": None if workload.owner is None else workload.owner.get_username(),
            }
        last = batch[-1]
        rest = newest_first.filter(
            Q(created_at__lt=last.created_at) | Q(created_at=last.created_at, id__lt=last.pk),
            created_at__lte=last.created_at,  # the bound for the index scan
        )


def _json(rows: Iterator[Row]) -> Iterator[str]:
    """Yield one JSON array with one line for each workload."""
    separator = "[\n"
    for row in rows:
        yield separator + ascii_json(row, cls=DjangoJSONEncoder)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _csv(rows: Iterator[Row]) -> Iterator[str]:
    """Yield CSV lines with a header; text is escaped, and never a formula."""
    writer = csv.writer(_Echo())
    yield writer.writerow(COLUMNS)
    for row in rows:
        yield writer.writerow([_cell(row[name]) for name in COLUMNS])


def _cell(value: Any) -> Any:
    """Return a value for a cell; an apostrophe makes text of what looks like a formula."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    return f"'{escape(value)}" if value.startswith(FORMULA) else escape(value)


class _Echo:
    """A file-like object whose `write` returns the text."""

    def write(self, text: str) -> str:
        return text
