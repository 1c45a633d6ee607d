"""Figures of single runs, and comparisons of two benchmarks."""

import json

import pytest

from backends_app.benchmarks.compare import compare
from backends_app.benchmarks.results import (
    Figures,
    Results,
    Sample,
    Skipped,
    busy_s,
)
from backends_app.web.benchmarks.words import figure, percent_change, ratio
from tests.benchmarks.results import figures, measured, results


def sample(started: float, ended: float, **overrides) -> Sample:
    return Sample(**{"started": started, "ended": ended, "own_ms": 1, **overrides})


def test_figures_use_successful_runs_and_count_failures():
    samples = [sample(0, 0.010), sample(1, 1.030), sample(2, 2.020), sample(3, 9, failure="no")]
    found = Figures.of(samples, 1)
    assert (found.runs, found.failures, found.failure) == (4, 1, "no")
    assert (found.p50_ms, found.p95_ms, found.own_p50_ms) == (20, 30, 1)
    assert found.per_s == 0.495  # three in 6.06 s


def test_without_a_successful_run_there_are_no_figures():
    found = Figures.of([sample(0, 1, failure="no")], 1)
    assert (found.p50_ms, found.p95_ms, found.per_s, found.failures) == (None, None, None, 1)


def test_overlapping_runs_count_their_time_once():
    assert busy_s([sample(5, 6), sample(0, 2), sample(1, 3), sample(1.5, 1.6)]) == 4


def test_ratios_are_to_the_fastest_of_the_mode():
    found = results(measured("quick", 10), measured("slow", 35))
    assert [one.modes["warm"].ratio for one in found.measured] == [1, 3.5]


def test_results_survive_a_json_round_trip():
    left_out = (Skipped(name="gone", reason="why", broken=True),)
    found = results(measured(), left_out=left_out)
    assert Results.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_figures_are_formatted():
    assert [figure(one) for one in (None, 0.123456, 4.7, 999.4, 999.6, 12345)] == [
        *("–", "0.123", "4.7", "999", "1,000", "12,345")
    ]
    assert (
        ratio(1.0),
        ratio(None),
        percent_change(0.5),
        percent_change(-0.014),
        percent_change(None),
    ) == (*("1×", "–", "+50 %", "-1 %", ""),)


# Comparing


def worse(found) -> set[tuple[str, str]]:
    return {(change.mode, change.figure) for change in found.changes if change.worse}


def test_unchanged_figures_are_not_worse():
    found = compare(results(measured()), results(measured()), 0.0)
    assert (found.worse, len(found.changes)) == (False, 12)
    assert {change.share for change in found.changes if change.figure != "failures"} == {0}


@pytest.mark.parametrize(("now", "threshold", "is_worse"), [(12, 0.21, False), (12, 0.19, True)])
def test_slower_by_more_than_the_threshold_is_worse(now, threshold, is_worse):
    found = compare(results(measured()), results(measured(p50=now)), threshold)
    assert found.worse is is_worse
    assert worse(found) == (
        {(m, f) for m in ("cold", "warm", "parallel") for f in ("p50_ms", "p95_ms", "per_s")}
        if is_worse
        else set()
    )


def test_faster_is_not_worse():
    assert not compare(results(measured()), results(measured(p50=1)), 0.0).worse


def test_more_failures_are_worse_at_any_threshold():
    now = measured(modes={"warm": figures(failures=1)})
    found = compare(results(measured()), results(now), 1000)
    assert worse(found) == {("warm", "failures")}
    found = compare(results(now), results(measured(modes={"warm": figures(runs=20, failures=1)})))
    assert not found.worse


def test_a_backend_whose_runs_all_fail_now_is_worse():
    now = measured(modes={"warm": figures(None, failures=10)})
    assert worse(compare(results(measured()), results(now))) == {("warm", "failures")}


def test_a_broken_backend_is_worse_but_an_unmeasured_one_is_not():
    before = results(measured(), measured("other"))
    broken = Skipped(name="other", reason="unhealthy", broken=True)
    found = compare(before, results(measured(), left_out=(broken,)))
    assert (found.lost, found.worse) == (["other"], True)
    assert not compare(before, results(measured())).worse


def test_a_backend_with_another_runtime_is_not_compared():
    found = compare(results(measured()), results(measured(p50=99, runtime="python")))
    assert (list(found.changes), found.worse) == ([], False)
    assert "isolate ran node before and python now" in found.notes[0]
    assert "new was not measured before" in compare(results(), results(measured("new"))).notes
