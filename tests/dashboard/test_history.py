"""Window statistics: counted by the database, with settled steps queried once."""

import math
import random
from datetime import UTC, datetime, timedelta

import pytest

from backends_app.models import Workload
from backends_app.web.dashboard.history import SETTLED_S, WINDOWS, History, Stats
from backends_app.workloads import Status
from tests.dashboard.day import day, ended, workload

HOUR = WINDOWS["hour"]


def facts(history: History, key: str) -> list[dict[str, tuple]]:
    """Return all figures of a window in comparable form."""
    return [
        {
            backend: (
                stats.completed,
                stats.killed,
                dict(stats.failures),
                stats.run_time(0.5),
                stats.run_time(0.95),
            )
            for backend, stats in step.items()
        }
        for step in history.window_stats(WINDOWS[key]).steps
    ]


@pytest.mark.django_db
def test_each_ended_workload_is_counted_in_its_step(history, clock):
    Workload.objects.bulk_create(
        [
            ended(clock.ago(minutes=10)),
            ended(clock.ago(minutes=10), isolation_used="gvisor"),
            ended(clock.ago(minutes=10), status=Status.FAILED, exit_reason="timeout"),
            ended(clock.ago(minutes=10), status=Status.KILLED, exit_reason="killed"),
            ended(clock.ago(seconds=10)),
            ended(clock.ago(minutes=59)),
            ended(clock.ago(minutes=61)),  # before the window
            workload(status=Status.RUNNING, created_at=clock.now),  # not ended
        ]
    )
    stats = history.window_stats(HOUR)
    assert stats.backends == ["gvisor", "isolate"]
    steps = stats.for_backend("isolate")
    assert [number for number, stats in enumerate(steps) if stats.ended] == [0, 24, 29]
    assert (steps[24].completed, steps[24].killed) == (1, 1)
    assert steps[24].failures == {"timeout": 1}
    assert stats.begin(24) == datetime(2026, 11, 25, 16, 50, tzinfo=UTC)
    assert stats.for_backend("gvisor")[24].ended == 1


@pytest.mark.django_db
@pytest.mark.parametrize("key", WINDOWS)
def test_a_step_includes_its_start_and_excludes_its_end(history, clock, key: str):
    window = WINDOWS[key]
    edge = history.window_stats(window).begin(window.steps - 2)
    Workload.objects.bulk_create(
        [ended(edge - timedelta(microseconds=1)), ended(edge), ended(edge.replace(microsecond=1))]
    )
    counts = [stats.ended for stats in History(clock).window_stats(window).for_backend("isolate")]
    assert counts == [*[0] * (window.steps - 3), 1, 2, 0]


@pytest.mark.django_db
def test_steps_of_day_and_week_are_aligned_to_the_clock(history):
    day, week = history.window_stats(WINDOWS["day"]), history.window_stats(WINDOWS["week"])
    assert (day.since.minute, day.since.second) == (0, 0)
    assert {week.begin(number).hour for number in range(len(week.steps))} == {0, 6, 12, 18}


@pytest.mark.django_db
@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 100])
def test_run_time_percentiles_use_completed_workloads_and_nearest_rank(history, clock, count: int):
    rng = random.Random(count)
    run_times = [rng.randrange(1_000) for _ in range(count)]
    at = clock.ago(minutes=10)
    Workload.objects.bulk_create(ended(at, duration_ms=run_time) for run_time in run_times)
    Workload.objects.bulk_create(
        [ended(at, status=Status.FAILED, exit_reason="timeout", duration_ms=10_000)]
    )
    stats = history.window_stats(HOUR).for_backend("isolate")[24]
    for share in (0.5, 0.95):
        assert stats.run_time(share) == sorted(run_times)[math.ceil(share * count) - 1]


@pytest.mark.django_db
def test_run_times_are_rounded_down_to_three_digits(history, clock):
    for run_time, known in (
        (999, 999),
        (1_239, 1_230),
        (12_399, 12_300),
        (123_999, 123_000),
        (None, 0),
    ):
        Workload.objects.all().delete()
        Workload.objects.bulk_create([ended(clock.ago(minutes=10), duration_ms=run_time)])
        assert History(clock).window_stats(HOUR).for_backend("isolate")[24].run_time(0.5) == known


def test_empty_stats_have_no_success_rate_and_no_run_time():
    assert (Stats().success, Stats().run_time(0.5)) == (None, None)


def test_killed_workloads_do_not_count_in_the_success_rate():
    stats = Stats()
    stats.add(Status.COMPLETED, "exited", 5, 3)
    stats.add(Status.FAILED, "timeout", 5, 1)
    stats.add(Status.KILLED, "killed", 5, 100)
    assert stats.success == 0.75


@pytest.mark.django_db
@pytest.mark.parametrize("key", WINDOWS)
def test_a_continued_history_equals_a_fresh_one(clock, key: str):
    """Query after pauses of all lengths, while workloads end."""
    rng = random.Random(1)
    history = History(clock)
    for pause_s in (0, 2, 3, 30, 59, 61, 119, 121, 3_000, 3_599, 9_000, 90_000, 9, 700_000, 5):
        clock.now += timedelta(seconds=pause_s)
        Workload.objects.bulk_create(
            ended(
                clock.ago(seconds=rng.randrange(SETTLED_S)),
                isolation_used=rng.choice(["isolate", "gvisor"]),
                duration_ms=rng.randrange(100),
            )
            for _ in range(20)
        )
        assert facts(history, key) == facts(History(clock), key)


@pytest.mark.django_db
def test_settled_steps_are_not_queried_again(history, clock, django_assert_num_queries):
    Workload.objects.bulk_create(day(clock.now, 200))
    before = facts(history, "day")
    Workload.objects.all().delete()
    with django_assert_num_queries(0):
        assert facts(history, "day") == before
    clock.now += timedelta(seconds=2)
    with django_assert_num_queries(1):
        after = facts(history, "day")
    assert after[:-1] == before[:-1]
    assert after[-1] == {}


@pytest.mark.django_db
def test_a_clock_set_back_gives_correct_stats(history, clock):
    Workload.objects.bulk_create([ended(clock.ago(minutes=10))])
    history.window_stats(HOUR)
    clock.now -= timedelta(minutes=30)
    assert facts(history, "hour") == facts(History(clock), "hour")
