"""Database models: workloads with their sources and logs, nodes, and benchmarks.

The row of a workload is the source of truth. Its status changes by an update that also filters by
the previous status, so only one of two concurrent changes succeeds.

These rows are never added, changed or deleted by hand, so no permissions exist for that.
"""

import re
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models
from django.db.models import Count, Q

from .routing import MAX_NAME_CHARS
from .utils.fields import AnyJSONField, UTF8Field
from .workloads import AUTO, MAX_SIGNAL_CHARS, SOURCE_FORMATS, UTF8, ExitReason, Status

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

ENDED = (Status.COMPLETED, Status.FAILED, Status.KILLED)
_ENDED = [str(one) for one in ENDED]  # plain strings, for migrations
PREVIOUS_STATUSES: Mapping[Status, tuple[Status, ...]] = {
    # A workload whose worker was lost becomes pending again when `rerun_if_lost` is set.
    Status.PENDING: (Status.RUNNING,),
    Status.RUNNING: (Status.PENDING,),
    Status.COMPLETED: (Status.RUNNING,),
    Status.FAILED: (Status.PENDING, Status.RUNNING),
    Status.KILLED: (Status.PENDING, Status.RUNNING),
}
"""The statuses that each status may follow."""

FILTERS: Mapping[str, str] = {
    "status": "status",
    "runtime": "runtime",
    "isolation": "isolation_used",
    "user": "owner__username",
    "created_after": "created_at__gte",
    "created_before": "created_at__lt",
}
"""The lookups by which users filter workloads, by the name of the filter."""

LARGE_FIELDS = ("output", "stdout", "stderr")
"""The columns that can be large."""

MAX_KEY_CHARS = 255
MAX_NODE_CHARS = 255
MAX_BENCHMARK_NAME_CHARS = 100


def new_id() -> str:
    """Return a new random workload id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def is_workload_id(text: str) -> bool:
    """Return whether the text has the form of a workload id, to skip queries for other input."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


class WorkloadQuerySet(models.QuerySet["Workload"]):
    """Workloads. `transition` is the only way to change their status."""

    def transition(self, to: Status, **changes: Any) -> int:
        """Change the status of the rows that allow it; return how many changed."""
        return self.filter(status__in=PREVIOUS_STATUSES[to]).update(status=to, **changes)

    def visible_to(self, user: "AbstractBaseUser | AnonymousUser") -> "WorkloadQuerySet":
        """Return the user's own workloads, all for staff, and none without a user."""
        if user.pk is None:
            return self.none()
        return self if getattr(user, "is_staff", False) else self.filter(owner=user.pk)

    def active_counts(self) -> Counter[tuple[str, str]]:
        """Count the pending and running workloads by backend and status.

        The limits of the queues bound the cost.
        """
        active = self.filter(status__in=[Status.PENDING, Status.RUNNING]).order_by()
        rows = active.values_list("isolation_used", "status").annotate(count=Count("*"))
        return Counter({(backend, status): count for backend, status, count in rows})

    def filter_by(self, values: Mapping[str, Any]) -> "WorkloadQuerySet":
        """Filter by the values of `FILTERS`; ignore other keys, and values of None."""
        return self.filter(
            **{
                lookup: values[name]
                for name, lookup in FILTERS.items()
                if values.get(name) is not None
            }
        )

    def summaries(self) -> "WorkloadQuerySet":
        """Defer the columns that can be large."""
        return self.defer(*LARGE_FIELDS)


class Workload(models.Model):
    """One workload: its owner and request, the routing decision, and the result.

    `isolation_used` is the name of its backend, `node` the host it ran on and `node_id` the id of
    that host's runtime folder; `attempt` counts how often it was started. The large columns come
    last.
    """

    id = models.CharField(primary_key=True, max_length=32, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.SET_NULL,
        related_name="workloads",
        db_index=False,
    )
    status = models.CharField(
        max_length=9, default=str(Status.PENDING), choices=[(str(one), str(one)) for one in Status]
    )
    runtime = models.CharField(max_length=MAX_NAME_CHARS)
    source_format = models.CharField(
        max_length=7, choices=[(name, name) for name in SOURCE_FORMATS], default="code"
    )
    isolation = AnyJSONField(default=AUTO)
    isolation_used = models.CharField(max_length=MAX_NAME_CHARS)
    rule = UTF8Field()
    candidates = AnyJSONField(default=list)
    cpus = models.FloatField()
    mem_mb = models.IntegerField()
    timeout_s = models.FloatField()
    rerun_if_lost = models.BooleanField(default=False)
    attempt = models.PositiveSmallIntegerField(default=0)
    idempotency_key = models.CharField(max_length=MAX_KEY_CHARS, null=True, default=None)  # noqa: DJ001 - unique where it is
    idempotency_digest = models.CharField(max_length=64, default="")
    node = models.CharField(max_length=MAX_NODE_CHARS, default="")
    node_id = models.CharField(max_length=32, default="")
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, default=None)
    finished_at = models.DateTimeField(null=True, default=None)
    kill_requested_at = models.DateTimeField(null=True, default=None)
    outputs_pruned_at = models.DateTimeField(null=True, default=None)
    exit_reason = models.CharField(
        max_length=16, default="", choices=[(str(one), str(one)) for one in ExitReason]
    )
    exit_code = models.IntegerField(null=True, default=None)
    signal = models.CharField(max_length=MAX_SIGNAL_CHARS, default="")
    duration_ms = models.BigIntegerField(null=True, default=None)
    compile_ms = models.BigIntegerField(null=True, default=None)
    cpu_time_ms = models.BigIntegerField(null=True, default=None)
    memory_bytes = models.BigIntegerField(null=True, default=None)
    log_lines = models.PositiveIntegerField(default=0)
    stdout_truncated = models.BooleanField(default=False)
    stderr_truncated = models.BooleanField(default=False)
    stdout_encoding = models.CharField(max_length=11, default=UTF8, db_default=UTF8)
    stderr_encoding = models.CharField(max_length=11, default=UTF8, db_default=UTF8)
    error = UTF8Field(default="")
    output = AnyJSONField(default=None)
    stdout = UTF8Field(default="")
    stderr = UTF8Field(default="")

    objects = WorkloadQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at", "-id")
        default_permissions = ("view",)
        permissions = [
            ("kill_workload", "Can kill workload"),
            ("rerun_workload", "Can run workload again"),
            ("export_workload", "Can export workload"),
        ]
        indexes = [  # one for each filter of the list, newest first
            models.Index(fields=["-created_at", "-id"], name="workload_newest"),
            models.Index(fields=["owner", "-created_at", "-id"], name="workload_of_owner"),
            models.Index(fields=["status", "-created_at", "-id"], name="workload_by_status"),
            models.Index(fields=["runtime", "-created_at", "-id"], name="workload_by_runtime"),
            models.Index(
                fields=["isolation_used", "-created_at", "-id"], name="workload_by_backend"
            ),
            models.Index(fields=["exit_reason", "-created_at", "-id"], name="workload_by_reason"),
            models.Index(fields=["node", "-created_at", "-id"], name="workload_by_node"),
            models.Index(
                fields=["isolation_used", "created_at"],
                name="workload_pending",
                condition=Q(status=str(Status.PENDING)),
            ),
            # Covers all columns of the statistics, so that they never read the rows.
            models.Index(
                fields=["finished_at", "isolation_used", "status", "exit_reason", "duration_ms"],
                name="workload_finished",
            ),
            models.Index(fields=["status", "-finished_at", "owner"], name="workload_by_end"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="workload_key_of_owner",
            ),
            models.CheckConstraint(
                condition=Q(status__in=[str(one) for one in Status]), name="workload_status"
            ),
            models.CheckConstraint(
                condition=Q(status__in=_ENDED, finished_at__isnull=False)
                | (~Q(status__in=_ENDED) & Q(finished_at__isnull=True)),
                name="workload_ends_once",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Source(models.Model):
    """The source of a workload; deleted at its end unless ISOLATION_RETENTION keeps it.

    `rest` holds the command and the input.
    """

    workload = models.OneToOneField(
        Workload, primary_key=True, on_delete=models.CASCADE, related_name="source"
    )
    code = UTF8Field(null=True)
    archive = models.BinaryField(null=True)
    image = UTF8Field(null=True)
    rest = AnyJSONField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.workload_id


class LogBlock(models.Model):
    """Consecutive whole lines that a workload printed to one stream.

    `first` is the number of the first line among all lines of the workload, from 1.
    """

    workload = models.ForeignKey(
        Workload, on_delete=models.CASCADE, related_name="log", db_index=False
    )
    first = models.PositiveIntegerField()
    lines = models.PositiveIntegerField()
    stream = models.CharField(max_length=6)
    text = UTF8Field()

    class Meta:
        ordering = ("first",)
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["workload", "first"], name="log_once")]

    def __str__(self) -> str:
        return f"{self.workload_id}:{self.first}"


class NodeBackend(models.Model):
    """One backend on one node, refreshed by heartbeats.

    `beats` counts the heartbeats. A node is alive while it increases, measured by the observer's
    clock; `seen_at` is a time of the node's clock, for people.
    """

    node_id = models.CharField(max_length=32)
    node = models.CharField(max_length=MAX_NODE_CHARS)
    name = models.CharField(max_length=MAX_NAME_CHARS)
    detected = models.BooleanField(null=True)
    healthy = models.BooleanField(null=True)
    health_description = UTF8Field()
    attributes = AnyJSONField(default=dict)
    max_concurrency = models.PositiveIntegerField()
    load = models.FloatField(default=0.0)
    beats = models.BigIntegerField(default=0)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()

    class Meta:
        verbose_name = "node"
        ordering = ("node", "node_id", "name")
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(fields=["node_id", "name"], name="node_backend_once")
        ]

    def __str__(self) -> str:
        return f"{self.node}: {self.name}"


class Benchmark(models.Model):
    """A saved benchmark; of several with the same name, the newest is current.

    `versions` lists what was measured, `results` is the JSON of `benchmarks.results.Results`.
    """

    name = models.CharField(max_length=MAX_BENCHMARK_NAME_CHARS)
    node = models.CharField(max_length=MAX_NODE_CHARS)
    created_at = models.DateTimeField()
    versions = AnyJSONField()
    results = AnyJSONField()

    class Meta:
        ordering = ("-pk",)
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class _NoRows(models.Manager[Any]):
    """Returns no rows: the model has no table."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().none()


class Backend(models.Model):
    """Unmanaged proxy so that permissions and admin log entries can refer to a backend.

    The registry holds the data.
    """

    name = models.CharField(primary_key=True, max_length=MAX_NAME_CHARS)

    objects = _NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = [("probe_backend", "Can probe backend")]

    def __str__(self) -> str:
        return self.name


class Route(models.Model):
    """Unmanaged proxy so that permissions can refer to a route. The registry holds the routes."""

    rule = models.CharField(primary_key=True, max_length=4 * MAX_NAME_CHARS)

    objects = _NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.rule
