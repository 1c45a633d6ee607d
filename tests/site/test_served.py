"""Logs of real processes: gunicorn, the site and a worker, about one workload."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site import Program, Site
from tests.support.servers import redis

MARK = "the-source-is-nobodys-business"
CODE = f"export default (x) => {{ const why = '{MARK}'; console.log('\\n{{}}'); return x }}"


@pytest.fixture
def site(tmp_path: Path):
    (tmp_path / "redis").mkdir()
    with redis(tmp_path / "redis") as broker:
        site = Site(tmp_path, EXECUTOR="celery", BROKER_URL=broker.url)
        try:
            site.prepare()
            yield site
        finally:
            site.close()


def events(program: Program) -> list[dict[str, Any]]:
    """Parse the output of a program: one event per line."""
    return [json.loads(line) for line in program.printed.splitlines()]


def test_a_workload_can_be_traced_from_the_request_to_the_worker(site: Site, tmp_path: Path):
    server, worker = site.serve(), site.work("one")
    site.wait_until_healthy()
    body = {"runtime": "node", "code": CODE, "input": MARK}
    headers = {"X-Request-ID": "asked-1", "Cookie": f"a={MARK}", "User-Agent": MARK}
    status, workload = site.ask("POST", f"workloads/async?x={MARK}", body, **headers)
    assert status == 202
    site.wait_until_ended(workload["id"])
    server_events = [one for one in events(server) if one.get("request_id") == "asked-1"]
    steps = [(one["event"], one["user_id"], one.get("workload_id")) for one in server_events]
    [user_id] = {one["user_id"] for one in server_events}
    assert steps == [
        ("workload submitted", user_id, workload["id"]),
        ("request", user_id, None),
    ]
    worker_events = [one for one in events(worker) if one.get("workload_id") == workload["id"]]
    assert [one["event"] for one in worker_events] == ["workload started", "workload ended"]
    assert {one["owner_id"] for one in worker_events} == {user_id}
    assert (worker_events[-1]["status"], worker_events[-1]["backend"]) == ("completed", "isolate")
    loggers = {one["logger"].split(".")[0] for one in events(server) + events(worker)}
    assert {"gunicorn", "vulcan_site", "backends_app", "celery"} <= loggers
    for program in (server, worker):
        assert MARK not in program.printed
        assert site.token not in program.printed
