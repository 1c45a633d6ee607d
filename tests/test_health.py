"""The health monitor delays no caller, publishes only changes, and probes on its schedule."""

import logging
import os
import threading
from collections.abc import Callable

import pytest

from backends_app import health
from backends_app.backends.base import Backend, Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendNotRegistered
from backends_app.health import HealthMonitor, run_probe
from backends_app.registry import Registry


class Probing(FakeBackend):
    """A fake that counts its probes, with a probe that the test defines."""

    def __init__(self, answer: Callable[[], object] | None = None, **options) -> None:
        super().__init__(**options)
        self.answer = answer
        self.probes = 0

    def probe(self) -> Health:
        self.probes += 1
        return self.answer() if self.answer else self.health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(registry: Registry, clock: Clock) -> HealthMonitor:
    """Return a monitor whose probes run within its tick, with the test's clock."""
    return HealthMonitor(registry, spawn=lambda work, name: work(), clock=clock)


def raising(error: BaseException) -> Callable[[], Health]:
    def probe() -> Health:
        raise error

    return probe


def test_a_probe_is_published(registry: Registry, monitor: HealthMonitor):
    registry.register("one", Probing(health=Health.ok("fine", {"version": "1"})))
    monitor.tick()
    info = registry.list()[0]
    assert (info.detected, info.healthy, info.health_description) == (True, True, "fine")
    assert dict(info.attributes) == {"version": "1"}


def test_a_healthy_backend_is_probed_every_thirty_seconds(registry, monitor, clock):
    one = Probing()
    registry.register("one", one)
    monitor.tick()
    clock.now += 29.9
    monitor.tick()
    assert one.probes == 1
    clock.now += 0.1
    monitor.tick()
    assert one.probes == 2


def test_a_failing_backend_is_probed_after_5_10_20_40_80_120_120_seconds(registry, monitor, clock):
    one = Probing(health=Health.unhealthy("broken"))
    registry.register("one", one)
    monitor.tick()
    for number, pause in enumerate([5, 10, 20, 40, 80, 120, 120], start=1):
        clock.now += pause - 0.1
        monitor.tick()
        assert one.probes == number
        clock.now += 0.1
        monitor.tick()
        assert one.probes == number + 1
    one.health = Health.ok()
    clock.now += 120
    monitor.tick()
    clock.now += 30
    monitor.tick()
    assert one.probes == 10


def test_only_changes_are_published(registry, monitor, clock):
    registry.register("one", Probing(health=Health.ok("fine", {"version": "1"})))
    monitor.tick()
    snapshot = registry.snapshot
    clock.now += 30
    monitor.tick()
    assert registry.snapshot is snapshot


@pytest.mark.parametrize(
    ("answer", "description"),
    [
        (raising(RuntimeError("with a secret")), "its probe raised RuntimeError"),
        (raising(SystemExit(0)), "its probe raised SystemExit"),
        (lambda: None, "its probe returned NoneType instead of Health"),
        (lambda: True, "its probe returned bool instead of Health"),
        (lambda: {"healthy": True}, "its probe returned dict instead of Health"),
        (Health.unknown, "its probe returned unknown health"),
        (lambda: Health(False, True, "a lie"), "its probe raised ValueError"),
    ],
)
def test_a_probe_that_raises_or_returns_nonsense_is_unhealthy(
    registry, monitor, answer, description
):
    registry.register("one", Probing(answer))
    monitor.tick()
    info = registry.list()[0]
    assert (info.healthy, info.health_description) == (False, description)


def test_a_backend_without_a_probe_of_its_own_is_unhealthy():
    assert run_probe(Backend()).description == "its probe raised NotImplementedError"


def test_a_backend_that_disappears_is_unhealthy_not_undetected(registry, monitor, clock):
    one = Probing()
    registry.register("one", one)
    monitor.tick()
    one.health = Health.undetected("not installed")
    for _ in range(2):
        clock.now += 30
        monitor.tick()
        info = registry.list()[0]
        assert (info.detected, info.healthy) == (True, False)
        assert info.health_description == "not installed"


def test_a_backend_that_was_never_detected_is_undetected(registry, monitor):
    registry.register("one", Probing(health=Health.undetected("install it")))
    monitor.tick()
    assert registry.list()[0].detected is False


def test_a_fault_during_a_workload_is_probed_soon(registry, monitor, clock):
    one = Probing()
    registry.register("one", one)
    monitor.tick()
    clock.now += 1
    registry.set_health("one", one, Health.unhealthy("it broke under a workload"))
    monitor.tick()
    clock.now += 5
    monitor.tick()
    assert one.probes == 2
    assert registry.list()[0].healthy is True


def test_new_backends_are_probed_and_removed_ones_are_dropped(registry, monitor):
    one, two = Probing(), Probing()
    registry.register("one", one)
    monitor.tick()
    registry.register("two", two)
    registry.unregister("one")
    monitor.tick()
    assert (one.probes, two.probes) == (1, 1)
    registry.register("two", one, replace=True)
    monitor.tick()
    assert one.probes == 2


def test_a_hanging_probe_times_out_and_holds_one_thread(registry, clock):
    hanging: list[Callable[[], None]] = []
    monitor = HealthMonitor(registry, spawn=lambda work, name: hanging.append(work), clock=clock)
    one = Probing()
    registry.register("one", one)
    monitor.tick()
    assert registry.list()[0].healthy is None
    clock.now += 10
    monitor.tick()
    info = registry.list()[0]
    assert (info.healthy, info.health_description) == (False, "its probe timed out after 10 s")
    for _ in range(100):
        clock.now += 60
        monitor.tick()
    assert len(hanging) == 1
    hanging[0]()  # it returns after all: too late to count, but it may be probed again
    monitor.tick()
    assert registry.list()[0].healthy is False
    clock.now += 5
    monitor.tick()
    assert len(hanging) == 2
    hanging[1]()
    monitor.tick()
    assert registry.list()[0].healthy is True


def test_only_the_first_caller_waits_for_a_hanging_probe_and_only_briefly(registry):
    release = threading.Event()
    registry.register("slow", Probing(lambda: Health.ok(str(release.wait(60)))))
    registry.register("fast", Probing())
    monitor = HealthMonitor(registry)
    try:
        monitor.ensure_started(wait_s=0.2)
        monitor.ensure_started(wait_s=60)  # already running: returns at once, or this test hangs
        assert {info.name: info.healthy for info in registry.list()} == {
            "fast": True,
            "slow": None,
        }
    finally:
        release.set()
        monitor.stop()


def test_the_first_caller_waits_for_the_first_round(registry):
    for number in range(20):
        registry.register(f"backend-{number}", Probing())
    monitor = HealthMonitor(registry)
    try:
        monitor.ensure_started(wait_s=60)
        assert all(info.healthy for info in registry.list())
    finally:
        monitor.stop()


def test_many_first_callers_start_one_thread(registry, busy_interpreter):
    started: list[str] = []
    monitor = HealthMonitor(registry, spawn=lambda work, name: started.append(name))
    threads = [threading.Thread(target=monitor.ensure_started, args=[0]) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == ["vulcan-health"]


def test_probe_all_returns_after_every_probe(registry):
    for number in range(5):
        registry.register(f"backend-{number}", Probing())
    HealthMonitor(registry).probe_all()
    assert all(info.healthy for info in registry.list())


def test_a_forked_child_starts_a_monitor_of_its_own(registry):
    registry.register("one", Probing())
    monitor = HealthMonitor(registry, spawn=lambda work, name: None)
    monitor.ensure_started(wait_s=0)
    monitor._reset_after_fork()  # as in a forked child
    started: list[str] = []
    monitor._spawn = lambda work, name: started.append(name)
    monitor.ensure_started(wait_s=0)
    assert started == ["vulcan-health"]


def test_a_bug_in_the_monitor_is_logged_and_survived(registry, monkeypatch, caplog):
    monitor = HealthMonitor(registry)
    again = threading.Event()

    def tick() -> float:
        if again.is_set():
            monitor.stop()
            return 0.0
        again.set()
        monitor._wake.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(monitor, "tick", tick)
    with caplog.at_level(logging.ERROR):
        monitor._run()
    assert "the health monitor failed" in caplog.text


def test_health_is_one_of_four_states():
    states = [Health.unknown(), Health.undetected("x"), Health.unhealthy("x"), Health.ok()]
    assert [one.state for one in states] == ["unknown", "undetected", "unhealthy", "healthy"]
    assert [one.eligible for one in states] == [True, False, False, True]
    for wrong in [(None, True), (False, None), (False, True), (True, None), (1, 2)]:
        with pytest.raises(ValueError, match="no such state"):
            Health(*wrong, "x")


def test_the_health_description_is_bounded_and_encodable():
    loud = Health.ok("x" * 10_000, {f"key-{n}": "\ud800" * 10_000 for n in range(1000)})
    assert len(loud.description) == 500
    assert len(loud.attributes) == 32
    assert all(len(value.encode()) <= 502 for value in loud.attributes.values())
    with pytest.raises(TypeError):
        loud.attributes["more"] = "x"


def test_equal_attributes_are_equal_bytes_whatever_their_order():
    one, other = Health.ok("", {"b": "2", "a": "1"}), Health.ok("", {"a": "1", "b": "2"})
    assert list(one.attributes) == list(other.attributes) == ["a", "b"]


def test_the_monitor_is_reset_in_a_forked_child():
    """A real fork: the child's registry can be written and its monitor started."""
    from backends_app.health import monitor
    from backends_app.registry import registry

    with registry._lock:  # held by the parent at the moment of the fork
        monitor._started, before = True, monitor._started
        child = os.fork()
        if child == 0:
            free = registry._lock.acquire(timeout=5)
            os._exit(0 if free and not monitor._started else 1)
        monitor._started = before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Immediate probes


def test_an_immediate_probe_is_published_and_returned(registry, monitor, clock):
    one = Probing(health=Health.ok("fine", {"version": "1"}))
    registry.register("one", one)
    assert monitor.probe_now("one") == registry.get("one").health == one.health
    one.health = Health.undetected("gone")
    found = Health.unhealthy("gone", {"version": "1"})  # detected before, with unchanged attributes
    assert monitor.probe_now("one") == registry.get("one").health == found
    with pytest.raises(BackendNotRegistered):
        monitor.probe_now("two")


def test_callers_of_a_hanging_immediate_probe_share_one_thread_and_its_timeout(
    registry, monkeypatch
):
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.01)
    hanging = threading.Event()
    one = Probing(lambda: hanging.wait() and Health.ok())
    registry.register("one", one)
    monitor = HealthMonitor(registry)
    try:
        for _ in range(3):
            assert monitor.probe_now("one").description == "its probe timed out after 10 s"
            assert registry.get("one").health.healthy is False
        assert one.probes == 1
    finally:
        hanging.set()


def test_a_fault_found_by_an_immediate_probe_is_probed_again_soon(registry, monitor, clock):
    one = Probing()
    registry.register("one", one)
    monitor.tick()
    one.health = Health.unhealthy("broken")
    monitor.probe_now("one")
    one.health = Health.ok()
    monitor.tick()
    clock.now += 5
    monitor.tick()
    assert registry.get("one").health.healthy is True
