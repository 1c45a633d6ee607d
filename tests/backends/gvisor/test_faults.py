"""Workloads and containers when the engine, its runtime or a server fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from backends_app.backends.base import Health
from backends_app.backends.gvisor import GVisorBackend, ownership
from backends_app.exceptions import BackendUnavailable
from backends_app.execution import services
from backends_app.registry import Registry
from backends_app.workloads import Resources, WorkloadSpec
from tests.backends.gvisor.conftest import IMAGE
from tests.backends.gvisor.engines import RUNSC, TestEngine
from tests.support.programs import ROOT

SLEEPS = WorkloadSpec(
    runtime="oci", image=IMAGE, command=("sleep", "99"), resources=Resources(timeout_s=60)
)
ECHO = WorkloadSpec(runtime="oci", image=IMAGE, command=("cat",), input=1)


@pytest.fixture
def own(own_engine: TestEngine) -> Iterator[GVisorBackend]:
    backend = GVisorBackend(engine=own_engine.address)
    yield backend
    backend.close()


def test_removed_runtime_is_noticed_at_once_and_never_replaced(
    own: GVisorBackend, own_engine: TestEngine, registry: Registry
):
    registry.register("gvisor", own)
    registry.set_health("gvisor", own, own.probe())
    assert services.run(ECHO, registry=registry).result.output == 1
    own_engine.runtimes = {}
    own_engine.reload()
    with pytest.raises(BackendUnavailable, match="has no runtime 'runsc'"):
        services.run(ECHO, registry=registry)
    assert registry.snapshot.entries["gvisor"].health.state == "unhealthy"
    assert own.probe().state == "undetected"
    own_engine.runtimes = {"runsc": RUNSC}
    own_engine.reload()
    assert own.probe().state == "healthy"


def test_fake_runtime_by_the_same_name_is_detected(own: GVisorBackend, own_engine: TestEngine):
    assert own.run(ECHO).output == 1
    own_engine.runtimes = {"runsc": {"path": "/usr/sbin/runc"}}
    own_engine.reload()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="is not gVisor"):
            own.run(ECHO)
    found = own.probe()
    assert (found.state, "is not gVisor" in found.description) == ("unhealthy", True)
    assert own_engine.containers() == []


def test_restarted_engine_is_used_again(own: GVisorBackend, own_engine: TestEngine):
    assert own.probe() == own.probe()
    own_engine.stop()
    with pytest.raises(BackendUnavailable):
        own.run(ECHO)
    assert not own.probe().healthy
    own_engine.start()
    assert own.run(ECHO).output == 1
    assert own.probe().healthy


def test_killed_engine_is_a_fault_not_a_result(own: GVisorBackend, own_engine: TestEngine):
    raised: list[BaseException] = []

    def run() -> None:
        try:
            own.run(SLEEPS)
        except BackendUnavailable as error:
            raised.append(error)

    assert own.probe().healthy
    thread = threading.Thread(target=run)
    thread.start()
    running(own_engine)
    own_engine.kill()
    thread.join(30)
    assert "does not answer" in str(raised[0])
    own_engine.start()
    assert own.probe().healthy  # and has removed leftovers
    assert own_engine.containers() == []


def running(engine: TestEngine) -> str:
    """Return the id of a workload's container, once one runs."""
    with closing(engine.client()) as client:
        while True:
            for one in client.containers(filters={"label": ownership.SEAL}):
                if "sleep" in one["Command"]:
                    return one["Id"]
            time.sleep(0.02)


KILLED_SERVER = """
import sys, django
django.setup()
from backends_app.backends.gvisor import GVisorBackend
from backends_app.workloads import *
backend = GVisorBackend(engine=sys.argv[1], pool={{"{image}": 1}})
spec = WorkloadSpec(runtime="oci", image="{image}", command=("sleep", "99"),
                    resources=Resources(timeout_s=60))
backend.run(spec)
"""


def test_containers_of_a_killed_server_are_removed_by_the_next(engine: TestEngine, make, settings):
    settings.SECRET_KEY = "one-for-both"
    backend = make()
    assert backend.probe().healthy
    program = KILLED_SERVER.format(image=IMAGE)
    with subprocess.Popen(
        [sys.executable, "-c", program, engine.address],
        cwd=ROOT,
        env={**os.environ, "SECRET_KEY": "one-for-both", "GVISOR_ENGINE": engine.address},
    ) as server:
        running(engine)
        assert backend.probe().healthy
        assert running(engine)  # its server is alive
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert engine.containers()
    assert backend.probe().healthy
    assert engine.containers() == []


def test_foreign_containers_are_never_touched(engine: TestEngine, make, monkeypatch):
    backend = make()
    past = {**ownership.labels("vulcan-mine", 0), ownership.DEADLINE: "1"}
    sealed = ownership.labels("vulcan-sealed-for-another", -1000)
    with closing(engine.client()) as client:
        engine.image("forged:1", [f"LABEL {key}={value}" for key, value in sealed.items()])
        theirs = [
            client.create_container(IMAGE, "true", name="no-label"),
            client.create_container(IMAGE, "true", name="vulcan-like-ours"),
            client.create_container(IMAGE, "true", name="vulcan-mine", labels=past),
            client.create_container("forged:1", "true", name="vulcan-from-a-forged-image"),
        ]
        ours = client.create_container(
            IMAGE, "true", name="vulcan-old", labels=ownership.labels("vulcan-old", -1000)
        )
        assert backend.probe().healthy
        left = {one["Id"] for one in client.containers(all=True)}
        assert {one["Id"] for one in theirs} == left
        assert ours["Id"] not in left
        for one in theirs:
            client.remove_container(one["Id"])


def test_forged_image_label_does_not_affect_its_workload(engine: TestEngine, make):
    sealed = ownership.labels("vulcan-x", -1000)
    engine.image("forged:2", [f"LABEL {key}={value}" for key, value in sealed.items()])
    backend = make()
    spec = WorkloadSpec(runtime="oci", image="forged:2", command=("sh", "-c", "sleep 1; echo 1"))
    results = []
    thread = threading.Thread(target=lambda: results.append(backend.run(spec)))
    thread.start()
    while thread.is_alive():
        assert backend.probe().healthy  # sweeps, too
        thread.join(0.01)
    assert results[0].output == 1


def test_other_service_instead_of_an_engine_is_unhealthy(make):
    found = GVisorBackend(engine="tcp://127.0.0.1:9")
    assert isinstance(found.probe(), Health)
    with pytest.raises(BackendUnavailable):
        found.run(ECHO)


def test_forked_child_neither_uses_nor_removes_its_parents_warm_containers(
    engine: TestEngine, make
):
    backend = make(pool={IMAGE: 1})
    assert backend.run(ECHO).output == 1
    deadline = time.monotonic() + 30
    while not backend.warm_container_ids():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    warm = backend.warm_container_ids()
    child = os.fork()
    if child == 0:
        ended_well = backend.warm_container_ids() == set()
        backend.close()
        os._exit(0 if ended_well else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert backend.warm_container_ids() == warm
    with closing(engine.client()) as client:
        assert client.inspect_container(*warm)["State"]["Running"]
