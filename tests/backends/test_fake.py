"""The shipped test double keeps the contract, and plays what a test of a library user needs."""

import pytest

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.utils.strict_json import JSON
from backends_app.workloads import ExitReason, Status, WorkloadResult, WorkloadSpec
from tests.backends.contract import BackendContract, Programs


def play(workload: WorkloadSpec) -> JSON:
    """The code names what the program does."""
    if workload.code == "fails":
        raise RuntimeError("boom")
    return workload.input if workload.code == "echo" else None


class TestFakeBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend(program=play)

    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="python",
            echo={"code": "echo"},
            fails={"code": "fails"},
            nothing={"code": "nothing"},
        )


def test_default_program_echoes():
    assert FakeBackend().run(WorkloadSpec(code="", input=7)).output == 7


def test_program_may_return_a_whole_result():
    timeout = WorkloadResult(exit_reason=ExitReason.TIMEOUT)
    result = FakeBackend(program=lambda workload: timeout).run(WorkloadSpec(code=""))
    assert result is timeout
    assert result.status is Status.FAILED


def test_program_may_simulate_broken_infrastructure():
    def program(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("no power")

    with pytest.raises(BackendUnavailable, match="no power"):
        FakeBackend(program=program).run(WorkloadSpec(code=""))


def test_next_probe_reports_the_health_that_was_set():
    fake = FakeBackend()
    fake.health = Health.undetected("not installed")
    assert fake.probe().state == "undetected"


def test_number_of_recorded_workloads_is_bounded():
    fake = FakeBackend()
    for number in range(1100):
        fake.run(WorkloadSpec(code="", input=number))
    assert len(fake.workloads) == 1000
    assert fake.workloads[-1].input == 1099
