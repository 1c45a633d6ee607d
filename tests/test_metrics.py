"""Metrics are counted or looked up, access follows the setting, and clients add no series."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client

from backends_app import signals
from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.execution import lifecycle
from backends_app.execution.slots import acquire_slot
from backends_app.health import HealthMonitor
from backends_app.registry import Registry, registry
from backends_app.workloads import ExitReason, Status, WorkloadResult
from tests.support.scrapes import Scrape
from tests.support.workloads import recorded, submission

pytestmark = pytest.mark.django_db


@pytest.fixture
def scrape(settings) -> Callable[[], Scrape]:
    """Scrape this process, in which other tests have counted too."""
    settings.ISOLATION_METRICS = {"access": "open"}
    return lambda: Scrape(Client().get("/metrics").content.decode())


@pytest.fixture
def increase(scrape) -> Callable[..., float]:
    """Return a function for the increase of a sample since the start of the test."""
    before = scrape()
    return lambda name, **labels: scrape()(name, **labels) - before(name, **labels)


# Counted metrics


@pytest.mark.parametrize(
    ("reason", "code"), [("exited", 0), ("exited", 3), ("timeout", None), ("memory_limit", None)]
)
def test_a_workload_is_counted_by_backend_runtime_and_exit_reason(
    filled: Registry, fakes, increase, reason: str, code: int | None
):
    result = WorkloadResult(exit_reason=ExitReason(reason), exit_code=code, duration_ms=40)
    fakes["isolate"].program = lambda workload: result
    lifecycle.run_inline(submission(), filled)
    mine = {"backend": "isolate", "runtime": "node"}
    assert increase("vulcan_workloads_total", **mine) == 1
    assert increase("vulcan_workloads_total", **mine, exit_reason=reason) == 1
    assert increase("vulcan_workload_duration_seconds_count", **mine) == 1
    assert increase("vulcan_workload_duration_seconds_sum", **mine) == pytest.approx(0.04)
    assert increase("vulcan_workload_duration_seconds_bucket", **mine, le="0.025") == 0
    assert increase("vulcan_workload_duration_seconds_bucket", **mine, le="0.05") == 1
    assert increase("vulcan_workload_queue_seconds_count", backend="isolate") == 1
    assert increase("vulcan_workload_startup_seconds_count", **mine) == 1


def test_start_up_is_the_execution_time_beyond_the_programs_duration(increase):
    result = WorkloadResult(exit_reason=ExitReason.EXITED, exit_code=0, duration_ms=200)
    mine = {"name": "timed", "runtime": "node"}
    for seconds in (0.25, 0.1):  # less than the program's own duration counts as zero
        signals.execution_ended.send(None, **mine, result=result, seconds=seconds)
    broken = WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR)  # it has no duration
    signals.execution_ended.send(None, **mine, result=broken, seconds=5.0)
    sums = {"backend": "timed", "runtime": "node"}
    assert increase("vulcan_workload_startup_seconds_sum", **sums) == pytest.approx(0.05)
    assert increase("vulcan_workload_duration_seconds_sum", **sums) == pytest.approx(0.4)
    assert increase("vulcan_workload_duration_seconds_count", **sums) == 2


def test_a_backend_error_is_counted_without_a_duration(filled: Registry, fakes, increase):
    def program(workload) -> None:
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = program
    with pytest.raises(BackendUnavailable):
        lifecycle.run_inline(submission(), filled)
    assert increase("vulcan_workloads_total", backend="isolate", exit_reason="backend_error") == 1
    assert increase("vulcan_workload_duration_seconds_count", backend="isolate") == 0


def test_a_workload_that_never_started_is_counted_without_a_queue_time(increase):
    lifecycle.kill(recorded(Status.PENDING))
    assert increase("vulcan_workloads_total", backend="isolate", exit_reason="killed") == 1
    assert increase("vulcan_workload_queue_seconds_count", backend="isolate") == 0


def test_a_lost_workload_is_counted_once(increase):
    workload = recorded(Status.RUNNING)
    for _ in range(2):
        lifecycle.recover_lost(workload)
    assert increase("vulcan_workloads_total", backend="isolate", exit_reason="worker_lost") == 1
    assert increase("vulcan_workload_duration_seconds_count", backend="isolate") == 0


def test_clock_skew_makes_no_queue_time_negative(increase):
    early = recorded(Status.RUNNING)
    type(early).objects.update(started_at=early.created_at.replace(year=2000))
    early.refresh_from_db()
    lifecycle.recover_lost(early)
    assert increase("vulcan_workload_queue_seconds_sum", backend="isolate") == 0


def probed_once(backend: FakeBackend, *, took_s: float) -> None:
    now = [0.0]
    registry, answer = Registry(), backend.probe

    def probe() -> Health:
        now[0] += took_s
        return answer()

    backend.probe = probe
    registry.register("probed", backend)
    HealthMonitor(registry, spawn=lambda work, name: work(), clock=lambda: now[0]).tick()
    assert registry.get("probed").health == answer()


def test_probes_record_their_duration_and_the_warm_instances(scrape, increase):
    class Pooled(FakeBackend):
        ready = 3

        def warm_count(self) -> int:
            return self.ready

        def probe(self) -> Health:
            self.ready -= 1  # it uses one
            return super().probe()

    probed_once(Pooled(), took_s=1.5)
    assert increase("vulcan_probe_duration_seconds_sum", backend="probed") == 1.5
    assert increase("vulcan_probe_duration_seconds_count", backend="probed") == 1
    assert scrape()("vulcan_warm_instances", backend="probed") == 3


def test_a_failing_warm_count_does_not_change_the_health(increase, caplog):
    class Confused(FakeBackend):
        def warm_count(self) -> int:
            raise ZeroDivisionError

    probed_once(Confused(), took_s=0.5)
    assert increase("vulcan_probe_duration_seconds_count", backend="probed") == 1
    assert "warm instances of Confused" in caplog.text


def test_an_exception_of_a_receiver_stops_no_workload(filled: Registry, increase, caplog):
    def receiver(**_) -> None:
        raise ZeroDivisionError

    signals.workload_ended.connect(receiver)
    signals.execution_ended.connect(receiver)
    try:
        assert lifecycle.run_inline(submission(), filled).status == Status.COMPLETED
    finally:
        signals.workload_ended.disconnect(receiver)
        signals.execution_ended.disconnect(receiver)
    assert increase("vulcan_workloads_total", backend="isolate") == 1
    assert "ZeroDivisionError" in caplog.text


# Looked-up metrics


def test_slots_are_counted_at_the_scrape(scrape, runtime_dir: Path):
    limit = registry.get("isolate").capabilities.max_concurrency
    assert scrape()("vulcan_slots_limit", backend="isolate") == limit
    with acquire_slot("isolate", limit, runtime_dir), acquire_slot("isolate", limit, runtime_dir):
        assert scrape()("vulcan_slots_used", backend="isolate") == 2
    assert scrape()("vulcan_slots_used", backend="isolate") == 0


@pytest.mark.parametrize(
    "health", [Health.unknown(), Health.undetected(""), Health.unhealthy(""), Health.ok()]
)
def test_health_is_one_for_the_state_and_zero_for_the_others(scrape, health: Health):
    fake = FakeBackend()
    registry.register("watched", fake)
    try:
        registry.set_health("watched", fake, health)
        found = scrape()
    finally:
        registry.unregister("watched")
    for state in ("unknown", "undetected", "unhealthy", "healthy"):
        value = found("vulcan_backend_health", backend="watched", state=state)
        assert value == (state == health.state)


@pytest.mark.django_db(transaction=True)  # another connection queries
def test_pending_and_running_workloads_are_read_from_the_database(scrape):
    for status in (Status.PENDING, Status.PENDING, Status.RUNNING, Status.COMPLETED):
        recorded(status)
    recorded(Status.RUNNING, isolation_used="elsewhere")
    found = scrape()
    assert found("vulcan_database_up") == 1
    assert found("vulcan_workloads_pending", backend="isolate") == 2
    assert found("vulcan_workloads_running", backend="isolate") == 1
    assert found("vulcan_workloads_running", backend="elsewhere") == 1
    assert found.has("vulcan_workloads_running", backend="microvm")  # 0 is exported, too
    assert found("vulcan_workloads_running", backend="microvm") == 0


# Access


@pytest.mark.parametrize(
    ("configured", "sent", "status"),
    [
        ({"access": "open"}, "", 200),
        ({"access": "open", "token": "hush"}, "", 200),
        ({"access": "token", "token": "hush"}, "Bearer hush", 200),
        ({"token": "hush"}, "bearer hush", 200),
        ({"token": "hush"}, "", 401),
        ({"token": "hush"}, "hush", 401),
        ({"token": "hush"}, "Bearer hus", 401),
        ({"token": "hush"}, "Bearer hush hush", 401),
        ({"token": "hush"}, "Token hush", 401),
        ({"token": "hush"}, "Bearer hüsh", 401),
        ({"access": "token"}, "Bearer ", 401),
        ({"access": "token"}, "", 401),
        ({}, "", 401),
        ({"access": "off", "token": "hush"}, "Bearer hush", 404),
    ],
)
def test_access_follows_the_setting(settings, configured: dict, sent: str, status: int):
    settings.ISOLATION_METRICS = configured
    answer = Client().get("/metrics", headers={"Authorization": sent} if sent else {})
    assert answer.status_code == status
    assert ("vulcan_" in answer.content.decode()) is (status == 200)
    assert answer.headers.get("WWW-Authenticate", "").startswith("Bearer") is (status == 401)


def test_a_scrape_needs_no_host_name_and_no_tls(scrape, settings):
    settings.SECURE_SSL_REDIRECT = True
    settings.ALLOWED_HOSTS = ["vulcan.example.org"]
    answer = Client().get("/metrics", headers={"Host": "10.0.0.7:8000"})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")


# Client input


def test_client_input_creates_no_new_series(client, scrape):
    def strange(number: int) -> None:
        method = f"EVIL{number}"
        for path in ("/v1/backends", "/v1/workloads", f"/nowhere-{number}", f"/v1/{number}"):
            client.generic(method, path)
            client.get(path, headers={"Host": f"{number}.example.org"})
        client.get(f"/v1/backends/{number}")
        client.get("/v1/resolve", {"runtime": f"evil{number}", "isolation": f"evil{number}"})
        client.get("/v1/backends", headers={"Accept": f"application/json; charset=evil{number}"})
        client.get("/v1/backends", headers={"X-Requested-With": f"{number}"})
        body = {"runtime": f"evil{number}", "code": "", "isolation": f"evil{number}"}
        client.post("/v1/workloads", body, format="json")

    strange(0)
    before = scrape().series
    for number in range(1, 20):
        strange(number)
    assert scrape().series == before


@pytest.mark.parametrize("length", ["x", "-1", "²", "9" * 400, "1e3"])
def test_an_invalid_content_length_is_no_server_error(client, length: str, increase):
    answer = client.generic("GET", "/v1/backends", CONTENT_LENGTH=length)
    assert answer.status_code < 500
    status = str(answer.status_code)
    assert increase("django_http_responses_total_by_status_view_method_total", status=status) == 1


def test_requests_are_counted_by_view_and_status_even_without_a_view(client, increase):
    client.get("/v1/backends")
    client.get("/v1/backends", headers={"Host": "elsewhere.example.org"})
    name = "django_http_responses_total_by_status_view_method_total"
    assert increase(name, view="v1:backends", status="200", method="GET") == 1
    assert increase(name, view="<unnamed view>", status="400", method="GET") == 1
    assert (
        increase("django_http_requests_latency_seconds_by_view_method_count", view="v1:backends")
        == 1
    )


def test_many_scrapes_at_once_leave_no_threads(scrape):
    threads = [threading.Thread(target=scrape) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threading.enumerate():
        if thread.name == "vulcan-single-flight":
            thread.join(60)
    assert all(thread.name != "vulcan-single-flight" for thread in threading.enumerate())


def test_a_request_that_raises_is_counted_once_and_by_its_error(client, increase):
    client.raise_request_exception = False
    assert client.get("/broken").status_code == 500
    view = "tests.conftest._broken"
    mine = {"view": view, "method": "GET"}
    assert increase("django_http_requests_latency_seconds_by_view_method_count", **mine) == 1
    assert increase("django_http_responses_total_by_status_view_method_total", status="500") == 1
    assert increase("django_http_exceptions_total_by_type_total", type="RuntimeError") == 1
    assert increase("django_http_exceptions_total_by_view_total", view=view) == 1
