"""Throttled clients get 429 with Retry-After; others are not affected."""

import threading

import pytest
from django.core.cache import cache
from django.test import override_settings
from knox.models import get_token_model
from rest_framework.test import APIClient, APIRequestFactory

from backends_app.api.throttles import FixedWindow, address_key

URL = "/v1/workloads"
BODY = {"runtime": "node", "code": "1"}


@pytest.fixture(autouse=True)
def _fresh():
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def rates(settings):
    def set(**rates: str | None) -> None:
        settings.ISOLATION_THROTTLE_RATES = {"user": None, "address": None, **rates}

    return set


def post(client, url: str = URL, **given):
    return client.post(url, BODY, format="json", **given)


@pytest.fixture
def other(client, django_user_model) -> APIClient:
    client = APIClient()
    user = django_user_model.objects.create_user("bob")
    token = get_token_model().objects.create(user=user)[1]
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    return client


def test_too_many_requests_of_a_user_are_429(client, other, rates):
    rates(user="2/min")
    assert [post(client).status_code for _ in range(3)] == [201, 201, 429]
    refused = post(client, "/v1/workloads/async")
    assert refused.json()["type"] == "client_error"
    assert refused.json()["errors"][0]["code"] == "throttled"
    assert 0 < int(refused["Retry-After"]) <= 60
    assert client.get(URL).status_code == 200  # reads are not counted
    assert post(other).status_code == 201


def test_too_many_requests_of_an_address_are_429_for_any_user(client, other, rates):
    rates(address="2/min")
    assert [post(client).status_code, post(other).status_code] == [201, 201]
    forged = {"headers": {"X-Forwarded-For": "198.51.100.7"}}
    assert [post(client, **forged).status_code, post(other, **forged).status_code] == [429, 429]
    assert post(other, REMOTE_ADDR="192.0.2.7").status_code == 201


def test_concurrent_hits_are_all_counted():
    counter, taken = FixedWindow("test", "50/min"), []

    def hit() -> None:
        taken.extend(counter.hit("somebody") is None for _ in range(20))

    threads = [threading.Thread(target=hit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), sum(taken)) == (200, 50)


def test_a_refunded_hit_is_available_again():
    counter = FixedWindow("test", "1/min")
    assert counter.hit("somebody") is None
    counter.refund("somebody")
    assert counter.hit("somebody") is None
    assert counter.hit("somebody") > 0
    FixedWindow("other", "1/min").refund("nobody has taken anything")


def test_a_failing_cache_blocks_no_request(client, rates):
    rates(user="1/min")
    redis = "django.core.cache.backends.redis.RedisCache"
    nowhere = {"BACKEND": redis, "LOCATION": "redis://127.0.0.1:1/0"}
    with override_settings(CACHES={"default": nowhere}):
        assert [post(client).status_code for _ in range(2)] == [201, 201]


def test_without_a_rate_nothing_is_throttled(client, rates):
    rates()
    assert {post(client).status_code for _ in range(5)} == {201}


@pytest.mark.parametrize("count", [None, 0])
def test_without_proxies_a_client_cannot_choose_its_address(settings, count: int | None):
    settings.REST_FRAMEWORK = {"NUM_PROXIES": count}
    request = APIRequestFactory().get("/", headers={"X-Forwarded-For": "1.2.3.4"})
    assert address_key(request) == "127.0.0.1"
