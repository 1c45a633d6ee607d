"""Liveness and readiness respond at once, even when a dependency hangs."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest
from django.test import Client

from backends_app.backends.base import Health
from backends_app.executors.local import LocalExecutor
from backends_app.models import Workload
from backends_app.observability.readiness import Readiness
from backends_app.registry import Registry
from tests.support.processes import children, gone
from tests.support.programs import manage, running, wait_until
from tests.support.scrapes import Scrape
from tests.support.servers import LISTENING, gunicorn, postgresql, redis

WELL = {"status": "ready", "database": "ok", "executor": "ok", "backends": {}}


# Liveness


@pytest.mark.parametrize("path", ["/healthz", "/healthz/"])
def test_liveness_is_200_without_any_check(path: str):
    answer = Client().get(path)  # without a database, or this test could not
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert not answer.cookies
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Vary" not in answer.headers


def test_repeated_probes_are_not_logged(caplog):
    assert Client().get("/metrics").status_code == 401
    assert Client().post("/healthz").status_code == 405
    assert not caplog.records


def test_probes_need_no_host_name_no_tls_and_no_user(settings):
    settings.SECURE_SSL_REDIRECT = True
    settings.ALLOWED_HOSTS = ["vulcan.example.org"]
    sent = {"Host": "10.0.0.7", "Authorization": "Token wrong", "Cookie": "sessionid=\0"}
    assert Client().get("/healthz", headers=sent).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_a_post_to_a_probe_path_is_405(path: str):
    for method in ("POST", "DELETE", "EVIL"):
        answer = Client().generic(method, path, "x" * 100)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/healthz/x", "/healthzz", "/v1/healthz", "/HEALTHZ"])
def test_similar_paths_are_not_probe_paths(client, path: str):
    assert client.get(path).status_code == 404


# Readiness


@pytest.fixture
def executor(filled: Registry, transactional_db) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(filled)
    yield executor
    executor.drain()


@pytest.fixture
def report(filled: Registry, executor: LocalExecutor) -> Callable[..., dict]:
    """Return a function that reports readiness as JSON with the given required backends."""

    def report_required(*required: str) -> dict:
        return Readiness(filled, lambda: executor, lambda: required, 60.0).report().as_json()

    return report_required


def test_a_server_is_ready_when_database_and_executor_are_ready(report):
    assert report() == WELL


def test_readiness_starts_the_executor_without_a_request(report, executor: LocalExecutor):
    assert not executor.is_started
    assert report()["executor"] == "ok"
    assert executor.is_started


def test_required_backends_have_to_be_healthy(report, filled: Registry, fakes):
    assert report("isolate", "microvm")["status"] == "ready"
    states = (Health.unhealthy("secret"), Health.undetected("secret"), Health.unknown())
    for health in states:
        filled.set_health("isolate", fakes["isolate"], health)
        found = report("isolate", "microvm")
        assert found["status"] == "not ready"
        assert found["backends"] == {"isolate": health.state, "microvm": "healthy"}
        assert report("microvm")["status"] == "ready"
    assert report("nobody")["backends"] == {"nobody": "not registered"}
    assert report("nobody")["status"] == "not ready"


def test_only_changes_of_readiness_are_logged(executor, filled: Registry, fakes, caplog):
    caplog.set_level("INFO")
    readiness = Readiness(filled, lambda: executor, lambda: ["isolate"], 60.0)
    for health in (Health.ok(), Health.unhealthy("secret"), Health.ok()):
        filled.set_health("isolate", fakes["isolate"], health)
        for _ in range(3):
            readiness.report()
    said = [record for record in caplog.records if "readiness changed" in record.message]
    assert [record.levelname for record in said] == ["INFO", "WARNING", "INFO"]
    assert "'isolate': 'unhealthy'" in said[1].message


def test_a_server_that_is_shutting_down_is_not_ready(report, executor: LocalExecutor):
    assert report()["status"] == "ready"
    executor.drain()
    assert report() == {**WELL, "status": "not ready", "executor": "shutting down"}


def test_a_database_without_its_tables_is_not_ready(report, monkeypatch):
    monkeypatch.setattr(Workload._meta, "db_table", "there_is_no_such_table")
    assert report() == {
        **WELL,
        "status": "not ready",
        "database": "the database is unreachable",
    }


def test_a_hanging_executor_is_a_timeout(filled: Registry, transactional_db):
    free = threading.Event()

    class Hanging(LocalExecutor):
        def readiness_error(self) -> str:
            free.wait(60)
            return ""

    executor = Hanging(filled)
    try:
        found = Readiness(filled, lambda: executor, tuple, 0.05).report()
        assert found.executor == "timed out"
        assert not found.ready
    finally:
        free.set()
        executor.drain()


# Real servers


class Server:
    def __init__(self, port: str) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        request = urllib.request.Request(self.base + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    def ready(self) -> tuple[int, dict]:
        status, body = self.ask("/readyz")
        return status, json.loads(body)


@contextmanager
def running_server(folder: Path, **extra: str) -> Iterator[Server]:
    command = gunicorn(workers=2, threads=16)
    with running(command, LISTENING, folder, METRICS_ACCESS="open", **extra) as (port, _):
        yield Server(port)


@contextmanager
def stopped(program: str, started: set[int]) -> Iterator[None]:
    """Stop the processes of this program among the started ones and their children.

    Others, such as runuser, stop by themselves with their child.
    """
    everybody = started | descendants(started)
    for pid in everybody:
        if program in read_proc(pid, "comm"):
            send(pid, signal.SIGSTOP)
    wait_until(
        lambda: all("State:\tT" in read_proc(pid, "status") for pid in everybody if not gone(pid))
    )
    try:
        yield
    finally:
        for pid in everybody:
            send(pid, signal.SIGCONT)


def read_proc(pid: int, what: str) -> str:
    """Return a file of the process in proc(5), or nothing when it has exited."""
    try:
        return Path(f"/proc/{pid}/{what}").read_text()
    except OSError:
        return ""


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def descendants(parents: set[int]) -> set[int]:
    found = {child for parent in parents for child in children(parent)}
    return found | descendants(found) if found else found


def test_a_hanging_database_makes_the_server_unready_but_not_slow(tmp_path: Path):
    """A stopped database never responds, so any response has not waited for it."""
    before = children(os.getpid())
    with postgresql() as url:
        database = children(os.getpid()) - before
        done = manage("migrate", "--verbosity", "0", folder=tmp_path, DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
        with running_server(tmp_path, DATABASE_URL=url) as server:
            wait_until(lambda: server.ready() == (200, WELL))
            with stopped("postgres", database):
                for _ in range(20):
                    status, found = server.ready()
                    assert (status, found["status"]) == (503, "not ready")
                    assert found["database"] == "timed out"
                    assert server.ask("/healthz")[0] == 200
                seen = Scrape(server.ask("/metrics")[1].decode())
                assert seen("vulcan_database_up") == 0
                assert seen.has("vulcan_backend_health", backend="isolate")
                assert not seen.has("vulcan_workloads_pending")
            wait_until(lambda: server.ready() == (200, WELL))
            wait_until(
                lambda: Scrape(server.ask("/metrics")[1].decode())("vulcan_database_up") == 1
            )


def test_an_unreachable_broker_makes_the_server_unready(migrated: Path):
    before = children(os.getpid())
    with redis(migrated) as broker:
        started = children(os.getpid()) - before
        site = {"EXECUTOR": "celery", "BROKER_URL": broker.url}
        with running_server(migrated, **site) as server:
            wait_until(lambda: server.ready() == (200, WELL))
            with stopped("redis", started):
                assert server.ready()[0] == 503
                assert server.ask("/healthz")[0] == 200
            wait_until(lambda: server.ready() == (200, WELL))
            broker.stop()
            wanted = {**WELL, "status": "not ready", "executor": "Redis is unreachable"}
            wait_until(lambda: server.ready() == (503, wanted))
            broker.start()
            wait_until(lambda: server.ready() == (200, WELL))


def test_a_server_is_ready_only_with_its_required_backends(migrated: Path):
    engine = f"unix://{migrated}/nowhere"
    with running_server(migrated, REQUIRED_BACKENDS="isolate", GVISOR_ENGINE=engine) as server:
        wait_until(lambda: server.ready() == (200, {**WELL, "backends": {"isolate": "healthy"}}))
        wait_until(
            lambda: server.ask("/readyz", "HEAD") == (200, b"")
        )  # each process probes by itself
    with running_server(
        migrated, REQUIRED_BACKENDS="isolate,gvisor", GVISOR_ENGINE=engine
    ) as server:
        backends = {"isolate": "healthy", "gvisor": "undetected"}
        found = (503, {**WELL, "status": "not ready", "backends": backends})
        wait_until(lambda: server.ready() == found)
        wait_until(lambda: server.ask("/readyz", "HEAD") == (503, b""))


def test_an_invalid_required_backend_stops_the_start(tmp_path: Path):
    done = manage("check", folder=tmp_path, REQUIRED_BACKENDS="isolate,No Name")
    assert done.returncode != 0
    assert "ISOLATION_REQUIRED_BACKENDS[1] = 'No Name'" in done.stderr
