"""The local executor in this process: threads, maintenance, races between end and kill."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.conf import load_executor
from backends_app.exceptions import (
    BackendAtCapacity,
    BackendUnavailable,
    InvalidRequest,
    QueueFull,
    WorkloadFinished,
)
from backends_app.execution import lifecycle
from backends_app.execution.lifecycle import Submission
from backends_app.execution.nodes import heartbeat, node_id
from backends_app.execution.slots import workload_lock
from backends_app.executors.base import Executor
from backends_app.executors.local import LocalExecutor
from backends_app.models import NodeBackend, Source, Workload
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, Status, WorkloadResult, WorkloadSpec
from tests.support.programs import PATIENCE_S, wait_until
from tests.support.workloads import recorded, submission

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def executor(filled: Registry) -> Iterator[LocalExecutor]:
    """Return a started executor over the three fakes."""
    serving = LocalExecutor(filled, grace_s=PATIENCE_S)
    serving.ensure_started(wait_s=0)
    yield serving
    serving.drain()


def ended(workload: Workload) -> Workload:
    assert lifecycle.wait(workload, PATIENCE_S)
    return workload


def test_a_submitted_workload_is_run(executor: LocalExecutor):
    workloads = [executor.submit(submission(input=number)) for number in range(50)]
    assert [ended(one).output for one in workloads] == [*range(50)]


def test_a_keyed_run_without_a_slot_waits_in_the_queue(registry: Registry):
    inside, leave = threading.Event(), threading.Event()

    def program(workload: WorkloadSpec) -> object:
        inside.set()
        leave.wait(PATIENCE_S)
        return workload.input

    registry.register("isolate", FakeBackend(max_concurrency=1, program=program))
    executor = LocalExecutor(registry)
    executor.ensure_started(wait_s=0)
    first = executor.submit(submission(input=1))
    assert inside.wait(PATIENCE_S)
    outputs: list[object] = []
    ada = User.objects.create_user("ada")
    threads = [
        threading.Thread(target=lambda: outputs.append(run_and_close(executor, ada)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: Workload.objects.filter(status="pending").count() == 1)
    leave.set()
    for thread in threads:
        thread.join()
    assert ended(first).output == 1
    assert outputs == [2, 2, 2]
    assert Workload.objects.count() == 2
    executor.drain()


def run_and_close(executor: LocalExecutor, owner: User) -> object:
    try:
        return executor.run(submission(input=2, key="k", owner=owner)).output
    finally:
        connections.close_all()


def test_a_keyed_run_that_the_backend_rejects_leaves_no_record(filled: Registry, fakes):
    def rejects(workload: WorkloadSpec) -> None:
        raise InvalidRequest("image", "is not there")

    fakes["isolate"].program = rejects
    with pytest.raises(InvalidRequest):
        LocalExecutor(filled).run(submission(key="k"))
    assert not Workload.objects.exists()


def test_a_keyed_run_records_the_backends_fault_and_raises_it(filled: Registry, fakes):
    def broken(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = broken
    executor = LocalExecutor(filled)
    with pytest.raises(BackendUnavailable):
        executor.run(submission(key="k"))
    repeated = executor.run(submission(key="k"))
    assert (repeated.exit_reason, repeated.error) == ("backend_error", "the disk is full")


def test_a_fault_while_preparing_a_waiting_workload_is_its_end(filled: Registry, fakes):
    executor = LocalExecutor(filled)
    workload = executor.submit(submission())

    def rejects(workload: WorkloadSpec) -> None:
        raise InvalidRequest("code", "is not what this version takes")

    fakes["isolate"].prepare = rejects
    assert executor.run_next("isolate")
    workload.refresh_from_db()
    assert (workload.exit_reason, workload.error) == (
        "backend_error",
        "is not what this version takes",
    )


def test_workloads_run_in_order_within_the_slots(registry: Registry):
    inside, most, began = 0, 0, []
    lock = threading.Lock()

    def program(workload: WorkloadSpec) -> None:
        nonlocal inside, most
        with lock:
            began.append(workload.input)
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    registry.register("isolate", FakeBackend(max_concurrency=2, program=program))
    executor = LocalExecutor(registry)
    executor.ensure_started(wait_s=0)
    for one in [executor.submit(submission(input=number)) for number in range(20)]:
        ended(one)
    executor.drain()
    assert most == 2
    assert all(abs(number - place) < 3 for place, number in enumerate(began))


@pytest.mark.slow
def test_a_slow_backend_does_not_delay_other_backends(executor: LocalExecutor, fakes):
    leave = threading.Event()
    fakes["microvm"].program = lambda workload: leave.wait(PATIENCE_S)
    slow = [executor.submit(submission(runtime="python")) for _ in range(200)]
    assert ended(executor.submit(submission(input=1))).output == 1
    leave.set()
    for one in slow:
        ended(one)


def test_the_queue_is_bounded(filled: Registry):
    executor = LocalExecutor(filled, queue_size=3, queue_size_per_user=3)
    for _ in range(3):
        executor.submit(submission())
    with pytest.raises(QueueFull, match="The queue for backend"):
        executor.submit(submission())
    assert Workload.objects.count() == 3


def test_the_queue_of_a_user_is_bounded(filled: Registry):
    executor = LocalExecutor(filled, queue_size=4)
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    for _ in range(2):
        executor.submit(submission(owner=ada))
    with pytest.raises(QueueFull, match="Your queue for backend"):
        executor.submit(submission(owner=ada))
    executor.submit(submission(owner=bob))


def test_a_user_with_many_workloads_does_not_delay_others(filled: Registry, fakes):
    """Ties between two users are broken at random; 40 times in a row would not be random."""
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    for _ in range(100):
        recorded(owner=ada)
    last = recorded(owner=bob)
    executor = LocalExecutor(filled)
    for _ in range(40):
        assert executor.run_next("isolate")
    last.refresh_from_db()
    assert last.status == "completed"


def test_the_user_with_fewer_running_workloads_is_next(filled: Registry, fakes):
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    recorded(Status.RUNNING, owner=ada)
    rows = [recorded(owner=owner) for _ in range(3) for owner in (ada, bob)]
    executor = LocalExecutor(filled)
    while executor.run_next("isolate"):
        pass
    owners = {row.pk: row.owner for row in rows}
    began = [owners[spec.id] for spec in fakes["isolate"].workloads]
    assert began == [bob] * 3 + [ada] * 3


def test_running_workloads_per_user_are_limited(filled: Registry, fakes):
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    running = recorded(Status.RUNNING, owner=ada)
    recorded(owner=ada)
    executor = LocalExecutor(filled, running_per_user=1)
    assert not executor.run_next("isolate")
    with pytest.raises(BackendAtCapacity):
        executor.run(submission(owner=ada))
    assert executor.run(submission(owner=bob)).status == "completed"
    lifecycle.recover_lost(running)
    assert executor.run_next("isolate")


def run_apart(executor: LocalExecutor, given: Submission) -> Workload:
    """Run a submission in a thread with its own database connections."""
    try:
        return executor.run(given)
    finally:
        connections.close_all()


def test_a_run_without_a_slot_is_queued(filled: Registry, fakes):
    inside, leave = threading.Event(), threading.Event()

    def program(spec: WorkloadSpec) -> object:
        inside.set()
        leave.wait(PATIENCE_S)
        return spec.input

    filled.register("isolate", FakeBackend(max_concurrency=1, program=program), replace=True)
    executor = LocalExecutor(filled, grace_s=PATIENCE_S)
    executor.ensure_started(wait_s=0)
    first = executor.submit(submission(input=1))
    assert inside.wait(PATIENCE_S)
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(run_apart, executor, submission(input=2))
        wait_until(lambda: Workload.objects.filter(status="pending").exists())
        leave.set()
        assert second.result(PATIENCE_S).output == 2
    assert ended(first).output == 1
    executor.drain()


def test_pending_workloads_of_other_processes_are_run(executor: LocalExecutor):
    assert ended(recorded()).status == "completed"


def test_workloads_of_an_unhealthy_backend_stay_pending(
    executor: LocalExecutor, filled: Registry, fakes
):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("broken"))
    workload = recorded()
    for _ in range(3):
        executor.maintenance.run_round()
    filled.set_health("isolate", fakes["isolate"], Health.ok())
    assert ended(workload).status == "completed"


def test_maintenance_recovers_lost_workloads(executor: LocalExecutor, runtime_dir):
    mine = node_id(runtime_dir)
    elsewhere = recorded(Status.RUNNING, node_id="elsewhere")
    with workload_lock("a" * 32, runtime_dir):
        alive = recorded(Status.RUNNING, node_id=mine, id="a" * 32)
        lost = recorded(Status.RUNNING, node_id=mine)
        assert ended(lost).exit_reason == "worker_lost"
        executor.maintenance.run_round()
        assert {one.status for one in Workload.objects.filter(pk__in=[alive.pk, elsewhere.pk])} == {
            "running"
        }


def test_a_node_deregisters_at_shutdown(executor: LocalExecutor):
    served: list[str] = []
    while served != ["gvisor", "isolate", "microvm"]:
        executor.maintenance.run_round()
        served = [one.name for node in executor.live_nodes() for one in node.backends]
    executor.drain()
    assert not NodeBackend.objects.exists()


def test_draining_finishes_running_workloads_and_starts_none(filled: Registry, fakes):
    executor = LocalExecutor(filled, grace_s=PATIENCE_S)
    executor.ensure_started(wait_s=0)
    inside, leave = threading.Event(), threading.Event()

    def program(workload: WorkloadSpec) -> int:
        inside.set()
        leave.wait(PATIENCE_S)
        return 1

    fakes["isolate"].program = program
    workload = executor.submit(submission())
    assert inside.wait(PATIENCE_S)
    drain = threading.Thread(target=executor.drain)
    drain.start()
    wait_until(lambda: executor.draining)
    late = executor.submit(submission())
    leave.set()
    drain.join()
    assert ended(workload).output == 1
    late.refresh_from_db()
    assert late.status == "pending"


@pytest.mark.slow
def test_a_thousand_races_of_kill_and_end_have_one_outcome(
    filled: Registry, executor: LocalExecutor
):
    """Whichever comes first: there is one end, and both sides agree."""
    gone: dict[str, threading.Event] = {}

    class Killable(FakeBackend):
        def execute(self, workload: WorkloadSpec) -> WorkloadResult:
            event = gone.setdefault(workload.id, threading.Event())
            if event.wait(random.random() * 0.02):
                return WorkloadResult(exit_reason=ExitReason.KILLED, signal="SIGKILL")
            return WorkloadResult(exit_reason=ExitReason.EXITED, exit_code=0, output=1)

        def kill(self, workload_id: str) -> None:
            gone.setdefault(workload_id, threading.Event()).set()

    backend = Killable(runtimes=["node"], max_concurrency=16)
    filled.register("isolate", backend, replace=True)
    filled.set_health("isolate", backend, Health.ok())
    told: dict[str, str] = {}

    def race(number: int) -> None:
        try:
            workload = executor.submit(submission(input=number))
            if number % 10 == 0:
                lifecycle.wait(workload, PATIENCE_S)
            elif number % 10 != 1:
                time.sleep(random.random() * 0.03)
            if number % 2:  # as its worker would in its next tick
                Workload.objects.filter(pk=workload.pk, status="running").update(
                    kill_requested_at=workload.created_at
                )
                lifecycle.supervisor.tick()
            try:
                lifecycle.kill(workload)
                told[workload.pk] = workload.status
            except WorkloadFinished as error:
                told[workload.pk] = error.status
        finally:
            connections.close_all()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(race, range(1000)))
    rows = dict(Workload.objects.values_list("pk", "status"))
    assert told == rows
    assert {*rows.values()} == {"completed", "killed"}


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ({"BACKEND": "nowhere.Nothing"}, "ISOLATION_EXECUTOR['BACKEND']"),
        ({"BACKEND": "backends_app.registry.Registry"}, "ISOLATION_EXECUTOR['BACKEND']"),
        ({"OPTIONS": {}}, "ISOLATION_EXECUTOR['BACKEND']"),
        ({"OPTIONS": {"queue_size": 0}}, "ISOLATION_EXECUTOR['OPTIONS']['queue_size']"),
        ({"OPTIONS": {"heartbeat_s": "2"}}, "ISOLATION_EXECUTOR['OPTIONS']['heartbeat_s']"),
        (
            {"OPTIONS": {"unserved_after_s": 0}},
            "ISOLATION_EXECUTOR['OPTIONS']['unserved_after_s']",
        ),
        ({"OPTIONS": {"lost_after_s": 3}}, "ISOLATION_EXECUTOR['OPTIONS']['lost_after_s']"),
        ({"OPTIONS": {"nonsense": 1}}, "ISOLATION_EXECUTOR['OPTIONS']"),
    ],
)
def test_an_invalid_setting_is_named(settings, filled: Registry, setting, where):
    default = {"BACKEND": "backends_app.executors.local.LocalExecutor"}
    broken = setting if "BACKEND" in setting or where.endswith("['BACKEND']") else default | setting
    settings_before = settings.ISOLATION_EXECUTOR
    with pytest.raises(ImproperlyConfigured) as raised:
        settings.ISOLATION_EXECUTOR = broken
    assert where in str(raised.value)
    settings.ISOLATION_EXECUTOR = settings_before
    assert isinstance(load_executor(Executor, filled), LocalExecutor)


def test_maintenance_waits_for_a_database_that_is_down_at_start(filled: Registry, monkeypatch):
    from django.db import OperationalError

    from backends_app.execution import nodes

    away = [OperationalError("no connection")] * 2
    look = nodes.FailureDetector.refresh

    def broken(self) -> None:
        if away:
            raise away.pop()
        look(self)

    monkeypatch.setattr(nodes.FailureDetector, "refresh", broken)
    monkeypatch.setattr("backends_app.executors.base.MAINTENANCE_INTERVAL_S", 0.01)
    executor = LocalExecutor(filled)
    executor.ensure_started(wait_s=0)
    assert ended(executor.submit(submission())).status == "completed"
    while away:
        time.sleep(0.01)
    executor.drain()


def test_a_draining_node_is_alive_but_unhealthy(filled: Registry, fakes):
    executor = LocalExecutor(filled, grace_s=PATIENCE_S, heartbeat_s=0.01, lost_after_s=0.1)
    executor.ensure_started(wait_s=0)
    leave = threading.Event()
    fakes["isolate"].program = lambda workload: leave.wait(PATIENCE_S)
    executor.submit(submission())
    wait_until(lifecycle.supervisor.all)
    drain = threading.Thread(target=executor.drain)
    drain.start()
    while NodeBackend.objects.filter(healthy=True).exists():
        executor.maintenance.run_round()
    assert {row.healthy for row in NodeBackend.objects.all()} == {False}
    leave.set()
    drain.join()
    assert not NodeBackend.objects.exists()


def test_workloads_of_an_unregistered_backend_fail_with_the_reason(filled: Registry):
    executor = LocalExecutor(filled, heartbeat_s=0.01)
    executor.ensure_started(wait_s=0)
    filled.unregister("isolate")
    workload = ended(recorded())
    assert (workload.status, workload.exit_reason) == ("failed", "backend_error")
    assert workload.error == "backend 'isolate' is no longer registered"
    assert not Source.objects.exists()
    executor.drain()


def test_workloads_of_a_backend_on_another_node_stay_pending(filled: Registry):
    """Servers with newer settings may run next to one with older settings."""
    heartbeat("1" * 32, filled.list(), datetime.now(UTC))
    filled.unregister("isolate")
    executor = LocalExecutor(filled, heartbeat_s=0.001)
    workload = recorded()
    for _ in range(5):
        time.sleep(0.003)
        executor.maintenance.run_round()
    workload.refresh_from_db()
    assert workload.status == "pending"


def test_workloads_of_a_backend_that_works_nowhere_fail_after_a_while(filled: Registry, fakes):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("broken"))
    patient, workload = LocalExecutor(filled), recorded()
    for _ in range(3):
        patient.maintenance.run_round()
    workload.refresh_from_db()
    assert workload.status == "pending"
    impatient = LocalExecutor(filled, unserved_after_s=1e-9)
    impatient.maintenance.run_round()
    impatient.maintenance.run_round()
    workload.refresh_from_db()
    assert workload.exit_reason == "backend_error"
    assert workload.error.startswith("backend 'isolate' has worked on no node for ")


def test_stale_locks_are_removed_at_the_start(filled: Registry, runtime_dir):
    left = runtime_dir / f"{'a' * 32}.running"
    left.touch()
    with workload_lock("b" * 32, runtime_dir):
        LocalExecutor(filled).maintenance.run_round()
        assert [file.name[0] for file in runtime_dir.glob("*.running")] == ["b"]
    assert not left.exists()


def test_stale_locks_are_removed_periodically(filled: Registry, runtime_dir, monkeypatch):
    monkeypatch.setattr("backends_app.executors.maintenance.SWEEP_INTERVAL_S", 0)
    executor = LocalExecutor(filled)
    executor.maintenance.run_round()
    (runtime_dir / "later.running").touch()
    executor.maintenance.run_round()
    assert not list(runtime_dir.glob("*.running"))
