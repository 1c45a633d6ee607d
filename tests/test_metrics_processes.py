"""The metrics of real servers and workers, each of several processes."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError

import pytest

from backends_app.observability import multiprocess_dir
from tests.support.processes import children, gone
from tests.support.programs import PATIENCE_S, manage, running, wait_until
from tests.support.scrapes import Scrape, scrape
from tests.support.servers import LISTENING, gunicorn, redis, user_script

RESPONSES = "django_http_responses_total_by_status_view_method_total"
VIEW = "v1:backends"
SUM = {"runtime": "node", "code": "export default (n: number) => n + 1", "input": 1}


class Server:
    """A server of two workers over a database in `folder`."""

    def __init__(self, port: str, master: int, folder: Path) -> None:
        self.port = int(port)
        self.master = master
        self.folder = folder

    @property
    def workers(self) -> set[int]:
        return {pid for pid in children(self.master) if _serves(pid)}

    @property
    def folders(self) -> list[Path]:
        return sorted(self.folder.glob(f"vulcan-*/{multiprocess_dir.PREFIX}*"))

    def get(self, path: str) -> int:
        """Return the status, over a new connection each time, so of any worker."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def read_by_both(self) -> int:
        """Let each worker answer a request; return the number of requests."""
        read = 0
        while not all(_has_counted(worker, self.folders[-1]) for worker in self.workers):
            assert self.get("/v1/backends") == 200
            read += 1
        return read

    def scrape(self, token: str = "") -> Scrape:
        return scrape(f"http://127.0.0.1:{self.port}/metrics", token)


@contextmanager
def running_server(folder: Path, **extra: str) -> Iterator[Server]:
    before = children(os.getpid())
    command = gunicorn(workers=2, threads=16)
    with running(command, LISTENING, folder, **{"METRICS_ACCESS": "open", **extra}) as (port, _):
        [master] = children(os.getpid()) - before
        server = Server(port, master, folder)
        wait_until(lambda: len(server.workers) == 2)
        yield server


def _serves(pid: int) -> bool:
    try:
        return b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _has_counted(pid: int, folder: Path) -> bool:
    """Return whether the process has counted a request for `VIEW`."""
    file = folder / f"counter_{pid}.db"
    return file.exists() and VIEW.encode() in file.read_bytes()


def test_a_scrape_of_any_worker_is_the_sum_of_all_including_dead_ones(migrated: Path):
    with running_server(migrated) as server:
        read = server.read_by_both()
        assert {server.scrape()(RESPONSES, view=VIEW) for _ in range(20)} == {read}
        before = server.workers
        doomed = min(before)
        wait_until(lambda: list(server.folders[0].glob(f"gauge_live*_{doomed}.db")))
        os.kill(doomed, signal.SIGKILL)
        wait_until(lambda: len(server.workers) == 2 and server.workers != before)
        assert {server.scrape()(RESPONSES, view=VIEW) for _ in range(20)} == {read}
        # Its own gauges, such as its warm instances, are gone with it.
        wait_until(lambda: not list(server.folders[0].glob(f"gauge_live*_{doomed}.db")))
        assert read + server.read_by_both() == server.scrape()(RESPONSES, view=VIEW)


def test_a_scrape_while_a_worker_starts_succeeds(migrated: Path):
    with running_server(migrated) as server:
        read = server.read_by_both()
        for kind in ("counter", "histogram", "gauge_livesum"):
            (server.folders[0] / f"{kind}_999999.db").touch()  # its first action
        assert server.scrape()(RESPONSES, view=VIEW) == read


def test_the_counts_of_a_killed_server_are_not_counted_by_the_next(migrated: Path):
    with running_server(migrated) as first:
        first.read_by_both()
        [left] = first.folders
        everybody = {first.master, *first.workers}
        with running_server(migrated) as beside:  # a live server keeps its folder
            assert left in beside.folders
            assert len(beside.folders) == 2
        os.kill(first.master, signal.SIGKILL)
        wait_until(lambda: all(map(gone, everybody)))
        assert first.folders == [left]
    with running_server(migrated) as second:
        assert left not in second.folders
        assert not second.scrape().has(RESPONSES, view=VIEW)
        assert second.read_by_both() == second.scrape()(RESPONSES, view=VIEW)
    assert second.folders == []


def test_a_reload_keeps_the_folder(migrated: Path):
    with running_server(migrated) as server:
        read, before = server.read_by_both(), server.workers
        os.kill(server.master, signal.SIGHUP)
        wait_until(lambda: len(server.workers) == 2 and not server.workers & before)
        assert server.scrape()(RESPONSES, view=VIEW) == read
        assert len(server.folders) == 1


def test_the_metrics_folder_is_in_the_runtime_folder(migrated: Path):
    runtime = migrated / "run"
    with running_server(migrated, RUNTIME_DIR=str(runtime)) as server:
        assert server.folders == []
        [folder] = runtime.glob(f"{multiprocess_dir.PREFIX}*")
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="must belong to this user"):
        multiprocess_dir.create(tmp_path)


def test_other_files_in_the_runtime_folder_are_kept(tmp_path: Path):
    tmp_path.chmod(0o700)
    slot, dead = tmp_path / "metrics.0.slot", tmp_path / "metrics.of-the-dead"
    slot.touch()  # of a backend with this name
    dead.mkdir()
    fresh = multiprocess_dir.create(tmp_path)
    assert {*tmp_path.iterdir()} == {slot, fresh}
    assert multiprocess_dir.create(tmp_path) == fresh


def test_the_development_server_needs_no_folder(migrated: Path):
    server = ["manage.py", "develop", "127.0.0.1:0"]
    ready = r"listens at (http://127\.0\.0\.1:\d+)/"
    with running(server, ready, migrated, METRICS_ACCESS="open") as (address, _):
        for count in (1, 2):
            urllib.request.urlopen(f"{address}/v1/backends", timeout=60).close()
            assert scrape(f"{address}/metrics")(RESPONSES, view=VIEW) == count
        request = urllib.request.Request(f"{address}/metrics", method="HEAD")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read() == b""
    assert not list(migrated.glob(f"vulcan-*/{multiprocess_dir.PREFIX}*"))


def test_workers_serve_their_metrics_on_a_port_of_their_own(migrated: Path):
    token = manage(
        "shell", "--no-imports", "-c", user_script("ada"), folder=migrated
    ).stdout.strip()
    with redis(migrated) as broker:
        site = {"EXECUTOR": "celery", "BROKER_URL": broker.url}
        site |= {"METRICS_ACCESS": "token", "METRICS_TOKEN": "hush"}
        worker = ["manage.py", "run_worker", "--backend", "isolate", "--metrics", "127.0.0.1:0"]
        ready = r"Serving metrics at (http://127\.0\.0\.1:\d+/metrics)"
        with (
            running_server(migrated, **site) as server,
            running(worker, ready, migrated, **site) as found,
        ):
            address = found[0]
            wait_until(lambda: _post(server.port, token, SUM) == (201, 2))
            seen = scrape(address, "hush")
            assert seen("vulcan_workloads_total", backend="isolate", exit_reason="exited") == 1
            assert seen("vulcan_workload_duration_seconds_count", backend="isolate") == 1
            assert seen("vulcan_probe_duration_seconds_count", backend="isolate") >= 1
            assert seen("vulcan_slots_limit") == seen("vulcan_slots_limit", backend="isolate") > 0
            seen = server.scrape("hush")
            assert not seen.has("vulcan_workloads_total")
            assert not seen.has("vulcan_slots_limit")  # otherwise the slots would be counted twice
            healthy = {"backend": "isolate", "state": "healthy"}  # each worker notices it by itself
            wait_until(lambda: server.scrape("hush")("vulcan_backend_health", **healthy) == 1)
            wait_until(lambda: server.scrape("hush")("vulcan_nodes_alive") == 1)
            for path, status in (("/metrics", 401), ("/healthz", 200), ("/v1/backends", 404)):
                assert _status(address.replace("/metrics", path)) == status
    assert not list(migrated.glob(f"vulcan-*/{multiprocess_dir.PREFIX}*"))


def _post(port: int, token: str, body: dict) -> tuple[int, object]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        head = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/workloads", json.dumps(body), head)
        response = connection.getresponse()
        return response.status, json.loads(response.read()).get("output")
    finally:
        connection.close()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status
    except HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:", "127.0.0.1:99999", "192.0.2.1:9464"])
def test_an_invalid_metrics_address_is_reported(migrated: Path, address: str):
    done = manage("run_worker", "--metrics", address, folder=migrated, EXECUTOR="celery")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert address.rpartition(":")[2] in done.stderr


def test_metrics_that_are_off_are_refused_by_workers_too(migrated: Path):
    site = {"EXECUTOR": "celery", "METRICS_ACCESS": "off"}
    done = manage("run_worker", "--metrics", "0", folder=migrated, **site)
    assert done.returncode != 0
    assert "METRICS_ACCESS" in done.stderr


def test_an_unknown_metrics_access_stops_the_start(tmp_path: Path):
    done = manage("check", folder=tmp_path, METRICS_ACCESS="everybody")
    assert "ISOLATION_METRICS['access'] = 'everybody'" in done.stderr
