"""The current state: where each kind of workload goes, what runs, and the latest failures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import BinaryField
from django.db.models.functions import Substr

from ...execution.nodes import Node
from ...models import Workload, WorkloadQuerySet
from ...registry import Snapshot
from ...routing import Ineligibility, RouteStatus
from ...utils.text import one_line
from ...workloads import Status
from . import words

MAX_ROWS = 10
MAX_ERROR_BYTES = 1_000
NOT_REGISTERED = "not registered"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The workloads that a route matches; `problem` is why even a healthy target refuses them."""

    name: str
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Running and waiting workloads of one backend, and the slots of all its nodes."""

    running: int = 0
    waiting: int = 0
    slots: int = 0


IDLE = Load()


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A backend, the workloads that `auto` sends to it, and its load if known."""

    name: str
    state: str
    reason: str
    sources: Sequence[Source]
    load: Load | None

    @property
    def registered(self) -> bool:
        return self.state != NOT_REGISTERED

    @property
    def problems(self) -> list[Source]:
        return [source for source in self.sources if source.problem]


def targets(snapshot: Snapshot, loads: Mapping[str, Load] | None) -> list[Target]:
    """List route targets in route order, then unrouted and vanished backends."""
    sources: dict[str, list[Source]] = {}
    for status in snapshot.list_routes():
        sources.setdefault(status.route.target, []).append(_source(status))
    found = []
    for name in dict.fromkeys((*sources, *snapshot.entries, *sorted(loads or ()))):
        entry = snapshot.entries.get(name)
        state, reason = NOT_REGISTERED, "no backend has this name; its workloads are refused"
        if entry is not None:
            state, reason = entry.health.state, one_line(entry.health.description)
        found.append(
            Target(
                name=name,
                state=state,
                reason=reason,
                sources=sources.get(name, ()),
                load=None if loads is None else loads.get(name, IDLE if entry else None),
            )
        )
    return found


def _source(status: RouteStatus) -> Source:
    misfit = status.ineligibility in (Ineligibility.RUNTIME, Ineligibility.SOURCE_FORMAT)
    return Source(
        name=status.route.runtime or status.route.source_format or "anything else",
        problem=status.reason if misfit else "",
    )


def loads(nodes: Sequence[Node]) -> dict[str, Load]:
    """Return the load by backend name; `nodes` are the live ones."""
    counts = Workload.objects.active_counts()
    slots: Counter[str] = Counter()
    for node in nodes:
        for served in node.backends:
            slots[served.name] += served.max_concurrency
    return {
        name: Load(
            running=counts[name, Status.RUNNING],
            waiting=counts[name, Status.PENDING],
            slots=slots[name],
        )
        for name in {*slots, *(backend for backend, _ in counts)}
    }


def unfinished(visible: WorkloadQuerySet) -> list[Mapping[str, Any]]:
    """List running workloads, latest first, then waiting ones.

    With a single query, or in the order of the owner index, SQLite would read every row that the
    owner ever had.
    """
    columns = ("id", "runtime", "isolation_used", "owner__username", "created_at", "started_at")
    found: list[Mapping[str, Any]] = []
    for status in (Status.RUNNING, Status.PENDING):
        rows = visible.filter(status=status, finished_at__isnull=True)
        latest = rows.order_by("-started_at", "-created_at").values(*columns)
        found += latest[: MAX_ROWS - len(found)]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A failed workload; `error` is the program's error as one safe line."""

    id: str
    runtime: str
    backend: str
    owner: str | None
    finished_at: datetime
    reason: str
    error: str


def failures(visible: WorkloadQuerySet, since: datetime) -> list[Failure]:
    """List the latest failures."""
    rows = visible.filter(status=Status.FAILED, finished_at__gte=since).order_by("-finished_at")
    columns = ("id", "runtime", "isolation_used", "owner__username", "finished_at")
    error_start = Substr("error", 1, MAX_ERROR_BYTES, output_field=BinaryField())
    found = rows.values_list(*columns, "exit_reason", "exit_code", error_start)[:MAX_ROWS]
    return [
        Failure(
            id=id,
            runtime=runtime,
            backend=backend,
            owner=owner,
            finished_at=finished_at,
            reason=words.exit_reason(exit_reason, exit_code),
            error=one_line(bytes(error or b"").decode(errors="replace")),
        )
        for id, runtime, backend, owner, finished_at, exit_reason, exit_code, error in found
    ]
