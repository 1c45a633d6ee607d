"""The lifecycle of a recorded workload: submit, claim, run, finish, kill, recover.

Everything here works on the row. Conflicting changes are resolved by the database, where one of
them comes first; see `models`.
"""

import hashlib
import json
import logging
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from django.db import IntegrityError, InterfaceError, OperationalError, close_old_connections
from django.db.models import Count
from django.db.transaction import atomic
from structlog.contextvars import bound_contextvars

from .. import signals
from ..backends.base import Backend
from ..conf import limits, retention, runtime_dir
from ..exceptions import (
    BackendAtCapacity,
    BackendUnavailable,
    IdempotencyKeyConflict,
    InvalidRequest,
    WorkloadFinished,
)
from ..logs import store
from ..logs.store import LogBuffer
from ..models import Source, Workload, new_id
from ..registry import Registry
from ..utils.database import release_connection
from ..workloads import (
    STREAMS,
    UNSPECIFIED,
    ExitReason,
    Resources,
    Status,
    WorkloadResult,
    WorkloadSpec,
)
from . import services
from .nodes import node_id, node_name
from .services import Admitted, Prepared
from .slots import acquire_slot, wait_for_slot, workload_lock
from .supervisor import Execution, supervisor

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
POLL_INTERVAL_S = (0.01, 0.25)  # while waiting for a workload to end: initial, maximum
KILL_WAIT_S = 5.0
STORE_RETRY_S = (0.1, 5.0)
WORKER_LOST_MESSAGE = "the worker running it was lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A workload to submit, with what only its record needs.

    `key` is the idempotency key: a second submission by the same owner is the same workload.
    `rerun_if_lost` allows a second run when the outcome of the first is unknown.
    """

    spec: WorkloadSpec
    owner_id: int | None = None
    key: str | None = None
    rerun_if_lost: bool = False

    @property
    def digest(self) -> str:
        """A SHA-256 of the request: equal for equal requests, and does not reveal the source."""
        spec = self.spec
        request = {
            "runtime": spec.runtime,
            "isolation": spec.isolation,
            "code": spec.code,
            "archive": None if spec.archive is None else b64encode(spec.archive).decode(),
            "image": spec.image,
            "command": spec.command,
            "input": spec.input,
            "resources": None if spec.resources is UNSPECIFIED else asdict(spec.resources),
            "rerun_if_lost": self.rerun_if_lost,
        }
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class DuplicateSubmission(Exception):
    """The same request was submitted before; `workload` is its workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        super().__init__(workload.pk)


def log_context(workload: Workload) -> AbstractContextManager[None]:
    """Add the workload's id and owner to all log lines inside the block."""
    return bound_contextvars(workload_id=workload.pk, owner_id=workload.owner_id)


def _log_transition(
    step: str,
    workload: Workload,
    more: Mapping[str, object] | None = None,
    level: int = logging.INFO,
) -> None:
    """Log the one line for a step of the lifecycle."""
    fields = {
        "runtime": workload.runtime,
        "backend": workload.isolation_used,
        "node": workload.node,
        "attempt": workload.attempt,
        **(more or {}),
    }
    with log_context(workload):
        logger.log(level, "workload %s", step, extra=fields)


# Submitting


def check_idempotency(submission: Submission) -> None:
    """Look for an earlier submission with the same idempotency key.

    Raise `DuplicateSubmission` when the request was the same, `IdempotencyKeyConflict` otherwise.
    """
    if submission.key is None:
        return
    earlier = Workload.objects.filter(
        owner=submission.owner_id, idempotency_key=submission.key
    ).first()
    if earlier is None:
        return
    if earlier.idempotency_digest != submission.digest:
        raise IdempotencyKeyConflict(submission.key)
    raise DuplicateSubmission(earlier)


def create_workload(submission: Submission, admitted: Admitted, status: Status) -> Workload:
    """Insert the row; raise what `check_idempotency` raises."""
    spec, resolution = admitted.spec, admitted.resolution
    now = datetime.now(UTC)
    is_running = status is Status.RUNNING
    workload = Workload(
        id=spec.id,
        owner_id=submission.owner_id,
        status=status,
        runtime=spec.runtime or "",
        source_format=spec.source_format,
        isolation=spec.isolation if isinstance(spec.isolation, str) else list(spec.isolation),
        isolation_used=admitted.name,
        rule=resolution.rule,
        candidates=[asdict(one) for one in resolution.candidates],
        cpus=spec.resources.cpus,
        mem_mb=spec.resources.mem_mb,
        timeout_s=spec.resources.timeout_s,
        rerun_if_lost=submission.rerun_if_lost,
        idempotency_key=submission.key,
        idempotency_digest="" if submission.key is None else submission.digest,
        created_at=admitted.created_at,
        started_at=now if is_running else None,
        attempt=1 if is_running else 0,
        node=node_name() if is_running else "",
        node_id=node_id(runtime_dir()) if is_running else "",
    )
    try:
        with atomic():
            workload.save(force_insert=True)
            if not is_running or submission.rerun_if_lost or retention().source_days > 0:
                rest = {"command": spec.command, "input": spec.input}
                Source(
                    workload=workload,
                    code=spec.code,
                    archive=spec.archive,
                    image=spec.image,
                    rest=rest,
                ).save(force_insert=True)
    except IntegrityError:
        check_idempotency(submission)  # another request with the key came first
        raise
    _log_transition("submitted", workload)
    return workload


def run_inline(
    submission: Submission, registry: Registry, running_per_user: int | None = None
) -> Workload:
    """Record and run the workload in the caller's thread.

    Raise what `services.run` raises; no record remains then, except when the backend failed while
    running it. Raise `BackendAtCapacity` when `running_per_user` workloads of this user run there.
    """
    log = LogBuffer(limits().output_bytes, 1)
    spec = replace(submission.spec, on_output=log.write)
    admitted = services.admit(spec, registry=registry)
    name, limit = admitted.name, admitted.backend.capabilities.max_concurrency
    _check_user_limit(name, submission.owner_id, running_per_user)
    with workload_lock(spec.id, runtime_dir()), acquire_slot(name, limit, runtime_dir()):
        workload = create_workload(submission, admitted, Status.RUNNING)
        try:
            _run(workload, admitted, log, registry)
        except InvalidRequest:
            workload.delete()
            raise
    return workload


def _check_user_limit(name: str, owner_id: int | None, running_per_user: int | None) -> None:
    """Raise `BackendAtCapacity` when this user runs as many on the backend as one user may."""
    if running_per_user is None:
        return
    own_workloads = Workload.objects.filter(owner_id=owner_id, isolation_used=name)
    if own_workloads.filter(status=Status.RUNNING).count() >= running_per_user:
        raise BackendAtCapacity(name, running_per_user)


# Running what has been recorded


def run_now(workload: Workload, registry: Registry, running_per_user: int | None = None) -> bool:
    """Claim and run this pending workload in the caller's thread, if it may have a slot now.

    Return False when it has to wait, or another process has claimed it. Raise what the backend
    raises: `InvalidRequest`, after which no record remains, or `BackendUnavailable`.
    """
    name = workload.isolation_used
    entry = registry.get(name)
    with ExitStack() as stack:
        try:
            _check_user_limit(name, workload.owner_id, running_per_user)
            limit = entry.capabilities.max_concurrency
            stack.enter_context(acquire_slot(name, limit, runtime_dir()))
        except BackendAtCapacity:
            return False
        if not stack.enter_context(workload_lock(workload.pk, runtime_dir())):
            return False
        if not _claim(workload):
            return False
        try:
            _run_claimed(workload, entry.backend, registry)
        except InvalidRequest:
            workload.delete()
            raise
    return True


def run_next(
    name: str,
    registry: Registry,
    should_stop: Callable[[], bool],
    running_per_user: int | None = None,
) -> bool:
    """Claim and run the next pending workload of a backend; return False when there is none.

    Wait for a slot first, then choose a workload, unless `should_stop()` is true. Return False too
    when the backend is unavailable here. The outcome is recorded in the row.
    """
    entry = registry.snapshot.entries.get(name)
    waiting = Workload.objects.filter(status=Status.PENDING, isolation_used=name)
    if entry is None or not entry.health.eligible or not waiting.exists():
        return False
    release_connection()
    skipped: list[str] = []
    limit = entry.capabilities.max_concurrency
    with wait_for_slot(name, limit, runtime_dir(), should_stop) as has_slot:
        while has_slot and not should_stop():
            workload = _next_pending(name, skipped, running_per_user)
            if workload is None:
                break
            with workload_lock(workload.pk, runtime_dir()) as is_locked:
                if is_locked and _claim(workload):
                    try:
                        _run_claimed(workload, entry.backend, registry)
                    except (BackendUnavailable, InvalidRequest):
                        pass  # recorded in the row
                    except Exception:
                        with log_context(workload):
                            logger.exception("running the workload failed with a bug")
                    return True
            skipped.append(workload.pk)  # another process has claimed it
    return False


def _next_pending(
    name: str, skipped: Sequence[str], running_per_user: int | None
) -> Workload | None:
    """Return the oldest pending workload of a user with the fewest running on the backend.

    Ties are broken at random. So a user who submits thousands delays others only by a few.
    """
    active = Workload.objects.filter(isolation_used=name)
    pending = active.filter(status=Status.PENDING).exclude(pk__in=skipped)
    running_of: Counter[int | None] = Counter(
        dict(
            active.filter(status=Status.RUNNING)
            .order_by()
            .values_list("owner_id")
            .annotate(Count("pk"))
        )
    )
    users = [
        user
        for user in pending.order_by().values_list("owner_id", flat=True).distinct()
        if running_per_user is None or running_of[user] < running_per_user
    ]
    if not users:
        return None
    chosen = min(users, key=lambda user: (running_of[user], random.random()))  # noqa: S311
    own = pending.filter(owner_id=chosen).select_related("source").order_by("created_at")
    return own.first() or _next_pending(name, skipped, running_per_user)


def _run_claimed(workload: Workload, backend: Backend, registry: Registry) -> None:
    """Prepare and run a claimed workload, and record its end; record and raise a fault."""
    log = LogBuffer(limits().output_bytes, workload.log_lines + 1)
    try:
        spec = replace(_load_spec(workload), on_output=log.write)
        prepared = services.prepare(spec, workload.isolation_used, backend)
    except Source.DoesNotExist:
        finish(workload, _backend_error("the source was deleted"))
        return
    except (BackendUnavailable, InvalidRequest) as error:
        finish(workload, _backend_error(error.reason))
        raise
    _run(workload, prepared, log, registry)


def _backend_error(error: str) -> WorkloadResult:
    return WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR, error=error)


def _claim(workload: Workload) -> bool:
    """Change a pending workload to running; return whether this process did it."""
    changes = {
        "attempt": workload.attempt + 1,
        "started_at": datetime.now(UTC),
        "node": node_name(),
        "node_id": node_id(runtime_dir()),
    }
    attempt = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    if not attempt.transition(Status.RUNNING, **changes):
        return False
    workload.status = Status.RUNNING
    for name, value in changes.items():
        setattr(workload, name, value)
    return True


def _load_spec(workload: Workload) -> WorkloadSpec:
    source = workload.source
    return WorkloadSpec(
        id=workload.pk,
        runtime=workload.runtime,
        isolation=workload.isolation,
        code=source.code,
        archive=None if source.archive is None else bytes(source.archive),
        image=source.image,
        command=tuple(source.rest["command"]),
        input=source.rest["input"],
        resources=Resources(
            cpus=workload.cpus, mem_mb=workload.mem_mb, timeout_s=workload.timeout_s
        ),
        output_bytes=limits().output_bytes,
    )


def _run(workload: Workload, prepared: Prepared, log: LogBuffer, registry: Registry) -> None:
    """Run a workload whose row is running, and record its end; record and raise a fault."""
    execution = Execution(workload.pk, prepared.backend, log)
    fault: Exception | None = None
    release_connection()
    _log_transition("started", workload)
    with log_context(workload), supervisor.supervise(execution):
        try:
            result = services.execute(prepared, registry=registry)
        except (BackendUnavailable, InvalidRequest) as error:
            fault, result = error, _backend_error(error.reason)
        except Exception as bug:  # noqa: BLE001 - recorded, and raised below
            fault, result = bug, _backend_error("the backend failed while running it")
        if log.empty:  # a backend that does not stream its output
            for stream in STREAMS:
                log.write(stream, getattr(result, stream).encode())
        log.close()
        if result.exit_reason is ExitReason.KILLED and not execution.killed:
            recover_lost(workload)  # its kill was not requested: the server is shutting down
        else:
            with execution.store_lock:
                finish(workload, result, log)
    if fault is not None:
        raise fault


def finish(workload: Workload, result: WorkloadResult, log: LogBuffer | None = None) -> bool:
    """Record the end of a workload; return False when another end was recorded before.

    Retry for as long as the database cannot be reached, since the end is a fact.
    """
    pause, longest = STORE_RETRY_S
    while True:
        try:
            return _finish_once(workload, result, log)
        except (OperationalError, InterfaceError) as error:
            with log_context(workload):
                logger.warning("the end of the workload cannot be recorded yet: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, longest)
            close_old_connections()


def _finish_once(workload: Workload, result: WorkloadResult, log: LogBuffer | None) -> bool:
    changes = {
        "finished_at": datetime.now(UTC),
        "exit_reason": str(result.exit_reason),
        "exit_code": result.exit_code,
        "signal": result.signal or "",
        "duration_ms": result.duration_ms,
        "compile_ms": result.compile_ms,
        "cpu_time_ms": result.cpu_time_ms,
        "memory_bytes": result.memory_bytes,
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "stdout_encoding": result.stdout_encoding,
        "stderr_encoding": result.stderr_encoding,
        "error": result.error,
        "output": result.output,
        "stdout": result.stdout,
        "stderr": result.stderr,
    }
    blocks = log.pending_blocks() if log is not None else ()
    attempt = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    with atomic():
        is_changed = attempt.transition(result.status, **changes)
        if is_changed:
            if blocks:
                store.save_blocks(workload.pk, blocks)
            _drop_source(workload)
    if not is_changed:
        workload.refresh_from_db()
        return False
    if log is not None:
        log.acknowledge(len(blocks))
    workload.status = result.status
    for name, value in changes.items():
        setattr(workload, name, value)
    signals.workload_ended.send_robust(None, workload=workload)
    outcome = {"exit_reason": str(result.exit_reason), "duration_ms": result.duration_ms}
    _log_transition("ended", workload, {"status": str(result.status), **outcome})
    return True


def _drop_source(workload: Workload) -> None:
    """Delete the source of an ended workload, unless ISOLATION_RETENTION keeps it."""
    if retention().source_days == 0:
        Source.objects.filter(pk=workload.pk).delete()


def resubmission(workload: Workload, owner_id: int | None) -> Submission:
    """Return a submission that runs the workload again as a new one.

    Raise `InvalidRequest` when its source has been deleted.
    """
    try:
        spec = _load_spec(workload)
    except Source.DoesNotExist:
        raise InvalidRequest(
            "id",
            "Its source was deleted when it ended; set source_days in ISOLATION_RETENTION to keep "
            "sources.",
        ) from None
    return Submission(
        spec=replace(spec, id=new_id()), owner_id=owner_id, rerun_if_lost=workload.rerun_if_lost
    )


def recover_lost(workload: Workload) -> None:
    """Fail a running workload whose worker was lost, or make it pending again if allowed.

    A workload whose kill was requested is recorded as killed.
    """
    attempt = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    can_rerun = (
        workload.rerun_if_lost
        and workload.attempt < MAX_ATTEMPTS
        and workload.kill_requested_at is None
        and Source.objects.filter(pk=workload.pk).exists()
    )
    if can_rerun:
        changes = {"started_at": None, "node": "", "node_id": ""}
        if attempt.filter(status=Status.RUNNING).transition(Status.PENDING, **changes):
            _log_transition("lost with its worker; queued again", workload, level=logging.WARNING)
        workload.refresh_from_db()
        return
    killed = workload.kill_requested_at is not None
    reason = ExitReason.KILLED if killed else ExitReason.WORKER_LOST
    if finish(workload, WorkloadResult(exit_reason=reason, error=WORKER_LOST_MESSAGE)):
        _log_transition("lost with its worker", workload, level=logging.WARNING)


# Waiting and killing


def wait(workload: Workload, timeout_s: float) -> bool:
    """Wait up to `timeout_s` for the end; return False on timeout or when the row is deleted."""
    deadline = time.monotonic() + timeout_s
    pause = POLL_INTERVAL_S[0]
    while not workload.ended:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            return False
        time.sleep(min(pause, remaining_s))
        pause = min(1.5 * pause, POLL_INTERVAL_S[1])
        try:
            workload.refresh_from_db()
        except Workload.DoesNotExist:
            return False
        release_connection()
    return True


def kill(workload: Workload, wait_s: float | None = None) -> None:
    """Kill a workload, wherever it runs; raise `WorkloadFinished` when it ended otherwise.

    Return when it has ended, or after `wait_s` (default: `KILL_WAIT_S`) when its worker has not
    applied the kill yet.
    """
    now = datetime.now(UTC)
    row = Workload.objects.filter(pk=workload.pk)
    result = {"exit_reason": str(ExitReason.KILLED), "finished_at": now}
    with atomic():
        was_pending = row.filter(status=Status.PENDING).transition(
            Status.KILLED, error="killed before it started", **result
        )
        if was_pending:
            _drop_source(workload)
    was_running = not was_pending and row.filter(status=Status.RUNNING).update(
        kill_requested_at=now
    )
    workload.refresh_from_db()
    if was_pending:
        signals.workload_ended.send_robust(None, workload=workload)
    if not was_pending and not was_running:
        raise WorkloadFinished(workload.status)
    _log_transition("killed before it started" if was_pending else "kill requested", workload)
    wait(workload, KILL_WAIT_S if wait_s is None else wait_s)
    if workload.ended and workload.status != Status.KILLED:
        raise WorkloadFinished(workload.status)
