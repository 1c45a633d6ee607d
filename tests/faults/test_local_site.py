"""The local executor in real servers: what is accepted is run once, and told truthfully, whatever
happens to the server."""

import os
import signal
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.faults.site import RETURNS, SLEEPS, Site
from tests.support.needs import need
from tests.support.processes import gone
from tests.support.programs import DATABASE, wait_until


def test_a_restart_after_a_kill_recovers_running_and_runs_pending_workloads(local: Site):
    """With four slots: four run, the others wait; one of each has `rerun_if_lost`."""
    server = local.serve()
    running = [local.submit(SLEEPS, 60, rerun_if_lost=False) for _ in range(3)]
    again = local.submit("console.log(1); " + SLEEPS, 3, rerun_if_lost=True)
    for one in [*running, again]:
        local.wait_for_status(one, "running")
    waiting = [local.submit(RETURNS, number) for number in range(5)]
    children = server.children()
    server.kill()
    for child in children:
        wait_until(lambda child=child: gone(child), "a process outlived its server")
    local.serve()
    for one in running:
        lost = local.wait_until_ended(one)
        assert (lost["status"], lost["exit_reason"]) == ("failed", "worker_lost")
    for number, one in enumerate(waiting):
        assert local.wait_until_ended(one)["output"] == number
    second = local.wait_until_ended(again)
    assert (second["status"], second["output"]) == ("completed", 3)
    _, log = local.ask("GET", f"workloads/{again}/logs/history")
    assert {line["line"] for line in log["lines"]} == {"1"}


def test_workloads_of_a_killed_process_are_recovered_by_its_siblings(local: Site):
    server = local.serve(workers=2)
    running = [local.submit(SLEEPS, 60) for _ in range(3)]
    for one in running:
        local.wait_for_status(one, "running")
    for child in server.children():
        os.kill(child, signal.SIGKILL)
    assert {local.wait_until_ended(one)["exit_reason"] for one in running} == {"worker_lost"}
    assert local.wait_until_ended(local.submit(RETURNS, 1))["output"] == 1


def test_sigterm_finishes_running_workloads_and_starts_none(local: Site):
    server = local.serve()
    running = [local.submit(SLEEPS, 3) for _ in range(4)]
    for one in running:
        local.wait_for_status(one, "running")
    waiting = local.submit(RETURNS, 1)
    server.terminate()
    local.serve()
    assert {local.workload(one)["status"] for one in running} == {"completed"}
    assert local.wait_until_ended(waiting)["output"] == 1


def test_sigterm_recovers_workloads_beyond_the_grace(local: Site):
    server = local.serve(GRACE_S="1")
    long = local.submit(SLEEPS, 100, resources={"timeout_s": 110})
    local.wait_for_status(long, "running")
    server.terminate()
    connection = sqlite3.connect(local.folder / DATABASE)
    row = connection.execute("SELECT status, exit_reason FROM backends_app_workload").fetchone()
    connection.close()
    assert row == ("failed", "worker_lost")


def test_a_kill_ends_the_process(local: Site):
    server = local.serve()
    endless = local.submit("console.log('begun'); for (;;);", resources={"timeout_s": 100})
    local.wait_for_status(endless, "running")

    def log() -> list:
        return local.ask("GET", f"workloads/{endless}/logs/history")[1]["lines"]

    assert wait_until(log, "nothing was printed")[0]["line"] == "begun"
    status, workload = local.ask("DELETE", f"workloads/{endless}")
    assert (status, workload["status"], workload["stdout"]) == (200, "killed", "begun\n")
    assert workload["exit_reason"] == "killed"
    busy = [pid for pid in server.children() if not gone(pid)]
    assert busy
    assert local.ask("DELETE", f"workloads/{endless}")[0] == 409
    status, workload = local.ask("POST", "workloads", {"runtime": "node", "code": RETURNS})
    assert (status, workload["status"]) == (201, "completed")


def test_a_log_is_followed_and_resumed(local: Site):
    local.serve()
    code = """for (let i = 1; i <= 6; i++) {
        console.log("line", i); await new Promise((r) => setTimeout(r, 400)) }"""
    workload = local.submit(code)

    def follow(after: int, most: int) -> list[str]:
        connection = HTTPConnection("127.0.0.1", local.port, timeout=60)
        head = {"Authorization": f"Token {local.token}", "Last-Event-ID": str(after)}
        connection.request("GET", f"/v1/workloads/{workload}/logs", headers=head)
        response, said = connection.getresponse(), []
        assert response.headers["Content-Type"] == "text/event-stream"
        while len(said) < most and (line := response.readline()):
            if line.startswith((b"id: ", b"event: done")):
                said.append(line.decode().strip())
        connection.close()
        return said

    first = follow(0, 2)
    assert first == ["id: 1", "id: 2"]
    assert local.workload(workload)["status"] == "running"
    rest = ["id: 3", "id: 4", "id: 5", "id: 6", "event: done"]
    assert follow(2, 99) == rest
    assert follow(2, 99) == rest  # stored by now


def test_a_database_lock_of_ten_seconds_loses_nothing(local: Site):
    local.serve()
    running = local.submit(SLEEPS, 1)
    local.wait_for_status(running, "running")
    writer = sqlite3.connect(local.folder / DATABASE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    unlock = threading.Timer(10, lambda: None)
    unlock.start()
    with ThreadPoolExecutor(5) as threads:
        submitted = [threads.submit(local.submit, RETURNS, number) for number in range(5)]
        assert local.ask("GET", f"workloads/{running}")[0] == 200  # reading continues
        unlock.join()
        writer.execute("ROLLBACK")
        writer.close()
        accepted = [one.result() for one in submitted]
    assert local.wait_until_ended(running)["status"] == "completed"
    assert [local.wait_until_ended(one)["output"] for one in accepted] == [0, 1, 2, 3, 4]


def test_fifty_concurrent_writers_succeed(local: Site):
    local.serve(workers=2)
    with ThreadPoolExecutor(50) as threads:
        accepted = list(threads.map(lambda number: local.submit(RETURNS, number), range(200)))
    assert [local.wait_until_ended(one)["output"] for one in accepted] == [*range(200)]


def test_a_workload_submitted_by_the_command_is_run_by_the_server(local: Site):
    local.serve()
    done = local.manage("run_workload", "--async", "--code", RETURNS, "--input", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert local.wait_until_ended(done.stdout.strip())["output"] == 5


@pytest.mark.parametrize("days", [3, -3])
def test_a_clock_jump_loses_no_workload(local: Site, days: int):
    """Nothing is lost, nothing waits for the old time to return, durations stay correct."""
    need("cc")
    library, clock = local.folder / "clock.so", local.folder / "clock"
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    local.serve(LD_PRELOAD=str(library), CLOCK_FILE=str(clock))
    running = local.submit(SLEEPS, 2)
    local.wait_for_status(running, "running")
    clock.write_text(str(days * 24 * 60 * 60))
    waiting = local.submit(RETURNS, 1)
    late, early = local.wait_until_ended(waiting), local.wait_until_ended(running)
    assert (late["output"], early["status"]) == (1, "completed")
    before, after = (datetime.fromisoformat(one["created_at"]) for one in (early, late))
    assert round((after - before).total_seconds() / 86400) == days  # the clock really jumped
    assert 1500 < early["duration_ms"] < 60_000
    assert [node["running"] for node in local.ask("GET", "nodes")[1]] == [0]
