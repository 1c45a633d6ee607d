"""Several machines: workers in their own network namespaces behind one API."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.site import RETURNS, SLEEPS, Site
from tests.support.needs import need, without
from tests.support.programs import wait_until
from tests.support.servers import postgresql, redis


@contextmanager
def machine(number: int) -> Iterator[list[str]]:
    """Create a network namespace that reaches only this host, with its own host name.

    Yield the prefix of a command that is to run there.
    """
    name, here = f"vulcan{os.getpid()}-{number}", f"vt{os.getpid() % 100_000}h{number}"
    there = f"vt{os.getpid() % 100_000}n{number}"
    ip(f"netns add {name}")
    try:
        ip(f"link add {here} type veth peer name {there} netns {name}")
        ip(f"addr add {address(number)}/30 dev {here}")
        ip(f"link set {here} up")
        ip(f"-n {name} addr add 10.213.{number}.2/30 dev {there}")
        ip(f"-n {name} link set {there} up")
        ip(f"-n {name} link set lo up")
        host = f'hostname machine-{number}; exec "$@"'
        yield ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", host, "sh"]
    finally:
        ip(f"netns delete {name}")


def address(number: int) -> str:
    return f"10.213.{number}.1"


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)


def test_two_machines_serve_one_api(
    sites: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory
):
    need("ip", "unshare", "hostname")
    if os.geteuid() != 0:
        without("network namespaces need root")
    folder: Path = tmp_path_factory.mktemp("redis")
    places = address(1), address(2)
    with (
        machine(1) as first,
        machine(2) as second,
        redis(folder, *places) as broker,
        postgresql(*places) as database,
    ):
        site = sites(EXECUTOR="celery", BROKER_URL=broker.url, DATABASE_URL=database)

        def seen_from(number: int) -> dict[str, str]:
            there = address(number)
            return {
                "BROKER_URL": broker.url.replace("127.0.0.1", there),
                "DATABASE_URL": database.replace("127.0.0.1", there),
            }

        server = site.serve()
        one = site.work("one", first, **seen_from(1))
        two = site.work("two", second, **seen_from(2))
        site.wait_until_healthy()
        wait_until(lambda: len(site.ask("GET", "nodes")[1]) == 2, "not all nodes are listed")
        names = [node["name"] for node in site.ask("GET", "nodes")[1]]
        assert names == ["machine-1", "machine-2"]
        workloads = [site.submit(SLEEPS, 1) for _ in range(8)]  # as many as both have slots
        assert {site.wait_until_ended(one)["node"] for one in workloads} == {*names}
        running = site.submit(SLEEPS, 60)
        where = site.wait_for_status(running, "running")["node"]
        lost, left = (one, two) if where == "machine-1" else (two, one)
        lost.kill()
        assert site.wait_until_ended(running)["exit_reason"] == "worker_lost"
        workload = site.wait_until_ended(site.submit(RETURNS, 1))
        assert (workload["output"], workload["node"]) == (1, ({*names} - {where}).pop())
        wait_until(lambda: len(site.ask("GET", "nodes")[1]) == 1, "the dead node is still listed")
        left.terminate()
        server.terminate()
        site.close()
