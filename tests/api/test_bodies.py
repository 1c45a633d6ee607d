"""The request bodies in a process are limited in bytes, and freed with their requests."""

import gc
import json
import tracemalloc

import pytest
from django.test import override_settings
from knox.models import get_token_model

from backends_app.api.bodies import BodyMemory, body_memory
from backends_app.api.parsers import ENVELOPE_BYTES, max_bodies_bytes, max_body_bytes
from backends_app.conf import limits
from backends_app.exceptions import BodyMemoryFull, InvalidSetting
from tests.support.hostile import Request

URL = "/v1/workloads"

LARGE = 3_000_000


@pytest.fixture
def client(serve, filled, user):
    client = serve(filled)
    client.force_authenticate(user)
    return client


def post(client, size: int):
    return client.post(URL, {"runtime": "node", "code": "x" * size}, format="json")


def test_bytes_over_the_limit_are_refused_until_others_are_released():
    memory = BodyMemory()
    memory.reserve("ada", 6, limit=10)
    memory.reserve("bob", 4, limit=10)
    with pytest.raises(BodyMemoryFull):
        memory.reserve("eve", 1, limit=10)
    memory.release("ada", 6)
    memory.reserve("eve", 6, limit=10)
    assert memory.reserved_bytes == 10


def test_one_user_gets_at_most_half():
    memory = BodyMemory()
    memory.reserve("eve", 3, limit=10)
    with pytest.raises(BodyMemoryFull):
        memory.reserve("eve", 3, limit=10)
    memory.reserve("ada", 6, limit=10)


def test_a_single_body_is_accepted_regardless_of_the_limit():
    memory = BodyMemory()
    memory.reserve("ada", 100, limit=10)
    assert memory.reserved_bytes == 100


def test_a_body_without_memory_is_429_and_small_ones_pass(client):
    held = max_bodies_bytes()
    body_memory.reserve("eve", held, held)
    try:
        response = post(client, 2 * ENVELOPE_BYTES)
        assert (response.status_code, response["Retry-After"]) == (429, "1")
        assert response.json()["errors"][0]["code"] == "body_memory_full"
        assert post(client, 100).status_code == 201
    finally:
        body_memory.release("eve", held)
    assert post(client, 2 * ENVELOPE_BYTES).status_code == 201


@pytest.mark.parametrize(
    ("data", "form"),
    [
        ({"runtime": "node", "code": "x" * LARGE}, "json"),
        ({"runtime": "nope", "code": "x" * 2 * ENVELOPE_BYTES}, "json"),
        ({"runtime": "nope", "code": "x" * 2 * ENVELOPE_BYTES}, "multipart"),
    ],
)
def test_a_refused_request_releases_its_bytes(client, data, form):
    assert client.post(URL, data, format=form).status_code == 400
    assert body_memory.reserved_bytes == 0


def test_a_body_that_is_never_read_reserves_nothing(serve, filled):
    client = serve(filled)
    assert post(client, LARGE).status_code == 401
    assert body_memory.reserved_bytes == 0


@pytest.mark.django_db(transaction=True)  # calling WSGI closes connections
def test_bodies_of_refused_requests_are_freed_without_the_garbage_collector(serve, filled, user):
    serve(filled)
    token = get_token_model().objects.create(user=user)[1]
    body = json.dumps({"runtime": "node", "code": "x" * LARGE}).encode()
    head = {"CONTENT_TYPE": "application/json", "HTTP_AUTHORIZATION": f"Token {token}"}
    request = Request(URL, "POST", body=body, meta=head)
    assert request.send().status == 400
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            assert request.send().status == 400
        assert tracemalloc.get_traced_memory()[0] < LARGE
    finally:
        tracemalloc.stop()
        gc.enable()


def test_the_default_limit_is_two_of_the_largest_bodies():
    assert max_bodies_bytes() == 2 * max_body_bytes()
    with override_settings(ISOLATION_LIMITS={"bodies_bytes": 1000}):
        assert limits().bodies_bytes == max_bodies_bytes() == 1000
    with (
        pytest.raises(InvalidSetting),
        override_settings(ISOLATION_LIMITS={"bodies_bytes": 0}),
    ):
        pass
