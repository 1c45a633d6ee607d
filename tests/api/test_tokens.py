"""Tokens are created by session, stored as hashes, and valid until expiry or revocation."""

from datetime import timedelta

import pytest
from django.utils.timezone import now
from knox.models import get_token_model
from rest_framework.test import APIClient

URL = "/v1/tokens"


@pytest.fixture
def browser(serve, filled, user) -> APIClient:
    """Return a client that is signed in by a session."""
    client = serve(filled)
    client.force_login(user)
    return client


def with_token(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    return client


def works(token: str) -> bool:
    return with_token(token).get("/v1/workloads").status_code == 200


def test_a_token_is_shown_once_and_stored_hashed(browser):
    response = browser.post(URL)
    assert response.status_code == 201
    assert response["Cache-Control"] == "no-store"
    made = response.json()
    assert works(made["token"])
    assert browser.get(URL).json() == [{k: v for k, v in made.items() if k != "token"}]
    [row] = get_token_model().objects.values()
    assert made["token"] not in str(row)
    assert row["digest"] != made["token"]


def test_a_token_expires(browser, settings):
    token = browser.post(URL).json()["token"]
    [row] = get_token_model().objects.all()
    assert timedelta(days=29) < row.expiry - now() <= timedelta(days=30)
    get_token_model().objects.update(expiry=now() - timedelta(seconds=1))
    assert not works(token)
    assert not get_token_model().objects.exists()


def test_revoking_one_token_keeps_the_others(browser):
    one, other = (browser.post(URL).json() for _ in range(2))
    assert browser.delete(f"{URL}/{one['key']}").status_code == 204
    assert (works(one["token"]), works(other["token"])) == (False, True)
    assert browser.delete(f"{URL}/{one['key']}").status_code == 404


def test_one_token_can_revoke_all(browser):
    tokens = [browser.post(URL).json()["token"] for _ in range(3)]
    assert with_token(tokens[0]).delete(URL).status_code == 204
    assert not any(map(works, tokens))


def test_a_token_cannot_create_another(browser):
    token = browser.post(URL).json()["token"]
    assert with_token(token).post(URL).status_code == 403
    assert get_token_model().objects.count() == 1


def test_the_token_of_another_user_is_404(browser, django_user_model):
    other = django_user_model.objects.create_user("bob", is_staff=True)
    row, token = get_token_model().objects.create(user=other)
    assert browser.get(URL).json() == []
    assert browser.delete(f"{URL}/{row.token_key}").status_code == 404
    assert browser.delete(URL).status_code == 204
    assert works(token)


def test_another_site_cannot_create_a_token(serve, filled, user):
    serve(filled)
    browser = APIClient(enforce_csrf_checks=True)
    browser.force_login(user)
    assert browser.post(URL).status_code == 403
    assert not get_token_model().objects.exists()


def test_the_tokens_of_an_inactive_user_are_refused(browser, user):
    token = browser.post(URL).json()["token"]
    user.is_active = False
    user.save()
    assert not works(token)
