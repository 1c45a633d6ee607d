"""The dashboard page: content for each kind of user, escaping, accessibility, live fragment."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import Client

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.execution import nodes
from backends_app.models import Workload
from backends_app.workloads import Status
from tests.dashboard.day import day, ended, workload


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    VOID = {"meta", "link", "img", "input", "path", "rect", "circle"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def text(html: str) -> str:
    return Page(html).text


def test_routes_and_backend_health_are_public(look, filled, fakes):
    filled.set_health("gvisor", fakes["gvisor"], Health.undetected("no Docker Engine"))
    filled.set_health("microvm", fakes["microvm"], Health.unhealthy("QEMU ended early"))
    seen = text(look())
    assert "Backends 1 of 3 healthy" in seen
    assert "image oci gvisor undetected no Docker Engine" in seen
    assert "archive python go anything else microvm unhealthy QEMU ended early" in seen
    assert "node wasm isolate healthy healthy" in seen


def test_an_unprobed_backend_is_unknown(look, filled, fakes):
    filled.register("isolate", FakeBackend(), replace=True)
    assert "isolate unknown not probed yet" in text(look())


def test_a_route_to_an_unregistered_backend_is_shown(look, filled):
    filled.unregister("isolate")
    seen = text(look())
    assert "Backends 2 of 2 healthy" in seen
    assert "node wasm isolate not registered" in seen


def test_a_route_that_a_healthy_target_cannot_serve_is_marked(look, filled, fakes):
    filled.register("isolate", FakeBackend(runtimes=["node"]), replace=True)
    assert "wasm: refused, it runs node only" in text(look())


def test_a_backend_without_a_route_is_shown(look, filled):
    filled.register("shouting", FakeBackend())
    assert "explicit requests only shouting unknown" in text(look())


def test_anonymous_visitors_see_counts_only(look, clock, user):
    running = {"status": Status.RUNNING, "started_at": clock.now, "created_at": clock.now}
    made = [
        workload(owner=user, **running),
        workload(owner=user, isolation_used="gone", **running),
        workload(owner=user, status=Status.PENDING, created_at=clock.now),
        ended(clock.ago(minutes=5), owner=user, status=Status.FAILED, exit_reason="timeout"),
    ]
    made[3].error = "a secret of ada's"
    Workload.objects.bulk_create(made)
    html = look()
    seen = text(html)
    assert "Running 2 now Waiting 1 now" in seen
    assert "isolate healthy healthy 1 running 1 waiting" in seen
    assert "gone not registered" in seen
    assert "1× timeout on isolate" in seen
    for secret in ("ada", "a secret", *(one.pk[:8] for one in made)):
        assert secret not in html


def test_users_see_their_own_workloads_and_staff_see_all_with_owners(look, clock, user, staff):
    other = User.objects.create_user("bob")
    failed = {"status": Status.FAILED, "exit_reason": "exited", "exit_code": 3}
    own = [
        workload(owner=user, status=Status.RUNNING, started_at=clock.now, created_at=clock.now),
        workload(owner=user, status=Status.PENDING, created_at=clock.now),
        ended(clock.ago(minutes=5), owner=user, error="mine", **failed),
    ]
    others = [
        workload(owner=other, status=Status.RUNNING, started_at=clock.now, created_at=clock.now),
        workload(owner=None, status=Status.PENDING, created_at=clock.now),
        ended(clock.ago(minutes=5), owner=other, error="another's", **failed),
    ]
    Workload.objects.bulk_create([*own, *others])
    html = look(user)
    assert all(f"/v1/workloads/{one.pk}" in html for one in own)
    assert not any(one.pk[:8] in html for one in others)
    assert "bob" not in html
    assert "exit code 3 mine" in text(html)
    assert "another" not in html
    html = look(staff)
    assert all(f"/v1/workloads/{one.pk}" in html for one in (*own, *others))
    for owner in ("for ada", "for bob", "for nobody"):
        assert owner in text(html)


def test_running_workloads_come_first_and_the_list_is_short(look, clock, staff):
    Workload.objects.bulk_create(
        workload(status=Status.PENDING, created_at=clock.ago(seconds=number))
        for number in range(50)
    )
    Workload.objects.bulk_create(
        [workload(status=Status.RUNNING, created_at=clock.ago(hours=2), started_at=clock.now)]
    )
    page = Page(look(staff))
    listed = [one["id"] for one in page.of("li") if (one.get("id") or "").startswith("workload-")]
    assert len(listed) == 10
    assert listed[0] == f"workload-{Workload.objects.get(status=Status.RUNNING).pk}"


@pytest.mark.parametrize("key", ["hour", "day", "week"])
def test_the_window_selects_how_far_back_the_history_goes(look, clock, key: str):
    ago = {"hour": 0.5, "day": 20, "week": 140}
    Workload.objects.bulk_create(
        ended(clock.ago(hours=hours), isolation_used=f"of-the-{name}")
        for name, hours in ago.items()
    )
    html = look(query=f"?window={key}")
    for name, hours in ago.items():
        assert (f'id="history-of-the-{name}"' in html) is (hours <= ago[key])
    chosen = [one["href"] for one in Page(html).of("a") if one.get("aria-current") == "true"]
    assert chosen == [f"?window={key}#history"]


@pytest.mark.parametrize("query", ["?window=", "?window=year", "?window=%00<b>", "?other=1"])
def test_an_invalid_window_is_the_last_hour(look, query: str):
    assert look(query=query).count("?window=hour") == look().count("?window=hour")


def test_the_figures_of_each_backend_are_shown_as_charts_and_as_a_table(look, clock):
    Workload.objects.bulk_create(day(clock.now, 300))
    page = Page(look(query="?window=day"))
    charts = [one for one in page.of("svg") if one.get("class") == "chart"]
    assert len(charts) == 9
    ids = {one.get("id") for _, one in page.elements}
    for chart in charts:
        assert chart["role"] == "img"
        assert {*chart["aria-labelledby"].split()} < ids
    assert len(page.of("table")) == 3
    assert "Time completed failed killed success p50 p95" in page.text


def test_an_empty_history_links_to_running_a_workload(look):
    seen = text(look())
    assert "No workload has ended in the last hour. Run a workload" in seen
    assert "Ended 0 in the last hour Succeeded – in the last hour" in seen


def test_nodes_need_a_signed_in_user(look, executor, filled, user):
    executor.maintenance.run_round()  # one round of periodic maintenance
    assert re.search(
        rf"Nodes {nodes.node_name()} load .* isolate: 0 of 100 running", text(look(user))
    )
    seen = text(look())
    assert "Nodes" not in seen
    assert nodes.node_name() not in seen.split()
    assert "isolate healthy healthy 0 of 100 running" in seen


HOSTILE = "</li><script>alert(1)</script>\"' onload=x {{ 7|add:7 }} \u202e"


def test_untrusted_text_is_escaped_and_truncated(look, filled, fakes, clock, staff):
    name = HOSTILE[:40]
    owner = User.objects.create_user(name)
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy(HOSTILE * 10))
    Workload.objects.bulk_create(
        [
            ended(
                clock.ago(minutes=5),
                owner=owner,
                status=Status.FAILED,
                exit_reason="timeout",
                error=HOSTILE * 100_000,
                runtime=name,
            ),
            workload(owner=owner, runtime=name, status=Status.PENDING, created_at=clock.now),
        ]
    )
    html = look(staff)
    page = Page(html)
    assert html.count("<script") == 1
    assert "<script>alert" in page.text  # as text
    assert "\u202e" not in html
    assert "14" not in re.findall(r"onload=x (\S+)", page.text)
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert len(html) < 60_000


def test_an_error_cut_within_a_character_is_shown(look, clock, staff):
    made = ended(clock.ago(minutes=5), status=Status.FAILED, exit_reason="timeout")
    made.error = "ä" * 600 + "\0"  # cut in the middle of a character
    Workload.objects.bulk_create([made])
    assert "ääää" in look(staff)


def test_the_page_has_no_inline_script_or_style(look, clock, staff, site):
    Workload.objects.bulk_create(day(clock.now, 300))
    client = Client()
    client.force_login(staff)
    response = client.get("/?window=day")
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    page = Page(response.content.decode())
    assert not page.of("style")
    assert all(script.get("src", "").startswith("/static/") for script in page.of("script"))
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name != "style"
            assert not name.startswith("on")
            assert not re.match(r"(https?:)?//|javascript:|data:", value or "")


def test_landmarks_headings_and_labels_are_well_formed(look, clock, staff):
    Workload.objects.bulk_create(day(clock.now, 300, staff))
    page = Page(look(staff, "?window=day"))
    for landmark in ("header", "main", "footer"):
        assert len(page.of(landmark)) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len({*ids})
    for _, attributes in page.elements:
        assert {*(attributes.get("aria-labelledby") or "").split()} <= {*ids}


def test_every_link_of_the_page_works(look, clock, filled, site):
    root = User.objects.create_superuser("root")
    made = workload(owner=root, status=Status.RUNNING, started_at=clock.now, created_at=clock.now)
    Workload.objects.bulk_create([made, *day(clock.now, 50, root)])
    client = Client()
    client.force_login(root)
    links = {one["href"] for one in Page(look(root, "?window=day")).of("a")}
    assert {"/v1/", "/v1/backends", "/v1/workloads", "/v1/docs", "/admin/"} <= links
    assert {"/v1/backends/isolate", f"/v1/workloads/{made.pk}", "?window=week#history"} <= links
    # The probes would start this process's own executor; real servers test them.
    for link in links - {"#content", "/metrics", "/healthz", "/readyz"}:
        path = link if link.startswith("/") else f"/{link}"
        assert client.get(path).status_code == 200, link


def test_users_log_in_and_out_from_the_page(look, site, user):
    user.set_password("a-b-c")
    user.save()
    client = Client(enforce_csrf_checks=True)
    (login,) = [one["href"] for one in Page(look()).of("a") if "login" in one["href"]]
    form = Page(client.get(login).content.decode()).of("input")
    fields = {one["name"]: one.get("value") for one in form if one.get("name")}
    response = client.post(login, {**fields, "username": "ada", "password": "a-b-c"}, follow=True)
    assert response.redirect_chain == [("/", 302)]
    page = Page(response.content.decode())
    assert "Signed in as ada" in page.text
    fields = {one["name"]: one["value"] for one in page.of("input")}
    (form,) = page.of("form")
    response = client.post(form["action"], fields, follow=True)
    assert response.redirect_chain == [("/", 302)]
    assert "Log in" in text(response.content.decode())


# The live fragment


@pytest.fixture
def live(site, db) -> Client:
    return Client()


def test_an_unchanged_fragment_is_a_304(live, filled, fakes, clock):
    first = live.get("/dashboard/live")
    etag = first["ETag"]
    assert f'data-etag="{etag[1:-1]}"' in live.get("/").content.decode().replace("&quot;", "")
    clock.now = clock.now.replace(second=34)  # later, and nothing has changed
    same = live.get("/dashboard/live", headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same["ETag"]) == (304, b"", etag)
    assert "default-src 'none'" in same["Content-Security-Policy"]
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("it broke"))
    changed = live.get("/dashboard/live", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed["ETag"] != etag
    assert "it broke" in changed.content.decode()


def test_a_compressed_fragment_keeps_its_etag(live):
    packed = {"Accept-Encoding": "gzip"}
    first = live.get("/dashboard/live", headers=packed)
    assert first["Content-Encoding"] == "gzip"
    same = live.get("/dashboard/live", headers={**packed, "If-None-Match": first["ETag"]})
    assert same.status_code == 304


def test_the_fragment_is_part_of_the_page_verbatim(live, clock):
    Workload.objects.bulk_create(day(clock.now, 100))
    part = live.get("/dashboard/live?window=day").content.decode()
    assert part in live.get("/?window=day").content.decode()
    assert "csrf" not in part


def test_responses_are_private_and_vary_by_cookie(live):
    for path in ("/", "/dashboard/live"):
        response = live.get(path)
        assert response["Cache-Control"] == "private, no-cache"
        assert "Cookie" in response["Vary"]


def test_other_methods_are_405(live):
    for path in ("/", "/dashboard/live"):
        assert live.head(path).status_code == 200
        for method in (live.post, live.put, live.delete):
            assert method(path).status_code == 405


def test_without_a_database_backend_health_is_still_shown(live, user):
    live.force_login(user)

    def fail(*arguments: object) -> None:
        raise OperationalError("it is not there, and its password is hunter2")

    with connection.execute_wrapper(fail):
        for path in ("/", "/dashboard/live"):
            response = live.get(path)
            assert response.status_code == 200
            seen = text(response.content.decode())
            assert "The database is unavailable" in seen
            assert "node wasm isolate healthy" in seen
            assert "hunter2" not in seen
    assert "The database" not in live.get("/dashboard/live").content.decode()
