"""Queries of the dashboard with a hundred thousand workloads: few, and each uses an index."""

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

FILL = """
INSERT INTO backends_app_workload (
    id, owner_id, status, runtime, source_format, isolation, isolation_used, rule, candidates,
    cpus, mem_mb, timeout_s, rerun_if_lost, attempt, idempotency_digest, node, node_id, created_at,
    started_at, finished_at, exit_reason, signal, duration_ms, log_lines, stdout_truncated,
    stderr_truncated, error, output, stdout, stderr)
WITH RECURSIVE counted(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n < 99999)
SELECT printf('%%032x', n), %s, status, 'node', 'code', x'', 'isolate', x'', x'', 1, 256, 10, 0, 1,
    '', '', '', at, at, CASE WHEN status IN ('pending', 'running') THEN NULL ELSE at END,
    CASE status WHEN 'completed' THEN 'exited' WHEN 'failed' THEN 'timeout' ELSE '' END, '',
    n %% 1000, 0, 0, 0, x'', x'', x'', x''
FROM (
    SELECT n, strftime('%%Y-%%m-%%d %%H:%%M:%%f', %s, '-' || (6 * n) || ' seconds') AS at,
        CASE WHEN n %% 500 = 0 THEN 'pending' WHEN n %% 20 = 3 THEN 'failed' ELSE 'completed' END
            AS status
    FROM counted
)
"""


@pytest.fixture
def hundred_thousand(user, clock) -> None:
    """Record workloads of one owner: one every six seconds for a week."""
    if connection.vendor != "sqlite":
        pytest.skip("the rows are made in SQLite's dialect")
    with connection.cursor() as cursor:
        cursor.execute(FILL, [user.pk, clock.now.strftime("%Y-%m-%d %H:%M:%S")])


def plan(query: dict[str, str]) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
        return [row[3] for row in cursor.fetchall()]


def test_the_dashboard_takes_few_queries_that_use_indexes(
    site, hundred_thousand, user, staff, clock
):
    # One of each is for the nodes, which a serving process already has.
    expected = [(None, 4), (user, 9), (staff, 9)]
    for person, count in expected:
        client = Client()
        if person is not None:
            client.force_login(person)
        for path in ("/?window=week", "/dashboard/live?window=week"):
            clock.now = clock.now.replace(second=clock.now.second + 2)  # nothing is cached
            with CaptureQueriesContext(
                connection,
            ) as captured:
                assert client.get(path).status_code == 200
            assert len(captured) == count + path.startswith("/?")  # the latest benchmark
            for query in captured.captured_queries:
                for step in plan(query):
                    if "backends_app_workload" in step:
                        assert step.startswith("SEARCH"), query["sql"]
                        assert "workload_of_owner" not in step, query["sql"]


def test_ended_workloads_are_counted_from_a_covering_index(site, hundred_thousand, clock):
    with CaptureQueriesContext(connection) as captured:
        Client().get("/?window=week")
    (counting,) = [one for one in captured if "strftime" in one["sql"]]
    assert "COVERING INDEX workload_finished" in plan(counting)[0]


def test_ended_workloads_are_not_counted_again_within_a_refresh_period(
    site, hundred_thousand, django_assert_num_queries
):
    Client().get("/dashboard/live?window=week")
    with django_assert_num_queries(3):  # the nodes, what runs on them, what waits
        Client().get("/dashboard/live?window=week")
