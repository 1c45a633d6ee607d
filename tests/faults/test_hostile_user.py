"""One user exhausts the server's shares; another user is served as usual."""

import select
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from tests.faults.hostile_user import HostileUser
from tests.faults.site import RETURNS, SLEEPS, Site
from tests.support.programs import wait_until

THREADS = 8
MANY = 3 * THREADS
PRINTS = """export default async (n) => {
    for (let i = 1; i <= n; i++) {
        console.log(i); await new Promise((r) => setTimeout(r, 1000)) } }"""
DONE = 'event: done\ndata: {"status": "completed", "exit_reason": "exited"}\n\n'
STREAMS = 1000 // 4  # a quarter of the connections of gunicorn.conf.py


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
    streams = [status_of(eve.read_log(workload_id)) for _ in range(STREAMS + 10)]
    assert (streams.count(200), streams.count(429)) == (STREAMS, 10)
    is_served(local)
    waiting = [eve.run(SLEEPS, 600, **{"Idempotency-Key": "k"}) for _ in range(MANY)]
    share = THREADS // 4
    wait_until(lambda: len(select.select(waiting, [], [], 0)[0]) >= MANY - share)
    assert {status_of(one) for one in select.select(waiting, [], [], 0)[0]} == {202}
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


def test_many_readers_of_a_log_take_no_threads_and_all_get_its_end(local: Site, eve: HostileUser):
    workload_id = eve.submit(PRINTS, 5)["id"]
    readers = [eve.read_log(workload_id) for _ in range(100)]
    is_served(local)
    for reader in readers:
        text = b"".join(iter(partial(reader.recv, 65536), b"")).decode()
        assert text.startswith("HTTP/1.1 200 ")
        ids = [line for line in text.splitlines() if line.startswith("id: ")]
        assert ids == [f"id: {number}" for number in range(1, 6)]
        assert text.endswith(DONE)
