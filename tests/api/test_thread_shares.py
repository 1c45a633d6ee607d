"""Requests that wait, stream or send slowly hold at most a share of the threads."""

import pytest

from backends_app.models import Workload
from backends_app.utils.shares import thread_shares
from backends_app.workloads import Status
from tests.support.workloads import recorded

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

NODE = {"runtime": "node", "code": "export default (x) => x"}


@pytest.fixture
def share_used_up(user):
    """Hold as many threads as this user may."""
    held = [thread_shares.hold(user.pk) for _ in range(thread_shares.limit_per_user)]
    for one in held:
        one.__enter__()
    yield
    for one in held:
        one.__exit__(None, None, None)


@pytest.mark.usefixtures("share_used_up")
def test_a_run_without_a_thread_share_is_submitted(client):
    answer = client.post("/v1/workloads", NODE, format="json")
    [workload] = Workload.objects.all()
    assert (answer.status_code, workload.status) == (202, "pending")
    assert answer["Location"].endswith(f"/v1/workloads/{workload.pk}")
    assert int(answer["Retry-After"]) > 0


@pytest.mark.usefixtures("share_used_up")
def test_a_repeated_key_without_a_thread_share_does_not_wait(client, user):
    headers = {"Idempotency-Key": "k"}
    first = client.post("/v1/workloads", NODE, format="json", headers=headers)
    again = client.post("/v1/workloads", NODE, format="json", headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first["Location"] == again["Location"]


@pytest.mark.usefixtures("share_used_up")
def test_a_kill_without_a_thread_share_is_requested(client, user):
    workload = recorded(Status.RUNNING, owner=user)
    assert client.delete(f"/v1/workloads/{workload.pk}").status_code == 202
    workload.refresh_from_db()
    assert workload.kill_requested_at is not None


@pytest.mark.usefixtures("share_used_up")
def test_a_stream_without_a_thread_share_is_429(client, user):
    workload = recorded(Status.RUNNING, owner=user)
    answer = client.get(f"/v1/workloads/{workload.pk}/logs")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, "too_many_waiting")
    assert int(answer["Retry-After"]) > 0


@pytest.mark.usefixtures("share_used_up")
def test_a_large_body_without_a_thread_share_is_429_unread(client):
    large = {**NODE, "input": "x" * 100_000}
    answer = client.post("/v1/workloads/async", large, format="json")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, "too_many_waiting")
    assert not Workload.objects.exists()


@pytest.mark.usefixtures("share_used_up")
def test_other_users_are_not_affected(client, django_user_model):
    client.credentials()
    client.force_login(django_user_model.objects.create_user("bob"))
    assert client.post("/v1/workloads", NODE, format="json").status_code == 201


def test_held_threads_are_released(client, user):
    client.post("/v1/workloads", NODE, format="json")
    workload = recorded(Status.COMPLETED, owner=user)
    answer = client.get(f"/v1/workloads/{workload.pk}/logs")
    b"".join(answer.streaming_content)
    answer.close()
    client.delete(f"/v1/workloads/{recorded(Status.RUNNING, owner=user).pk}")
    for _ in range(thread_shares.limit_per_user + 1):
        with thread_shares.hold(user.pk):
            pass
    assert not thread_shares._held
