"""No request is a 5xx: hostile values in every part of requests to every URL, by every client.

URLs come from the URL configuration, so new ones are included automatically.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db.models import DateTimeField
from django.urls import reverse
from knox.models import get_token_model

from backends_app.models import LogBlock, NodeBackend
from backends_app.observability.probes import ProbeMiddleware
from backends_app.workloads import Status
from tests.site.conftest import identify
from tests.support.hostile import (
    DATES,
    NUMBERS,
    PARAMETERS,
    TEXTS,
    Answer,
    Request,
    few_requests,
    requests,
    routes,
)
from tests.support.workloads import recorded

WHO = ("nobody", "user", "staff")
SLOW = ("/v1/schema", "/v1/docs")
MAX_SHOWN = 20
PAGES = ("/v1/docs",)  # HTML, except for errors
BESIDE = ("/static/backends_app/admin.css", "/static/../x", "/nope", "/v1/nope", "/v1", "//v1/", "")

pytestmark = pytest.mark.usefixtures("fake_site")


@pytest.fixture
def known() -> dict[str, str]:
    """Return valid values of URL parameters by the prefix of the URL."""
    User.objects.create_superuser("staff")
    user = User.objects.create_user("user")
    workload = recorded(Status.COMPLETED, owner=user, stdout="out", log_lines=1)
    LogBlock.objects.create(workload=workload, first=1, lines=1, stream="stdout", text="out\n")
    now = datetime.now(UTC)
    node = NodeBackend.objects.create(
        node_id="1" * 32,
        node="n",
        name="isolate",
        max_concurrency=1,
        health_description="",
        started_at=now,
        seen_at=now,
    )
    token, _ = get_token_model().objects.create(user=user, expiry=timedelta(days=1))
    return {
        "/admin/auth/group/": str(Group.objects.create(name="group").pk),
        "/admin/auth/user/": str(user.pk),
        "/admin/backends_app/workload/": workload.pk,
        "/admin/backends_app/nodebackend/": str(node.pk),
        "/admin/backends_app/backend/": "isolate",
        "/admin/knox/authtoken/": token.pk,
        "/admin/r/": "1",
        "/admin/": "auth",
        "/v1/backends/": "isolate",
        "/v1/workloads/": workload.pk,
        "/v1/tokens/": token.token_key,
    }


def plain_paths(known: dict[str, str]) -> Iterator[str]:
    """Yield one path for each route, without aliases that end in a slash."""
    paths = {
        template % dict.fromkeys(names, value(template, known))
        for template, names in routes().items()
    }
    yield from sorted(path for path in paths if path.removesuffix("/") not in paths - {path})
    yield from BESIDE
    yield from ProbeMiddleware(lambda request: None)._handlers


def hostile_paths(known: dict[str, str]) -> Iterator[str]:
    """Yield a path for each hostile value of each parameter of a route."""
    for template, names in sorted(routes().items()):
        for name in names:
            plain = dict.fromkeys(names, value(template, known))
            yield from (template % {**plain, name: hostile} for hostile in PARAMETERS)


def value(template: str, known: dict[str, str]) -> str:
    before = [prefix for prefix in known if template.startswith(prefix)]
    return known[max(before, key=len)] if before else "1"


def is_acceptable(request: Request, answer: Answer) -> bool:
    """Return whether it is not a 5xx, and under /v1/ not HTML unless the client accepts it."""
    if answer.status >= 500 and (request.path, answer.status) != ("/readyz", 503):
        return False
    accept = request.meta.get("HTTP_ACCEPT", "")
    for_people = accept.startswith(("text/html", "text/*")) or "format=api" in request.query
    if not request.path.startswith("/v1/") or for_people:
        return True
    if answer.status >= 400 and request.method != "HEAD":
        return b'"type":' in answer.body[:20]
    page = request.path.removesuffix("/") in PAGES
    return page or "html" not in answer.headers.get("content-type", "")


def send_all(requests_to_send: Iterable[Request], identity: dict[str, str]) -> int:
    """Send the requests and return their number; fail with a list of unacceptable responses."""
    count, wrong = 0, []
    for request in requests_to_send:
        count += 1
        answer = request.send(**identity)
        if not is_acceptable(request, answer):
            wrong.append(f"{request!r:.300}\n  {answer!r:.200}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:MAX_SHOWN])
    return count


@pytest.mark.parametrize("who", WHO)
def test_no_hostile_value_in_a_request_is_a_5xx(known, who: str):
    def hostile_requests() -> Iterator[Request]:
        for number, path in enumerate(plain_paths(known)):
            identity.update(identify(who))  # a request may have signed the user out
            # API URLs get all values in all positions, divided among the users. Pages are many,
            # alike and slow: each gets all positions, with different values than those before.
            slow = not path.startswith("/v1/") or path.startswith(SLOW)
            some = few_requests if slow else requests
            yield from some(path, number + WHO.index(who), len(WHO))

    identity = identify(who)
    assert send_all(hostile_requests(), identity) > 2_500


def test_no_admin_lookup_is_a_5xx(known):
    """Every column of a changelist can be used in a lookup."""
    lookups = [
        Request(reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist"), query=query)
        for meta in (model._meta for model in admin.site._registry)
        for field in meta.fields
        for value in (DATES if isinstance(field, DateTimeField) else (*NUMBERS[::2], TEXTS[1]))
        for query in [f"{field.name}__gte={value}"]
    ]
    assert send_all(lookups, identify("staff")) > 250


@pytest.mark.parametrize("who", WHO)
def test_no_hostile_path_is_a_5xx(known, who: str):
    paths = list(hostile_paths(known))
    to_send = (Request(path, method) for path in paths for method in ("GET", "DELETE", "POST"))
    assert send_all(to_send, identify(who)) > 500
