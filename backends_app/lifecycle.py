"""The life of a recorded workload: submitted, begun, ended; or killed, or lost with its worker.

Everything here works on the row. Two that want to change it differently meet in the database, where
one of them comes first; see `models`.
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

from . import logs, services, signals
from .backends.base import Backend
from .conf import limits, retention, runtime_dir
from .database import release_connection
from .exceptions import (
    BackendAtCapacity,
    BackendUnavailable,
    IdempotencyKeyConflict,
    InvalidRequest,
    WorkloadFinished,
)
from .logs import LogBuffer
from .models import Source, Workload, new_id
from .nodes import node_id, node_name
from .registry import Registry
from .running import Execution, supervisor
from .services import Prepared
from .slots import acquire_slot, wait_for_slot, workload_lock
from .workloads import (
    STREAMS,
    UNSPECIFIED,
    ExitReason,
    Resources,
    Status,
    WorkloadResult,
    WorkloadSpec,
)

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
POLL_INTERVAL_S = (0.01, 0.25)  # of a row that is waited for: at first, and at most
KILL_WAIT_S = 5.0
STORE_RETRY_S = (0.1, 5.0)
WORKER_LOST_MESSAGE = "the worker that ran it has ended, or is not to be heard from"


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What somebody submits: a workload, and what belongs to its record alone.

    `key` makes it the same workload when it is submitted again by the same owner. `rerun_if_lost`
    says that it may be run a second time when nobody knows what became of the first.
    """

    spec: WorkloadSpec
    owner_id: int | None = None
    key: str | None = None
    rerun_if_lost: bool = False

    @property
    def digest(self) -> str:
        """Equal for equal requests; it does not give the source away."""
        spec = self.spec
        said = {
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
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class DuplicateSubmission(Exception):
    """The order has been given before; this is its workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        super().__init__(workload.pk)


def log_context(workload: Workload) -> AbstractContextManager[None]:
    """All that is logged meanwhile is about this workload."""
    return bound_contextvars(workload_id=workload.pk, owner_id=workload.owner_id)


def _log_transition(
    step: str,
    workload: Workload,
    more: Mapping[str, object] | None = None,
    level: int = logging.INFO,
) -> None:
    """The one line for a step in its life."""
    said = {
        "runtime": workload.runtime,
        "backend": workload.isolation_used,
        "node": workload.node,
        "attempt": workload.attempt,
        **(more or {}),
    }
    with log_context(workload):
        logger.log(level, "workload %s", step, extra=said)


# Submitting


def check_idempotency(submission: Submission) -> None:
    """Look for an earlier submission with the same idempotency key.

    Raises `DuplicateSubmission` when it asked for the same, `IdempotencyKeyConflict` otherwise.
    """
    if submission.key is None:
        return
    found = Workload.objects.filter(
        owner=submission.owner_id, idempotency_key=submission.key
    ).first()
    if found is None:
        return
    if found.idempotency_digest != submission.digest:
        raise IdempotencyKeyConflict(submission.key)
    raise DuplicateSubmission(found)


def create_workload(submission: Submission, prepared: Prepared, status: Status) -> Workload:
    """Insert the row; raise what `check_idempotency` raises."""
    spec, resolution = prepared.spec, prepared.resolution
    now = datetime.now(UTC)
    begun = status is Status.RUNNING
    workload = Workload(
        id=spec.id,
        owner_id=submission.owner_id,
        status=status,
        runtime=spec.runtime or "",
        source_format=spec.source_format,
        isolation=spec.isolation if isinstance(spec.isolation, str) else list(spec.isolation),
        isolation_used=prepared.name,
        rule=resolution.rule,
        candidates=[asdict(one) for one in resolution.candidates],
        cpus=spec.resources.cpus,
        mem_mb=spec.resources.mem_mb,
        timeout_s=spec.resources.timeout_s,
        rerun_if_lost=submission.rerun_if_lost,
        idempotency_key=submission.key,
        idempotency_digest="" if submission.key is None else submission.digest,
        created_at=prepared.created_at,
        started_at=now if begun else None,
        attempt=1 if begun else 0,
        node=node_name() if begun else "",
        node_id=node_id(runtime_dir()) if begun else "",
    )
    try:
        with atomic():
            workload.save(force_insert=True)
            if not begun or submission.rerun_if_lost or retention().source_days > 0:
                rest = {"command": spec.command, "input": spec.input}
                Source(
                    workload=workload,
                    code=spec.code,
                    archive=spec.archive,
                    image=spec.image,
                    rest=rest,
                ).save(force_insert=True)
    except IntegrityError:
        check_idempotency(submission)  # it came in the moment since the last look
        raise
    _log_transition("submitted", workload)
    return workload


def run_inline(
    submission: Submission, registry: Registry, running_per_user: int | None = None
) -> Workload:
    """Record and run the workload in the caller's thread.

    Raises what `services.run` raises, and then there is no record, but for a backend that broke
    under the workload; and `BackendAtCapacity` when `running_per_user` of this user run there.
    """
    prepared = services.prepare(submission.spec, registry=registry)
    name, backend, spec = prepared.name, prepared.backend, prepared.spec
    if running_per_user is not None:
        mine = Workload.objects.filter(owner_id=submission.owner_id, isolation_used=name)
        if mine.filter(status=Status.RUNNING).count() >= running_per_user:
            raise BackendAtCapacity(name, running_per_user)
    with ExitStack() as held:
        held.enter_context(workload_lock(spec.id, runtime_dir()))
        wanted = acquire_slot(name, backend.capabilities.max_concurrency, runtime_dir())
        if submission.key is None:
            held.enter_context(wanted)
            workload = create_workload(submission, prepared, Status.RUNNING)
        else:  # the record first: it is what others with the key wait for
            workload = create_workload(submission, prepared, Status.RUNNING)
            try:
                held.enter_context(wanted)
            except (BackendAtCapacity, BackendUnavailable):
                workload.delete()
                raise
        try:
            _run(workload, spec, backend, registry)
        except InvalidRequest:
            workload.delete()
            raise
    return workload


# Running what has been recorded


def run_next(
    name: str,
    registry: Registry,
    should_stop: Callable[[], bool],
    running_per_user: int | None = None,
) -> bool:
    """Run the next of the workloads that wait for a backend; False when none is to be run here now.

    Waits for a slot, and chooses when it has one, unless `give_up` tells that this process is to
    begin nothing more. Whatever happens, the row tells.
    """
    entry = registry.snapshot.entries.get(name)
    waiting = Workload.objects.filter(status=Status.PENDING, isolation_used=name)
    if entry is None or not entry.health.eligible or not waiting.exists():
        return False
    release_connection()
    passed: list[str] = []
    limit = entry.capabilities.max_concurrency
    with wait_for_slot(name, limit, runtime_dir(), should_stop) as has_slot:
        while has_slot and not should_stop():
            workload = _next_waiting(name, passed, running_per_user)
            if workload is None:
                break
            with workload_lock(workload.pk, runtime_dir()) as mine:
                if mine and _claim(workload):
                    _run_claimed(workload, entry.backend, registry)
                    return True
            passed.append(workload.pk)  # it is somebody else's by now
    return False


def _next_waiting(
    name: str, passed: Sequence[str], running_per_user: int | None
) -> Workload | None:
    """Choose a user of whom the fewest workloads run on a backend, and of that user the oldest.

    Among equals chance decides. So who submits thousands keeps nobody waiting for more than a few.
    """
    active = Workload.objects.filter(isolation_used=name)
    waiting = active.filter(status=Status.PENDING).exclude(pk__in=passed)
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
        for user in waiting.order_by().values_list("owner_id", flat=True).distinct()
        if running_per_user is None or running_of[user] < running_per_user
    ]
    if not users:
        return None
    chosen = min(users, key=lambda user: (running_of[user], random.random()))  # noqa: S311
    own = waiting.filter(owner_id=chosen).select_related("source").order_by("created_at")
    return own.first() or _next_waiting(name, passed, running_per_user)


def _run_claimed(workload: Workload, backend: Backend, registry: Registry) -> None:
    try:
        spec = _load_spec(workload)
    except Source.DoesNotExist:
        reason = ExitReason.BACKEND_ERROR
        finish(workload, WorkloadResult(exit_reason=reason, error="its source is not there"))
        return
    try:
        _run(workload, spec, backend, registry)
    except (BackendUnavailable, InvalidRequest):
        pass  # the row tells
    except Exception:
        with log_context(workload):
            logger.exception("workload met a bug")


def _claim(workload: Workload) -> bool:
    """Of all that want to run it, one can."""
    claimed = {
        "attempt": workload.attempt + 1,
        "started_at": datetime.now(UTC),
        "node": node_name(),
        "node_id": node_id(runtime_dir()),
    }
    waiting = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    if not waiting.transition(Status.RUNNING, **claimed):
        return False
    workload.status = Status.RUNNING
    for name, value in claimed.items():
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


def _run(workload: Workload, spec: WorkloadSpec, backend: Backend, registry: Registry) -> None:
    """Run what is recorded as running, and record its end; a fault is recorded, and raised too."""
    log = LogBuffer(spec.output_bytes, workload.log_lines + 1)
    execution = Execution(workload.pk, backend, log)
    fault: Exception | None = None
    release_connection()
    _log_transition("begun", workload)
    with log_context(workload), supervisor.supervise(execution):
        try:
            result = services.execute(
                replace(spec, on_output=log.write),
                workload.isolation_used,
                backend,
                registry=registry,
            )
        except (BackendUnavailable, InvalidRequest) as error:
            said = error.reason
            fault = error
            result = WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR, error=said)
        except Exception as bug:  # noqa: BLE001 - recorded, and raised below
            fault = bug
            result = WorkloadResult(
                exit_reason=ExitReason.BACKEND_ERROR, error="the backend failed under it"
            )
        if log.empty:  # a backend may say it only now
            for stream in STREAMS:
                log.write(stream, getattr(result, stream).encode())
        log.close()
        if result.exit_reason is ExitReason.KILLED and not execution.killed:
            recover_lost(workload)  # nobody asked for it: the server ends
        else:
            with execution.store_lock:
                finish(workload, result, log)
    if fault is not None:
        raise fault


def finish(workload: Workload, result: WorkloadResult, log: LogBuffer | None = None) -> bool:
    """Record how it ended; False when it had ended in another way before.

    It has happened, so this does not give up while the database cannot be reached.
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
    mine = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    with atomic():
        ended = mine.transition(result.status, **changes)
        if ended:
            if blocks:
                logs.store(workload.pk, blocks)
            _drop_source(workload)
    if not ended:
        workload.refresh_from_db()
        return False
    if log is not None:
        log.acknowledge(len(blocks))
    workload.status = result.status
    for name, value in changes.items():
        setattr(workload, name, value)
    signals.workload_ended.send_robust(None, workload=workload)
    how = {"exit_reason": str(result.exit_reason), "duration_ms": result.duration_ms}
    _log_transition("ended", workload, {"status": str(result.status), **how})
    return True


def _drop_source(workload: Workload) -> None:
    """It is kept no longer than it is needed, unless the operator says so."""
    if retention().source_days == 0:
        Source.objects.filter(pk=workload.pk).delete()


def resubmission(workload: Workload, owner_id: int | None) -> Submission:
    """An order for the same workload once more, as a new one; raises `InvalidRequest` when its
    source is not kept.
    """
    try:
        spec = _load_spec(workload)
    except Source.DoesNotExist:
        raise InvalidRequest(
            "id",
            "Its source was deleted when it ended; ISOLATION_RETENTION's source_days keeps it.",
        ) from None
    return Submission(
        spec=replace(spec, id=new_id()), owner_id=owner_id, rerun_if_lost=workload.rerun_if_lost
    )


def recover_lost(workload: Workload) -> None:
    """Nobody will ever say what became of it: it has failed, or is run once more if it may be."""
    mine = Workload.objects.filter(pk=workload.pk, attempt=workload.attempt)
    again = (
        workload.rerun_if_lost
        and workload.attempt < MAX_ATTEMPTS
        and workload.kill_requested_at is None
        and Source.objects.filter(pk=workload.pk).exists()
    )
    if again:
        fresh = {"started_at": None, "node": "", "node_id": ""}
        if mine.filter(status=Status.RUNNING).transition(Status.PENDING, **fresh):
            _log_transition(
                "lost with its worker; it is run again", workload, level=logging.WARNING
            )
        workload.refresh_from_db()
        return
    killed = workload.kill_requested_at is not None
    reason = ExitReason.KILLED if killed else ExitReason.WORKER_LOST
    if finish(workload, WorkloadResult(exit_reason=reason, error=WORKER_LOST_MESSAGE)):
        _log_transition("lost with its worker", workload, level=logging.WARNING)


# Watching and ending


def wait(workload: Workload, timeout_s: float) -> bool:
    """Wait until it has ended; False when that takes longer, or the row has gone."""
    deadline = time.monotonic() + timeout_s
    pause = POLL_INTERVAL_S[0]
    while not workload.ended:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(1.5 * pause, POLL_INTERVAL_S[1])
        try:
            workload.refresh_from_db()
        except Workload.DoesNotExist:
            return False
        release_connection()
    return True


def kill(workload: Workload, wait_s: float | None = None) -> None:
    """End it, whoever runs it; raises `WorkloadFinished` when it has ended otherwise.

    Returns when it has ended, or after `wait_s` (default: `KILL_WAIT_S`) when its worker has not
    got to it yet.
    """
    now = datetime.now(UTC)
    one = Workload.objects.filter(pk=workload.pk)
    result = {"exit_reason": str(ExitReason.KILLED), "finished_at": now}
    with atomic():
        waited = one.filter(status=Status.PENDING).transition(
            Status.KILLED, error="killed before it began", **result
        )
        if waited:
            _drop_source(workload)
    asked = not waited and one.filter(status=Status.RUNNING).update(kill_requested_at=now)
    workload.refresh_from_db()
    if waited:
        signals.workload_ended.send_robust(None, workload=workload)
    if not waited and not asked:
        raise WorkloadFinished(workload.status)
    _log_transition("killed before it began" if waited else "is to be killed", workload)
    wait(workload, KILL_WAIT_S if wait_s is None else wait_s)
    if workload.ended and workload.status != Status.KILLED:
        raise WorkloadFinished(workload.status)
