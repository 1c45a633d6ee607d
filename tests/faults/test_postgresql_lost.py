"""PostgreSQL stops under a real server, and returns."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPMessage

import pytest

from tests.faults.site import Site
from tests.support.programs import PATIENCE_S, wait_until
from tests.support.servers import PostgreSQL, postgresql_server

THREADS = 32  # as in gunicorn.conf.py
SESSION = {"Cookie": "sessionid=" + "a" * 32}  # it has to be looked up
PAGES = ("/admin/", "/benchmarks")
CALLS = ("/v1/workloads", "/v1/nodes", "/v1/tokens")


@pytest.fixture
def database() -> Iterator[PostgreSQL]:
    with postgresql_server() as server:
        yield server


def get(site: Site, path: str, **headers: str) -> tuple[int, HTTPMessage, bytes]:
    connection = HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_every_response_without_a_database_is_503_until_it_returns(sites, database: PostgreSQL):
    site: Site = sites(DATABASE_URL=database.url)
    site.serve(threads=THREADS)
    token = {"Authorization": f"Token {site.token}"}
    assert get(site, "/v1/workloads", **token)[0] == 200
    database.stop()
    for path in PAGES:
        status, headers, body = get(site, path, **SESSION)
        assert (status, headers["Retry-After"]) == (503, "5"), path
        assert headers["Content-Type"].startswith("text/html")
        assert b"The database is unavailable." in body
    for path in CALLS:
        status, headers, body = get(site, path, **token)
        assert (status, headers["Retry-After"]) == (503, "5"), path
        assert json.loads(body)["errors"][0]["code"] == "database_unavailable"
    assert get(site, "/v1/backends")[0] == 200  # it needs none
    database.start()
    wait_until(lambda: get(site, "/v1/workloads", **token)[0] == 200)
    wait_until(lambda: site.ask("GET", "nodes")[0] == 200)


def test_requests_waiting_for_the_database_leave_threads_for_others(sites, database: PostgreSQL):
    """Each once waited for 20 s, so this many held all threads for more than a minute."""
    site: Site = sites(DATABASE_URL=database.url)
    site.serve(threads=THREADS)
    token = {"Authorization": f"Token {site.token}"}
    database.stop()
    with ThreadPoolExecutor(80) as clients:
        flood = [clients.submit(get, site, "/v1/workloads", **token) for _ in range(80)]
        answered = 0
        while not all(one.done() for one in flood):
            assert get(site, "/healthz")[0] == 200
            answered += 1
        assert {one.result()[0] for one in flood} == {503}
    assert answered > 0
    database.start()
    wait_until(lambda: get(site, "/v1/workloads", **token)[0] == 200)
