"""The cost of records: submission, throughput, log readers, and a page of many workloads."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.faults.site import Site

from .ratios import Ratio, at_least, at_most, in_turns

SUBMISSIONS = 100
WORKLOADS = 1000
ROUNDS = 5
CLIENTS = 4  # equals the slots of the isolate backend
READERS = 100
PAGES = 50
FEW, MANY = 100, 100_000
BODY = {"runtime": "node", "code": "export default (x) => x"}
PRINTS = """for (let i = 0; i < 40; i++) {
    console.log("line", i); await new Promise((r) => setTimeout(r, 50)) }"""
FILL = """
from datetime import timedelta
from django.contrib.auth.models import User
from django.utils import timezone
from backends_app.models import Workload
ada, now = User.objects.get(username="ada"), timezone.now()
rows = (Workload(owner=ada, status="completed", runtime="node", isolation_used="isolate", rule="r",
    cpus=1, mem_mb=256, timeout_s=10, created_at=now - timedelta(seconds=n), finished_at=now,
    exit_reason="exited", exit_code=0, stdout="x" * 200) for n in range({count}))
Workload.objects.bulk_create(rows, batch_size=1000)
"""


def ratios() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), DJANGO_SETTINGS_MODULE="tools.bench.settings")
        site.prepare()
        try:
            site.serve(threads=4 * READERS)  # one user may hold a quarter
            site.wait_until_healthy()
            yield _submitting(site)
            yield _throughput(site)
            yield _readers(site)
            yield _pages(site)
        finally:
            site.close()


def _submitting(site: Site) -> Ratio:
    with _client(site) as client:

        def submit() -> float:
            started = time.perf_counter()
            status, workload = client.post("workloads/async", BODY)
            elapsed = time.perf_counter() - started
            assert status == 202, workload
            site.wait_until_ended(workload["id"])
            return elapsed

        def insert() -> float:
            started = time.perf_counter()
            status, _ = client.post("../insert", BODY)
            elapsed = time.perf_counter() - started
            assert status == 201
            return elapsed

        for _ in range(10):
            submit(), insert()
        sides = in_turns(SUBMISSIONS, submit, insert)
    return at_most(2, "submit to 202 : a bare view that inserts a row", *sides, unit="ms")


def _throughput(site: Site) -> Ratio:
    """Compare workloads per second: submitted asynchronously, and run synchronously."""
    total = WORKLOADS // ROUNDS

    def rate(path: str) -> float:
        def one(share: int) -> None:
            with _client(site) as client:
                for _ in range(share):
                    while client.post(path, BODY)[0] == 429:
                        time.sleep(0.001)

        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(one, [total // CLIENTS] * CLIENTS))
        with _client(site) as client:
            while any(_has_any(client, status) for status in ("pending", "running")):
                time.sleep(0.01)
        return total / (time.perf_counter() - started)

    sides = in_turns(ROUNDS, lambda: rate("workloads/async"), lambda: rate("workloads"))
    return at_least(0.8, f"{WORKLOADS} isolates, async : synchronous", *sides)


def _has_any(client: "_Client", status: str) -> bool:
    return bool(client.get(f"workloads?status={status}&page_size=1")[1]["results"])


def _readers(site: Site) -> Ratio:
    """Compare the duration of a workload that prints, with and without READERS of its log."""

    def run(readers: int) -> float:
        workload = site.submit(PRINTS)

        def read(_: int) -> int:
            with _client(site) as client:
                return client.stream(f"workloads/{workload}/logs").count(b"event: log")

        with ThreadPoolExecutor(max(1, readers)) as threads:
            counts = set(threads.map(read, range(readers)))
        assert counts in ({40}, set()), counts
        return site.wait_until_ended(workload)["duration_ms"] / 1000

    sides = in_turns(ROUNDS, lambda: run(READERS), lambda: run(0))
    return at_most(1.1, f"a run with {READERS} readers of its log : with none", *sides, unit="ms")


def _pages(site: Site) -> Ratio:
    def page() -> float:
        with _client(site) as client:
            times = []
            for _ in range(PAGES):
                started = time.perf_counter()
                status, found = client.get("workloads")
                times.append(time.perf_counter() - started)
                assert (status, len(found["results"])) == (200, 20)
            return statistics.median(times)

    few = [page() for _ in range(ROUNDS)]
    assert site.manage("shell", "-c", FILL.format(count=MANY)).returncode == 0
    many = [page() for _ in range(ROUNDS)]
    return at_most(1.25, "a page of 100,000 workloads : of a few thousand", many, few, unit="ms")


class _Client:
    """An API client with one keep-alive connection."""

    def __init__(self, site: Site) -> None:
        self._connection = HTTPConnection("127.0.0.1", site.port, timeout=120)
        self._head = {
            "Authorization": f"Token {site.token}",
            "Content-Type": "application/json",
        }

    def get(self, path: str) -> tuple[int, Any]:
        return self._request("GET", path, None)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self._request("POST", path, json.dumps(body))

    def stream(self, path: str) -> bytes:
        self._connection.request("GET", f"/v1/{path}", headers=self._head)
        return self._connection.getresponse().read()

    def _request(self, method: str, path: str, data: str | None) -> tuple[int, Any]:
        url = path.removeprefix("..") if path.startswith("../") else f"/v1/{path}"
        self._connection.request(method, url, data, self._head)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _client(site: Site) -> Iterator[_Client]:
    client = _Client(site)
    try:
        yield client
    finally:
        client.close()
