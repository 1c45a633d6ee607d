"""Workloads over HTTP: submit, list, retrieve, follow, kill; and their visibility."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connections
from rest_framework.test import APIClient

from backends_app.api.renderers import MAX_PREVIEW_CHARS
from backends_app.exceptions import BackendUnavailable
from backends_app.logs import store
from backends_app.models import Workload
from backends_app.utils.shares import thread_shares
from backends_app.workloads import ExitReason, Status, WorkloadResult
from tests.support.hostile import CURSORS
from tests.support.workloads import recorded

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

NODE = {"runtime": "node", "code": "export default (x) => x"}


def post(client: APIClient, body=NODE, path="/v1/workloads", **headers):
    return client.post(path, body, format="json", headers=headers)


def submit(client: APIClient, body=NODE, **headers):
    return post(client, body, "/v1/workloads/async", **headers)


@pytest.fixture
def mine(user: User):
    """Record a workload of the signed-in user."""
    return lambda *given, **more: recorded(*given, owner=user, **more)


def ids(page) -> list[str]:
    assert page.status_code == 200, page.content
    return [one["id"] for one in page.json()["results"]]


# Submitting


def test_a_run_has_the_location_of_its_record(client):
    response = post(client)
    assert response.status_code == 201
    assert response["Location"] == f"http://testserver/v1/workloads/{response.json()['id']}"
    assert client.get(response["Location"]).json() == response.json()


def test_a_submission_returns_at_once(client, fakes):
    response = submit(client, {**NODE, "input": 7})
    body = response.json()
    assert (response.status_code, body["status"]) == (202, "pending")
    assert response["Location"].endswith(f"/v1/workloads/{body['id']}")
    for name in ("exit_reason", "exit_code", "signal", "node", "duration_ms", "finished_at"):
        assert body[name] is None, name
    assert not fakes["isolate"].workloads
    assert client.get(response["Location"]).json() == body


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"isolation": "nobody"}, 400),
        ({"runtime": "cobol"}, 400),
        ({"resources": {"timeout_s": 1e9}}, 400),
        ({"rerun_if_lost": "yes"}, 400),
        ({"rerun_if_lost": 1}, 400),
        ({"code": ""}, 400),
    ],
)
def test_an_unroutable_workload_leaves_no_record(client, change, status):
    for path in ("/v1/workloads", "/v1/workloads/async"):
        assert post(client, {**NODE, **change}, path).status_code == status
    assert not Workload.objects.exists()


def test_a_workload_that_its_backend_rejects_leaves_no_record(client, fakes, monkeypatch):
    from backends_app.exceptions import InvalidRequest

    def refuse(workload):
        raise InvalidRequest("code", "is not to its taste")

    monkeypatch.setattr(fakes["isolate"], "prepare", refuse)
    response = submit(client)
    assert (response.status_code, response.json()["errors"][0]["attr"]) == (400, "code")
    assert not Workload.objects.exists()


def test_a_submission_to_an_unavailable_backend_is_503(client, filled, fakes):
    from backends_app.backends.base import Health

    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("broken"))
    assert submit(client).status_code == 503
    assert not Workload.objects.exists()


def test_a_fault_during_a_run_is_reported_and_recorded(client, fakes):
    def broken(workload):
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = broken
    assert post(client).status_code == 503
    assert Workload.objects.get().error == "the disk is full"


def test_a_full_queue_is_429(serve, filled, token):
    from backends_app.executors.local import LocalExecutor

    client = serve(filled, executor=LocalExecutor(filled, queue_size=2, queue_size_per_user=2))
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    assert [submit(client).status_code for _ in range(3)] == [202, 202, 429]
    response = submit(client)
    assert (response["Retry-After"], response.json()["errors"][0]["code"]) == ("5", "queue_full")
    assert submit(client, {"runtime": "python", "code": "1"}).status_code == 202  # another queue


def test_an_unreachable_database_is_503(client, monkeypatch):
    from django.db import OperationalError

    def locked(*given, **more):
        raise OperationalError("database is locked")

    monkeypatch.setattr(Workload, "save", locked)
    for response in (post(client), submit(client)):
        assert response.status_code == 503
        assert response.json()["errors"][0]["code"] == "database_unavailable"
        assert response["Retry-After"]


# Idempotency keys


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/workloads", "/v1/workloads/async"])
def test_fifty_concurrent_requests_with_one_key_are_one_workload(client, token, fakes, path):
    def one(_) -> tuple[int, str]:
        own = APIClient()
        own.credentials(HTTP_AUTHORIZATION=f"Token {token}")
        try:
            response = own.post(path, NODE, format="json", headers={"Idempotency-Key": "k"})
            return response.status_code, response.json()["id"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(50) as threads:
        answers = set(threads.map(one, range(50)))
    # One user's requests cannot all wait; the others get a Location.
    assert {status for status, _ in answers} <= {202, *([] if path.endswith("async") else [201])}
    assert len({workload for _, workload in answers}) == 1
    assert Workload.objects.count() == 1
    assert len(fakes["isolate"].workloads) == (0 if path.endswith("async") else 1)


def test_another_body_with_the_key_is_409(client):
    headers = {"Idempotency-Key": "k"}
    first = post(client, **headers).json()
    assert post(client, **headers).json() == first
    assert submit(client, **headers).json() == first
    response = post(client, {**NODE, "input": 1}, **headers)
    assert response.status_code == 409
    assert response.json()["errors"][0]["code"] == "idempotency_key_reused"
    assert post(client, {**NODE, "input": 1}).status_code == 201


def test_keys_of_different_users_are_independent(client, user):
    first = post(client, **{"Idempotency-Key": "k"}).json()
    other = APIClient()
    other.force_authenticate(User.objects.create_user("bob"))
    second = other.post("/v1/workloads", NODE, format="json", headers={"Idempotency-Key": "k"})
    assert second.status_code == 201
    assert second.json()["id"] != first["id"]


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 256, "\x00"])
def test_an_invalid_key_is_400(client, key):
    response = post(client, **{"Idempotency-Key": key})
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == "Idempotency-Key"


# Reading


def test_the_list_is_newest_first_and_in_pages(client, mine):
    now = datetime.now(UTC)
    rows = [mine(created_at=now - timedelta(seconds=n)).pk for n in range(5)]
    page = client.get("/v1/workloads?page_size=2")
    assert ids(page) == rows[:2]
    assert page.json()["previous"] is None
    seen = ids(page)
    while following := page.json()["next"]:
        page = client.get(following)
        seen += ids(page)
    assert seen == rows
    assert ids(client.get(page.json()["previous"])) == rows[2:4]
    [row, *_] = page.json()["results"]
    assert "stdout" not in row
    assert client.get(row["url"]).json()["id"] == row["id"]


def test_equal_times_are_paginated_completely(client, mine):
    now = datetime.now(UTC)
    rows = {mine(created_at=now).pk for _ in range(7)}
    page, seen = client.get("/v1/workloads?page_size=3"), []
    seen += ids(page)
    while following := page.json()["next"]:
        page = client.get(following)
        seen += ids(page)
    assert len(seen) == 7
    assert {*seen} == rows


def test_the_list_can_be_filtered(client, mine):
    now = datetime.now(UTC)
    old = mine(Status.FAILED, created_at=now - timedelta(days=2), runtime="python")
    new = mine(Status.COMPLETED, isolation_used="microvm")
    for query, found in {
        "status=failed": [old],
        "status=pending": [],
        "runtime=python": [old],
        "isolation=microvm": [new],
        f"created_after={now - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}": [new],
        f"created_before={now - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}": [old],
        "status=failed&runtime=node": [],
    }.items():
        assert ids(client.get(f"/v1/workloads?{query}")) == [one.pk for one in found], query


@pytest.mark.parametrize(
    "query",
    [
        "status=lost",
        "state=failed",
        "status=failed&status=failed",
        "created_after=yesterday",
        "page_size=0",
        "page_size=101",
        "page_size=x",
        "cursor=%00",
        "cursor=nonsense",
        *(f"cursor={cursor}" for cursor in CURSORS),
        "runtime=%00",
        "runtime=" + "x" * 64,
    ],
)
def test_an_invalid_query_is_400(client, query):
    response = client.get(f"/v1/workloads?{query}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == query.split("=")[0]


def test_users_see_their_own_workloads_and_staff_see_all(client, mine, user):
    own, other = mine(), recorded(owner=User.objects.create_user("bob"))
    assert ids(client.get("/v1/workloads")) == [own.pk]
    for method, path in (
        (client.get, ""),
        (client.delete, ""),
        (client.get, "/logs"),
        (client.get, "/logs/history"),
    ):
        for one in (other.pk, "nobody", "%00", "x" * 10_000):
            response = method(f"/v1/workloads/{one}{path}")
            assert (response.status_code, response["Content-Type"]) == (404, "application/json")
    User.objects.filter(pk=user.pk).update(is_staff=True)
    assert {*ids(client.get("/v1/workloads"))} == {own.pk, other.pk}
    assert client.get(f"/v1/workloads/{other.pk}").status_code == 200


def test_anonymous_users_see_nothing(serve, filled, mine):
    anonymous, workload = serve(filled), mine()
    for path in (
        "",
        "/async",
        f"/{workload.pk}",
        f"/{workload.pk}/logs",
        f"/{workload.pk}/logs/history",
    ):
        assert anonymous.get(f"/v1/workloads{path}").status_code == 401, path
    assert anonymous.get("/v1/nodes").status_code == 401
    assert anonymous.delete(f"/v1/workloads/{workload.pk}").status_code == 401


# Killing


def test_a_pending_workload_is_killed_at_once(client, mine):
    workload = mine()
    response = client.delete(f"/v1/workloads/{workload.pk}")
    assert (response.status_code, response.json()["status"]) == (200, "killed")
    again = client.delete(f"/v1/workloads/{workload.pk}")
    assert (again.status_code, again.json()["errors"][0]["code"]) == (409, "workload_ended")


def test_a_slow_kill_is_202(client, mine, monkeypatch):
    monkeypatch.setattr("backends_app.execution.lifecycle.KILL_WAIT_S", 0)
    response = client.delete(f"/v1/workloads/{mine(Status.RUNNING).pk}")
    assert (response.status_code, response.json()["status"]) == (202, "running")


# Logs


def stream(response) -> tuple[list[tuple[int, str]], dict | None]:
    """Return the lines of an event stream, and the data of its last event."""
    assert response["Content-Type"] == "text/event-stream"
    lines, done = [], None
    for event in b"".join(response.streaming_content).decode().split("\n\n"):
        parts = dict(part.split(": ", 1) for part in event.split("\n") if ": " in part)
        if parts.get("event") == "log":
            lines.append((int(parts["id"]), json.loads(parts["data"])["line"]))
        if parts.get("event") == "done":
            done = json.loads(parts["data"])
    return lines, done


@pytest.fixture
def printed(mine):
    """Return a finished workload that has printed five lines."""
    workload = mine(Status.COMPLETED)
    block = store.Block(1, "stdout", "a\nb\n\r\ndata: forged\n\x00ü\n", 5)
    store.save_blocks(workload.pk, [block])
    return workload


def test_the_log_of_a_finished_workload_is_streamed(client, printed):
    lines, done = stream(client.get(f"/v1/workloads/{printed.pk}/logs"))
    assert lines == [(1, "a"), (2, "b"), (3, "\r"), (4, "data: forged"), (5, "\x00ü")]
    assert done == {"status": "completed", "exit_reason": "exited"}


def test_a_reader_resumes_after_its_last_event_id(client, printed):
    for known in range(7):
        headers = {"Last-Event-ID": str(known)}
        lines, done = stream(client.get(f"/v1/workloads/{printed.pk}/logs", headers=headers))
        assert [number for number, _ in lines] == [*range(known + 1, 6)]
        assert done is not None


@pytest.mark.parametrize("last", ["-1", "x", "1e3", "9" * 40, ""])
def test_an_invalid_last_event_id_is_400(client, printed, last):
    url = f"/v1/workloads/{printed.pk}/logs"
    response = client.get(url, headers={"Last-Event-ID": last})
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == "Last-Event-ID"


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "application/json"])
def test_errors_of_a_stream_are_json(client, accept):
    response = client.get("/v1/workloads/nobody/logs", headers={"accept": accept})
    assert (response.status_code, response["Content-Type"]) == (404, "application/json")


def test_the_log_of_a_running_workload_is_streamed_live(client, mine):
    workload = mine(Status.RUNNING)
    response = client.get(f"/v1/workloads/{workload.pk}/logs")
    events = iter(response.streaming_content)

    def until(text: bytes) -> None:
        while text not in next(events):
            pass

    store.save_blocks(workload.pk, [store.Block(1, "stdout", "one\n", 1)])
    until(b'"one"')
    store.save_blocks(workload.pk, [store.Block(2, "stderr", "two\n", 1)])
    until(b'"two"')
    Workload.objects.filter(pk=workload.pk).transition(
        Status.FAILED, finished_at=datetime.now(UTC), exit_reason="timeout"
    )
    until(b"event: done")
    response.close()


def test_log_streams_are_limited_and_released(client, mine, monkeypatch):
    monkeypatch.setattr(thread_shares, "limit", 2)
    url = f"/v1/workloads/{mine(Status.RUNNING).pk}/logs"
    first, second = client.get(url), client.get(url)
    third = client.get(url)
    assert (third.status_code, third.json()["errors"][0]["code"]) == (429, "too_many_waiting")
    first.close()
    fourth = client.get(url)
    assert fourth.status_code == 200
    for response in (second, fourth):
        response.close()


def test_the_log_is_read_in_pages(client, printed):
    url = f"/v1/workloads/{printed.pk}/logs/history"
    whole = client.get(url).json()
    assert [one["number"] for one in whole["lines"]] == [1, 2, 3, 4, 5]
    assert whole["lines"][0] == {"number": 1, "stream": "stdout", "line": "a"}
    assert (whole["next"], whole["complete"]) == (None, True)
    part = client.get(f"{url}?limit=2").json()
    assert ([one["line"] for one in part["lines"]], part["next"]) == (["a", "b"], 2)
    assert client.get(f"{url}?after=2&limit=3").json()["next"] is None
    assert client.get(f"{url}?after=-1").status_code == 400
    assert client.get(f"{url}?limit=10001").status_code == 400


def test_a_workload_killed_while_its_caller_waits_is_returned(client, fakes, filled, token):
    """Another request kills it, and the waiting one returns the killed workload."""
    begun, gone = threading.Event(), threading.Event()

    def program(workload) -> WorkloadResult:
        begun.set()
        assert gone.wait(60)
        return WorkloadResult(exit_reason=ExitReason.KILLED, signal="SIGKILL")

    fakes["isolate"].program = program
    fakes["isolate"].kill = lambda workload_id: gone.set()
    answers = []

    def wait() -> None:
        answers.append(post(client))
        connections.close_all()

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(60)
    other = APIClient()
    other.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    response = other.delete(f"/v1/workloads/{Workload.objects.get().pk}")
    thread.join()
    assert (response.status_code, response.json()["status"]) == (200, "killed")
    assert answers[0].json()["status"] == "killed"


def test_nodes_lists_live_nodes(client):
    assert client.get("/v1/nodes").json() == []


# HTML pages


ADDRESS = "http://evil.example/x"


def page_of(client, workload: Workload, path: str = "") -> str:
    url = f"/v1/workloads/{workload.pk}{path}"
    return client.get(url, headers={"accept": "text/html"}).content.decode()


def test_a_page_does_not_link_program_output(client, mine):
    printed = f"{ADDRESS} www.evil.example someone@evil.example <b> &quot;http://testserver/v1/"
    page = page_of(client, mine(Status.COMPLETED, stdout=printed, output=[ADDRESS]))
    assert ADDRESS in page
    assert "<b> &quot;" not in page
    assert not re.findall(r'href="[^"]*(?:evil|mailto)', page)


def test_a_page_of_a_large_response_is_short_and_links_to_all(client, mine):
    stdout = f"{ADDRESS}\n" * 40_000
    small = mine(Status.COMPLETED, stdout="")
    workload = mine(Status.COMPLETED, stdout=stdout, stderr=stdout, output=["x"] * 100_000)
    page, plain = page_of(client, workload), page_of(client, small)
    assert len(page) - len(plain) < 6 * MAX_PREVIEW_CHARS  # with the escaped markup
    assert page.count("<a ") <= plain.count("<a ") + 1
    assert "exit_reason" in page  # what follows the cut text
    [whole] = re.findall(r'href="([^"]+)">full response', page)
    assert whole == f"http://testserver/v1/workloads/{workload.pk}?format=json"
    assert client.get(whole).json()["stdout"] == stdout
    assert "full response" not in plain


def test_a_page_of_a_new_workload_links_to_its_location(client, user, fakes):
    fakes["isolate"].program = lambda workload: "x" * 100_000
    client.credentials()
    client.force_login(user)
    form = {"runtime": "node", "code": "1"}
    page = client.post("/v1/workloads", form, headers={"accept": "text/html"}).content.decode()
    [whole] = re.findall(r'href="([^"]+)">full response', page)
    assert len(client.get(whole).json()["output"]) == 100_000


def test_urls_of_the_api_are_links_in_a_page(client, mine):
    workload = mine(Status.COMPLETED)
    page = client.get("/v1/workloads?page_size=1", headers={"accept": "text/html"})
    assert f'<a href="http://testserver/v1/workloads/{workload.pk}">' in page.content.decode()
    root = client.get("/v1/", headers={"accept": "text/html"}).content.decode()
    assert '<a href="http://testserver/v1/resolve?runtime=node">' in root
