"""Real Celery workers over Redis: no workload is lost, none runs twice."""

import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deno
import pytest

from backends_app.executors.celery import TASK, CeleryExecutor, queue
from backends_app.registry import Registry
from tests.faults.backends import POISON
from tests.faults.site import RETURNS, SLEEPS, Site
from tests.support.processes import gone
from tests.support.programs import wait_until
from tests.support.servers import Redis, postgresql

PRINTS = "console.log('ran'); " + SLEEPS


def worker_of(machine) -> int:
    """Return the process that runs workloads: a child of the command."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in machine.children()}
    [worker] = [child for child, command in commands.items() if b"--alone" in command]
    return worker


def times_run(site: Site, workload_id: str) -> int:
    _, log = site.ask("GET", f"workloads/{workload_id}/logs/history")
    return len(log["lines"])


@pytest.fixture
def outside() -> Iterator[Callable[[Redis], CeleryExecutor]]:
    """Return another client that can write to this Redis."""
    made: list[CeleryExecutor] = []

    def make(broker: Redis) -> CeleryExecutor:
        made.append(CeleryExecutor(Registry(), broker=broker.url))
        return made[-1]

    yield make
    for one in made:
        one.app.pool.force_close_all()
        one.app.close()


@pytest.fixture
def site(celery: Site) -> Site:
    """Return a site with a server and no worker yet."""
    celery.serve()
    return celery


def test_submissions_without_a_worker_are_503(site: Site):
    status, answer = site.ask("POST", "workloads/async", {"runtime": "node", "code": RETURNS})
    assert (status, answer["errors"][0]["code"]) == (503, "backend_unavailable")
    assert "run_worker" in answer["errors"][0]["detail"]
    assert site.ask("GET", "workloads")[1]["results"] == []
    assert site.ask("GET", "nodes") == (200, [])


def test_a_worker_serves_waiting_and_polling_clients(site: Site):
    machine = site.work("one")
    site.wait_until_healthy()
    body = {"runtime": "node", "code": RETURNS, "input": 1}
    status, workload = site.ask("POST", "workloads", body)
    assert (status, workload["output"], workload["status"]) == (201, 1, "completed")
    assert site.wait_until_ended(site.submit(RETURNS, 2))["output"] == 2
    [node] = site.ask("GET", "nodes")[1]
    assert [(one["name"], one["healthy"]) for one in node["backends"]] == [("isolate", True)]
    assert machine.terminate() == 0
    assert wait_until(lambda: site.ask("GET", "nodes")[1] == [], "the node is still listed")
    assert site.ask("POST", "workloads", body)[0] == 503


def test_workloads_of_a_killed_worker_process_are_recovered(site: Site):
    machine = site.work("one")
    site.wait_until_healthy()
    lost, again = site.submit(SLEEPS, 60), site.submit(PRINTS, 3, rerun_if_lost=True)
    for one in (lost, again):
        site.wait_for_status(one, "running")
    wait_until(lambda: times_run(site, again), "nothing was printed")
    os.kill(worker_of(machine), signal.SIGKILL)
    workload = site.wait_until_ended(lost)
    assert (workload["status"], workload["exit_reason"]) == ("failed", "worker_lost")
    assert site.wait_until_ended(again)["output"] == 3
    assert times_run(site, again) == 2
    assert site.wait_until_ended(site.submit(RETURNS, 1))["output"] == 1


def test_a_killed_machine_is_forgotten_and_another_takes_over(site: Site):
    machine = site.work("one")
    site.wait_until_healthy()
    lost = site.submit(SLEEPS, 60)
    site.wait_for_status(lost, "running")
    site.work("two")
    machine.kill()
    assert site.wait_until_ended(lost)["exit_reason"] == "worker_lost"
    assert site.wait_until_ended(site.submit(RETURNS, 1))["output"] == 1
    wait_until(lambda: len(site.ask("GET", "nodes")[1]) == 1, "the dead node is still listed")


def test_workers_exit_with_the_command_that_started_them(site: Site):
    machine = site.work("one")
    worker = worker_of(machine)
    machine.kill_alone()
    wait_until(lambda: gone(worker), "the worker outlived its parent")


def test_workloads_survive_a_kill_of_the_server(celery: Site):
    server = celery.serve()
    celery.work("one")
    celery.wait_until_healthy()
    running, waiting = celery.submit(SLEEPS, 3), celery.submit(RETURNS, 1)
    celery.wait_for_status(running, "running")
    server.kill()
    celery.serve()
    assert celery.wait_until_ended(running)["output"] == 3
    assert celery.wait_until_ended(waiting)["output"] == 1


def test_workloads_survive_a_stop_restart_and_flush_of_redis(site: Site, broker: Redis):
    site.work("one")
    site.wait_until_healthy()
    running = site.submit(SLEEPS, 4)
    site.wait_for_status(running, "running")
    broker.stop()
    accepted = [site.submit(RETURNS, number) for number in range(5)]
    broker.start()
    long = [site.submit(SLEEPS, 2) for _ in range(4)]  # later workloads have to wait
    accepted += [site.submit(RETURNS, number) for number in range(5, 10)]
    broker.flush()
    assert site.wait_until_ended(running)["output"] == 4
    assert [site.wait_until_ended(one)["output"] for one in long] == [2] * 4
    assert [site.wait_until_ended(one)["output"] for one in accepted] == [*range(10)]


def test_a_repeated_message_is_one_run(site: Site, broker: Redis, outside):
    site.work("one")
    site.work("two")
    site.wait_until_healthy()
    workload = site.submit(PRINTS, 1)
    sender = outside(broker)
    for _ in range(20):
        sender.notify(workload, "isolate")
    site.wait_until_ended(workload)
    for _ in range(20):
        sender.notify(workload, "isolate")
    assert site.wait_until_ended(site.submit(RETURNS, 1))["output"] == 1
    assert times_run(site, workload) == 1


def test_a_workload_beyond_the_visibility_timeout_runs_once(
    sites: Callable[..., Site], broker: Redis
):
    site = sites(
        EXECUTOR="celery",
        BROKER_URL=broker.url,
        EXECUTOR_CLASS="tests.faults.backends.ImpatientExecutor",
    )
    site.serve()
    site.work("one")
    site.work("two")
    site.wait_until_healthy()
    workloads = [site.submit(PRINTS, 3) for _ in range(10)]  # eight at once, two behind them
    assert [site.wait_until_ended(one)["status"] for one in workloads] == ["completed"] * 10
    assert [times_run(site, one) for one in workloads] == [1] * 10


def test_a_poison_workload_ends_without_affecting_others(site: Site):
    site.work("one")
    site.wait_until_healthy()

    def submitted(code: str, **more) -> str:
        """Submit once a worker is back."""
        body = {"runtime": "node", "code": code, "input": 1, **more}

        def accepted() -> str | None:
            status, workload = site.ask("POST", "workloads/async", body)
            assert status in (202, 503)
            return workload["id"] if status == 202 else None

        return wait_until(accepted, "no worker returned")

    poison = [submitted(POISON), submitted(POISON, rerun_if_lost=True)]
    assert [site.wait_until_ended(one)["exit_reason"] for one in poison] == ["worker_lost"] * 2
    assert site.wait_until_ended(submitted(RETURNS, rerun_if_lost=True))["output"] == 1


def test_the_worker_applies_a_kill(site: Site):
    site.work("one")
    site.wait_until_healthy()
    endless = site.submit("for (;;);", resources={"timeout_s": 200})
    site.wait_for_status(endless, "running")
    status, workload = site.ask("DELETE", f"workloads/{endless}")
    assert (status, workload["status"], workload["exit_reason"]) == (200, "killed", "killed")
    assert site.wait_until_ended(site.submit(RETURNS, 1))["output"] == 1


def test_sigterm_lets_a_worker_finish_its_workloads(site: Site):
    machine = site.work("one")
    site.wait_until_healthy()
    running = [site.submit(SLEEPS, 3) for _ in range(4)]
    for one in running:
        site.wait_for_status(one, "running")
    waiting = site.submit(RETURNS, 1)
    assert machine.terminate() == 0
    assert {site.workload(one)["status"] for one in running} == {"completed"}
    assert site.workload(waiting)["status"] == "pending"
    site.work("two")
    assert site.wait_until_ended(waiting)["output"] == 1


def test_sigterm_recovers_workloads_beyond_a_workers_grace(site: Site):
    machine = site.work("one", GRACE_S="1")
    site.wait_until_healthy()
    long = site.submit(SLEEPS, 100, resources={"timeout_s": 110})
    site.wait_for_status(long, "running")
    machine.terminate()
    assert site.workload(long)["exit_reason"] == "worker_lost"


def test_a_pickle_message_is_not_loaded(site: Site, broker: Redis, outside, tmp_path: Path):
    site.work("one")
    site.wait_until_healthy()
    bait = tmp_path / "opened"

    class Bait:
        def __reduce__(self):
            return (os.mkdir, (str(bait),))

    def run_or_wait():
        body = {"runtime": "node", "code": RETURNS, "input": 1}
        status, answer = site.ask("POST", "workloads", body)
        return None if status == 503 else (status, answer)

    app = outside(broker).app
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        for kind in ("application/x-python-serialize", "application/data", "application/json"):
            for body in (
                pickle.dumps(Bait()),
                *(b"{", b"[]", b"7", b"null", b'{"a": 1}', b"[" * 10_000, b"[[], {}]"),
                *(b'[["../../x"], {}, {}]', b'[7, "x", []]', b'[[1, 2, 3], {"a": 1}, null]'),
                *(b'[[{"a": 1}], {}, {"callbacks": 7}]', b'[["\\u0000"], {}, null]'),
            ):
                producer.publish(
                    body,
                    routing_key=queue("isolate"),
                    content_type=kind,
                    content_encoding="binary" if "python" in kind else "utf-8",
                    headers={"task": TASK, "id": "x", "lang": "py"},
                    declare=[app.amqp.queues[queue("isolate")]],
                )
    for garbage in ("no JSON", "{}", "7"):  # it ends a worker, which is started again
        broker.command("LPUSH", queue("isolate"), garbage)
        wait_until(
            lambda: broker.command("LLEN", queue("isolate")) == b":0\r\n",
            "the message was not consumed",
        )
        status, workload = wait_until(run_or_wait, "no worker runs workloads")
        assert (status, workload["output"]) == (201, 1)
    assert not bait.exists()


def test_a_machine_with_a_broken_backend_receives_no_workloads(site: Site, tmp_path: Path):
    program = tmp_path / "deno"
    shutil.copy(os.fsdecode(deno.find_deno_bin()), program)
    machine = site.work("one", DENO=str(program))
    site.wait_until_healthy()
    program.rename(tmp_path / "away")
    for child in threads_of(machine):
        os.kill(child, signal.SIGKILL)  # the warm instances
    failed = site.wait_until_ended(site.submit(RETURNS, 1))
    assert (failed["status"], failed["exit_reason"]) == ("failed", "backend_error")
    machine.wait_for_output("Canceling queue")
    wait_until(
        lambda: site.ask("GET", "backends")[1][0]["healthy"] is False,
        "the backend is still healthy",
    )
    assert site.ask("POST", "workloads", {"runtime": "node", "code": RETURNS})[0] == 503
    (tmp_path / "away").rename(program)
    site.wait_until_healthy()
    assert site.wait_until_ended(site.submit(RETURNS, 2))["output"] == 2


def threads_of(machine) -> list[int]:
    """Return the threads of the launcher below the worker of this machine."""
    file = Path(f"/proc/{worker_of(machine)}/task")
    children = (one / "children" for one in file.iterdir())
    return [int(pid) for one in children for pid in one.read_text().split()]


@pytest.mark.parametrize(("database", "count"), [("sqlite", 200), ("postgresql", 1000)])
def test_workloads_run_once_over_two_machines(
    sites: Callable[..., Site], broker: Redis, database: str, count: int, request
):
    """None lost, none twice."""
    env = {}
    if database == "postgresql":
        context = postgresql()
        env["DATABASE_URL"] = context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
    site = sites(EXECUTOR="celery", BROKER_URL=broker.url, **env)
    site.serve()
    site.work("one")
    site.work("two")
    site.wait_until_healthy()
    code = "console.log('ran'); export default (x) => x"
    with ThreadPoolExecutor(8) as threads:
        accepted = list(threads.map(lambda number: site.submit(code, number), range(count)))
    wait_until(
        lambda: (
            not any(
                site.ask("GET", f"workloads?status={one}&page_size=1")[1]["results"]
                for one in ("pending", "running")
            )
        ),
        "not all workloads have ended",
    )
    nodes = set()
    with ThreadPoolExecutor(8) as threads:
        for number, workload in enumerate(threads.map(site.workload, accepted)):
            assert (workload["status"], workload["output"]) == ("completed", number)
            assert workload["stdout"] == "ran\n"
            nodes.add(workload["node"])
    assert nodes
    assert threading.active_count() < 50
