"""One user exhausts the server's shares; another user is served as usual."""

import socket
from collections.abc import Iterator

import pytest

from tests.faults.hostile_user import HostileUser
from tests.faults.site import RETURNS, SLEEPS, Site

THREADS = 8
MANY = 3 * THREADS


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(65536).split()[1])


@pytest.fixture
def eve(local: Site) -> Iterator[HostileUser]:
    local.serve(threads=THREADS)
    local.wait_until_healthy()
    eve = HostileUser(local)
    yield eve
    eve.close()


def is_served(site: Site) -> None:
    """Let an honest user make normal requests; none may be refused."""
    for number in range(5):
        for path in ("backends", "workloads"):
            assert site.ask("GET", path)[0] == 200
        status, workload = site.ask(
            "POST", "workloads", {"runtime": "node", "code": RETURNS, "input": number}
        )
        assert status == 201, workload
        assert workload["output"] == number


def test_waiting_requests_leave_threads_for_others(local: Site, eve: HostileUser):
    workload_id = eve.submit(SLEEPS, 600)["id"]
    streams = [status_of(eve.read_log(workload_id)) for _ in range(MANY)]
    assert (streams.count(200), streams.count(429)) == (THREADS // 4, MANY - THREADS // 4)
    is_served(local)
    waiting = [eve.run(SLEEPS, 60, **{"Idempotency-Key": "k"}) for _ in range(MANY)]
    assert {status_of(one) for one in waiting} == {202}
    for _ in range(MANY):
        eve.begin_body()
    is_served(local)
    eve.close()
    waiting = [eve.run(SLEEPS, 1, **{"Idempotency-Key": "another"}) for _ in range(MANY)]
    is_served(local)
    assert {status_of(one) for one in waiting} <= {201, 202}


def test_all_attacks_at_once_leave_the_server_responsive(local: Site, eve: HostileUser):
    for _ in range(40):  # ten times as many as there are slots
        eve.submit(SLEEPS, 0.2)
    with eve.at_full_tilt():
        is_served(local)
