"""Nodes are alive by their heartbeats, regardless of wall clocks."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backends_app.backends.base import Health
from backends_app.execution.nodes import FailureDetector, deregister, heartbeat, node_id, summarize
from backends_app.models import NodeBackend
from backends_app.registry import Registry
from backends_app.workloads import Status
from tests.support.workloads import recorded

pytestmark = [pytest.mark.database, pytest.mark.django_db]

NOW = datetime.now(UTC)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> FailureDetector:
    return FailureDetector(lost_after_s=30, clock=clock)


def alive(watch: FailureDetector) -> list[tuple[str, str]]:
    watch.refresh()
    return [(row.node_id, row.name) for row in watch.alive]


def test_a_runtime_folder_is_a_node(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert node_id(one) == node_id(one)
    assert node_id(one) != node_id(other)
    assert [path.name for path in one.iterdir()] == ["node"]


def test_a_heartbeat_records_the_backends_of_a_node(filled: Registry, watch: FailureDetector):
    for _ in range(3):
        heartbeat("n", filled.list(), NOW)
    assert alive(watch) == [("n", "gvisor"), ("n", "isolate"), ("n", "microvm")]
    assert {row.beats for row in NodeBackend.objects.all()} == {2}
    deregister("n", ["isolate"])
    assert alive(watch) == [("n", "gvisor"), ("n", "microvm")]


def test_a_node_without_heartbeats_is_forgotten(
    filled: Registry, watch: FailureDetector, clock: Clock
):
    heartbeat("n", filled.list(), NOW)
    assert len(alive(watch)) == 3
    clock.now += 29
    assert len(alive(watch)) == 3
    assert not watch.is_lost(("n", "isolate"))
    clock.now += 2
    assert alive(watch) == []
    assert watch.is_lost(("n", "isolate"))
    assert not NodeBackend.objects.exists()
    heartbeat("n", filled.list(), NOW)
    heartbeat("n", filled.list(), NOW)
    assert len(alive(watch)) == 3
    assert not watch.is_lost(("n", "isolate"))


def test_a_node_with_new_heartbeats_is_alive(
    filled: Registry, watch: FailureDetector, clock: Clock
):
    for _ in range(10):
        heartbeat("n", filled.list(), NOW)
        clock.now += 29
        assert len(alive(watch)) == 3


@pytest.mark.parametrize("hours", [-1000, -1, 1, 1000])
def test_a_wrong_or_jumping_clock_makes_no_node_lost(
    filled: Registry, watch: FailureDetector, clock: Clock, hours: int
):
    heartbeat("n", filled.list(), NOW)
    assert len(alive(watch)) == 3
    wrong = {"seen_at": datetime.now(UTC) + timedelta(hours=hours)}
    NodeBackend.objects.update(**wrong)
    assert len(alive(watch)) == 3
    fresh = FailureDetector(lost_after_s=30, clock=clock)  # of a server that starts after the jump
    assert alive(fresh) == []
    assert not fresh.is_lost(("n", "isolate"))
    heartbeat("n", filled.list(), NOW)
    NodeBackend.objects.update(**wrong)
    assert len(alive(fresh)) == 3


def test_a_node_never_seen_is_lost_after_the_observation_time(watch: FailureDetector, clock: Clock):
    assert not watch.is_lost(("ghost", "isolate"))
    clock.now += 31
    assert watch.is_lost(("ghost", "isolate"))


def test_health_over_all_nodes(filled: Registry, watch: FailureDetector):
    assert watch.health("isolate").state == "undetected"
    filled.set_health("isolate", filled.get("isolate").backend, Health.unhealthy("no memory"))
    heartbeat("n", filled.list(), NOW)
    watch.refresh()
    health = watch.health("isolate")
    assert (health.state, "no memory" in health.description) == ("unhealthy", True)
    ok = Health.ok("well", {"version": "1", "mode": "a"})
    filled.set_health("isolate", filled.get("isolate").backend, ok)
    heartbeat("m", filled.list(), NOW)
    other = Health.ok("well", {"version": "1", "mode": "b"})
    filled.set_health("isolate", filled.get("isolate").backend, other)
    heartbeat("o", filled.list(), NOW)
    watch.refresh()
    health = watch.health("isolate")
    assert (health.state, health.attributes) == ("healthy", {"version": "1"})
    assert watch.health("isolate") == health  # equal states, equal descriptions


def test_the_summary_counts_running_workloads(filled: Registry, watch: FailureDetector):
    heartbeat("n", filled.list(), NOW)
    for _ in range(2):
        recorded(Status.RUNNING, node_id="n")
    recorded(Status.RUNNING, node_id="other")
    recorded(Status.COMPLETED, node_id="n")
    watch.refresh()
    [node] = summarize(watch.alive)
    assert (node.id, node.running) == ("n", 2)
    assert [(one.name, one.running) for one in node.backends] == [
        ("gvisor", 0),
        ("isolate", 2),
        ("microvm", 0),
    ]
