"""Admin page of the backends: content, permissions and the probe."""

import re
import threading

import pytest
from django.core.management import call_command
from django.test import Client

from backends_app import health
from backends_app.backends.base import Health
from backends_app.execution.nodes import heartbeat
from backends_app.execution.slots import acquire_slot
from backends_app.models import Backend, NodeBackend, Route
from backends_app.workloads import Status
from tests.admin.pages import Page
from tests.support.workloads import recorded

PAGE = "/admin/backends_app/backend/"
PROBE = f"{PAGE}isolate/probe/"


def section(client: Client, name: str) -> str:
    """Return the page's section about one backend."""
    content = client.get(PAGE).content.decode()
    return re.search(rf'<section[^>]*id="{name}".*?</section>', content, re.S).group(0)


def test_a_backend_is_shown_with_health_capabilities_routes_and_load(operator, runtime_dir):
    with acquire_slot("isolate", 2, runtime_dir):
        shown = section(operator, "isolate")
    for one in (
        '<span class="vulcan-state vulcan-healthy">healthy</span>',
        "it ran",
        "<code>version</code></dt><dd>1.2</dd>",
        "<dd>Fake (no isolation)</dd>",
        "<dd>fake</dd>",
        "<dd>node, wasm</dd>",
        "<dd>code</dd>",
        "<dd>1 of 2</dd>",
        "runtime node → isolate<br>runtime wasm → isolate",
        "?backend=isolate",
        "/v1/backends/isolate",
    ):
        assert one in shown, one
    assert "none; explicit requests only" not in shown


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Health.unknown(), "unknown"),
        (Health.undetected("install it"), "undetected"),
        (Health.unhealthy("broken"), "unhealthy"),
        (Health.ok("fine"), "healthy"),
    ],
)
def test_each_state_has_a_word_and_a_colour(operator, fleet, isolate, found, word):
    fleet.set_health("isolate", isolate, found)
    shown = section(operator, "isolate")
    assert f'<span class="vulcan-state vulcan-{word}">{word}</span>' in shown
    assert found.description in shown


def test_texts_of_a_backend_are_escaped(operator, fleet, isolate):
    evil = "</span><script>alert(1)</script>"
    fleet.set_health("isolate", isolate, Health.ok(evil, {evil: evil}))
    page = Page(operator.get(PAGE))
    assert page.text.count("alert(1)") == 3
    assert page.forbidden == []


def test_an_empty_registry_shows_what_to_do(operator, settings):
    settings.ISOLATION_BACKENDS = {}
    assert "Add one to ISOLATION_BACKENDS" in Page(operator.get(PAGE)).text


def test_the_page_is_linked_for_users_with_the_view_permission(staff):
    client = staff("view_backend")
    for page in ("/admin/", PAGE):  # the index, and the sidebar
        content = client.get(page).content.decode()
        assert f'href="{PAGE}"' in content
        assert "/admin/backends_app/workload/" not in content
    assert "Probe now" not in client.get(PAGE).content.decode()


@pytest.mark.parametrize("page", [PAGE, "/admin/backends_app/route/"])
def test_each_page_needs_its_own_view_permission(staff, client, page):
    assert staff("view_workload", "view_nodebackend").get(page).status_code == 403
    assert Client().get(page).headers["Location"].startswith("/admin/login/")


def test_probe_now_publishes_reports_and_logs_the_result(operator, fleet, isolate, audit):
    isolate.health = Health.unhealthy("Deno <b>has gone</b>")
    answer = operator.post(PROBE, follow=True)
    assert answer.redirect_chain == [(PAGE, 302)]
    message = "Probed backend isolate: unhealthy: Deno <b>has gone</b>"
    assert message in Page(answer).text
    assert [str(one) for one in answer.context["messages"]] == [message]
    info = fleet.get("isolate").health
    assert (info.healthy, info.description) == (False, isolate.health.description)
    assert audit() == [("root", "isolate", "Probed: unhealthy: Deno <b>has gone</b>")]

    isolate.health = Health.ok("back")
    operator.post(PROBE)
    assert fleet.get("isolate").health == isolate.health
    assert "Probed: healthy: back" in Page(operator.get(f"{PAGE}isolate/history/")).text


def test_a_hanging_probe_times_out(operator, fleet, isolate, monkeypatch):
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.01)
    hanging = threading.Event()
    monkeypatch.setattr(isolate, "probe", hanging.wait)
    try:
        assert "its probe timed out" in Page(operator.post(PROBE, follow=True)).text
        assert fleet.get("isolate").health.healthy is False
    finally:
        hanging.set()


def test_a_probe_needs_its_permission_and_a_csrf_token(staff, root, isolate, monkeypatch):
    monkeypatch.setattr(isolate, "probe", lambda: pytest.fail("it was probed"))
    assert staff("view_backend").post(PROBE).status_code == 403
    assert Client().post(PROBE).headers["Location"].startswith("/admin/login/")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(root)
    assert strict.post(PROBE).status_code == 403
    assert strict.get(PROBE).status_code == 405
    assert strict.get(PAGE).status_code == 200


def test_users_with_the_probe_permission_have_the_button(staff, isolate):
    client = staff("view_backend", "probe_backend")
    assert "Probe now" in Page(client.get(PAGE)).text
    assert client.post(PROBE).status_code == 302


def test_a_probe_of_an_unregistered_backend_is_404(operator):
    assert operator.post(f"{PAGE}nothing/probe/").status_code == 404
    assert operator.post(f"{PAGE}a/b/probe/").status_code == 404


def test_with_remote_workers_the_page_shows_their_probes_and_offers_none(
    operator, settings, fleet, isolate, audit, monkeypatch
):
    settings.ISOLATION_EXECUTOR = {"BACKEND": "tests.admin.executors.Elsewhere"}
    monkeypatch.setattr(isolate, "probe", lambda: pytest.fail("it was probed"))
    heartbeat("1" * 32, [fleet.list()[1]], recorded(Status.PENDING).created_at)
    NodeBackend.objects.update(node="far", healthy=False, health_description="no Deno there")
    recorded(Status.RUNNING, node="far", node_id="1" * 32)
    shown = " ".join(section(operator, "isolate").split())
    assert '<th scope="row">far</th>' in shown
    assert '<span class="vulcan-state vulcan-unhealthy">unhealthy</span>' in shown
    assert "<td>1 of 2</td>" in shown
    assert "no Deno there" in shown
    assert "No node serves this backend" in section(operator, "gvisor")
    page = Page(operator.get(PAGE))
    assert "The workers probe their own backends" in page.text
    assert "Probe now" not in page.text
    answer = operator.post(PROBE, follow=True)
    assert "The workers probe" in str([str(one) for one in answer.context["messages"]])
    assert audit() == []


def test_models_without_a_table_are_never_queried(operator, capsys):
    assert list(Backend.objects.all()) == list(Route.objects.all()) == []
    call_command("dumpdata", "backends_app")
    capsys.readouterr()
    assert operator.get(f"{PAGE}isolate/change/").headers["Location"] == f"{PAGE}#isolate"
    assert operator.get(f"{PAGE}nothing/history/").status_code == 302
    for path in ("add/", "isolate/delete/"):
        assert operator.get(f"{PAGE}{path}").status_code == 403
    for path in ("add/", "x/delete/", "x/change/", "x/history/"):
        assert operator.get(f"/admin/backends_app/route/{path}").status_code in (302, 403)
