"""The throttle of failed log-ins."""

import pytest
from django.core.cache import cache
from django.test import Client

PAGES = ("/api-auth/login/", "/admin/login/")


@pytest.fixture(autouse=True)
def empty_cache(settings):
    cache.clear()
    settings.SIGN_IN_RATE = "3/min"
    yield
    cache.clear()


@pytest.fixture
def boss(django_user_model):
    return django_user_model.objects.create_superuser("boss", password="right")


def attempt(page: str, password: str, address: str = "192.0.2.1", **headers: str):
    return Client().post(
        page, {"username": "boss", "password": password}, REMOTE_ADDR=address, headers=headers
    )


@pytest.mark.parametrize("page", PAGES)
def test_too_many_failed_log_ins_are_429(boss, page: str):
    assert [attempt(page, "wrong").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = attempt(page, "right")
    assert refused.status_code == 429
    assert refused.json()["errors"][0]["code"] == "throttled"
    assert 0 < int(refused["Retry-After"]) <= 60
    assert (
        attempt(page, "right", "192.0.2.2").status_code == 302
    )  # other addresses are not affected


def test_both_pages_share_a_count_and_forged_addresses_are_ignored(boss):
    for number, page in enumerate([*PAGES, PAGES[0]]):
        attempt(page, "wrong", **{"X-Forwarded-For": f"198.51.100.{number}"})
    assert attempt(PAGES[1], "wrong").status_code == 429


def test_an_ipv6_prefix_of_64_bits_is_one_address(boss):
    for number in range(3):
        attempt(PAGES[0], "wrong", f"2001:db8::{number}")
    assert attempt(PAGES[0], "wrong", "2001:db8::ffff").status_code == 429
    assert attempt(PAGES[0], "wrong", "2001:db8:1::").status_code == 200


def test_successful_log_ins_do_not_count(boss):
    assert {attempt(PAGES[1], "right").status_code for _ in range(10)} == {302}


def test_loading_the_page_does_not_count(boss):
    assert {Client().get(PAGES[1]).status_code for _ in range(10)} == {200}
