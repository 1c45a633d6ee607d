"""Admin pages of workloads: the list, its filters and search, and the read-only detail page."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from backends_app.admin import changelist
from backends_app.admin.workloads import WorkloadAdmin
from backends_app.models import LogBlock, Workload
from backends_app.workloads import Status
from tests.admin.pages import Page
from tests.support.workloads import recorded

PAGE = "/admin/backends_app/workload/"
EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


def listed(client: Client, **query: object) -> list[str]:
    """Return the `node` of each workload on the page."""
    answer = client.get(PAGE, query)
    assert answer.status_code == 200, answer.headers
    return [one.node for one in answer.context["cl"].result_list]


def many(count: int, **overrides) -> None:
    """Record `count` workloads, one per minute; the last one is the newest."""
    Workload.objects.bulk_create(
        Workload(
            **{
                "status": Status.COMPLETED,
                "runtime": "node",
                "isolation_used": "isolate",
                "rule": "",
                "cpus": 1,
                "mem_mb": 256,
                "timeout_s": 10,
                "node": "one",
                "exit_reason": "exited",
                "created_at": NOON + timedelta(minutes=number),
                "finished_at": NOON + timedelta(minutes=number),
                **overrides,
            }
        )
        for number in range(count)
    )


def test_the_list_shows_owner_runtime_backend_node_and_result(operator, root):
    recorded(
        Status.FAILED,
        owner=root,
        node="host-7",
        exit_reason="timeout",
        duration_ms=12_345,
        created_at=NOON,
    )
    text = Page(operator.get(PAGE)).text
    assert "failed node isolate timeout host-7 root 2026-03-14 12:00:00 12.3 s" in text


def test_the_newest_workloads_come_first(operator):
    for number in (2, 3, 1):
        recorded(node=f"{number}", created_at=NOON + timedelta(hours=number))
    assert listed(operator) == ["3", "2", "1"]
    assert listed(operator, o="8") == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status__exact": "failed"}, ["oci"]),
        ({"runtime": "node"}, ["node"]),
        ({"backend": "gvisor"}, ["oci"]),
        ({"exit_reason__exact": "timeout"}, ["oci"]),
        ({"created_at__gte": "2026-03-14 00:00:00+00:00"}, ["node"]),
        (
            {
                "created_at__gte": "2025-03-14 00:00:00+00:00",
                "created_at__lt": "2025-03-15 00:00:00+00:00",
            },
            ["oci"],
        ),
        ({"status__exact": "failed", "runtime": "node"}, []),
        ({"q": "oci"}, ["oci"]),
        ({"q": "ADA"}, ["oci"]),
        ({"q": "bob oci"}, []),
        ({"q": "ada oci"}, ["oci"]),
        ({"q": "cafe"}, ["node"]),
        ({"q": "cafe" + 28 * "1"}, ["node"]),
        ({"q": "afe1"}, []),
        ({"q": "' OR 1=1 --"}, []),
    ],
)
def test_filters_and_search_narrow_the_list(operator, query, found):
    recorded(
        Status.COMPLETED,
        id="cafe" + 28 * "1",
        node="node",
        created_at=NOON,
        owner=User.objects.create_user("bob"),
    )
    recorded(
        Status.FAILED,
        id="beef" + 28 * "1",
        node="oci",
        runtime="oci",
        isolation_used="gvisor",
        exit_reason="timeout",
        created_at=NOON.replace(year=2025),
        owner=User.objects.create_user("ada lovelace"),
    )
    assert listed(operator, **query) == found


def test_filters_offer_what_is_registered(operator, fleet):
    text = Page(operator.get(PAGE)).text
    assert "By runtime All node wasm python go oci" in text
    assert "By backend All gvisor isolate microvm" in text


@pytest.mark.parametrize(
    ("lookup", "value"),
    [
        *(("stdout__regex", "x"), ("error__icontains", "x"), ("owner__password", "x")),
        *(("id", "x"), ("runtime", "\0"), ("status__exact", "\0"), ("created_at__year", "2026")),
    ],
)
def test_other_lookups_are_refused(operator, lookup, value):
    assert operator.get(PAGE, {lookup: value}).status_code == 400


def test_the_date_filter_narrows_the_list(operator):
    now = datetime.now(UTC)
    for node, days in (("new", 0), ("recent", 3), ("old", 400)):
        recorded(node=node, created_at=now - timedelta(days=days))
    filters = operator.get(PAGE).context["cl"].filter_specs
    choices = [
        (one["display"], listed(operator, **dict(parse_qsl(one["query_string"].lstrip("?")))))
        for spec in filters
        if spec.title == "created at"
        for one in spec.choices(operator.get(PAGE).context["cl"])
    ]
    assert choices[:3] == [
        ("Any date", ["new", "recent", "old"]),
        ("Today", ["new"]),
        ("Past 7 days", ["new", "recent"]),
    ]
    assert [text for text, _ in choices[3:]] == ["This month", "This year"]


@pytest.mark.parametrize(
    "query",
    [
        {"created_at__gte": "x"},
        {"created_at__gte": "2026-13-01"},
        {"p": "99"},
        {"o": "nonsense"},
        {"q": "\0"},
        {"q": "x " * 3000},
        {"created_at__gte": "0"},
        {"created_at__lt": "9999-12-31T00:00:00Z"},
    ],
)
def test_an_invalid_query_is_no_server_error(operator, query):
    recorded()
    assert operator.get(PAGE, query, follow=True).status_code in (200, 400)


def test_pagination_stops_at_a_bound_with_a_note(operator, monkeypatch):
    many(120)
    text = Page(operator.get(PAGE)).text
    assert "120 workloads" in text
    assert "Use a date or a filter" not in text
    monkeypatch.setattr(changelist, "MAX_COUNTED", 110)
    answer = operator.get(PAGE, {"p": 2})
    assert len(answer.context["cl"].result_list) == 10
    text = Page(answer).text
    assert "110+ workloads" in text
    assert "Only the newest 110 are paginated. Use a date or a filter" in text
    assert "Select all 110+ workloads" in text


QUERIES = [
    *({}, {"p": 2}, {"o": "8"}, {"status__exact": "completed"}, {"runtime": "node"}),
    *({"backend": "isolate"}, {"exit_reason__exact": "exited"}, {"q": "one"}, {"q": "abcdef"}),
    *({"created_at__lt": "2027-01-01T00:00:00Z"}, {"created_at__gte": "2026-03-14 00:00:00+00:00"}),
    *({"created_at__gte": "2026-03-01T00:00:00Z", "created_at__lt": "2026-04-01T00:00:00Z"},),
    {"exit_reason__exact": "disk_limit"},
]


def test_a_page_takes_few_queries(operator, root, django_assert_max_num_queries):
    many(250, owner=root)
    operator.get(PAGE)  # warm caches
    for query in QUERIES:
        # session, user, search, count, rows
        with django_assert_max_num_queries(5, info=str(query)):
            operator.get(PAGE, query)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="counts SQLite's instructions")
def test_no_query_reads_all_rows(operator, monkeypatch):
    """Ten times as many rows take less than 1.5 times the work."""
    monkeypatch.setattr(changelist, "MAX_COUNTED", 150)
    many(300)
    few = [_steps(operator, query) for query in QUERIES]
    many(2700)
    growth = [_steps(operator, query) / before for query, before in zip(QUERIES, few, strict=True)]
    grown = [(query, by) for query, by in zip(QUERIES, growth, strict=True) if by >= 1.5]
    assert grown == []


def _steps(client: Client, query: dict[str, object]) -> int:
    """Return how many tens of instructions SQLite's virtual machine executes for the page."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection.connection.set_progress_handler(step, 10)
    try:
        assert client.get(PAGE, query).status_code == 200
    finally:
        connection.connection.set_progress_handler(None, 0)
    return steps


def test_the_list_reads_no_large_column(operator, django_assert_max_num_queries):
    recorded(Status.COMPLETED, stdout="x" * 1000, error="e" * 1000)
    with django_assert_max_num_queries(10) as captured:
        operator.get(PAGE)
    for name in ("output", "stdout", "stderr", "error", "candidates"):
        assert not any(f'"{name}"' in one["sql"] for one in captured.captured_queries)


def test_the_detail_page_escapes_every_field(operator, root):
    workload = recorded(
        Status.FAILED,
        owner=root,
        isolation=["isolate", EVIL],
        rule=EVIL,
        candidates=[{"name": "isolate", "eligible": True, "reason": EVIL}],
        error=EVIL,
        output={"answer": EVIL},
        stdout=EVIL,
        stderr=EVIL,
        idempotency_key="k" * 255,
        cpu_time_ms=7,
        memory_bytes=30 * 1024 * 1024,
    )
    page = Page(operator.get(f"{PAGE}{workload.pk}/change/"))
    assert page.forbidden == []
    assert page.text.count("<script>alert(1)</script>") == 7
    for words in ("30.0 MB", "7 ms", "k" * 255, "elsewhere", "10.0", "256"):
        assert words in page.text
    assert f"/v1/workloads/{workload.pk}" in _change(operator, workload)


def test_the_detail_page_shows_every_field():
    shown = {"status": "status_shown", "isolation_used": "backend", "duration_ms": "took"}
    shown |= {"compile_ms": "compile_time", "cpu_time_ms": "cpu_time", "memory_bytes": "memory"}
    for field in Workload._meta.get_fields():
        if field.concrete:
            names = {field.name, f"{field.name}_shown", field.name.removesuffix("_at")}
            names |= {shown.get(field.name), field.name.replace("_key", "_shown")}
            assert names & {*WorkloadAdmin.readonly_fields}, field.name


def test_control_and_bidi_characters_are_made_visible(operator):
    workload = recorded(Status.COMPLETED, stdout="a\0b\x1b[31mc\u202ed\r\n\tz", error="\x85")
    content = _change(operator, workload)
    assert r"a\x00b\x1b[31mc\u202ed\r" "\n\tz" in content
    assert r"\x85" in content


def test_the_detail_page_has_a_maximum_size(operator):
    workload = recorded(Status.COMPLETED, stdout="x" * 1_000_000, output="y" * 1_000_000)
    long = "z" * 100_000
    text = "".join(f"line {number} {long}\n" for number in range(5))
    LogBlock.objects.create(workload=workload, first=1, lines=5, stream="stdout", text=text)
    Workload.objects.update(log_lines=5)
    content = _change(operator, workload)
    assert len(content) < 100_000
    assert "(and 980,000 more characters)" in content
    assert "line 4 zzz" in content


def test_the_last_lines_of_the_log_are_shown(operator):
    workload = recorded(Status.RUNNING, log_lines=1000)
    for first in range(1, 1000, 100):
        text = "".join(f"line {number}\n" for number in range(first, first + 100))
        LogBlock.objects.create(
            workload=workload, first=first, lines=100, stream="stderr", text=text
        )
    text = Page(operator.get(f"{PAGE}{workload.pk}/change/")).text
    assert "Last 200 of 1000 lines: Line Stream Text 801 stderr line 801" in text
    assert "1000 stderr line 1000" in text


def test_the_detail_page_takes_few_queries(operator, root, django_assert_max_num_queries):
    workload = recorded(Status.COMPLETED, owner=root)
    operator.get(PAGE)
    with django_assert_max_num_queries(7):
        operator.get(f"{PAGE}{workload.pk}/change/")


def test_workloads_cannot_be_added_changed_or_deleted(operator):
    workload = recorded()
    page = f"{PAGE}{workload.pk}/change/"
    assert operator.get(f"{PAGE}add/").status_code == 403
    assert operator.post(page, {"status": "completed"}).status_code == 403
    assert operator.post(f"{PAGE}{workload.pk}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in operator.get(PAGE).content.decode()
    assert "<input" not in _change(operator, workload).split('id="workload_form"')[1].replace(
        '<input type="hidden" name="csrfmiddlewaretoken"', ""
    )
    workload.refresh_from_db()
    assert workload.status == Status.PENDING


def test_the_source_is_never_shown(operator):
    workload = recorded(isolation_used="isolate")
    assert "export default" not in _change(operator, workload)
    index = operator.get("/admin/").content.decode()
    assert "/admin/backends_app/source/" not in index
    assert "/admin/backends_app/logblock/" not in index


def test_the_view_permission_offers_no_actions(staff):
    client = staff("view_workload")
    workload = recorded()
    content = client.get(PAGE).content.decode() + _change(client, workload)
    assert workload.pk in content
    for word in (">Rerun<", ">Kill<", "export_csv", 'name="action"'):
        assert word not in content


def test_pages_without_the_view_permission_are_403(staff):
    client = staff("kill_workload")
    workload = recorded()
    assert client.get(PAGE).status_code == 403
    assert client.get(f"{PAGE}{workload.pk}/change/").status_code == 403


def _change(client: Client, workload: Workload) -> str:
    answer = client.get(f"{PAGE}{workload.pk}/change/")
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("list_", ["backends_app/workload", "auth/user", "knox/authtoken"])
@pytest.mark.parametrize("end", ["gte", "lt", "exact"])
@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01 00:00-0:01"]
)
def test_a_date_outside_the_calendar_is_an_incorrect_lookup(operator, list_, end, moment):
    field = {"auth": "date_joined", "knox": "created"}.get(list_.split("/")[0], "created_at")
    url = f"/admin/{list_}/"
    answer = operator.get(url, {f"{field}__{end}": moment})
    assert answer.status_code in (200, 302, 400)  # 400 for a lookup that is not offered
    if answer.status_code == 302:
        assert answer["Location"] == f"{url}?e=1"
        assert operator.get(answer["Location"]).status_code == 200


def test_a_time_zone_that_leaves_the_calendar_is_an_incorrect_lookup(operator):
    answer = operator.get(f"{PAGE}?created_at__gte=0001-01-01T00:00:00%2B23:59")
    assert (answer.status_code, answer["Location"]) == (302, f"{PAGE}?e=1")
