"""Latency for an honest user beside a hostile one who uses all resources a server grants."""

import json
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from tests.faults.hostile_user import HostileUser
from tests.faults.site import Site

from .ratios import Ratio, at_most, percentile

ROUNDS = 3
SECONDS = 20.0  # beside the hostile user, in each round
BODY = {"runtime": "node", "code": "export default (x) => x"}
REQUESTS = {
    "reads": ("GET", "/v1/backends", None, 200),
    "runs": ("POST", "/v1/workloads", json.dumps(BODY), 201),
}


def ratios() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), DJANGO_SETTINGS_MODULE="tools.bench.settings")
        site.prepare()
        try:
            site.serve(workers=2, threads=32)
            site.wait_until_healthy()
            eve = HostileUser(site)
            for name in REQUESTS:
                alone, beside = [], []
                for _ in range(ROUNDS):
                    alone.append(_p95(site, name))
                    with eve.at_full_tilt():
                        beside.append(_p95(site, name))
                label = f"p95 of an honest user's {name}, beside a hostile user : alone"
                yield at_most(2, label, beside, alone, unit="ms")
        finally:
            site.close()


def _p95(site: Site, name: str) -> float:
    """Return the p95 latency in seconds of repeated requests; none may be refused."""
    method, path, body, expected = REQUESTS[name]
    head = {"Authorization": f"Token {site.token}", "Content-Type": "application/json"}
    times = []
    connection = HTTPConnection("127.0.0.1", site.port, timeout=120)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        started = time.perf_counter()
        connection.request(method, path, body, head)
        response = connection.getresponse()
        response.read()
        times.append(time.perf_counter() - started)
        assert response.status == expected, response.status
        time.sleep(0.02)
    connection.close()
    return percentile(times, 95)
