"""Workloads as a file: row by row, so that the memory it takes does not grow with their number."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Q, QuerySet
from django.http import StreamingHttpResponse

from ..models import LARGE_FIELDS, Workload

COLUMNS = (
    *("id", "owner", "status", "runtime", "source_format", "isolation", "isolation_used", "rule"),
    *("node", "attempt", "cpus", "mem_mb", "timeout_s", "created_at", "started_at", "finished_at"),
    *("exit_reason", "exit_code", "signal", "error", "duration_ms", "compile_ms"),
    *("cpu_time_ms", "memory_bytes"),
    *("log_lines", "stdout_truncated", "stderr_truncated", "stdout_encoding", "stderr_encoding"),
)
"""All but what can be large; that is in the API."""

AT_ONCE = 500
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes a spreadsheet compute a cell, as OWASP lists it."""

Row = dict[str, Any]
Audit = Callable[[Sequence[Workload]], object]


def exported(kind: str, workloads: QuerySet[Workload], audit: Audit) -> StreamingHttpResponse:
    """The workloads as `csv` or `json`; `audit` hears of them before they leave."""
    write, content_type = {"csv": (_csv, "text/csv"), "json": (_json, "application/json")}[kind]
    name = f"workloads-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{kind}"
    return StreamingHttpResponse(
        write(_rows(workloads, audit)),
        content_type=f"{content_type}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _rows(workloads: QuerySet[Workload], audit: Audit) -> Iterator[Row]:
    """Newest first, some at once.

    Each time by a query of its own: one that stays open would keep SQLite from writing the log.
    """
    newest_first = workloads.order_by("-created_at", "-id").select_related("owner")
    rest = newest_first = newest_first.defer(None).defer(*LARGE_FIELDS, "candidates")
    while found := list(rest[:AT_ONCE]):
        audit(found)
        for workload in found:
            yield {
                **{name: getattr(workload, name) for name in COLUMNS},
                "owner": None if workload.owner is None else workload.owner.get_username(),
            }
        last = found[-1]
        rest = newest_first.filter(
            Q(created_at__lt=last.created_at) | Q(created_at=last.created_at, id__lt=last.pk),
            created_at__lte=last.created_at,  # what the index begins at
        )


def _json(rows: Iterator[Row]) -> Iterator[str]:
    """One array, with one line for each workload."""
    between = "[\n"
    for row in rows:
        yield between + json.dumps(row, cls=DjangoJSONEncoder)
        between = ",\n"
    yield "[]\n" if between == "[\n" else "\n]\n"


def _csv(rows: Iterator[Row]) -> Iterator[str]:
    """With a header; text that a spreadsheet would compute begins with an apostrophe."""
    writer = csv.writer(_Echo())
    yield writer.writerow(COLUMNS)
    for row in rows:
        yield writer.writerow([_cell(row[name]) for name in COLUMNS])


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


class _Echo:
    """A file that gives back what is written to it."""

    def write(self, text: str) -> str:
        return text
