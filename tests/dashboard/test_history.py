"""The database counts what ended, and what is settled is asked for once."""

import math
import random
from datetime import UTC, datetime, timedelta

import pytest

from backends_app.dashboard.history import SETTLED_S, WINDOWS, History, Stats
from backends_app.models import Workload
from backends_app.workloads import Status
from tests.dashboard.day import day, ended, workload

HOUR = WINDOWS["hour"]


def facts(history: History, key: str) -> list[dict[str, tuple]]:
    """Everything that a past says, to be compared."""
    return [
        {
            backend: (
                tally.completed,
                tally.killed,
                dict(tally.failures),
                tally.run_time(0.5),
                tally.run_time(0.95),
            )
            for backend, tally in step.items()
        }
        for step in history.window_stats(WINDOWS[key]).steps
    ]


@pytest.mark.django_db
def test_each_end_is_counted_in_its_step(history, clock):
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
    past = history.window_stats(HOUR)
    assert past.backends == ["gvisor", "isolate"]
    tallies = past.of("isolate")
    assert [number for number, tally in enumerate(tallies) if tally.ended] == [0, 24, 29]
    assert (tallies[24].completed, tallies[24].killed) == (1, 1)
    assert tallies[24].failures == {"timeout": 1}
    assert past.begin(24) == datetime(2026, 11, 25, 16, 50, tzinfo=UTC)
    assert past.of("gvisor")[24].ended == 1


@pytest.mark.django_db
@pytest.mark.parametrize("key", WINDOWS)
def test_a_step_begins_with_its_first_moment(history, clock, key: str):
    window = WINDOWS[key]
    edge = history.window_stats(window).begin(window.steps - 2)
    Workload.objects.bulk_create(
        [ended(edge - timedelta(microseconds=1)), ended(edge), ended(edge.replace(microsecond=1))]
    )
    counts = [tally.ended for tally in History(clock).window_stats(window).of("isolate")]
    assert counts == [*[0] * (window.steps - 3), 1, 2, 0]


@pytest.mark.django_db
def test_the_steps_of_a_day_and_of_a_week_are_hours_by_the_clock(history):
    day, week = history.window_stats(WINDOWS["day"]), history.window_stats(WINDOWS["week"])
    assert (day.since.minute, day.since.second) == (0, 0)
    assert {week.begin(number).hour for number in range(len(week.steps))} == {0, 6, 12, 18}


@pytest.mark.django_db
@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 100])
def test_run_times_are_those_of_the_completed_by_nearest_rank(history, clock, count: int):
    chance = random.Random(count)
    run_times = [chance.randrange(1_000) for _ in range(count)]
    at = clock.ago(minutes=10)
    Workload.objects.bulk_create(ended(at, duration_ms=run_time) for run_time in run_times)
    Workload.objects.bulk_create(
        [ended(at, status=Status.FAILED, exit_reason="timeout", duration_ms=10_000)]
    )
    tally = history.window_stats(HOUR).of("isolate")[24]
    for share in (0.5, 0.95):
        assert tally.run_time(share) == sorted(run_times)[math.ceil(share * count) - 1]


@pytest.mark.django_db
def test_run_times_have_three_digits(history, clock):
    for run_time, known in (
        (999, 999),
        (1_239, 1_230),
        (12_399, 12_300),
        (123_999, 123_000),
        (None, 0),
    ):
        Workload.objects.all().delete()
        Workload.objects.bulk_create([ended(clock.ago(minutes=10), duration_ms=run_time)])
        assert History(clock).window_stats(HOUR).of("isolate")[24].run_time(0.5) == known


def test_nothing_has_no_success_and_no_run_time():
    assert (Stats().success, Stats().run_time(0.5)) == (None, None)


def test_who_was_killed_has_neither_succeeded_nor_failed():
    tally = Stats()
    tally.add(Status.COMPLETED, "exited", 5, 3)
    tally.add(Status.FAILED, "timeout", 5, 1)
    tally.add(Status.KILLED, "killed", 5, 100)
    assert tally.success == 0.75


@pytest.mark.django_db
@pytest.mark.parametrize("key", WINDOWS)
def test_a_history_that_goes_on_says_what_one_that_begins_says(clock, key: str):
    """However much later it is asked again, while workloads end."""
    chance = random.Random(1)
    history = History(clock)
    for pause_s in (0, 2, 3, 30, 59, 61, 119, 121, 3_000, 3_599, 9_000, 90_000, 9, 700_000, 5):
        clock.now += timedelta(seconds=pause_s)
        Workload.objects.bulk_create(
            ended(
                clock.ago(seconds=chance.randrange(SETTLED_S)),
                isolation_used=chance.choice(["isolate", "gvisor"]),
                duration_ms=chance.randrange(100),
            )
            for _ in range(20)
        )
        assert facts(history, key) == facts(History(clock), key)


@pytest.mark.django_db
def test_what_is_settled_is_not_asked_for_again(history, clock, django_assert_num_queries):
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
def test_a_clock_that_is_set_back_does_no_harm(history, clock):
    Workload.objects.bulk_create([ended(clock.ago(minutes=10))])
    history.window_stats(HOUR)
    clock.now -= timedelta(minutes=30)
    assert facts(history, "hour") == facts(History(clock), "hour")
