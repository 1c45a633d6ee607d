"""Admin actions on workloads: kill, rerun and export, their permissions and their log entries."""

import csv
import io
import json

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils.html import strip_tags

from backends_app.admin import export, workloads
from backends_app.backends.base import Health
from backends_app.execution import lifecycle
from backends_app.executors import get_executor
from backends_app.models import Source, Workload
from backends_app.workloads import Status
from tests.admin.pages import Page
from tests.admin.test_workloads_page import PAGE, many
from tests.support.workloads import CODE, recorded


@pytest.fixture(autouse=True)
def no_kill_wait(monkeypatch):
    monkeypatch.setattr(lifecycle, "KILL_WAIT_S", 0)


def act(client: Client, action: str, *chosen: Workload, query: str = "", **more: str):
    """Run an action on selected rows, as the page does."""
    data = {"action": action, "index": "0", "_selected_action": [one.pk for one in chosen]}
    return client.post(f"{PAGE}{query}", {**data, **more}, follow=True)


def messages(answer) -> list[str]:
    assert answer.status_code == 200
    return [strip_tags(str(one)) for one in answer.context["messages"]]


def with_source(**overrides) -> Workload:
    """Record a failed workload whose source is stored."""
    workload = recorded(Status.FAILED, **overrides)
    Source.objects.create(
        workload=workload, code=CODE, rest={"command": [], "input": {"a": [1, "\0"]}}
    )
    return workload


# Kill


def test_kill_reports_killed_requested_and_finished_workloads(operator, audit):
    waits, runs, ended = recorded(), recorded(Status.RUNNING), recorded(Status.COMPLETED)
    answer = act(operator, "kill", waits, runs, ended)
    assert messages(answer) == [
        f"1 killed: {waits.pk}",
        f"1 requested to be killed: {runs.pk}",
        f"1 already finished: {ended.pk}",
    ]
    for workload in (waits, runs, ended):
        workload.refresh_from_db()
    assert (waits.status, runs.status, ended.status) == ("killed", "running", "completed")
    assert runs.kill_requested_at is not None
    assert sorted(audit()) == sorted(("root", one.pk, "Kill requested.") for one in (waits, runs))


def test_the_kill_button_kills_a_workload_once(operator, audit):
    workload = recorded()
    page = f"{PAGE}{workload.pk}/change/"
    button = f'action="{PAGE}{workload.pk}/kill/"'
    assert button in operator.get(page).content.decode()
    answer = operator.post(f"{PAGE}{workload.pk}/kill/", follow=True)
    assert answer.redirect_chain == [(page, 302)]
    assert messages(answer) == [f"1 killed: {workload.pk}"]
    assert button not in answer.content.decode()
    assert "Kill requested." in Page(operator.get(f"{PAGE}{workload.pk}/history/")).text
    assert messages(operator.post(f"{PAGE}{workload.pk}/kill/", follow=True)) == [
        f"1 already finished: {workload.pk}"
    ]
    assert len(audit()) == 1


# Rerun


def test_rerun_submits_a_workload_owned_by_the_operator(operator, root, audit):
    before = with_source(owner=User.objects.create_user("ada"), mem_mb=128)
    answer = act(operator, "rerun", before)
    again = Workload.objects.exclude(pk=before.pk).get()
    assert messages(answer) == [f"1 submitted again: {again.pk}"]
    assert (again.status, again.owner, again.mem_mb) == ("pending", root, 128)
    assert audit() == [
        ("root", before.pk, f"Rerun as {again.pk}."),
        ("root", again.pk, f"Rerun of {before.pk}."),
    ]
    assert get_executor().run_next("isolate")
    again.refresh_from_db()
    assert (again.status, again.output) == ("completed", {"a": [1, "\0"]})


def test_the_rerun_button_redirects_to_the_new_workload(operator):
    before = with_source()
    answer = operator.post(f"{PAGE}{before.pk}/rerun/", follow=True)
    again = Workload.objects.exclude(pk=before.pk).get()
    assert answer.redirect_chain == [(f"{PAGE}{again.pk}/change/", 302)]


def test_workloads_that_cannot_be_rerun_are_reported_with_reasons(operator, fleet, isolate, audit):
    lost, first, second = recorded(Status.COMPLETED), with_source(), with_source()
    fleet.set_health("isolate", isolate, Health.unhealthy("broken"))
    reasons = messages(act(operator, "rerun", lost, first, second))
    assert len(reasons) == 2
    assert "2 could not be rerun. Backend 'isolate' is unavailable: b" in reasons[0]
    assert "1 could not be rerun. Its source was deleted when it ended" in reasons[1]
    answer = operator.post(f"{PAGE}{lost.pk}/rerun/", follow=True)
    assert answer.redirect_chain == [(f"{PAGE}{lost.pk}/change/", 302)]
    assert Workload.objects.count() == 3
    assert audit() == []


@pytest.mark.parametrize("action", ["kill", "rerun"])
def test_actions_on_too_many_workloads_are_refused(operator, monkeypatch, audit, action):
    monkeypatch.setattr(workloads, "MAX_SELECTED", 2)
    three = [with_source() for _ in range(3)]
    recorded()
    answer = act(operator, action, *three[:2], select_across="1")
    assert messages(answer) == ["Nothing was done: select at most 2 workloads at a time."]
    assert Workload.objects.count() == 4
    assert audit() == []


# Export


def body(answer) -> str:
    return b"".join(answer.streaming_content).decode()


def test_json_export_has_all_columns_but_the_large_ones(operator, root, audit):
    one = recorded(Status.COMPLETED, owner=root, isolation=["isolate"], output="x", error='"\u2028')
    two = recorded(Status.PENDING)
    answer = act(operator, "export_json", one, two)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert 'attachment; filename="workloads-' in answer.headers["Content-Disposition"]
    rows = json.loads(body(answer))
    assert [row["id"] for row in rows] == [two.pk, one.pk]
    assert set(rows[0]) == {*export.COLUMNS}
    assert rows[1]["owner"] == "root"
    assert (rows[1]["isolation"], rows[1]["error"]) == (["isolate"], '"\u2028')
    assert rows[0]["owner"] is rows[0]["finished_at"] is None
    assert audit() == [("root", pk, "Exported as JSON.") for pk in (two.pk, one.pk)]


def test_csv_export_has_the_same_columns(operator, root, audit):
    one = recorded(Status.FAILED, owner=root, error='two\nlines, "quoted"', exit_code=-1)
    answer = act(operator, "export_csv", one)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    header, row = csv.reader(io.StringIO(body(answer), newline=""))
    assert tuple(header) == export.COLUMNS
    cells = dict(zip(header, row, strict=True))
    assert (cells["id"], cells["owner"], cells["exit_code"]) == (one.pk, "root", "-1")
    assert cells["error"] == 'two\nlines, "quoted"'
    assert audit() == [("root", one.pk, "Exported as CSV.")]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_csv_cells_are_never_formulas(operator, begin):
    evil = f'{begin}cmd|"/c calc"!A1'
    escaped = evil.replace("\r", r"\r")
    one = recorded(
        Status.FAILED,
        error=evil,
        rule=evil,
        isolation=[evil, "x"],
        owner=User.objects.create(username=evil),
    )
    answer = act(operator, "export_csv", one)
    header, row = csv.reader(io.StringIO(body(answer), newline=""))
    cells = dict(zip(header, row, strict=True))
    for name in ("error", "rule", "owner"):
        assert cells[name] == f"'{escaped}"
    assert cells["isolation"] == f"'{escaped},x"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_an_export_includes_rows_beyond_the_paginated_ones(
    operator, monkeypatch, kind, django_assert_max_num_queries
):
    monkeypatch.setattr("backends_app.admin.changelist.MAX_COUNTED", 110)
    monkeypatch.setattr(export, "BATCH_SIZE", 50)
    many(240)
    Workload.objects.update(created_at=Workload.objects.first().created_at)  # all at the same time
    other = recorded(runtime="oci")
    answer = act(operator, f"export_{kind}", other, query="?runtime=node", select_across="1")
    with django_assert_max_num_queries(12):  # one to read and one to log for each batch
        text = body(answer)
    rows = json.loads(text) if kind == "json" else list(csv.DictReader(io.StringIO(text)))
    assert len({row["id"] for row in rows}) == len(rows) == 240
    assert other.pk not in {row["id"] for row in rows}
    assert LogEntry.objects.count() == 240


def test_an_export_is_streamed_and_logged_by_batch(operator, monkeypatch):
    monkeypatch.setattr(export, "BATCH_SIZE", 10)
    many(100)
    answer = act(operator, "export_json", Workload.objects.first(), select_across="1")
    assert LogEntry.objects.count() == 0
    parts = iter(answer.streaming_content)
    for _ in range(15):
        next(parts)
    assert LogEntry.objects.count() == 20
    answer.close()


def test_an_export_of_no_rows_is_valid(operator):
    gone = recorded()
    Workload.objects.all().delete()
    assert json.loads(body(act(operator, "export_json", gone))) == []
    assert len(body(act(operator, "export_csv", gone)).splitlines()) == 1


# Permissions


@pytest.mark.parametrize("verb", ["kill", "rerun"])
def test_each_button_needs_its_own_permission_and_a_csrf_token(staff, root, audit, verb):
    workload = with_source() if verb == "rerun" else recorded()
    others = {"kill_workload", "rerun_workload", "export_workload"} - {f"{verb}_workload"}
    client = staff("view_workload", *others)
    url = f"{PAGE}{workload.pk}/{verb}/"
    assert client.post(url).status_code == 403
    assert Client().post(url).headers["Location"].startswith("/admin/login/")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(root)
    assert strict.post(url).status_code == 403
    assert strict.get(url).status_code == 405
    assert audit() == []
    permission = Permission.objects.get(codename=f"{verb}_workload")
    User.objects.get(username="staff").user_permissions.add(permission)
    assert client.post(url).status_code == 302
    assert audit()


@pytest.mark.parametrize("action", ["kill", "rerun", "export_csv", "export_json"])
def test_each_action_needs_its_own_permission(staff, audit, action):
    workload = with_source()
    verb = action.split("_")[0]
    others = {"kill_workload", "rerun_workload", "export_workload"} - {f"{verb}_workload"}
    client = staff("view_workload", *others)
    answer = act(client, action, workload)
    assert messages(answer) == ["No action selected."]
    assert audit() == []
    assert Workload.objects.count() == 1


def test_actions_on_unknown_workloads_are_404(operator):
    for verb in ("kill", "rerun"):
        assert operator.post(f"{PAGE}{32 * '0'}/{verb}/").status_code == 404
        assert operator.post(f"{PAGE}a/b/{verb}/").status_code == 404
