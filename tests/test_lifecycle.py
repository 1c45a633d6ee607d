"""The lifecycle of a recorded workload: every path from its submission to exactly one end."""

import threading
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError

from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendAtCapacity,
    BackendNotRegistered,
    BackendUnavailable,
    IdempotencyKeyConflict,
    InvalidRequest,
    WorkloadFinished,
)
from backends_app.execution import lifecycle
from backends_app.execution.lifecycle import (
    finish,
    kill,
    recover_lost,
    run_inline,
    run_next,
)
from backends_app.execution.slots import workload_lock
from backends_app.execution.supervisor import supervisor
from backends_app.executors.local import LocalExecutor
from backends_app.logs import store
from backends_app.models import ENDED, PREVIOUS_STATUSES, LogBlock, Source, Workload
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, Status, WorkloadResult, WorkloadSpec
from tests.support.workloads import recorded, submission

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

DONE = WorkloadResult(exit_reason=ExitReason.EXITED, exit_code=0, output=[1], stdout="out\n")


def never() -> bool:
    return False


def lines(workload: Workload) -> list[str]:
    return [line.text for line in store.lines_after(store.blocks_after(workload.pk, 0), 0)]


# Status transitions


@pytest.mark.parametrize("to", Status)
@pytest.mark.parametrize("before", Status)
def test_only_allowed_status_transitions_succeed(before: Status, to: Status):
    workload = recorded(before)
    ended = {"finished_at": datetime.now(UTC) if to in ENDED else None}
    changed = Workload.objects.filter(pk=workload.pk).transition(to, **ended)
    assert changed == (before in PREVIOUS_STATUSES[to])
    workload.refresh_from_db()
    assert workload.status == (to if changed else before)


@pytest.mark.parametrize(
    "row", [{"status": "lost"}, {"status": "completed"}, {"finished_at": datetime.now(UTC)}]
)
def test_the_database_rejects_inconsistent_rows(row):
    with pytest.raises(IntegrityError):
        Workload.objects.filter(pk=recorded().pk).update(**row)


# Inline runs


def test_a_run_is_recorded(filled: Registry, user: User):
    workload = run_inline(submission(owner=user, input={"a": "\x00"}), filled)
    kept = Workload.objects.get()
    assert kept == workload
    assert (kept.status, kept.exit_reason, kept.output) == ("completed", "exited", {"a": "\x00"})
    assert (kept.owner, kept.isolation_used, kept.attempt) == (user, "isolate", 1)
    assert (kept.rule, kept.isolation) == ("runtime node → isolate", "auto")
    assert [one["name"] for one in kept.candidates] == ["isolate", "gvisor", "microvm"]
    assert kept.created_at <= kept.started_at <= kept.finished_at
    assert not Source.objects.exists()


def test_a_request_that_cannot_run_leaves_no_record(filled: Registry, fakes):
    with pytest.raises(InvalidRequest):
        run_inline(submission(isolation=[]), filled)
    filled.unregister("isolate")
    with pytest.raises(BackendNotRegistered):
        run_inline(submission(), filled)
    assert not Workload.objects.exists()


def test_a_run_without_a_slot_leaves_no_record(registry: Registry):
    inside, leave = threading.Event(), threading.Event()

    class Full(FakeBackend):
        def execute(self, workload: WorkloadSpec) -> WorkloadResult:
            inside.set()
            leave.wait(60)
            return DONE

    registry.register("isolate", Full(max_concurrency=1))
    thread = threading.Thread(
        target=lifecycle.services.run, args=[submission().spec], kwargs={"registry": registry}
    )
    thread.start()
    inside.wait(60)
    with pytest.raises(BackendAtCapacity):
        run_inline(submission(), registry)
    leave.set()
    thread.join()
    assert not Workload.objects.exists()


def test_a_backend_fault_during_a_run_is_recorded_and_raised(filled: Registry, fakes):
    def broken(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = broken
    with pytest.raises(BackendUnavailable):
        run_inline(submission(), filled)
    kept = Workload.objects.get()
    assert (kept.status, kept.exit_reason, kept.error) == (
        "failed",
        "backend_error",
        "the disk is full",
    )


def test_a_request_that_the_backend_rejects_leaves_no_record(filled: Registry, fakes):
    def refused(workload: WorkloadSpec) -> None:
        raise InvalidRequest("image", "is not there")

    fakes["isolate"].program = refused
    with pytest.raises(InvalidRequest):
        run_inline(submission(), filled)
    assert not Workload.objects.exists()


@pytest.mark.parametrize("bug", [ZeroDivisionError, SystemExit])
def test_a_bug_in_a_backend_ends_the_workload(filled: Registry, bug: type[BaseException]):
    class Buggy(FakeBackend):
        def execute(self, workload: WorkloadSpec):
            raise bug

    filled.register("isolate", Buggy(), replace=True)
    workload = run_inline(submission(), filled)
    kept = Workload.objects.get()
    assert (kept.status, kept.exit_reason, kept.error) == (
        "failed",
        "backend_error",
        f"backend 'isolate' has a bug: its execute() raised {bug.__name__}",
    )
    assert workload.error == kept.error


def test_an_unrecordable_result_ends_the_workload(filled: Registry, fakes):
    fakes["isolate"].program = lambda workload: WorkloadResult(
        exit_reason=ExitReason.EXITED, exit_code=0, stdout="half \ud800"
    )
    run_inline(submission(), filled)
    kept = Workload.objects.get()
    assert kept.exit_reason == "backend_error"
    assert "stdout contains an unpaired surrogate" in kept.error
    assert kept.stdout == ""


def test_the_output_of_a_workload_is_its_log(filled: Registry, fakes):
    def program(workload: WorkloadSpec) -> WorkloadResult:
        workload.on_output("stdout", b"one\ntw")
        workload.on_output("stderr", b"oops\n")
        workload.on_output("stdout", b"o")
        return DONE

    fakes["isolate"].program = program
    workload = run_inline(submission(), filled)
    assert lines(workload) == ["one", "oops", "two"]


def test_output_returned_only_at_the_end_is_logged(filled: Registry, fakes):
    fakes["isolate"].program = lambda workload: DONE
    assert lines(run_inline(submission(), filled)) == ["out"]


# Queued workloads


def test_a_pending_workload_is_run(filled: Registry, fakes):
    workload = recorded()
    run_next("isolate", filled, never)
    workload.refresh_from_db()
    assert (workload.status, workload.attempt) == ("completed", 1)
    [spec] = fakes["isolate"].workloads
    assert (spec.id, spec.code, spec.runtime) == (workload.pk, "export default (x) => x", "node")
    assert not Source.objects.exists()


@pytest.mark.parametrize("status", [Status.RUNNING, *ENDED])
def test_a_workload_that_is_not_pending_is_not_run(filled: Registry, fakes, status: Status):
    recorded(status)
    run_next("isolate", filled, never)
    run_next("nobody", filled, never)
    assert not fakes["isolate"].workloads
    assert Workload.objects.get().status == status


def test_a_workload_locked_by_another_process_is_not_run(filled: Registry, fakes, runtime_dir):
    workload = recorded()
    with workload_lock(workload.pk, runtime_dir):
        run_next("isolate", filled, never)
    assert not fakes["isolate"].workloads


def test_a_workload_of_an_unhealthy_backend_stays_pending(filled: Registry, fakes):
    recorded()
    filled.unregister("isolate")
    run_next("isolate", filled, never)
    assert Workload.objects.get().status == "pending"


def test_a_workload_without_its_source_fails(filled: Registry):
    workload = recorded(source=False)
    run_next("isolate", filled, never)
    workload.refresh_from_db()
    assert (workload.status, workload.exit_reason) == ("failed", "backend_error")


def test_a_backend_fault_during_a_queued_run_is_recorded(filled: Registry, fakes):
    def broken(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = broken
    workload = recorded()
    run_next("isolate", filled, never)
    workload.refresh_from_db()
    assert (workload.status, workload.error) == ("failed", "the disk is full")


def test_a_repeated_notification_runs_the_workload_once(filled: Registry, fakes):
    recorded()
    for _ in range(2):
        run_next("isolate", filled, never)
    assert len(fakes["isolate"].workloads) == 1


# Ends


def test_only_the_first_end_is_recorded():
    workload = recorded(Status.RUNNING)
    assert finish(workload, DONE)
    assert not finish(workload, WorkloadResult(exit_reason=ExitReason.TIMEOUT))
    kept = Workload.objects.get()
    assert (kept.status, kept.exit_reason, kept.output) == ("completed", "exited", [1])


def test_the_end_of_an_earlier_attempt_is_ignored():
    workload = recorded(Status.RUNNING, rerun_if_lost=True)
    late = Workload.objects.get()
    recover_lost(workload)
    Workload.objects.filter(pk=workload.pk).update(status="running", attempt=2)
    assert not finish(late, DONE)
    assert Workload.objects.get().status == "running"


def test_the_end_is_recorded_after_the_database_recovers(monkeypatch):
    workload, tried = recorded(Status.RUNNING), []
    real = lifecycle._finish_once

    def locked(*given):
        tried.append(given)
        if len(tried) < 3:
            raise OperationalError("database is locked")
        return real(*given)

    monkeypatch.setattr(lifecycle, "_finish_once", locked)
    assert finish(workload, DONE)
    assert len(tried) == 3


def test_a_pending_workload_is_killed_at_once():
    workload = recorded()
    kill(workload)
    assert (workload.status, workload.exit_reason) == ("killed", "killed")
    assert workload.started_at is None
    assert not Source.objects.exists()


@pytest.mark.parametrize("status", ENDED)
def test_killing_a_finished_workload_is_an_error(status: Status):
    workload = recorded(status)
    with pytest.raises(WorkloadFinished, match=status):
        kill(workload)


def test_a_kill_that_no_worker_applies_returns_after_its_timeout(monkeypatch):
    monkeypatch.setattr(lifecycle, "KILL_WAIT_S", 0)
    workload = recorded(Status.RUNNING)
    for _ in range(2):
        kill(workload)
        assert workload.status == "running"
        assert workload.kill_requested_at is not None


def test_a_lost_workload_fails():
    workload = recorded(Status.RUNNING)
    recover_lost(workload)
    kept = Workload.objects.get()
    assert (kept.status, kept.exit_reason) == ("failed", "worker_lost")
    assert not Source.objects.exists()


def test_a_lost_workload_with_a_requested_kill_is_killed():
    workload = recorded(Status.RUNNING, rerun_if_lost=True, kill_requested_at=datetime.now(UTC))
    recover_lost(workload)
    assert Workload.objects.get().status == "killed"


def test_a_lost_workload_is_run_again_with_rerun_if_lost(filled: Registry, fakes):
    workload = recorded(Status.RUNNING, rerun_if_lost=True, log_lines=3)
    recover_lost(workload)
    assert (workload.status, workload.node, workload.started_at) == ("pending", "", None)
    fakes["isolate"].program = lambda spec: DONE
    run_next("isolate", filled, never)
    workload.refresh_from_db()
    assert (workload.status, workload.attempt) == ("completed", 2)
    assert [block.first for block in LogBlock.objects.all()] == [4]
    assert not Source.objects.exists()


def test_a_lost_workload_is_run_again_only_once():
    workload = recorded(Status.RUNNING, rerun_if_lost=True, attempt=2)
    recover_lost(workload)
    assert workload.exit_reason == "worker_lost"


def test_a_workload_ended_by_a_shutdown_is_lost_not_killed(filled: Registry, fakes):
    """A drain kills running workloads although no kill was requested."""
    killed = WorkloadResult(exit_reason=ExitReason.KILLED, signal="SIGKILL")
    fakes["isolate"].program = lambda workload: killed
    assert run_inline(submission(), filled).exit_reason == "worker_lost"
    again = run_inline(submission(rerun_if_lost=True), filled)
    assert (again.status, again.attempt) == ("pending", 1)


def test_a_running_workload_is_killed_and_its_log_is_kept(filled: Registry):
    gone = threading.Event()

    class Endless(FakeBackend):
        def execute(self, workload: WorkloadSpec) -> WorkloadResult:
            workload.on_output("stdout", b"so far\n")
            Workload.objects.filter(pk=workload.id).update(kill_requested_at=datetime.now(UTC))
            supervisor.tick()
            assert gone.wait(60)
            assert LogBlock.objects.get().text == "so far\n"
            return WorkloadResult(exit_reason=ExitReason.KILLED, stdout="so far\n")

        def kill(self, workload_id: str) -> None:
            gone.set()

    filled.register("isolate", Endless(), replace=True)
    workload = run_inline(submission(), filled)
    assert (workload.status, workload.exit_reason) == ("killed", "killed")
    assert lines(workload) == ["so far"]


# Idempotency keys


def test_the_same_key_is_the_same_workload(filled: Registry, fakes, user: User):
    executor = LocalExecutor(filled)
    first = executor.run(submission(owner=user, key="k"))
    assert executor.run(submission(owner=user, key="k")) == first
    assert executor.submit(submission(owner=user, key="k")) == first
    with pytest.raises(IdempotencyKeyConflict):
        lifecycle.check_idempotency(submission(owner=user, key="k", input=1))
    with pytest.raises(IdempotencyKeyConflict):
        lifecycle.check_idempotency(submission(owner=user, key="k", rerun_if_lost=True))
    executor.run(submission(owner=User.objects.create_user("bob"), key="k", input=1))
    assert len(fakes["isolate"].workloads) == 2


def test_the_digest_differs_between_requests_and_hides_the_source():
    digests = {
        submission(**given).digest
        for given in (
            {},
            {"code": "x"},
            {"input": 1},
            {"input": "1"},
            {"isolation": "isolate"},
            {"runtime": "wasm"},
            {"rerun_if_lost": True},
        )
    }
    assert len(digests) == 7
    assert submission().digest == submission().digest
    assert "export" not in submission().digest


# Resubmissions


def test_a_source_is_kept_with_source_days(filled: Registry, fakes, user: User, settings):
    with pytest.raises(InvalidRequest, match="source_days"):
        lifecycle.resubmission(run_inline(submission(), filled), user.pk)
    settings.ISOLATION_RETENTION = {"source_days": 1}
    first = run_inline(submission(input=5, isolation=["isolate"], command=[]), filled)
    again = run_inline(lifecycle.resubmission(first, user.pk), filled)
    assert again.pk != first.pk
    assert (again.owner, again.output, again.isolation) == (user, 5, ["isolate"])
