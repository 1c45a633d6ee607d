"""What is kept: workloads and where they are in their lives, their sources and logs, the nodes.

The row of a workload is the truth about it. It changes from one status to another by an update that
names the status it had before, so of two that try only one succeeds.

Nobody adds, changes or deletes these rows by hand, so there are no permissions for that.
"""

import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models
from django.db.models import Q

from .fields import AnyJSONField, UTF8Field
from .routing import MAX_NAME_CHARS
from .workloads import AUTO, MAX_SIGNAL_CHARS, SOURCE_FORMATS, UTF8, ExitReason, Status

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

ENDED = (Status.COMPLETED, Status.FAILED, Status.KILLED)
_ENDED = [str(one) for one in ENDED]  # as a migration is to have it
PREVIOUS_STATUSES: Mapping[Status, tuple[Status, ...]] = {
    # Back to pending goes a workload whose worker was lost and that asked to be run once more.
    Status.PENDING: (Status.RUNNING,),
    Status.RUNNING: (Status.PENDING,),
    Status.COMPLETED: (Status.RUNNING,),
    Status.FAILED: (Status.PENDING, Status.RUNNING),
    Status.KILLED: (Status.PENDING, Status.RUNNING),
}
"""Which statuses each status may follow."""

LARGE_FIELDS = ("output", "stdout", "stderr")
"""The columns that can be large."""

MAX_KEY_CHARS = 255
MAX_NODE_CHARS = 255
MAX_BENCHMARK_NAME_CHARS = 100


def new_id() -> str:
    return uuid.uuid4().hex


def is_workload_id(text: str) -> bool:
    """Could a workload have this id? What else a stranger sends is not asked for."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


class WorkloadQuerySet(models.QuerySet["Workload"]):
    """Workloads, with the one way to change their status."""

    def transition(self, to: Status, **changes: Any) -> int:
        """Change the status of those here that may have it now; how many did."""
        return self.filter(status__in=PREVIOUS_STATUSES[to]).update(status=to, **changes)

    def visible_to(self, user: "AbstractBaseUser | AnonymousUser") -> "WorkloadQuerySet":
        """People see their own, staff see all; another's is as good as none."""
        if user.pk is None:
            return self.none()
        return self if getattr(user, "is_staff", False) else self.filter(owner=user.pk)

    def summaries(self) -> "WorkloadQuerySet":
        """Without the columns that can be large."""
        return self.defer(*LARGE_FIELDS)


class Workload(models.Model):
    """One workload: who asked for what, where it went and why, what came of it.

    `isolation_used` is the name of its backend, `node` the host it ran on and `node_id` that host's
    runtime folder; `attempt` counts how often it was begun. The large columns stand last.
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
        indexes = [  # one for each way in which people narrow the list, newest first
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
            # All that the statistics of a time ask for, so that they never look at the rows.
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
    """What a workload that has not ended is made of; deleted in the moment when it ends.

    `rest` has the command and the input.
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
    """Whole lines that a workload printed to one stream, one after the other.

    `first` is the number of the first one among all lines of the workload, from 1.
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
    """One backend as one node serves it; the node says so again and again.

    `beats` counts that. Whether it is alive is judged by whether it goes on counting, by the clock
    of who asks; `seen_at` is by the clock of the node, and for people.
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
    """A benchmark that somebody wanted to keep; a name may come again, and then the newest counts.

    `versions` says what was measured, `results` is the JSON of `benchmarks.results.Results`.
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
    """There is no table that could be asked."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().none()


class Backend(models.Model):
    """A backend as permissions and the admin's log know it; all else about it has the registry."""

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
    """A row of the routing table as permissions know it; the table itself has the registry."""

    rule = models.CharField(primary_key=True, max_length=4 * MAX_NAME_CHARS)

    objects = _NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.rule
